"""A server on this machine that speaks as much of the Hugging Face Hub's HTTP as its client needs to download models."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

__all__ = ["CARD", "FOLDER", "WEIGHTS", "Hub", "Repository", "serving"]


CARD = b"---\nlicense: mit\n---\n# A model\n"
WEIGHTS = bytes(range(256)) * 64  # 16 KiB, which nothing but the reader looks into
FOLDER = {
    "README.md": CARD,
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"old",
    "tf_model.h5": b"x",
}


@dataclass
class Repository:
    """Files of each revision; ``main`` is one. Files of weights are stored by their checksums, as with Git LFS.

    The rest are faults: ``gated`` refuses files, ``cut`` sends this many bytes of a file and hangs up (the first ``cuts``
    times), ``altered`` sends other bytes than the stated checksum is of, ``stated`` states another size than is sent.
    """

    revisions: dict[str, dict[str, bytes]]
    gated: bool = False
    cut: int | None = None
    cuts: int = 10**9
    altered: bool = False
    stated: int | None = None

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit."""
        commits = {
            name: hashlib.sha1(
                b"".join([name.encode(), *(file.encode() + files[file] for file in sorted(files))])
            ).hexdigest()
            for name, files in self.revisions.items()
        }
        return commits.get(revision, revision if revision in commits.values() else None)

    def files(self, commit: str) -> dict[str, bytes]:
        """The files of a commit."""
        return next(files for name, files in self.revisions.items() if self.commit(name) == commit)


@dataclass
class Hub:
    """What the server has, and what it was asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: Counter = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    down: bool = False
    address: str = ""


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pth", ".pt"))


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def refuse(self, status: int, code: str = ""):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, *, body: bool):
        path = unquote(urlsplit(self.path).path)
        self.hub.asked[f"{self.command} {path}"] += 1
        if self.hub.down:
            return self.refuse(503)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.listing("/".join(parts[2:4]), "/".join(parts[5:]) or "main")
        if len(parts) > 4 and parts[2] == "resolve":
            return self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body=body)
        return self.refuse(404)

    def found(self, name: str, revision: str):
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.refuse(401, "RepoNotFound")  # as to anybody who is not logged in
        elif repository.commit(revision) is None:
            self.refuse(404, "RevisionNotFound")
        else:
            return repository, repository.commit(revision)
        return None, None

    def listing(self, name: str, revision: str):
        repository, commit = self.found(name, revision)
        if repository is None:
            return
        siblings = []
        for file, content in repository.files(commit).items():
            entry = {"rfilename": file, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
            if is_large(file):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        text = json.dumps({"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def file(self, name: str, revision: str, file: str, *, body: bool):
        repository, commit = self.found(name, revision)
        if repository is None:
            return
        if repository.gated:
            self.refuse(403, "GatedRepo")
            return
        if file not in repository.files(commit):
            self.refuse(404, "EntryNotFound")
            return
        content = repository.files(commit)[file]
        large = is_large(file)
        etag = (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
        if repository.altered and large:
            content = bytes(255 - byte for byte in content)
        start = 0
        if body and (wanted := self.headers.get("Range")):
            self.hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        if large:
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(repository.stated or len(content)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            rest = content[start:]
            if large and repository.cut is not None and repository.cuts > 0:
                repository.cuts -= 1
                rest = rest[: repository.cut]
            self.wfile.write(rest)


@contextmanager
def serving():
    """Serve a ``Hub`` that has nothing yet; its ``address`` is what HF_ENDPOINT takes."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.handle_error = lambda *_: None  # a client that has hung up
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
