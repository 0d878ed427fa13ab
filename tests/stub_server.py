"""A server of embeddings on this machine that answers as a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from leafembed.types import Encoder

Answer = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body."""


def answer(body: Any, status: int = 200, **headers: str) -> Answer:
    """JSON, or bytes as they are; ``Retry_After`` names a header."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, content


class Stub:
    """Gives the answers in ``script`` first, one a request, then an encoder's vectors; unsorted, as is allowed.

    ``url`` is asked as OpenAI is, ``ollama`` as Ollama is.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.script: list[Answer | Callable[[], Answer]] = []
        self.always: Answer | Callable[[], Answer] | None = None
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.ollama = ""
        self._lock = threading.Lock()

    @property
    def texts(self) -> list[str]:
        """Every text that was asked for, in the order of arrival."""
        return [text for request in self.asked for text in request["input"]]

    def vectors(self, texts: list[str]) -> dict[str, Any]:
        vectors = 3 * self.encoder.encode(texts)
        data = [{"object": "embedding", "index": i, "embedding": vector.tolist()} for i, vector in enumerate(vectors)]
        return {"object": "list", "data": data[::-1], "model": "stub"}

    def reply(self, path: str, headers: Mapping[str, str], content: bytes) -> Answer:
        request = json.loads(content)
        with self._lock:
            self.asked.append(request)
            self.headers.append({name.lower(): value for name, value in headers.items()})
            told = self.script.pop(0) if self.script else self.always
        if told is not None:
            return told() if callable(told) else told
        if path == "/api/embed":
            vectors = self.encoder.encode(request["input"])
            return answer({"model": request["model"], "embeddings": vectors.tolist(), "total_duration": 1})
        if path != "/v1/embeddings":
            return answer({"error": f"no such page: {path}"}, 404)
        return answer(self.vectors(request["input"]))


@contextmanager
def serve(encoder: Encoder) -> Iterator[Stub]:
    stub = Stub(encoder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as real servers do

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, body = stub.reply(self.path, self.headers, content)
            try:
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | dict(headers)).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):  # whoever asked has given up
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    stub.ollama = f"http://127.0.0.1:{server.server_address[1]}/api/embed"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
