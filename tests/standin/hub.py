"""A Hugging Face hub on 127.0.0.1: the routes that tell of a model, gates, ranges, and a redirect to another host.

A model is a folder. As on the real one files are served elsewhere (here: under the name localhost), so that a
token that goes along can be seen.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote


@dataclass
class Hub:
    models: dict[str, Path] = field(default_factory=dict)
    gated: frozenset[str] = frozenset()
    token: str = "hf_good"
    ranges: bool = True
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """(path, token, range) of each request."""
    sent: int = 0
    """Bytes of bodies."""

    def __enter__(self) -> Hub:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.01), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def files(self, name: str) -> list[dict[str, object]]:
        found = sorted(file for file in self.models[name].rglob("*") if file.is_file())
        root = self.models[name]
        return [{"rfilename": str(file.relative_to(root)), "size": file.stat().st_size} for file in found]


def _handler(hub: Hub) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
            path = unquote(self.path).partition("?")[0]
            hub.asked.append((path, token, self.headers.get("Range")))
            if match := re.fullmatch(r"/api/models/(.+)/revision/(.+)", path):
                self._list(match[1], match[2], token)
            elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
                self._file(hub.models[match[1]] / match[2])
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._elsewhere(match[1], match[3], token)
            else:
                self._refuse(404, "")

        def _list(self, name: str, revision: str, token: str | None) -> None:
            if name not in hub.models:
                self._refuse(404 if token else 401, "RepoNotFound")
            elif revision != "main":
                self._refuse(404, "RevisionNotFound")
            else:
                self._send(json.dumps({"siblings": hub.files(name)}).encode())

        def _elsewhere(self, name: str, file: str, token: str | None) -> None:
            """A gated model may be listed by everyone, and read by few."""
            if name in hub.gated and token != hub.token:
                self._refuse(403 if token else 401, "GatedRepo")
                return
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{hub.port}/cdn/{name}/{file}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _file(self, file: Path) -> None:
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if hub.ranges else None
            size = file.stat().st_size
            with file.open("rb") as opened:
                if span is None:
                    self._send(opened.read())
                    return
                opened.seek(int(span[1]))
                body = opened.read(int(span[2]) + 1 - int(span[1]))
            self._send(body, 206, f"bytes {span[1]}-{int(span[1]) + len(body) - 1}/{size}")

        def _send(self, body: bytes, status: int = 200, span: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if span:
                self.send_header("Content-Range", span)
            self.end_headers()
            hub.sent += len(body)
            self.wfile.write(body)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler
