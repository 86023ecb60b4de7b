"""Models and data sets of the Hugging Face hub: what one is at a commit, its files, and how they get to this machine.

What a hub says of a commit never changes, so it is asked once and remembered by the store; weights and data are fetched
only when they are read. What keeps a model or data set from us is collected, and one error lists it for a whole plan.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from adpa_cli.data.layouts import README, Ask, Layout, ask_datasets, holds_data, look, readme_in
from adpa_cli.data.sources import HUB_ID, PATTERNS, Source, source_files
from adpa_cli.disk import is_disk_full, write_atomic
from adpa_cli.errors import AdpaError, Corrupt, DataError, NotFound
from adpa_cli.hub import External, HubFile, Kind
from adpa_cli.hub.licences import stated
from adpa_cli.sizes import size_words
from adpa_cli.store.identity import (
    ADAPTER,
    ADAPTER_BASE,
    HashCache,
    NoModel,
    adapter_config,
    adapter_digest,
    determining,
    digest_of,
    file_digest,
    json_object,
    model_files,
)

LOG_IN = "hf auth login, then accept the licence on the model's page"
WEIGHTS = ".safetensors"
EVERY_SECONDS = 20.0
COMMIT = re.compile(r"[0-9a-f]{40}")


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
        hint = "free some space, or keep the cache on another disk: export HF_HOME=DIR; then run the command again"
        return Closed(name, f"the disk of the Hugging Face cache is full ({constants.HF_HUB_CACHE})", hint)
    hint = "keep the cache in a folder that you can write to: export HF_HOME=DIR"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return Closed(name, f"the Hugging Face cache cannot be written ({error.filename})", hint)
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's words
        return Closed(name, "this user has no home folder, where the Hugging Face cache would be", hint)
    status = getattr(getattr(error, "response", None), "status_code", None)
    what = "data set" if kind == "dataset" else "model"
    page = f"https://huggingface.co/{'datasets/' * (kind == 'dataset')}{name}"
    if isinstance(error, errors.GatedRepoError):
        if get_token() is None:
            return Closed(name, "gated, and there is no token on this machine", LOG_IN)
        return Closed(name, "gated, and the owner of this token has not accepted its licence", f"accept it on {page}")
    if isinstance(error, errors.RevisionNotFoundError):
        return Closed(name, f"there is no revision {revision}", f"leave the revision out: {name}", exit_code=3)
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "" if get_token() else "; a private one needs: hf auth login"
        hint = f"check the spelling; if it is a folder, write ./{name}{private}"
        return Closed(name, f"there is no such {what} on the hub" + _folder(name), hint, exit_code=3)
    if isinstance(error, errors.HFValidationError):
        return Closed(name, "this cannot be a name on the hub", f"if it is a folder, write ./{name}", exit_code=3)
    if status == 401:
        return Closed(name, "the token on this machine is not valid", "hf auth login")
    if status == 403:
        return Closed(name, "the owner of this token has no access to it", f"ask for access on {page}")
    if isinstance(error, errors.HfHubHTTPError) and status is not None and status < 500:
        return Closed(
            name, f"the hub answered with the error {status}", "run the same command again; the download resumes"
        )
    if constants.HF_HUB_OFFLINE or isinstance(error, errors.OfflineModeIsEnabled):
        return _not_here(name)
    cause = type(error.__cause__ or error).__name__ if status is None else str(status)
    hint = "connect and repeat the command, or name folders (./NAME) instead; the built-in tiny needs no network"
    return Closed(
        name, f"not on this machine, and the hub cannot be reached ({cause})" + _folder(name), hint, away=True
    )


@dataclass(frozen=True)
class Access:
    """Collects what is closed while a plan is made, so that one error says it all.

    `argv` is the command that makes the plan, where it is one that `adpa plan` takes.
    """

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
        shut = [why for why in self.asked.values() if why is not None]
        if not shut:
            return None
        verb = f"{'are' if len(shut) > 1 else 'is'} not possible"
        total = f"{len(self.asked)} download{'s' * (len(self.asked) > 1)}"
        width = max(len(why.name) for why in shut)
        lines = [f"{len(shut)} of {total} {verb}, and nothing was started"]
        lines += [f"  {why.name:<{width}}   {why.reason}" for why in shut]
        command = shlex.join(self.argv) or "…"
        hints = [why.hint.replace("adpa plan …", f"adpa plan {command}") for why in shut]
        if any("licence" in why.reason or why.hint == LOG_IN for why in shut):
            hints += self._instead({why.name for why in shut})
        missing = all(why.exit_code == NotFound.exit_code for why in shut)
        return (NotFound if missing else AdpaError)("\n".join(lines), "\n or: ".join(dict.fromkeys(hints)))

    def _instead(self, names: set[str]) -> list[str]:
        """The same training with models that need no licence."""
        argv = list(self.argv)
        open_family = {"--student": "danube2-1.8b", "--teacher": "zephyr-7b"}
        is_distillation = any(word.startswith("--method") for word in argv)
        if not is_distillation or any("danube" in name or "zephyr" in name for name in names):
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


def commit_of(name: str, revision: str | None, kind: Kind) -> str:
    """The commit that a hub name stands for now; without a hub, the one in the Hugging Face cache. Raises Closed."""
    from huggingface_hub import HfApi

    if revision and COMMIT.fullmatch(revision):
        return revision
    try:
        offline(name)
        return str(HfApi().repo_info(name, revision=revision, repo_type=kind).sha)
    except Exception as error:  # whatever HTTP library lies under huggingface_hub in this version raises its own
        why = closed(error, name, revision, kind)
        known = cached_commit(name, revision or "main", kind) if why.away else None
        if known is None:
            raise why from error
        return known


def model(name: str, commit: str, cache: HashCache) -> External:
    """A hub model at a commit, by the digest that the folder would have; an adapter comes with its base.

    Raises Closed, DataError, Corrupt.
    """
    said = _said(name, "model", commit, cache)
    if said is None:
        files = _local_model(name, commit, cache)
    else:
        names = sorted(path for path in said["files"] if "/" not in path)
        here = snapshot(name, "model", commit)
        wanted = determining(names, f"{name}@{commit[:8]}", lambda file: _get(name, "model", commit, file).read_bytes())
        for small in (file for file in wanted if not file.endswith(WEIGHTS) and not os.path.exists(here / file)):
            _get(name, "model", commit, small)
        files = _hashed(name, "model", commit, said["files"], wanted, cache)
    facts: dict[str, Any] = {"name": name, "commit": commit}
    shas = {file.name: file.sha for file in files}
    sha, place = digest_of(shas), snapshot(name, "model", commit)
    if ADAPTER in shas:
        read = {file.name: file.path.read_bytes() for file in files if file.name in (ADAPTER, ADAPTER_BASE)}
        config = adapter_config(read[ADAPTER], f"{name}@{commit[:8]}")
        made_on = json_object(read.get(ADAPTER_BASE, b"{}"), f"{name}@{commit[:8]}/{ADAPTER_BASE}")
        base = base_model(str(config.get("base_model_name_or_path") or ""), config.get("revision"), name, cache)
        sha = adapter_digest(shas, config, made_on, base.content.partition(":")[2])
        facts["base"], files = dict(base.facts), (*files, *base.files)
    return External(f"model:{sha}", f"{name}@{commit[:4]}", (str(place),), facts, *sizes(files), files)


def base_model(base: str, revision: str | None, adapter: str, cache: HashCache) -> External:
    """The model of the hub that an adapter was trained on: at the commit that its revision has in the Hugging Face
    cache, where the adapter's reader looks for it, else at the one that the hub says, which is noted there.

    Raises as `model` does, and DataError for a base that is no hub name, or an adapter itself.
    """
    if not HUB_ID.fullmatch(base):
        raise DataError(
            f"{adapter} is an adapter of {base or 'a model that it does not name'}, which is no model of the hub",
            "fetch the adapter (hf download NAME --local-dir DIR), write where its base lies into "
            f"DIR/{ADAPTER} as base_model_name_or_path, and name ./DIR",
        )
    said = revision or "main"
    commit = cached_commit(base, said, "model")
    if commit is None:
        commit = commit_of(base, revision, "model")
        if not COMMIT.fullmatch(said):
            write_atomic(_cached(base, "model") / "refs" / said, commit.encode())
    found = model(base, commit, cache)
    if any(file.name == ADAPTER for file in found.files):
        raise DataError(
            f"{adapter} is an adapter of {base}, which is an adapter itself",
            f"merge the two once: adpa export {base} MERGED; then write MERGED into a copy of {adapter}",
        )
    return found


def data_files(source: Source, commit: str, cache: HashCache) -> tuple[tuple[HubFile, ...], list[str], list[str]]:
    """The files that determine a hub data set at a commit, as `source_files` lists them, the split of each, and the
    names of the data files that no split names.

    Raises as `model`.
    """
    name = source.base
    listed = listed_files(name, commit, cache)
    if not any(holds_data(path) for path in map(PurePosixPath, listed)):
        raise DataError(f"{name}: no data files in this data set", "name one with .parquet, .jsonl or .csv files")
    layout = look(map(PurePosixPath, listed), readme_in(snapshot(name, "dataset", commit)), name, asking(cache))
    files = source_files(source, layout)
    hashed = hashed_files(name, commit, listed, [path for path, _ in files], cache)
    return hashed, [split for _, split in files], list(layout["left_out"])


def listed_files(name: str, commit: str, cache: HashCache) -> Mapping[str, Any]:
    """{path: [bytes, sha256 or ""]} of the files of a hub data set at a commit; its README.md is fetched, to be read
    beside the data. Raises Closed."""
    said = _said(name, "dataset", commit, cache)
    folder = snapshot(name, "dataset", commit)
    if said is None:
        _whole_data(name, commit)
        here = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
        return {path: [(folder / path).stat().st_size, ""] for path in here}
    listed: Mapping[str, Any] = said["files"]
    if README in listed and not os.path.exists(folder / README):
        _get(name, "dataset", commit, README)
    return listed


def hashed_files(
    name: str, commit: str, listed: Mapping[str, Any], wanted: Sequence[str], cache: HashCache
) -> tuple[HubFile, ...]:
    """Some of the `listed_files` of a hub data set, with their digests."""
    return _hashed(name, "dataset", commit, listed, wanted, cache)


def asking(cache: HashCache) -> Ask:
    """How the datasets library is asked for the layout of files, once for all plans of a store."""

    def ask(names: tuple[str, ...], readme: str) -> Layout:
        key = f"layout/{hashlib.sha256(json.dumps([names, readme]).encode()).hexdigest()}"
        layout = cache.recall(key)
        if layout is None:
            layout = ask_datasets(names, readme)
            cache.remember(key, layout)
        return dict(layout)

    return ask


def sizes(files: Sequence[HubFile]) -> tuple[int, int]:
    """(bytes of some files, bytes of those that are not on this machine)."""
    return sum(file.size for file in files), sum(file.size for file in files if not os.path.exists(file.path))


def base_of(name: str, commit: str, cache: HashCache) -> str:
    """The model that a model's card names as the one it was made from; "" when nothing is at hand."""
    return str((cache.recall(f"model/{name}@{commit}") or {}).get("base", ""))


def licence_of(name: str, commit: str, kind: Kind, cache: HashCache, ask: bool) -> str:
    """The licence that the card of a model or data set states at a commit; "" for none, or where nobody can be asked.

    Without `ask` only what was once asked is known.
    """
    said = cache.recall(f"{kind}/{name}@{commit}") or {}
    if "licence" in said or not ask:
        return str(said.get("licence", ""))
    from huggingface_hub import HfApi

    try:
        offline(name)
        card = getattr(HfApi().repo_info(name, revision=commit, repo_type=kind), "card_data", None)
    except Exception:  # see commit_of; a licence that nobody tells is unknown, which is said
        return ""
    return stated(getattr(card, "license", None), getattr(card, "license_name", None))


def fetch(files: Sequence[HubFile], cache: HashCache, note: Callable[[str], None]) -> None:
    """Bring what is missing to this machine, going on where an earlier try stopped, and check all of it.

    Raises Closed, and Corrupt (file named) for bytes that are not those the hub announced when it was planned with.
    """
    for repo, own in _by_repo(files):
        missing = [file for file in own if not os.path.exists(file.path)]
        left = sum(file.size for file in missing)
        if missing:
            note(f"download {repo}: {size_words(left)} in {len(missing)} file{'s' * (len(missing) > 1)}")
        for file in missing:
            _get(file.repo, file.kind, file.commit, file.name, note)
            left -= file.size
            note(f"  {file.name} is here" + (f", {size_words(left)} to go" if left else ""))
        for file in own:
            if file_digest(file.path, cache) != file.sha:
                raise Corrupt(
                    f"{file.name} of {repo} is not what the hub announced: its sha256 is not {file.sha[:12]}…",
                    f"delete {file.path.resolve()} and {file.path}, then repeat the command; it is fetched again",
                )
        if own[0].kind == "model" and not any(file.name == ADAPTER for file in own):
            cache.put_folder(own[0].path.parent, digest_of({file.name: file.sha for file in own}))


def snapshot(name: str, kind: Kind, commit: str) -> Path:
    """The folder of the Hugging Face cache that holds a repository at a commit."""
    return _cached(name, kind) / "snapshots" / commit


def title(folder: Path) -> str:
    """How people call a model folder: the name of a hub model in the Hugging Face cache, else the folder's."""
    repo = folder.parent.parent.name.partition("--")[2]
    return repo.replace("--", "/") if folder.parent.name == "snapshots" and repo else folder.name


def _not_here(name: str) -> Closed:
    hint = "on a machine with network: adpa plan … --fetch"
    hint = f"for the folder: ./{name}" if _folder(name) else hint
    return Closed(name, "not on this machine, and HF_HUB_OFFLINE is set" + _folder(name), hint, away=True)


def _folder(name: str) -> str:
    return f" · a folder {name} is here" if Path(name).is_dir() else ""


def _cached(name: str, kind: Kind) -> Path:
    from huggingface_hub import constants

    return Path(os.path.expanduser(constants.HF_HUB_CACHE)).absolute() / "--".join([f"{kind}s", *name.split("/")])


def cached_commit(name: str, revision: str, kind: Kind) -> str | None:
    """The commit that a revision has in the Hugging Face cache; None where its files are not there."""
    ref = _cached(name, kind) / "refs" / revision
    commit = revision if COMMIT.fullmatch(revision) else ref.read_text().strip() if os.path.isfile(ref) else ""
    return commit if commit and os.path.isdir(snapshot(name, kind, commit)) else None


def _said(name: str, kind: Kind, commit: str, cache: HashCache) -> Mapping[str, Any] | None:
    """{"files": {path: [bytes, sha256 or ""]}, "base": …, "licence": …} by the hub, asked once; None where it cannot be
    asked, and the cache must do."""
    key = f"{kind}/{name}@{commit}"
    if (known := cache.recall(key)) is not None:
        return dict(known)
    from huggingface_hub import HfApi

    try:
        offline(name)
        info = HfApi().repo_info(name, revision=commit, repo_type=kind, files_metadata=True)
    except Exception as error:  # see commit_of
        why = closed(error, name, commit, kind)
        if why.away and os.path.isdir(snapshot(name, kind, commit)):
            return None
        raise why from error
    listed = {s.rfilename: [s.size or 0, s.lfs.sha256 if s.lfs else ""] for s in getattr(info, "siblings", None) or ()}
    card = getattr(info, "card_data", None)
    base = getattr(card, "base_model", None) or ""
    said = {
        "files": listed,
        "base": base if isinstance(base, str) else str(base[0]) if len(base) == 1 else "",
        "licence": stated(getattr(card, "license", None), getattr(card, "license_name", None)),
    }
    cache.remember(key, said)
    return said


def _local_model(name: str, commit: str, cache: HashCache) -> tuple[HubFile, ...]:
    """A model that is whole in the Hugging Face cache, when nobody can say what belongs to it."""
    folder = snapshot(name, "model", commit)
    try:
        listed = {file: [(folder / file).stat().st_size, ""] for file in model_files(folder)}
    except NoModel:
        raise
    except DataError as error:
        raise closed(error, name, commit, "model") from error
    return _hashed(name, "model", commit, listed, list(listed), cache)


def _whole_data(name: str, commit: str) -> None:
    """Raise Closed unless the Hugging Face cache knows that it has all of a data set: part of one is another one."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, repo_type="dataset", revision=commit, allow_patterns=PATTERNS, local_files_only=True)
    except Exception as error:  # see commit_of
        raise closed(error, name, commit, "dataset") from error


def _hashed(
    name: str, kind: Kind, commit: str, listed: Mapping[str, Any], wanted: Sequence[str], cache: HashCache
) -> tuple[HubFile, ...]:
    """The wanted files with their digests; those that the hub keeps without one are small, and fetched for it."""
    hashed = []
    for path in wanted:
        size, sha = listed[path]
        place = snapshot(name, kind, commit) / path
        if not sha:
            sha = file_digest(place if os.path.exists(place) else _get(name, kind, commit, path), cache)
        hashed.append(HubFile(name, kind, commit, path, size, sha, place))
    return tuple(hashed)


def _get(name: str, kind: Kind, commit: str, path: str, note: Callable[[str], None] = lambda text: None) -> Path:
    """One file in the Hugging Face cache, fetched if it is not there, without a bar. Raises Closed."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, path, revision=commit, repo_type=kind, tqdm_class=_meter(path, note)))
    except Exception as error:  # see commit_of
        raise closed(error, name, commit, kind) from error


def _meter(name: str, note: Callable[[str], None]) -> Any:
    """What huggingface_hub counts the bytes of a file with: a line now and then instead of a bar."""
    from tqdm import tqdm

    class Meter(tqdm):  # type: ignore[misc]  # untyped
        monitor_interval = 0

        def __init__(self, *_: Any, total: float | None = None, initial: float = 0, **__: Any) -> None:
            super().__init__(total=total, initial=initial, mininterval=EVERY_SECONDS, miniters=1)

        def display(self, *_: Any, **__: Any) -> bool:
            if self.total and 0 < self.n < self.total:
                note(f"  {name}: {size_words(int(self.n))} of {size_words(int(self.total))}")
            return True

    return Meter


def _by_repo(files: Sequence[HubFile]) -> Iterator[tuple[str, list[HubFile]]]:
    for repo in dict.fromkeys((file.repo, file.kind, file.commit) for file in files):
        own = [file for file in files if (file.repo, file.kind, file.commit) == repo]
        yield f"{repo[0]}@{repo[2][:4]}", own
