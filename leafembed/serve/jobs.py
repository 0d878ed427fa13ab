"""Texts that wait for the engine: those of one request, and those that go through it together."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leafembed.types import FloatArray

__all__ = ["Batch", "Ids", "Job"]

Ids = NDArray[np.int64]
"""Token ids of one text ``(n_tokens,)``."""


@dataclass(slots=True, eq=False)
class Job:
    """A request's texts, shortest first; ``served`` counts tokens from what the clock said when it came."""

    ids: Sequence[Ids]
    vectors: FloatArray
    future: asyncio.Future[FloatArray]
    served: float
    places: list[int] = field(init=False)
    lengths: list[int] = field(init=False)
    waited: float | None = None
    came: float = field(default_factory=time.perf_counter)
    left: int = field(init=False)
    done: int = 0
    over: bool = False

    def __post_init__(self) -> None:
        self.places = sorted(range(len(self.ids)), key=lambda place: len(self.ids[place]))
        self.lengths = [len(self.ids[place]) for place in self.places]
        self.left = sum(self.lengths)

    @property
    def waiting(self) -> bool:
        """Whether a text of it is in no batch yet."""
        return not self.over and bool(self.places)


@dataclass(slots=True)
class Batch:
    """Texts that go through the engine together."""

    budget: int
    texts: list[tuple[Job, int]] = field(default_factory=list)
    longest: int = 0
    tokens: int = 0

    def fill(self, job: Job, low: float, high: float) -> None:
        """Take a job's texts of ``low`` to ``high`` tokens, shortest first, while there is room."""
        first = last = bisect_left(job.lengths, low)
        while last < len(job.lengths) and job.lengths[last] <= high:
            longest, texts = max(self.longest, job.lengths[last]), len(self.texts) + last - first
            if texts and longest * (texts + 1) > self.budget:
                break
            self.longest, last = longest, last + 1
        if last > first and job.waited is None:
            job.waited = time.perf_counter() - job.came
        taken = sum(job.lengths[first:last])
        job.served += taken
        job.left -= taken
        self.tokens += taken
        self.texts += [(job, place) for place in job.places[first:last]]
        del job.places[first:last], job.lengths[first:last]
