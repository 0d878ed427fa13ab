"""Which texts share a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sentence_transformers.base.sampler import DefaultBatchSampler

__all__ = ["LengthSortedBatches"]


class LengthSortedBatches(DefaultBatchSampler):
    """Batches of texts of like length, in random order: padding costs time and teaches nothing.

    Texts are shuffled, cut into chunks of 50 batches, sorted by length within a chunk; then batches are shuffled.
    The order depends on the seed and the epoch alone, so that a resumed run sees the same batches.
    """

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of indices into the data set."""
        rng = np.random.default_rng((self.seed, getattr(self, "epoch", 0)))
        lengths = np.array([len(text) for text in self.data_source["sentence"]])
        order = rng.permutation(len(lengths))
        batches: list[list[int]] = []
        chunk = 50 * self.batch_size
        for start in range(0, len(order), chunk):
            part = order[start : start + chunk]
            part = part[np.argsort(lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size].tolist() for i in range(0, len(part), self.batch_size)]
        yield from (batches[i] for i in rng.permutation(len(batches)))

    @property
    def data_source(self) -> Any:
        """The data set, which torch's ``BatchSampler`` calls a sampler."""
        return self.sampler
