"""A server on this machine that answers like the Hugging Face hub, for the folders it is given."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

LFS = (".safetensors", ".parquet")
WHERE = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/?]+))?")
TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/")
TOKEN = "hf_mine"
"""The token that may upload."""
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")


@dataclass
class Repo:
    """A repository of one commit. `gated` lets nobody read its files; `base` is what its card names; `shas` has digests
    of files, by name, that are too large to be read for them."""

    folder: Path
    commit: str
    gated: bool = False
    base: str = ""
    licence: str = ""
    private: bool = False
    shas: dict[str, str] = field(default_factory=dict)


@dataclass
class Hub:
    """What is served, by name (`datasets/org/name`; an old state: `NAME@COMMIT`), and the requests that came."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    """Break off after so many bytes of a file, once."""
    uploads: Path | None = None
    """Where repositories lie that are made here, and objects that were sent before they are named."""
    role: str = "write"
    """What the token may do."""
    refusing: str = ""
    """The beginning of the paths that are answered with 403 when they are written."""

    def add(self, name: str, folder: Path, **facts: Any) -> Repo:
        self.repos[name] = Repo(folder, hashlib.sha1(name.encode()).hexdigest(), **facts)
        return self.repos[name]

    def bodies(self) -> list[str]:
        """The paths of files whose bytes were asked for."""
        return [path.partition(" ")[2] for path in self.asked if path.startswith("GET ") and "/resolve/" in path]


def sha_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(self.path)
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.hub.asked.append(f"{self.command}{f' (from {start[1]})' if start else ''} {path.partition('?')[0]}")
        if path == "/api/whoami-v2":
            self.who()
        elif (found := TREE.match(path)) and found[1] in self.hub.repos:
            self.tree(self.hub.repos[found[1]])
        elif found := WHERE.match(path):
            kind, name, revision = found.groups()
            repo = self.repo(("datasets/" if kind == "datasets" else "") + name, revision)
            if repo is not None:
                self.send(200, json.dumps(self.info(name, repo)).encode(), {"Content-Type": "application/json"}, body)
        elif found := FILE.match(path):
            data, name, revision, file = found.groups()
            repo = self.repo((data or "") + name, revision)
            if repo is not None:
                self.file(repo, file, body)
        else:
            self.refuse(404, "EntryNotFound")

    def repo(self, name: str, revision: str | None) -> Repo | None:
        """The repository asked for; an unknown one is told to log in, as the hub does."""
        repo = self.hub.repos.get(f"{name}@{revision}", self.hub.repos.get(name))
        if repo is None:
            self.refuse(404 if "Authorization" in self.headers else 401, "RepoNotFound")
        elif revision not in (None, "main", repo.commit):
            self.refuse(404, "RevisionNotFound")
        else:
            return repo
        return None

    def info(self, name: str, repo: Repo) -> dict[str, Any]:
        siblings = []
        for path in sorted(p for p in repo.folder.rglob("*") if p.is_file()):
            entry: dict[str, Any] = {"rfilename": str(path.relative_to(repo.folder)), "size": path.stat().st_size}
            if path.name.endswith(LFS):
                sha = repo.shas.get(path.name) or sha_of(path)
                entry["lfs"] = {"sha256": sha, "size": entry["size"], "pointerSize": 130}
            siblings.append(entry)
        card = {"base_model": repo.base, "license": repo.licence}
        about = {"cardData": {key: value for key, value in card.items() if value}} if any(card.values()) else {}
        return {"id": name, "sha": repo.commit, "siblings": siblings, "tags": [], "private": repo.private, **about}

    def do_POST(self) -> None:
        """An upload: a repository is made, files are announced, sent, and named by a commit."""
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = unquote(self.path).partition("?")[0]
        self.hub.asked.append(f"POST {path}")
        assert self.hub.uploads is not None
        if self.hub.refusing and path.startswith(self.hub.refusing):
            self.send(403, b"{}", {}, True)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            folder = self.hub.uploads / name
            folder.mkdir(parents=True)
            (folder / ".gitattributes").write_text("")
            self.hub.add(name, folder, private=asked.get("private") or asked.get("visibility") == "private")
            self.reply({"url": f"{self.hub.url}/{name}"})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            self.reply({"files": [
                {"path": name, "uploadMode": "lfs" if name.endswith(LFS) else "regular", "shouldIgnore": False}
                for name in (str(file["path"]) for file in files)
            ]})  # fmt: skip
        elif path.endswith("/objects/batch"):
            here = f"{self.hub.url}/lfs/"
            self.reply({"objects": [
                {**each, "actions": {"upload": {"href": here + each["oid"]}}} for each in json.loads(body)["objects"]
            ]})  # fmt: skip
        elif found := re.match(r"/api/models/([^/]+/[^/]+)/commit/", path):
            self.commit(self.hub.repos[found[1]], [json.loads(line) for line in body.splitlines()])
            self.reply({"commitUrl": f"{self.hub.url}/{found[1]}/commit/1", "commitOid": "1" * 40})
        elif path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        else:
            self.send(404, b"{}", {}, True)

    def do_PUT(self) -> None:
        """The bytes of a large file, under its digest."""
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.hub.asked.append(f"PUT {self.path}")
        assert self.hub.uploads is not None
        (self.hub.uploads / self.path.rpartition("/")[2]).write_bytes(body)
        self.send(200, b"", {}, True)

    def commit(self, repo: Repo, lines: list[Any]) -> None:
        """What a commit adds and deletes."""
        assert self.hub.uploads is not None
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                (repo.folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                data = (self.hub.uploads / value["oid"]).read_bytes()
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                (repo.folder / value["path"]).write_bytes(data)
            elif line["key"] == "deletedFile":
                (repo.folder / value["path"]).unlink()

    def reply(self, value: Any) -> None:
        """JSON."""
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, True)

    def who(self) -> None:
        """Whose token it is."""
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send(401, b"{}", {}, True)
            return
        auth = {"accessToken": {"role": self.hub.role}}
        self.reply({"name": "me", "orgs": [{"name": "lab"}], "auth": auth})

    def tree(self, repo: Repo) -> None:
        """The files of a repository."""
        names = sorted(path for path in repo.folder.rglob("*") if path.is_file())
        self.reply([
            {"type": "file", "path": str(path.relative_to(repo.folder)), "size": path.stat().st_size, "oid": "0" * 40}
            for path in names
        ])  # fmt: skip

    def file(self, repo: Repo, name: str, body: bool) -> None:
        path = repo.folder / name
        if repo.gated:
            self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        elif not path.is_file():
            self.refuse(404, "EntryNotFound")
        else:
            data = path.read_bytes()
            etag = {"ETag": f'"{sha_of(path)}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
            start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
            ranged = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
            self.send(
                206 if start else 200,
                data[start:],
                {**etag, **ranged},
                body,
                self.hub.cut.pop(name, None) if body else None,
            )

    def refuse(self, status: int, code: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, self.command == "GET")

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data[:cut])
        if cut is not None:
            self.close_connection = True


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(hub: Hub, cache: Path, patch: pytest.MonkeyPatch, token: str | None = None) -> None:
    """Let huggingface_hub ask this hub and keep files in `cache`; it has read its environment already."""
    from huggingface_hub import constants

    hf_api = __import__("huggingface_hub.hf_api", fromlist=["api"])
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(hf_api.api, "endpoint", hub.url)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    if token:
        patch.setenv("HF_TOKEN", token)
