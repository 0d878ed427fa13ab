"""OpenTelemetry: a span a request, sent to a collector, part of the trace that the request's ``traceparent`` names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from leafembed import __version__
from leafembed.errors import MissingExtraError

__all__ = ["traced"]

_App = Callable[..., Awaitable[None]]
_Scope = MutableMapping[str, Any]

_KNOWN = ("type", "asgi", "http_version", "method", "scheme", "path", "server")
"""What spans are told of a request: no query string, and no address of a client."""

_HEADERS = (b"traceparent", b"tracestate")
"""Headers that they are told of."""

_WHOLE = "leaf.scope"
"""Where the request itself is, past the spans."""


def traced(app: _App, endpoint: str) -> tuple[_App, Callable[[], None]]:
    """Return the application with spans around its requests, and what sends the last of them at the end.

    A collector that cannot be reached costs spans and nothing else. Spans hold method, path, status, duration and the
    server's own address; no text of users, no query string, no header and no address of a client.

    Args:
        app: What :func:`leafembed.serve.app.create_app` gave.
        endpoint: Base URL of a collector that takes OTLP over HTTP, e.g. ``http://localhost:4318``.

    Raises:
        MissingExtraError: If OpenTelemetry's packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError(error.name or "opentelemetry", "trace") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "leaf", "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=2)))

    async def past(scope: _Scope, receive: Any, send: Any) -> None:
        await app(scope[_WHOLE], receive, send)

    async def before(scope: _Scope, receive: Any, send: Any) -> None:
        await middleware(_known(scope), receive, send)

    middleware: Any = OpenTelemetryMiddleware(
        past, tracer_provider=provider, exclude_spans=["receive", "send"], excluded_urls="/health/.*,/metrics"
    )
    return before, provider.shutdown


def _known(scope: _Scope) -> _Scope:
    """What the instrumentation, which exports whatever it finds, is shown of a request."""
    headers = [(name, value) for name, value in scope.get("headers", []) if name in _HEADERS]
    return {**{key: scope[key] for key in _KNOWN if key in scope}, "headers": headers, _WHOLE: scope}
