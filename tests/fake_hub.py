"""A model hub on this computer: as much of the Hugging Face hub's interface as its client needs to fetch a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `repositories` (OWNER/NAME: folder) at `url`. `licences` by name; `gated` names are refused; a file in
    `broken` is cut off after so many bytes, once. `requested`: every file asked for, with the offset where it began.
    """

    def __init__(self, repositories: dict[str, Path], licences: dict[str, str] | None = None) -> None:
        self.repositories, self.licences = repositories, licences or {}
        self.gated: set[str] = set()
        self.broken: dict[str, int] = {}
        self.claimed: dict[str, int] = {}  # sizes that are not those of the files
        self.requested: list[tuple[str, int]] = []
        self.url = ""

    def listing(self, name: str) -> list[dict[str, Any]]:
        folder = self.repositories[name]
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return [{"path": f.relative_to(folder).as_posix(), "size": f.stat().st_size} for f in files]

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self, with_body: bool) -> None:
                parts = unquote(urlsplit(self.path).path).strip("/").split("/")
                is_api = parts[:2] == ["api", "models"]
                parts = parts[2:] if is_api else parts
                name, rest = "/".join(parts[:2]), parts[2:]
                if name not in hub.repositories:
                    return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
                if name in hub.gated:
                    return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
                if is_api:
                    return self._send(
                        200, json.dumps(self._api(name, rest)).encode(), {"Content-Type": "application/json"}
                    )
                return self._file(name, "/".join(rest[2:]), with_body)

            def _api(self, name: str, rest: list[str]) -> Any:
                entries = hub.listing(name)
                if rest[:1] == ["tree"]:
                    oid = hashlib.sha1(name.encode()).hexdigest()
                    return [{"type": "file", "oid": oid, **entry} for entry in entries]
                siblings = [{"rfilename": e["path"], "size": hub.claimed.get(e["path"], e["size"])} for e in entries]
                tags = [f"license:{hub.licences[name]}"] if name in hub.licences else []
                return {"id": name, "modelId": name, "sha": SHA, "siblings": siblings, "tags": tags, "private": False}

            def _file(self, name: str, path: str, with_body: bool) -> None:
                content = (hub.repositories[name] / path).read_bytes()
                etag = hashlib.sha256(content).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
                begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
                if with_body:
                    hub.requested.append((path, begin))
                if begin:
                    headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
                stop = hub.broken.pop(path, None) if with_body else None
                self._send(206 if begin else 200, content[begin:], headers, stop if with_body else 0)

            def _send(self, status: int, body: bytes, headers: dict[str, str], stop: int | None = None) -> None:
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[:stop])
                if stop and stop < len(body):
                    self.close_connection = True

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
