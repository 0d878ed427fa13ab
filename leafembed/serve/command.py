"""What ``leaf serve`` does with its options."""

from __future__ import annotations

import argparse

from leafembed.errors import Error
from leafembed.progress import say
from leafembed.serve.app import create_app
from leafembed.serve.embedding import Service
from leafembed.serve.metrics import Metrics
from leafembed.serve.models import Models
from leafembed.serve.server import Server, bind, configure_logs
from leafembed.serve.settings import Limits, Settings, is_loopback, read_keys
from leafembed.serve.specs import ModelSpec
from leafembed.ship.machine import usable_cores

__all__ = ["run_server"]


def run_server(args: argparse.Namespace, *, key: str = "") -> int:
    """Serve until SIGTERM, and return 0.

    Args:
        args: What ``leaf serve`` was given.
        key: API key from the environment; empty: none.

    Raises:
        Error: If an option, a bundle or the address cannot be used.
        GateFailedError: If the gate refused a bundle and that is not allowed.
    """
    specs = [ModelSpec.parse(text) for text in args.model]
    if args.bundle is not None:
        specs.insert(0, ModelSpec("leaf", args.bundle))
    if not specs:
        raise Error("leaf serve: got no bundle, expected BUNDLE or --model NAME=PATH")
    limits = Limits(
        body_bytes=int(args.max_body_mb * 1e6), items=args.max_items, queue_tokens=args.queue_tokens,
        request_tokens=min(args.queue_tokens, Limits().request_tokens), requests=args.max_requests,
        batch_tokens=args.batch_tokens, answer_s=args.timeout, drain_s=args.drain,
    )  # fmt: skip
    keys = read_keys(args.api_key_file, [key])
    settings = Settings(limits=limits, keys=keys, hosts=tuple(host.lower() for host in args.allow_host),
                        loopback=is_loopback(args.host), watch_s=args.watch)  # fmt: skip
    metrics = Metrics()
    threads = args.threads or usable_cores()
    models = Models(specs, allow_failed=args.allow_failed, threads=threads, streams=args.streams or threads,
                    batch_tokens=limits.batch_tokens, on_batch=metrics.batch)  # fmt: skip
    service = Service(models, settings, metrics)
    listener = bind(args.host, args.port)
    configure_logs(access=not args.quiet)
    if not settings.loopback and not keys:
        say(f"leaf serve: {args.host} can be reached by other machines and no API key is asked for; see --api-key-file")
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    names = ", ".join(named.name for named in models.listed)
    Server(create_app(service), service, lambda: say(f"leaf serve: {names} at {address}")).listen(listener)
    return 0
