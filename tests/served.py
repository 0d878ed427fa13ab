"""A real server on a free port, in a thread, with tiny bundles; and a socket to send it what no client would."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny import make_model_folder, sample_manifest

from leafembed.serve.app import create_app
from leafembed.serve.embedding import Service
from leafembed.serve.metrics import Metrics
from leafembed.serve.models import Models
from leafembed.serve.server import Server, bind
from leafembed.serve.settings import Settings
from leafembed.serve.specs import ModelSpec
from leafembed.ship.bundle import write_bundle

PROMPTS = {"query": "query : ", "document": "", "STS": "one "}


def make_bundle(folder: Path, *, kept: float = 0.953, **changes: Any) -> Path:
    """A bundle of a table of ten words, with three prompts."""
    model = make_model_folder(folder / "model", prompts=PROMPTS, **changes)
    return write_bundle(folder / "bundle", model, sample_manifest(kept=kept))


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    port: int
    service: Service
    server: Server

    def ask(self, path: str, body: Any = None, *, method: str | None = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, JSON (or text) and headers of an answer; ``body`` is sent as JSON unless it is bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data=data, headers=named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, _read(response.read()), response.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _read(error.read()), error.headers

    def raw(self, data: bytes, *, timeout: float = 10.0) -> bytes:
        """What comes back on a connection that sends these bytes and then waits for its end."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as link:
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)
            received = b""
            while piece := link.recv(65_536):
                received += piece
            return received


@contextmanager
def serving(
    bundles: Mapping[str, Path] | list[ModelSpec], settings: Settings | None = None, **options: Any
) -> Iterator[Served]:
    """Run a server until the block ends; what it did must have ended then too."""
    specs = bundles if isinstance(bundles, list) else [ModelSpec(name, path) for name, path in bundles.items()]
    settings, metrics = settings or Settings(), Metrics()
    options = {"threads": 1, "batch_tokens": settings.limits.batch_tokens, "on_batch": metrics.batch} | options
    service = Service(Models(specs, **options), settings, metrics)
    listener, ready = bind("127.0.0.1", 0), threading.Event()
    server = Server(create_app(service), service, ready.set)
    thread = threading.Thread(target=server.listen, args=(listener,), daemon=True)
    thread.start()
    try:
        assert ready.wait(30)
        port = listener.getsockname()[1]
        yield Served(f"http://127.0.0.1:{port}", port, service, server)
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def embed(served, value="red", **headers):
    return served.ask("/api/embed", {"model": "leaf", "input": value}, **headers)


def works(served):
    return embed(served)[0] == 200


def engine_of(served):
    return served.service.models.default.model.loaded.encoder


class Held:
    """Stops an engine until it is released, so that a queue can be looked at."""

    def __init__(self, served, monkeypatch):
        self.gate, self.begun = threading.Event(), threading.Semaphore(0)
        encoder = engine_of(served)
        compute = encoder.embed_tokens

        def held(ids):
            self.begun.release()
            assert self.gate.wait(20)
            return compute(ids)

        monkeypatch.setattr(encoder, "embed_tokens", held)


def in_thread(call):
    result = []
    thread = threading.Thread(target=lambda: result.append(call()))
    thread.start()
    return thread, result


def eventually(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _read(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode()


__all__ = [
    *("PROMPTS", "Held", "Served", "embed", "engine_of", "eventually"),
    *("in_thread", "make_bundle", "serving", "works"),
]
