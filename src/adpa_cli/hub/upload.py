"""A folder as a repository of the Hugging Face hub: who uploads, whether the name is free, and the upload itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from adpa_cli.errors import AdpaError, UsageError

NAME = re.compile(r"[\w.\-]+/[\w.\-]+")
OPTION = "--push-to-hub"
TOKENS = "https://huggingface.co/settings/tokens"
WRITE = f"make a token that may write on {TOKENS}, then: hf auth login"
WEIGHTS = ["*.safetensors", "*.safetensors.index.json", "*.gguf"]
"""What an earlier upload may have left that would be taken for part of the model."""


@dataclass(frozen=True)
class Target:
    """A repository that may be written; `is_public` says whether everybody sees it, `exists` whether it has files."""

    name: str
    is_public: bool
    exists: bool

    @property
    def visibility(self) -> str:
        """In a word."""
        return "public" if self.is_public else "private"


def check_name(name: str) -> None:
    """Raise UsageError unless `name` is that of a repository with its owner."""
    if not NAME.fullmatch(name):
        meant = f"{OPTION} ORG/{name}" if "/" not in name else f"{OPTION} ORG/NAME, of letters, digits, - _ and ."
        raise UsageError(
            f"{OPTION} takes the name of a repository with its owner; got {name}",
            f"{meant}; ORG is your user name on the hub, or an organisation of yours",
        )


def check(name: str, is_public: bool, force: bool) -> Target:
    """Where a model goes, before anything is computed for it: nothing is changed there.

    Raises AdpaError without a token that may write there or without a hub to ask, UsageError for a repository that has
    files already, unless it is to be replaced by `force`; it keeps its visibility.
    """
    from huggingface_hub import HfApi, constants, errors, get_token

    if constants.HF_HUB_OFFLINE:
        raise AdpaError(
            f"{OPTION} needs the hub, but HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE; repeat the command"
        )
    if get_token() is None:
        raise AdpaError(f"{OPTION} needs a token of the Hugging Face hub, and this machine has none", WRITE)
    api, owner = HfApi(), name.partition("/")[0]
    try:
        who = api.whoami()
        if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise AdpaError("the token on this machine may only read", WRITE)
        owners = [str(who["name"]), *(str(org["name"]) for org in who.get("orgs", ()))]
        if owner.lower() not in map(str.lower, owners):
            meant = f"{OPTION} {owners[0]}/{name.partition('/')[2]}"
            raise AdpaError(f"you are {owners[0]} on the hub, and no member of {owner}", meant)
        try:
            info = api.model_info(name)
        except errors.RepositoryNotFoundError:
            return Target(name, is_public, False)
    except AdpaError:
        raise
    except Exception as error:  # as in repository.commit_of
        raise refused(error, name) from error
    files = [file.rfilename for file in info.siblings or () if file.rfilename != ".gitattributes"]
    if files and not force:
        raise UsageError(
            f"{name} is on the hub already, with {len(files)} file{'s' * (len(files) != 1)}",
            f"choose another name\n or: {OPTION} {name} --force, which adds a commit to it with this model",
        )
    return Target(name, not info.private, True)


def upload(folder: Path, target: Target, title: str) -> str:
    """Make the repository where there is none, and put the files of a folder into it as one commit; its address.

    The weights of an earlier upload are removed by the same commit. Raises AdpaError; a repeated upload does not send
    again what has arrived.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        if not target.exists:
            api.create_repo(target.name, private=not target.is_public, exist_ok=True)
        api.upload_folder(
            repo_id=target.name, folder_path=folder, commit_message=f"Upload {title}", delete_patterns=WEIGHTS
        )
    except Exception as error:  # as in repository.commit_of
        raise refused(error, target.name, folder) from error
    return f"{api.endpoint}/{target.name}"


def refused(error: Exception, name: str, folder: Path | None = None) -> AdpaError:
    """What an exception of huggingface_hub means to somebody who uploads, with what to type."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    kept = f"; the export is kept in {folder}" if folder else ""
    again = f"hf upload {name} {folder}" if folder else "repeat the command"
    if status == 401:
        return AdpaError(f"the token on this machine is not valid{kept}", "hf auth login")
    if status == 403:
        return AdpaError(f"the token on this machine may not write to {name}{kept}", WRITE)
    cause = f"it answers {status}" if status else type(error.__cause__ or error).__name__
    return AdpaError(f"{name} could not be uploaded: the hub cannot be used ({cause}){kept}", again)
