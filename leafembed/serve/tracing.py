"""OpenTelemetry: a span a request, sent to a collector, part of the trace that the request's ``traceparent`` names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from leafembed import __version__
from leafembed.errors import MissingExtraError

__all__ = ["traced"]

_App = Callable[..., Awaitable[None]]


def traced(app: _App, endpoint: str) -> tuple[_App, Callable[[], None]]:
    """Return the application with spans around its requests, and what sends the last of them at the end.

    A collector that cannot be reached costs spans and nothing else. Spans hold method, path, status and duration, and
    no text of users.

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
    wrapped: Any = OpenTelemetryMiddleware(
        app, tracer_provider=provider, exclude_spans=["receive", "send"], excluded_urls="/health/.*,/metrics"
    )
    return wrapped, provider.shutdown
