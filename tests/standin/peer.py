"""Another server, as far as a peer is looked at: its list of models, or 500 while it is `ill`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WINDOW = 131_072


class Other(ThreadingHTTPServer):
    ill = False
    models = ("llama-70b",)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Other

    def do_GET(self) -> None:
        if self.server.ill:
            self.send_error(500)
            return
        listed = [{"id": name, "max_model_len": WINDOW} for name in self.server.models]
        body = json.dumps({"object": "list", "data": listed}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *said: object) -> None:
        """Nothing."""


@contextmanager
def serving(*models: str) -> Iterator[Other]:
    with Other(("127.0.0.1", 0), _Handler) as server:
        server.models = models
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
