"""What a name on the command line means: an alias by the role asked for, an artifact, a folder, a hub id, a data set.

Everything here reads JSON and hashes files; nothing loads a model.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from adpa_cli.data.sources import HUB_ID, Source, located, parse_source, source_files, split_name
from adpa_cli.errors import AdpaError, DataError, NotFound, UsageError
from adpa_cli.families import DATA_ALIASES, Alias, ReadyPair, aliases, ready_pairs
from adpa_cli.stages.graph import Artifact, External
from adpa_cli.store.contents import file_digest, model_digest
from adpa_cli.store.identity import canonical
from adpa_cli.store.store import Store

BUILTIN = "builtin:"
MODEL_STAGES = ("sft", "dpo-teacher", "distill")


@dataclass(frozen=True)
class Names:
    """Resolves names against one store; `refresh` asks the hub again what a pinned name means now."""

    store: Store
    refresh: bool = False

    def model(self, text: str, option: str) -> Alias | ReadyPair | Artifact | External:
        """What a model option means. Raises UsageError on an empty value or two meanings, NotFound otherwise."""
        if not text:
            raise UsageError(f"{option} is empty", "the command before it may have failed; give a model")
        if text.startswith((".", "/", "~")):
            return self.folder(Path(text).expanduser(), text)
        known: dict[str, Alias | ReadyPair] = {**aliases(), **ready_pairs()}
        if text in known:
            if text in self.store.tags():
                raise UsageError(f"{text} is both an alias and a tag", f"the tag's artifact: {self.store.tags()[text]}")
            return known[text]
        if HUB_ID.fullmatch(text) and text.split("/")[0] not in (*MODEL_STAGES, "rollout", "cache-teacher", "eval"):
            return self.hub_model(text)
        return self.made(text, MODEL_STAGES, option)

    def made(self, text: str, stages: Sequence[str], option: str) -> Artifact:
        """The artifact of one of `stages` that `text` names."""
        if not text:
            raise UsageError(f"{option} is empty", "the command before it may have failed; give an id")
        try:
            found = self.store.resolve(text)
        except NotFound as error:
            close = difflib.get_close_matches(text, [*aliases(), *ready_pairs()], n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close and "/" not in text else error.hint
            raise NotFound(f"{option} {text}: {error.message}", hint) from None
        if found.stage not in stages:
            raise UsageError(
                f"{option} {text}: {found.ref} is no {' or '.join(stages)}", "see what there is: adpa show"
            )
        return Artifact(found)

    def folder(self, path: Path, text: str) -> External:
        """A model folder, by the content of the files that determine it."""
        digest = model_digest(path, self.store.hash_cache)
        return External(f"model:{digest}", path.resolve().name, (str(path.resolve()),), {"name": path.resolve().name})

    def builtin_model(self, side: str) -> External:
        """A base model that ships with the package."""
        path = Path(str(resources.files("adpa_cli.lab") / "bases" / side))
        digest = model_digest(path, self.store.hash_cache)
        return External(f"model:{digest}", f"tiny base {side}", (str(path),), {"name": f"{BUILTIN}{side}"})

    def base(self, name: str) -> External:
        """The base model that a family names: built in, or of the hub."""
        if name.startswith(BUILTIN):
            return self.builtin_model(name.removeprefix(BUILTIN))
        return self.hub_model(name)

    def hub_model(self, text: str) -> External:
        """A hub model at the commit this store has pinned, downloaded into the Hugging Face cache."""
        name, _, revision = text.partition("@")
        commit = self.store.pin(text, lambda _: hub_commit(name, revision or None, "model"), self.refresh)
        folder = download_model(name, commit)
        digest = model_digest(folder, self.store.hash_cache)
        facts = {"name": name, "commit": commit}
        return External(f"model:{digest}", f"{name}@{commit[:4]}", (str(folder),), facts)

    def data(self, texts: Sequence[str]) -> External:
        """One or several data sources as one input, by the content of their files."""
        described: list[dict[str, Any]] = []
        where: list[str] = []
        for text in texts:
            if not text:
                raise UsageError("a data source is empty", "name a file, a folder (./NAME), a hub data set (org/name)")
            base, _, split = (
                DATA_ALIASES.get(text.partition("#")[0], text.partition("#")[0]),
                "",
                text.partition("#")[2],
            )
            whole = base + (f"#{split}" if split else "")
            described.append(self._described(whole))
            commit = described[-1].get("commit")
            if commit:
                whole = f"{base.partition('@')[0]}@{commit}" + (f"#{split}" if split else "")
            elif not base.startswith(BUILTIN):
                whole = _absolute(whole)
            where.append(whole)
        hashed = [{key: entry[key] for key in ("files", "splits", "split")} for entry in described]
        digest = hashlib.sha256(canonical(hashed)).hexdigest()
        label = " + ".join(d["name"] for d in described)
        return External(f"data:{digest}", label, tuple(where), {"name": label, "sources": described})

    def _described(self, text: str) -> dict[str, Any]:
        if text.startswith(BUILTIN):
            from adpa_cli.lab import world

            name = text.removeprefix(BUILTIN)
            if name not in BUILTIN_DATA:
                raise NotFound(f"no built-in data set is called {name}", f"there are {', '.join(BUILTIN_DATA)}")
            return {"name": name, "files": [f"{name} {world.VERSION}"], "splits": [""], "split": ""}
        source = parse_source(text)
        commit = ""
        if source.kind == "hub":
            name = source.text.partition("#")[0]
            pinned = f"datasets/{name}" + (f"@{source.revision}" if source.revision else "")
            commit = self.store.pin(pinned, lambda _: hub_commit(name, source.revision, "dataset"), self.refresh)
            source = replace(source, revision=commit)
        source = located(source)
        paths = source_files(source)
        files = [file_digest(path, self.store.hash_cache) for path in paths]
        # In a folder the names decide what is trained on and what is held out.
        folder = source.path if source.kind != "file" else None
        splits = [split_name(path.relative_to(folder)) if folder else "" for path in paths]
        shown = source.text if source.kind == "hub" else Path(source.text.partition("#")[0]).name
        facts = {"name": shown, "files": files, "splits": splits, "split": source.split or ""}
        return {**facts, "commit": commit} if commit else facts

    def data_of(self, facts: Any, content: str) -> External:
        """The data set that an artifact was made from, found again by content. Raises NotFound when it has moved."""
        where = []
        for source in facts["sources"]:
            if source.get("commit"):
                where.append(f"{source['name'].partition('#')[0]}@{source['commit']}")
            elif source["files"][0].rpartition(" ")[0] in BUILTIN_DATA:
                where.append(BUILTIN + source["name"])
            else:
                paths = [self.store.hash_cache.locate(sha) for sha in source["files"]]
                if not paths or paths[0] is None:
                    raise NotFound(
                        f"{source['name']}, which this was made from, is not where it was", "give --data FILE"
                    )
                where.append(str(paths[0]) if len(paths) == 1 else str(paths[0].parent))
            where[-1] += f"#{source['split']}" if source["split"] else ""
        found = self.data(where)
        if found.content != content:
            raise NotFound(f"{facts['name']} has changed since this was made", "give --data with the data to use")
        return found


BUILTIN_DATA = ("tiny-sft", "tiny-pairs")


def open_sources(where: Sequence[str]) -> list[Source]:
    """The sources behind a data input, ready to be read."""
    opened: list[Source] = []
    for text in where:
        if text.startswith(BUILTIN):
            from adpa_cli.lab import world

            name = text.removeprefix(BUILTIN)
            rows_of = world.demonstrations if name == "tiny-sft" else world.preferences
            for split in ("train", "test"):
                opened.append(Source(name, "rows", split=split, rows=tuple(rows_of(split))))
        else:
            opened.append(parse_source(text))
    return opened


def _absolute(text: str) -> str:
    base, mark, split = text.partition("#")
    return str(Path(base).expanduser().resolve()) + mark + split


def hub_commit(name: str, revision: str | None, kind: str) -> str:
    """The commit that a hub name stands for now. Errors tell gated, unknown and unreachable apart."""
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().repo_info(name, revision=revision, repo_type=kind)
    except errors.GatedRepoError as error:
        raise AdpaError(f"{name} is gated and not open to you", "hf auth login, then accept the licence") from error
    except errors.RepositoryNotFoundError as error:
        raise NotFound(f"the hub has no {kind} {name}", f"check the spelling; a folder is written ./{name}") from error
    except errors.RevisionNotFoundError as error:
        raise NotFound(f"{name} has no revision {revision}", f"leave it out: {name}") from error
    except Exception as error:  # whatever HTTP library lies under huggingface_hub in this version raises its own
        raise AdpaError(
            f"{name} is not pinned in this store, and the hub cannot be reached ({type(error).__name__})",
            "connect once, or name a local folder (./NAME); the built-in tiny needs no network",
        ) from error
    return str(info.sha)


def download_model(name: str, commit: str) -> Path:
    """Fetch the files that determine a hub model; the folder they are in."""
    from huggingface_hub import errors, snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
        return Path(snapshot_download(name, revision=commit, allow_patterns=patterns))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise AdpaError(
            f"{name}@{commit[:8]} could not be downloaded: {error}", "repeat the command; it goes on"
        ) from error


def folder_template(folder: Path) -> tuple[str, str] | None:
    """(chat template, end token) of a model folder, or None when it has no template."""
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.exists() else {}
    separate = folder / "chat_template.jinja"
    template = separate.read_text(encoding="utf-8") if separate.exists() else config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    if not template:
        return None
    return str(template), end_token(folder)


def end_token(folder: Path) -> str:
    """The token that a folder's tokenizer names as the end of text. Raises DataError when it names none."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        token = json.loads(path.read_text(encoding="utf-8")).get("eos_token") if path.exists() else None
        if token:
            return str(token["content"] if isinstance(token, dict) else token)
    raise DataError(
        f"the tokenizer in {folder} names no end token (eos_token)", "add eos_token to tokenizer_config.json"
    )
