"""A small Hugging Face hub on loopback: what `hf_hub_download` asks of one, served from folders."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """A running hub: its address, and what it was asked for.

    Attributes:
        root: OWNER/NAME/REVISION/FILE below it are what it serves.
        address: for HF_ENDPOINT.
        asked: method, path and Authorization header of each request.
    """

    root: Path
    address: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def add(self, repository: str, file: str, content: bytes, revision: str = "main") -> None:
        """Put a file into a repository."""
        path = self.root / repository / revision / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@contextlib.contextmanager
def running(root: Path) -> Iterator[Hub]:
    """A hub that serves a folder while the block runs."""
    hub = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.asked.append((self.command, path, self.headers.get("Authorization")))
            repository, separator, rest = path.partition("/resolve/")
            revision, _, file = rest.partition("/")
            if not separator or not (root / repository).is_dir():
                return self.refuse("RepoNotFound")
            if not (root / repository / revision).is_dir():
                return self.refuse("RevisionNotFound")
            found = root / repository / revision / file
            if not found.is_file():
                return self.refuse("EntryNotFound", repository, revision)
            facts = found.stat()
            mark = hashlib.sha256(f"{path} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()
            self.send_response(200)
            self.say(repository, revision)
            self.send_header("ETag", f'"{mark}"')
            self.send_header("Content-Length", str(facts.st_size))
            self.end_headers()
            if body:
                with found.open("rb") as content:
                    shutil.copyfileobj(content, self.wfile)

        def say(self, repository: str, revision: str) -> None:
            self.send_header("X-Repo-Commit", hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest())

        def refuse(self, code: str, repository: str = "", revision: str = "") -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", f"{code} here")
            if repository:
                self.say(repository, revision)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
