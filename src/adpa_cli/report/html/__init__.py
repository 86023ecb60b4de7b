"""Pages of HTML that hold all they need: one file without scripts, styles, fonts or pictures from anywhere else.

A page is readable without JavaScript, follows the dark or light mode of its reader and prints in the light one. Its
security policy forbids every request, so that a page with texts of a model in it can be opened without worry.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli.disk import write_atomic
from adpa_cli.errors import AdpaError, UsageError

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    env.globals["file"] = lambda name: (TEMPLATES / name).read_text(encoding="utf-8")
    env.filters["data"] = as_data
    return env


def render(template: str, **values: Any) -> str:
    """A page from one of the templates beside this file; what `values` hold is escaped."""
    return _environment().get_template(template).render(**values)


def as_data(value: Any) -> str:
    """JSON that may stand inside a script element, whatever texts it holds; numbers that are not finite are refused."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def checked_path(option: str, name: str) -> Path:
    """The file that a page is to be written to. Raises UsageError for a name that is no page, and for a folder that is
    not there."""
    path = Path(name)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{option} {name} does not end with .html", f"name a page, e.g. {option} {path.stem}.html")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {name}: there is no folder {path.parent}", "name a file in a folder that exists")
    return path


def save(path: Path, text: str) -> None:
    """Write a page whole or not at all. Raises AdpaError where the disk refuses it."""
    try:
        write_atomic(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise AdpaError(f"{path} cannot be written: {error.strerror}", "name a file in a folder of yours") from error
