"""Merges the texts of many requests into batches of similar length, so that a small request never waits for a big one.

Requests take turns by tokens: the next batch begins with the request that was served least since it came, and texts
of about the same length that wait elsewhere join it, up to a budget of padded tokens. What a request was served counts
from a clock that runs as fast as an equal share of the engine for each request, so that one that came earlier is not
passed for ever by ones that come later (fair queueing: Demers, Keshav and Shenker, SIGCOMM 1989).

A batch is one forward pass on one of a few threads. A batch that fails takes down the requests in it and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from leafembed.serve.jobs import Batch, Ids, Job
from leafembed.serve.logs import SERVER_LOG
from leafembed.types import FloatArray

__all__ = ["CLOSE_S", "FAULTS", "STUCK_S", "BatchFailedError", "Batched", "Batcher", "Engine"]

_WINDOW = 1.5
_SLACK = 8
"""A text joins a batch if it has at most ``_WINDOW`` times the tokens of the first text and ``_SLACK`` more."""

FAULTS = 3
"""Batches failed in a row after which the engine counts as broken."""

STUCK_S = 30.0
"""Seconds after which a batch counts as one that will not end; the longest text takes a few."""

CLOSE_S = 5.0
"""Seconds that closing waits for what is computed; running requests had theirs before."""

_log = logging.getLogger(SERVER_LOG)


class Engine(Protocol):
    """What runs a batch."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""

    def embed_tokens(self, ids: Sequence[Ids]) -> FloatArray:
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
        ended: When the pass ended, by :func:`time.perf_counter`.
        failed: Whether it failed.
    """

    texts: int
    tokens: int
    padded: int
    seconds: float
    ended: float
    failed: bool


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
        self._jobs: list[Job] = []
        self._clock = 0.0
        self._change = threading.Condition()
        self._closed = False
        self._running: dict[int, float] = {}
        self._threads: list[threading.Thread] = []
        for _ in range(workers):
            self._start()

    async def embed(self, ids: Sequence[Ids], *, waited: Callable[[float], None] | None = None) -> FloatArray:
        """Return the embeddings of texts by their token ids, ``(n_texts, dim)`` float32.

        Cancelled, what has not begun leaves the queue.

        Args:
            ids: At least one text.
            waited: Told the seconds until a batch took the first of them.

        Raises:
            BatchFailedError: If the engine failed.
        """
        future: asyncio.Future[FloatArray] = asyncio.get_running_loop().create_future()
        vectors = np.empty((len(ids), self.engine.dim), dtype=np.float32)
        with self._change:
            if self._closed:
                raise BatchFailedError("the engine was closed")
            job = Job(ids, vectors, future, self._clock)
            self._jobs.append(job)
            self._change.notify()
        try:
            result = await future
            if waited is not None:
                waited(job.waited or 0.0)
            return result
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
        """Whether the last batches all failed, one does not end, or no thread is left."""
        late = time.perf_counter() - STUCK_S
        stuck = any(began < late for began in list(self._running.values()))
        return stuck or self.faults >= FAULTS or not self._alive()

    def close(self, within: float = CLOSE_S) -> None:
        """Let what waits be computed, then end the threads; waits for them, ``within`` seconds at most."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        end = time.monotonic() + within
        while (alive := self._alive()) and (left := end - time.monotonic()) > 0:
            alive[0].join(left)
        if alive:
            _log.error("a batch did not end within %g s; it is left behind", within)

    def _alive(self) -> list[threading.Thread]:
        return [thread for thread in list(self._threads) if thread.is_alive()]

    def _start(self, *, instead_of: threading.Thread | None = None) -> None:
        thread = threading.Thread(target=self._run, name="leaf-engine", daemon=True)
        self._threads.append(thread)
        thread.start()
        if instead_of is not None:
            self._threads.remove(instead_of)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException:  # not even the failure could be told, e.g. for want of memory
            self._start(instead_of=threading.current_thread())
            _log.exception("a thread of the engine ended; another one took its place")

    def _turn(self) -> bool:
        """Compute one batch; whether there will be another."""
        batch = None
        try:
            batch = self._next()
            if batch is None:
                return False
            self._running[threading.get_ident()] = time.perf_counter()
            self._compute(batch)
        except BaseException as error:  # whatever is thrown, SystemExit too, must not end the thread
            with self._change:
                self.faults += 1
            self._fail(batch, error)
        finally:
            self._running.pop(threading.get_ident(), None)
        return True

    def _next(self) -> list[tuple[Job, int]] | None:
        """Wait for a batch; ``None`` when the batcher is closed and nothing waits."""
        with self._change:
            while not any(job.waiting for job in self._jobs):
                if self._closed:
                    return None
                self._change.wait()
            return self._gather()

    def _gather(self) -> list[tuple[Job, int]]:
        jobs = sorted((job for job in self._jobs if job.waiting), key=lambda job: (job.served, job.left))
        first, batch = jobs[0].lengths[0], Batch(self.batch_tokens)
        batch.fill(jobs[0], first, first * _WINDOW + _SLACK)
        for job in jobs[1:]:
            batch.fill(job, (first - _SLACK) / _WINDOW, first * _WINDOW + _SLACK)
        self._clock += batch.tokens / len(jobs)
        return batch.texts

    def _compute(self, batch: list[tuple[Job, int]]) -> None:
        ids = [job.ids[place] for job, place in batch]
        start = time.perf_counter()
        vectors = self.engine.embed_tokens(ids)
        end = time.perf_counter()
        finished: dict[Any, list[Job]] = {}
        with self._change:
            # Each request is told of its own vectors; that they are numbers at all says whether the engine works.
            self.faults = 0 if np.isfinite(vectors).all() else self.faults + 1
            for (job, place), vector in zip(batch, vectors, strict=True):
                job.vectors[place] = vector
                job.done += 1
                if job.done == len(job.ids) and not job.over:
                    self._drop(job)
                    finished.setdefault(job.future.get_loop(), []).append(job)
        for loop, jobs in finished.items():
            _call(loop, _deliver, jobs)
        self._report(ids, end - start, end, failed=False)

    def _fail(self, batch: list[tuple[Job, int]] | None, error: BaseException) -> None:
        """Fail the requests of a batch; of all that wait, where none could be made of them."""
        try:
            _log.error("a batch failed", exc_info=error)
        finally:  # memory may not suffice for a traceback; whoever waits is told even then
            with self._change:
                jobs = set(self._jobs) if batch is None else {job for job, _ in batch if not job.over}
                for job in jobs:
                    self._drop(job)
            for job in jobs:
                _call(job.future.get_loop(), _break, job, error)
        self._report([job.ids[place] for job, place in batch or []], 0.0, time.perf_counter(), failed=True)

    def _report(self, ids: Sequence[Ids], seconds: float, ended: float, *, failed: bool) -> None:
        lengths = [len(tokens) for tokens in ids]
        padded = max(lengths, default=0) * len(ids)
        try:
            self._on_batch(Batched(len(ids), sum(lengths), padded, seconds, ended, failed))
        except Exception:  # who counts batches must not fail them
            _log.exception("a batch could not be counted")

    def _drop(self, job: Job) -> None:
        job.over = True
        if job in self._jobs:
            self._jobs.remove(job)


def _call(loop: asyncio.AbstractEventLoop, what: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(what, *args)
    except RuntimeError:  # the loop has ended, and with it whoever waited
        return


def _deliver(jobs: list[Job]) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_result(job.vectors)


def _break(job: Job, error: BaseException) -> None:
    if not job.future.done():
        failure = BatchFailedError(f"the engine failed: {type(error).__name__}")
        failure.__cause__ = error
        job.future.set_exception(failure)
