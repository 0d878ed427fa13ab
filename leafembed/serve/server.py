"""Runs the application: uvicorn, with a protocol of ours, and signals.

SIGTERM and SIGINT: no new request is taken, running ones end within their time. SIGHUP: bundles are opened again.
"""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from leafembed.errors import Error
from leafembed.serve.embedding import Service
from leafembed.serve.hangups import HangUps
from leafembed.serve.protocol import protocol_of
from leafembed.serve.reloading import reload_all

__all__ = ["Server", "bind"]

_IDLE_S = 75
"""Seconds that an open connection may be silent between two requests."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens, so that a port in use is an error before a model is opened.

    Raises:
        Error: If the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Error(f"--host {host} --port {port}: {error.strerror}; give another address or port") from error
    listener.listen(2048)
    return listener


class Server(uvicorn.Server):
    """One server: :meth:`listen` runs it until SIGTERM, SIGINT or :meth:`stop`, then lets running requests end.

    Args:
        app: What :func:`leafembed.serve.app.create_app` gave.
        service: Its service.
        ready: Called once when requests are taken.
        hang_ups: Each SIGHUP that it noted, before the start too, opens the bundles again; ``None``: there are none.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        service: Service,
        ready: Callable[[], None] = lambda: None,
        hang_ups: HangUps | None = None,
    ) -> None:
        limits = service.settings.limits
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol_of(limits, service.metrics),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=_IDLE_S,
                timeout_graceful_shutdown=math.ceil(limits.drain_s),
                backlog=2048,
            )
        )
        self._service = service
        self._ready = ready
        self._hang_ups = hang_ups
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, listener: socket.socket) -> None:
        """Serve on a socket of :func:`bind` until the server is stopped."""
        self.run(sockets=[listener])

    def stop(self) -> None:
        """Take no new request, and end when those at work have ended; from any thread."""
        self._service.draining = self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end, and whether SIGHUP came."""
        if self._hang_ups is not None and self._hang_ups.taken():
            self._reload()
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM meanwhile; uvicorn would raise them again at the end, and the status be no 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """On SIGTERM or SIGINT: refuse what comes, end what runs."""
        self._service.draining = True
        super().handle_exit(sig, frame)

    def _reload(self) -> None:
        task = asyncio.get_running_loop().create_task(reload_all(self._service))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
