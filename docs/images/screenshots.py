"""The pictures of README: `python docs/images/screenshots.py FOLDER` writes them beside this file.

FOLDER is where `adpa distill --method adpa+ --student tiny` was run. Debian's chromium shows the pages of `adpa report`
and `adpa show --html`, in their light colours.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from support.chromium import chromium  # noqa: E402  once tests/ is on the path

MODELS = {
    "start": "student", "dckd": "distill dckd", "adpa": "distill adpa", "reference": "reference teacher",
    "aligned": "aligned teacher",
}  # fmt: skip
"""The roles of the models, by the tags that they get here, in the order of the closing table."""
ROW, TOKEN, WIDTH = 3966, 11, 1240
"""The row whose tokens are shown, the token that is pointed at, and the width of the window in pixels."""


def adpa(*words: str, folder: Path) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "adpa_cli", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def photograph(page: Any, path: Path, first: str, last: str) -> None:
    """Write what stands from the top of an element of an open page to that of another one, or to the page's end."""
    top = page.run(f"document.querySelector('{first}').getBoundingClientRect().top")
    if last:
        bottom = page.run(f"document.querySelector('{last}').getBoundingClientRect().top")
    else:
        bottom = page.run("document.documentElement.scrollHeight")
    clip = {"x": 0, "y": top - 12, "width": WIDTH, "height": bottom - top, "scale": 1}
    taken = page.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    path.write_bytes(base64.b64decode(taken["data"]))


def main(folder: Path) -> None:
    """Write both pictures."""
    roles = {}
    for path in folder.glob("adpa-store/*/*/manifest.json"):
        roles[json.loads(path.read_text(encoding="utf-8"))["made"]["role"]] = f"{path.parts[-3]}/{path.parts[-2]}"
    for tag, role in MODELS.items():
        adpa("tag", tag, roles[role], folder=folder)
    with tempfile.TemporaryDirectory() as scratch:
        pages = [Path(scratch, name) for name in ("report.html", "row.html")]
        adpa("report", *MODELS, "--to", str(pages[0]), folder=folder)
        words = ("--row", str(ROW), "--html", str(pages[1]), "--student", "start")
        adpa("show", "cache-teacher@latest", *words, folder=folder)
        with chromium(Path(scratch, "profile")) as browser:
            page = browser.page()
            photograph(page.open(pages[0], WIDTH), HERE / "report.png", "#scores", "figure:nth-of-type(3)")
            page.open(pages[1], WIDTH).run("document.querySelector('.answer').focus()")
            for _ in range(TOKEN):
                page.key("ArrowRight")
            photograph(page, HERE / "tokens.png", "h3", "")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
