"""What may be a tag."""

from __future__ import annotations

import re
from collections.abc import Collection

from adpa_cli.errors import UsageError

DIGITS = re.compile(r"[0-9a-f]{4,64}")
"""An id, or enough of its beginning."""
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


def check_tag(name: str, reserved: Collection[str] = ()) -> None:
    """Raise UsageError for a name that could be taken for an id, a path or one of `reserved` (aliases, words)."""
    if not TAG.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a tag", "use letters, digits and . _ + -, at most 64, no / or @")
    if DIGITS.fullmatch(name.lower()):
        raise UsageError(f"{name} looks like an id", f"choose a name that has other letters, e.g. run-{name}")
    if name in reserved:
        raise UsageError(f"{name} is a built-in name", f"choose another, e.g. my-{name}")
