"""What ``leaf serve`` does with its options."""

from __future__ import annotations

import argparse
import logging
import socket
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from leafembed.errors import Error, first_line
from leafembed.progress import say
from leafembed.serve.app import create_app
from leafembed.serve.embedding import Service
from leafembed.serve.hangups import HangUps
from leafembed.serve.logs import SERVER_LOG, configure_logs
from leafembed.serve.merged import Shared
from leafembed.serve.metrics import Metrics
from leafembed.serve.models import Models
from leafembed.serve.server import Server, bind
from leafembed.serve.settings import Limits, Settings, is_loopback, read_keys
from leafembed.serve.specs import ModelSpec
from leafembed.serve.tracing import traced
from leafembed.serve.workers import end_with_parent, supervise
from leafembed.ship.machine import usable_cores
from leafembed.ship.shipped import shipped

__all__ = ["run_server"]

_log = logging.getLogger(SERVER_LOG)


def run_server(args: argparse.Namespace, hang_ups: HangUps, *, key: str = "") -> int:
    """Serve until SIGTERM, and return 0.

    Args:
        args: What ``leaf serve`` was given.
        hang_ups: Notes SIGHUP since the command began.
        key: API key from the environment; empty: none.

    Raises:
        Error: If an option, a bundle or the address cannot be used.
        GateFailedError: If the gate refused a bundle and that is not allowed.
    """
    service = _service(args, key)
    listener = bind(args.host, args.port)
    configure_logs(access=not args.quiet)
    settings = service.settings
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    names = ", ".join(named.name for named in service.models.listed)

    def ready() -> None:
        with suppress(OSError):  # a log that cannot be written stops no server
            say(f"leaf serve: {names} at {address}")
        if not settings.loopback and not settings.keys:
            _log.warning("other machines can reach %s and no API key is asked for; see --api-key-file", args.host)

    if args.workers == 1:
        _listen(service, listener, ready, hang_ups, args.otlp)
        return 0
    with tempfile.TemporaryDirectory(prefix="leaf-serve-", ignore_cleanup_errors=True) as folder:
        return supervise(_Worker(args, key, listener, Path(folder)), args.workers, Path(folder), ready, listener)


@dataclass(frozen=True, slots=True)
class _Worker:
    """One of several processes."""

    args: argparse.Namespace
    key: str
    listener: socket.socket
    folder: Path

    def __call__(self, tells: Connection) -> None:
        hang_ups = HangUps()
        end_with_parent()
        configure_logs(access=not self.args.quiet)
        try:
            service = _service(self.args, self.key)
            service.shared = Shared(self.folder)
            _listen(service, self.listener, lambda: tells.send(True), hang_ups, self.args.otlp)
        except (Error, OSError) as error:
            say(f"leaf serve: {first_line(error)}")
            raise SystemExit(1) from None


def _listen(
    service: Service, listener: socket.socket, ready: Callable[[], None], hang_ups: HangUps, otlp: str | None
) -> None:
    # Opened now, so that an error of it is one line for the operator, and no traceback of uvicorn's; in a thread that
    # ends, since what an engine keeps for the main thread is freed after the engine, and that is a segmentation fault.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(service.models.default.model.load).result()
    app = create_app(service)
    if otlp is None:
        Server(app, service, ready, hang_ups).listen(listener)
        return
    app, close = traced(app, otlp)
    try:
        Server(app, service, ready, hang_ups).listen(listener)
    finally:
        close()


def _service(args: argparse.Namespace, key: str) -> Service:
    specs = [ModelSpec.parse(text) for text in args.model]
    if args.bundle is not None:
        specs.insert(0, ModelSpec("leaf", args.bundle))
    if not specs:
        specs.append(ModelSpec("leaf", shipped()))
    limits = Limits(
        body_bytes=int(args.max_body_mb * 1e6), bodies_bytes=int(max(args.max_bodies_mb, args.max_body_mb) * 1e6),
        items=args.max_items, queue_tokens=args.queue_tokens,
        request_tokens=min(args.queue_tokens, Limits().request_tokens), requests=args.max_requests,
        batch_tokens=args.batch_tokens, answer_s=args.timeout, drain_s=args.drain,
    )  # fmt: skip
    settings = Settings(limits=limits, keys=read_keys(args.api_key_file, [key]),
                        hosts=tuple(host.lower() for host in (args.host, *args.allow_host)),
                        loopback=is_loopback(args.host), watch_s=args.watch)  # fmt: skip
    metrics = Metrics()
    threads = args.threads or max(1, usable_cores() // args.workers)
    models = Models(specs, allow_failed=args.allow_failed, threads=threads, streams=args.streams or threads,
                    batch_tokens=limits.batch_tokens, on_batch=metrics.batch)  # fmt: skip
    return Service(models, settings, metrics)
