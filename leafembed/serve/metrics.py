"""Counters for Prometheus; labels are routes, families, models and kinds of refusals, never anything a user sent."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from leafembed.serve.batching import Batched

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_MEMORY = 0.9
"""What the running rate of tokens keeps of the passes before, at each pass."""

_STRETCHES = 64
"""Most stretches of time that are remembered as computed; two passes that ran side by side are one stretch."""


class Metrics:
    """All metrics of one server process, in a registry of their own.

    The running rate of tokens is that of all forward passes together, while at least one of them runs: those of several
    streams and models run side by side, so that the time of a pass is not the time that its tokens cost.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._tokens = self._busy_s = 0.0
        self._stretches: deque[tuple[float, float]] = deque(maxlen=_STRETCHES)
        self.requests = Counter("leaf_requests", "Requests", ["family", "route", "status"], registry=registry)
        self.refusals = Counter("leaf_refusals", "Requests that were refused", ["family", "kind"], registry=registry)
        self.seconds = Histogram(
            "leaf_request_seconds", "Arrival of a request to its answer", ["family"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.phases = Histogram(
            "leaf_phase_seconds", "Phases of an embedding request", ["phase"], buckets=_SECONDS, registry=registry
        )
        self.texts = Counter("leaf_texts", "Texts that were embedded", ["model"], registry=registry)
        self.tokens = Counter("leaf_tokens", "Tokens that were read", ["model"], registry=registry)
        self.truncated = Counter("leaf_truncated_texts", "Texts that were cut", ["model"], registry=registry)
        self.batches = Counter("leaf_batches", "Forward passes", ["model", "outcome"], registry=registry)
        self.batch_texts = Histogram(
            "leaf_batch_texts", "Texts of a forward pass", ["model"], buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )  # fmt: skip
        self.batch_tokens = Histogram(
            "leaf_batch_tokens", "Tokens of a forward pass, padding included", ["model"], buckets=_TOKENS,
            registry=registry,
        )  # fmt: skip
        self.batch_seconds = Histogram(
            "leaf_batch_seconds", "Duration of a forward pass", ["model"], buckets=_SECONDS, registry=registry
        )
        self.non_finite = Counter("leaf_non_finite", "Requests whose vectors held NaN or infinity", registry=registry)
        self.reloads = Counter("leaf_reloads", "Bundles that were replaced", ["outcome"], registry=registry)
        self.at_work = Gauge("leaf_requests_at_work", "Requests at work", registry=registry)
        self.queue = Gauge("leaf_queue_tokens", "Tokens of requests at work", registry=registry)
        Gauge("leaf_start_time_seconds", "Unix time of the start", registry=registry).set(time.time())

    def unread(self, kind: str, status: int = 0) -> None:
        """Count what was refused before it was a request, and of no family; ``status`` 0: without an answer."""
        self.refusals.labels("none", kind).inc()
        if status:
            self.requests.labels("none", "other", str(status)).inc()

    def embedded(self, model: str, texts: int, tokens: int, cut: int) -> None:
        """Count a request that was answered."""
        self.texts.labels(model).inc(texts)
        self.tokens.labels(model).inc(tokens)
        if cut:
            self.truncated.labels(model).inc(cut)

    def phase(self, name: str, seconds: float) -> None:
        """Note how long a phase of a request took."""
        self.phases.labels(name).observe(seconds)

    def batch(self, model: str, batch: Batched) -> None:
        """Count a forward pass; called from worker threads."""
        self.batches.labels(model, "failed" if batch.failed else "ok").inc()
        if batch.failed:
            return
        self.batch_texts.labels(model).observe(batch.texts)
        self.batch_tokens.labels(model).observe(batch.padded)
        self.batch_seconds.labels(model).observe(batch.seconds)
        with self._lock:
            self._tokens = _MEMORY * self._tokens + batch.tokens
            self._busy_s = _MEMORY * self._busy_s + self._alone(batch.ended - batch.seconds, batch.ended)

    @property
    def tokens_per_second(self) -> float:
        """Running rate of all engines while they are at work, 0 before the first batch."""
        return self._tokens / self._busy_s if self._busy_s else 0.0

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _alone(self, began: float, ended: float) -> float:
        """Seconds of a pass in which none ran that was counted before; they come about in the order of their ends."""
        seconds, first, last = ended - began, began, ended
        while self._stretches and self._stretches[-1][1] > began:
            start, end = self._stretches.pop()
            seconds -= max(0.0, min(end, ended) - max(start, began))
            first, last = min(first, start), max(last, end)
        self._stretches.append((first, last))
        return max(seconds, 0.0)
