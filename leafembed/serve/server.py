"""Runs the application: uvicorn, with deadlines for slow senders, a bound on connections, and signals.

SIGTERM and SIGINT: no new request is taken, running ones end within their time. SIGHUP: bundles are opened again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from leafembed.errors import Error
from leafembed.serve.border import ACCESS_LOG
from leafembed.serve.embedding import Service
from leafembed.serve.reloading import reload_all
from leafembed.serve.settings import Limits

__all__ = ["Server", "bind", "configure_logs"]

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


def configure_logs(*, access: bool) -> None:
    """Write the server's own log and, if wanted, a JSON line a request to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name, level in (
        (ACCESS_LOG, logging.INFO if access else logging.WARNING),
        ("leafembed.serve", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


class Server(uvicorn.Server):
    """One server: :meth:`listen` runs it until SIGTERM, SIGINT or :meth:`stop`, then lets running requests end.

    Args:
        app: What :func:`leafembed.serve.app.create_app` gave.
        service: Its service.
        ready: Called once when requests are taken.
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], service: Service, ready: Callable[[], None] = lambda: None
    ) -> None:
        limits = service.settings.limits
        super().__init__(
            uvicorn.Config(
                app,
                http=_protocol(limits),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=_IDLE_S,
                timeout_graceful_shutdown=int(limits.drain_s),
                backlog=2048,
            )
        )
        self._service = service
        self._ready = ready
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, listener: socket.socket) -> None:
        """Serve on a socket of :func:`bind` until the server is stopped."""
        self.run(sockets=[listener])

    def stop(self) -> None:
        """Take no new request, and end when those at work have ended; from any thread."""
        self._service.draining = self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and take SIGHUP where signals can be taken: in the main thread."""
        await super().startup(sockets)
        if self.should_exit:
            return
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        self._ready()

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


def _protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """The protocol of one server, with its limits."""
    return type("Protocol", (_Protocol,), {"limits": limits, "open_now": set()})


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which closes a connection whose request does not arrive in time, and those over the bound.

    uvicorn itself waits for ever for the end of a header or a body.
    """

    limits: ClassVar[Limits]
    open_now: ClassVar[set[Any]]
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.open_now) >= self.limits.connections:
            transport.close()
            return
        self.open_now.add(self)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_now.discard(self)
        self._end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._late is None:
            self._begin()
        super().data_received(data)

    def on_message_complete(self) -> None:
        self._end()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in JSON too; its path, and so its family, is not known."""
        content = orjson.dumps({"error": msg})
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: %d\r\n"
        self.transport.write(head % len(content) + b"connection: close\r\n\r\n" + content)
        self.transport.close()

    def _begin(self) -> None:
        # A little later than the border, which says why where it can.
        self._late = self.loop.call_later(self.limits.receive_s + 1.0, self._close)

    def _end(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.transport.close()
