"""Merges the texts of many requests into batches of similar length, so that a small request never waits for a big one.

Requests take turns by tokens: the next batch begins with the request that was served least, and of those with the one
that has least left; whatever waits elsewhere and is about as long joins it, up to a budget of padded tokens. This is
start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) with equal weights. A batch is one forward pass on one of
a few threads. A batch that fails takes down the requests in it and nothing else.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leafembed.types import FloatArray

__all__ = ["FAULTS", "BatchFailedError", "Batched", "Batcher", "Engine"]

_Ids = NDArray[np.int64]

_WINDOW = 1.5
_SLACK = 8
"""A text joins a batch if it has at most ``_WINDOW`` times the tokens of the first text and ``_SLACK`` more."""

FAULTS = 3
"""Batches failed in a row after which the engine counts as broken."""


class Engine(Protocol):
    """What runs a batch."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""

    def embed_tokens(self, ids: Sequence[_Ids]) -> FloatArray:
        """Embeddings ``(n_texts, dim)`` float32 of one batch."""


class BatchFailedError(Exception):
    """A batch could not be computed; says nothing of the texts in it."""


@dataclass(slots=True)
class Batched:
    """One batch that was computed: for metrics.

    Attributes:
        texts: Texts in it.
        tokens: Their tokens.
        padded: Tokens with padding.
        seconds: Of the forward pass.
        failed: Whether it failed.
    """

    texts: int
    tokens: int
    padded: int
    seconds: float
    failed: bool


@dataclass(slots=True, eq=False)
class _Job:
    """A request's texts, shortest first; ``served`` counts tokens from where the others stood when it came."""

    ids: Sequence[_Ids]
    order: list[int]
    lengths: list[int]
    vectors: FloatArray
    future: asyncio.Future[FloatArray]
    served: float
    taken: int = 0
    done: int = 0
    over: bool = False
    started: float = 0.0
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = sum(self.lengths)

    @property
    def waiting(self) -> bool:
        return not self.over and self.taken < len(self.order)

    def next_length(self) -> int:
        return self.lengths[self.order[self.taken]]

    def take(self) -> int:
        place = self.order[self.taken]
        self.taken += 1
        self.left -= self.lengths[place]
        self.served += self.lengths[place]
        return place


class Batcher:
    """A queue of texts in front of one engine.

    Args:
        engine: Called from ``workers`` threads.
        workers: Forward passes side by side.
        batch_tokens: Padded tokens of one forward pass.
        on_batch: Told of every batch, from a worker thread.
    """

    def __init__(
        self, engine: Engine, *, workers: int, batch_tokens: int, on_batch: Callable[[Batched], None] | None = None
    ) -> None:
        self.engine = engine
        self.batch_tokens = batch_tokens
        self.faults = 0
        self._on_batch = on_batch or (lambda _: None)
        self._jobs: list[_Job] = []
        self._change = threading.Condition()
        self._closed = False
        self._threads = [self._start() for _ in range(workers)]

    async def embed(self, ids: Sequence[_Ids]) -> FloatArray:
        """Return the embeddings of texts by their token ids, ``(n_texts, dim)`` float32.

        Cancelled, what has not begun leaves the queue.

        Raises:
            BatchFailedError: If the engine failed.
        """
        future: asyncio.Future[FloatArray] = asyncio.get_running_loop().create_future()
        lengths = [len(tokens) for tokens in ids]
        order = sorted(range(len(ids)), key=lengths.__getitem__)
        vectors = np.empty((len(ids), self.engine.dim), dtype=np.float32)
        with self._change:
            if self._closed:
                raise BatchFailedError("the engine was closed")
            start = min((job.served for job in self._jobs), default=0.0)
            job = _Job(ids, order, lengths, vectors, future, start)
            self._jobs.append(job)
            self._change.notify()
        try:
            return await future
        finally:
            if job.done < len(ids):
                with self._change:
                    self._drop(job)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that no batch has taken yet."""
        with self._change:
            return sum(job.left for job in self._jobs)

    @property
    def broken(self) -> bool:
        """Whether the last batches all failed, or no thread is left."""
        return self.faults >= FAULTS or not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Let what waits be computed, then end the threads; waits for them."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="leaf-engine", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._compute(batch)
            except BaseException as error:  # whatever an engine throws, SystemExit too, must not end the thread
                self._fail(batch, error)

    def _next(self) -> list[tuple[_Job, int]] | None:
        """Wait for a batch; ``None`` when the batcher is closed and nothing waits."""
        with self._change:
            while not any(job.waiting for job in self._jobs):
                if self._closed:
                    return None
                self._change.wait()
            return self._gather()

    def _gather(self) -> list[tuple[_Job, int]]:
        jobs = sorted((job for job in self._jobs if job.waiting), key=lambda job: (job.served, job.left))
        shortest = jobs[0].next_length()
        limit = max(int(shortest * _WINDOW) + _SLACK, shortest)
        batch: list[tuple[_Job, int]] = []
        longest = 0
        for job in jobs:
            while job.waiting and job.next_length() <= limit:
                longest = max(longest, job.next_length())
                if batch and longest * (len(batch) + 1) > self.batch_tokens:
                    return batch
                batch.append((job, job.take()))
        return batch

    def _compute(self, batch: list[tuple[_Job, int]]) -> None:
        ids = [job.ids[place] for job, place in batch]
        start = time.perf_counter()
        vectors = self.engine.embed_tokens(ids)
        seconds = time.perf_counter() - start
        finished: dict[Any, list[_Job]] = {}
        with self._change:
            self.faults = 0
            for (job, place), vector in zip(batch, vectors, strict=True):
                job.vectors[place] = vector
                job.done += 1
                if job.done == len(job.order) and not job.over:
                    self._drop(job)
                    finished.setdefault(job.future.get_loop(), []).append(job)
        for loop, jobs in finished.items():
            _call(loop, _deliver, jobs)
        self._report(ids, seconds, failed=False)

    def _fail(self, batch: list[tuple[_Job, int]], error: BaseException) -> None:
        with self._change:
            self.faults += 1
            jobs = {job for job, _ in batch if not job.over}
            for job in jobs:
                self._drop(job)
        for job in jobs:
            _call(job.future.get_loop(), _break, job, error)
        self._report([job.ids[place] for job, place in batch], 0.0, failed=True)

    def _report(self, ids: Sequence[_Ids], seconds: float, *, failed: bool) -> None:
        lengths = [len(tokens) for tokens in ids]
        self._on_batch(Batched(len(ids), sum(lengths), max(lengths) * len(ids), seconds, failed))

    def _drop(self, job: _Job) -> None:
        job.over = True
        if job in self._jobs:
            self._jobs.remove(job)


def _call(loop: asyncio.AbstractEventLoop, what: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(what, *args)
    except RuntimeError:  # the loop has ended, and with it whoever waited
        return


def _deliver(jobs: list[_Job]) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_result(job.vectors)


def _break(job: _Job, error: BaseException) -> None:
    if not job.future.done():
        failure = BatchFailedError(f"the engine failed: {type(error).__name__}")
        failure.__cause__ = error
        job.future.set_exception(failure)
