"""Pages as a browser shows them: quiet, alone with themselves, legible in both modes, and usable without a mouse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.chromium import Browser, Page, chromium
from support.cli_samples import Cli, Pipeline

LEAST_CONTRAST = 4.5  # of WCAG 2.2, level AA


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def check_everywhere(page: Page, path: Path) -> None:
    """In wide and narrow windows, light and dark: no complaint, no request, nothing cut off, all text legible."""
    for width in (1280, 390):
        for dark in (False, True):
            page.open(path, width, dark=dark)
            assert page.problems == []
            assert page.requests == []
            assert page.run("document.documentElement.scrollWidth") == width
            ratio, text = page.contrasts[0]
            assert ratio >= LEAST_CONTRAST, (width, dark, text)


def test_the_tokens_of_a_row(browser: Browser, pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "row.html"
    assert cli("show", pipeline.made("signal #2"), "--row", 3, "--html", path).code == 0
    page = browser.page()
    check_everywhere(page, path)
    stops = " ".join(page.open(path).tab_stops())
    assert all(name in stops for name in ("INPUT.m-a", "DIV.answer", "DIV.here"))
    page.run("document.querySelector('.answer').focus()")
    shown = "document.querySelector('.here h3').textContent"
    assert page.run(shown).startswith("Token 1 of")
    page.key("ArrowRight")
    assert page.run(shown).startswith("Token 2 of")
    page.key("End")
    count = page.run("document.querySelectorAll('.answer i').length")
    assert page.run(shown).startswith(f"Token {count} of {count}")
    tokens = "[...document.querySelectorAll('.answer i')]"
    ground = f"{tokens}.map(token => getComputedStyle(token).backgroundColor).join()"
    page.run("document.querySelector('.m-a').focus()")
    grounds = {page.run(ground)}
    for _ in range(3):
        page.key("ArrowRight")
        grounds.add(page.run(ground))
    assert page.run("document.querySelector('.m-e').checked")
    assert len(grounds) > 1


def test_tokens_are_readable_without_scripts(browser: Browser, pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "row.html"
    assert cli("show", pipeline.made("signal #2"), "--row", 1, "--html", path).code == 0
    page = browser.page().open(path, scripts=False)
    text = page.run("document.body.innerText")
    assert "most probable here" in text
    assert "Point at a token" not in text


def test_the_report_of_two_models(browser: Browser, pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert cli("report", pipeline.made("distill dckd"), pipeline.made("distill adpa"), "--to", path).code == 0
    page = browser.page()
    check_everywhere(page, path)
    page.open(path, 794, dark=True).send("Emulation.setEmulatedMedia", media="print")
    assert page.run("document.documentElement.scrollWidth") == 794  # nothing is cut off on paper
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    stops = " ".join(page.open(path).tab_stops())
    assert all(name in stops for name in ("Scores", "SUMMARY.", "INPUT.", "SELECT.", "DIV.answer", "DIV.graph Lineage"))
    assert page.run("document.querySelectorAll('.graph a').length") == stops.count("SVGAnimatedString")
    page.run("document.querySelector('#words').focus()")
    page.send("Input.insertText", text="nowhere to be found")
    assert page.run("[...document.querySelectorAll('.sample')].every(one => one.hidden)")
    page.run("document.querySelector('.graph a').focus()")
    page.key("Enter")
    target = page.run("location.hash")
    assert page.run(f"document.querySelector('{target} pre').checkVisibility()")


def test_a_report_is_readable_without_scripts(browser: Browser, pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert cli("report", pipeline.made("distill adpa"), "--to", path).code == 0
    page = browser.page().open(path, scripts=False)
    text = page.run("document.body.innerText")
    assert all(words in text for words in ("Scores", "reward accuracy", "Answers side by side", "most probable here"))
    assert "Filter" not in text
