"""A hook of mkdocs: the pages of the site that are not files of this folder, and links as the site needs them.

README.md becomes the first page. Every other file outside docs/ that a page links to becomes a page too, so that each
link of the repository is also a link of the site, and `mkdocs build --strict` checks them all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
NAMED_FENCE = re.compile(r"^```(\w+) (\S+)$", re.MULTILINE)
SPAN_IN_TABLE = re.compile(r"`[^`\n]*`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of docs/, and a page for each file outside of it that a page links to."""
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    linked = {path for page in pages for path in links(page.read_text(encoding="utf-8"), page.parent)}
    for path in sorted({ROOT / "README.md", *linked}):
        if path.exists() and not path.is_relative_to(ROOT / "docs"):
            files.append(File.generated(config, uri_of(path), content=text_of(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page with links to pages of the site, and with blocks and tables that Python-Markdown reads as GitHub does."""
    uri = page.file.src_uri
    source = {uri_of(path): path for path in ROOT.glob("*.md")}.get(uri, ROOT / "docs" / uri)

    def link(found: re.Match[str]) -> str:
        if "://" in found[1]:
            return found[0]
        target = uri_of((source.parent / found[1]).resolve())
        return f"]({os.path.relpath(target, Path(uri).parent)}{found[2] or ''})"

    lines = NAMED_FENCE.sub(r'```\1 title="\2"', LINK.sub(link, markdown)).split("\n")
    return "\n".join(
        SPAN_IN_TABLE.sub(lambda span: span[0].replace("\\|", "|"), line) if line.startswith("|") else line
        for line in lines
    )


def links(text: str, folder: Path) -> Iterator[Path]:
    """What the links of a page lead to, links to other sites left out."""
    return ((folder / found[1]).resolve() for found in LINK.finditer(text) if "://" not in found[1])


def uri_of(path: Path) -> str:
    """The page of the site, or its image, that a file of the repository becomes."""
    inside = path.relative_to(ROOT)
    if inside.parts[0] == "docs":
        return inside.relative_to("docs").as_posix()
    if len(inside.parts) == 1 and inside.suffix == ".md":
        return "index.md" if inside.stem == "README" else f"{inside.stem.lower()}.md"
    return f"source/{inside.as_posix()}.md"


def text_of(path: Path) -> str:
    """A page of Markdown as it stands; any other file as a block, and a folder as one block for each file."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    blocks = [
        f"## {file.name}\n\n````{file.suffix[1:]}\n{file.read_text(encoding='utf-8')}````"
        for file in (sorted(path.iterdir()) if path.is_dir() else [path])
        if file.is_file()
    ]
    return "\n\n".join([f"# `{path.relative_to(ROOT).as_posix()}`", *blocks]) + "\n"
