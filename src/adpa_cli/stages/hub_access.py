"""What keeps a hub model or data set from us, and the one error that lists it for a whole plan."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adpa_cli.errors import AdpaError, NotFound
from adpa_cli.spec import STAGE_VERSIONS
from adpa_cli.store.disk import is_disk_full

LOG_IN = "hf auth login, then accept the licence on the model's page"


class Closed(AdpaError):
    """A hub input that cannot be had: `reason` in a few words; `away` when no hub was there to ask."""

    def __init__(self, name: str, reason: str, hint: str, away: bool = False, exit_code: int = 1) -> None:
        super().__init__(f"{name}: {reason}", hint)
        self.name = name
        self.reason = reason
        self.away = away
        self.exit_code = exit_code


def offline(name: str) -> None:
    """Raise Closed when HF_HUB_OFFLINE is set: then nothing is asked of the hub."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise _not_here(name)


def closed(error: Exception, name: str, revision: str | None, kind: str) -> Closed:
    """What an exception of huggingface_hub means to a user."""
    from huggingface_hub import constants, errors, get_token

    if isinstance(error, Closed):
        return error
    if is_disk_full(error):
        hint = "free some space, or keep the cache on another disk: export HF_HOME=DIR; the same command goes on"
        return Closed(name, f"the disk of the Hugging Face cache is full ({constants.HF_HUB_CACHE})", hint)
    if isinstance(error, PermissionError):
        hint = "keep the cache where you may write: export HF_HOME=DIR"
        return Closed(name, f"the Hugging Face cache cannot be written ({error.filename})", hint)
    status = getattr(getattr(error, "response", None), "status_code", None)
    what = "data set" if kind == "dataset" else "model"
    page = f"https://huggingface.co/{'datasets/' * (kind == 'dataset')}{name}"
    if isinstance(error, errors.GatedRepoError):
        if get_token() is None:
            return Closed(name, "gated · no token on this machine", LOG_IN)
        return Closed(name, "gated · its licence is not accepted by the owner of this token", f"accept it on {page}")
    if isinstance(error, errors.RevisionNotFoundError):
        return Closed(name, f"no revision {revision}", f"leave it out: {name}", exit_code=3)
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "" if get_token() else "; a private one needs: hf auth login"
        hint = f"check the spelling; a folder is written ./{name}{private}"
        return Closed(name, f"no such {what} on the hub" + _folder(name), hint, exit_code=3)
    if isinstance(error, errors.HFValidationError):
        return Closed(name, "no name that the hub could have", f"a folder is written ./{name}", exit_code=3)
    if status == 401:
        return Closed(name, "the token on this machine is not valid", "hf auth login")
    if status == 403:
        return Closed(name, "not open to the owner of this token", f"ask for access on {page}")
    if isinstance(error, errors.HfHubHTTPError) and status is not None and status < 500:
        return Closed(name, f"the hub answers {status}", "repeat the command; it goes on")
    if constants.HF_HUB_OFFLINE or isinstance(error, errors.OfflineModeIsEnabled):
        return _not_here(name)
    cause = type(error.__cause__ or error).__name__ if status is None else str(status)
    hint = "connect and repeat the command, or name folders (./NAME) instead; the built-in tiny needs no network"
    return Closed(name, f"not on this machine · the hub cannot be reached ({cause})" + _folder(name), hint, away=True)


def _not_here(name: str) -> Closed:
    hint = "on a machine with network: adpa plan … --fetch"
    hint = f"for the folder: ./{name}" if _folder(name) else hint
    return Closed(name, "not on this machine · HF_HUB_OFFLINE is set" + _folder(name), hint, away=True)


def _folder(name: str) -> str:
    return f" · a folder {name} is here" if Path(name).is_dir() else ""


@dataclass(frozen=True)
class Access:
    """Collects what is closed while a plan is made for the command line `argv`, so that it is told all at once."""

    argv: Sequence[str] = ()
    asked: dict[str, Closed | None] = field(default_factory=dict)

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Refuse the plan made inside, also one that broke off because of what could not be looked at."""
        try:
            yield
        except AdpaError as error:
            if refused := self.refused():
                raise refused from error
            raise
        if refused := self.refused():
            raise refused

    def refused(self) -> AdpaError | None:
        """One error with everything that is closed; None when nothing is."""
        found = [why for why in self.asked.values() if why is not None]
        if not found:
            return None
        many = len(found) > 1
        verb = f"{'are' if many else 'is'} not {'here' if all(why.away for why in found) else 'open to you'}"
        total = f"{len(self.asked)} download{'s' * (len(self.asked) > 1)}"
        width = max(len(why.name) for why in found)
        lines = [f"{len(found)} of {total} {verb} (nothing was started)"]
        lines += [f"  {why.name:<{width}}   {why.reason}" for why in found]
        command = shlex.join(self.argv) if self.argv and self.argv[0] in STAGE_VERSIONS else "…"
        hints = [why.hint.replace("adpa plan …", f"adpa plan {command}") for why in found]
        if any("licence" in why.reason or why.hint == LOG_IN for why in found):
            hints += self._instead({why.name for why in found})
        missing = all(why.exit_code == NotFound.exit_code for why in found)
        return (NotFound if missing else AdpaError)("\n".join(lines), "\n or: ".join(dict.fromkeys(hints)))

    def _instead(self, names: set[str]) -> list[str]:
        """The same training with models that need no licence."""
        argv = list(self.argv)
        open_family = {"--student": "danube2-1.8b", "--teacher": "zephyr-7b"}
        if argv[:1] != ["distill"] or any("danube" in name or "zephyr" in name for name in names):
            return []
        kept: list[str] = []
        words = iter(argv)
        for word in words:
            option = word.partition("=")[0]
            if option in (*open_family, "--reference"):
                if "=" not in word:
                    next(words, None)
            else:
                kept.append(word)
        return [shlex.join(["adpa", *kept, *(w for pair in open_family.items() for w in pair)])]
