"""Where a server listens, and what of its URL may be shown: nothing that is said or kept holds a password or a key."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from adpa_cli.errors import UsageError

HIDDEN = "…"
"""What is shown instead of a URL that cannot be read."""
JUDGE_URL, BASE_URL = "--judge-url", "--base-url"
"""The options whose value is the URL of a server."""


@dataclass(frozen=True)
class Address:
    """Where a server listens. The URL may hold a user, a password and a query; `place` is what of it is shown.

    Raises UsageError for what is no URL.
    """

    option: ClassVar[str]
    """What the URL is given with."""
    key: ClassVar[str]
    """The environment variable that holds the key of the server."""
    url: str = field(repr=False)

    def __post_init__(self) -> None:
        parts = None if shown_url(self.url) == HIDDEN else urlsplit(self.url)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise UsageError(
                f"{self.option} is not a valid URL of a server",
                f"give one such as {self.option} http://localhost:8000/v1; in a user or password, / ? # @ are "
                "%2F %3F %23 %40",
            )

    @property
    def place(self) -> str:
        """The URL without user, password, query and fragment."""
        return shown_url(self.url)

    @property
    def basic(self) -> str:
        """User and password as HTTP sends them; empty where the URL has none."""
        parts = urlsplit(self.url)
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        return "" if user == ":" else base64.b64encode(user.encode()).decode()

    @property
    def secrets(self) -> list[str]:
        """What nobody may read: the key, and what the URL holds beside its place."""
        parts = urlsplit(self.url)
        user = (unquote(parts.username or ""), unquote(parts.password or ""))
        typed = [field.partition("=")[2] for field in parts.query.split("&")]
        query = [value for _, value in parse_qsl(parts.query)]
        said = (os.environ.get(self.key), self.basic, parts.password, parts.username, *user, *typed, *query)
        return [text for text in said if text]

    def without_secrets(self, text: str, shortest: int = 1) -> str:
        """A text of the server without them, or without those of so many characters."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, "…") if len(secret) >= shortest else text
        return text


def shown_url(url: str) -> str:
    """A URL without user, password, query and fragment; what is none is not shown."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for a port that is none
    except ValueError:  # of a port that is none, or of half an IPv6 address
        return HIDDEN
    is_split = "@" in url and "@" not in parts.netloc and "@" in parts.path  # by a / in a password
    if "://" not in url or is_split:
        return HIDDEN
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
