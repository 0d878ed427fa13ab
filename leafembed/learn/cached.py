"""An encoder that computes no vector twice, since a store keeps them: of a teacher, or of any model that is judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from leafembed.errors import NonFiniteError
from leafembed.learn.cache import VectorStore
from leafembed.progress import progress
from leafembed.types import Encoder, FloatArray, ModelRef

__all__ = ["BatchEncoder", "CachedEncoder", "InBatches"]

_CHUNK = 256


class BatchEncoder(Protocol):
    """An encoder that gives vectors as they are ready, so that they can be kept before all are."""

    @property
    def ref(self) -> ModelRef:
        """What this encoder is."""
        ...

    def batches(
        self, texts: Sequence[str], *, prompt_name: str | None = None
    ) -> Iterator[tuple[list[int], FloatArray]]:
        """Yield (indices into ``texts``, their vectors) in any order."""
        ...


class InBatches:
    """Any encoder as a :class:`BatchEncoder`: a few hundred texts at a time, the longest first."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @property
    def ref(self) -> ModelRef:
        """What the encoder is."""
        return self._encoder.ref

    def batches(
        self, texts: Sequence[str], *, prompt_name: str | None = None
    ) -> Iterator[tuple[list[int], FloatArray]]:
        """Yield (indices into ``texts``, their vectors)."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        for start in range(0, len(order), _CHUNK):
            index = order[start : start + _CHUNK]
            yield index, self._encoder.encode([texts[i] for i in index], prompt_name=prompt_name)


class CachedEncoder:
    """An encoder in front of a :class:`VectorStore`.

    Args:
        encoder: What computes the vectors.
        store: Where they are kept.
        shard_rows: Vectors in one shard of the store: what an interrupted call repeats at most.

    Attributes:
        computed: Vectors computed so far, and not found in the store.
        seconds: Time that this took.
    """

    def __init__(self, encoder: BatchEncoder, store: VectorStore, *, shard_rows: int) -> None:
        self._encoder = encoder
        self.store = store
        self.shard_rows = shard_rows
        self.computed = 0
        self.seconds = 0.0

    @property
    def ref(self) -> ModelRef:
        """What the encoder is."""
        return self._encoder.ref

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Embeddings ``(n_texts, dim)`` float32, unit length: stored ones, and new ones for what is missing."""
        prompt = self.ref.prompts.get(prompt_name or "", "")
        keys = [VectorStore.key(text, prompt) for text in texts]
        missing = {key: i for i, key in enumerate(keys) if key not in self.store}
        if missing:
            with progress(f"encoding with {self.ref.name}", len(missing), "texts", brief=True) as advance:
                self.compute([texts[i] for i in missing.values()], list(missing), prompt_name, advance)
        return self.store.take(self.store.positions(keys))

    def compute(
        self, texts: list[str], keys: list[bytes], prompt_name: str | None, advance: Callable[[int], None]
    ) -> None:
        """Compute and store the vectors of texts under these keys.

        Raises:
            NonFiniteError: If a vector holds NaN or infinity; what was stored before stays.
        """
        done_keys: list[bytes] = []
        done: list[FloatArray] = []
        start = time.perf_counter()
        for index, vectors in self._encoder.batches(texts, prompt_name=prompt_name):
            _refuse_non_finite(vectors, [texts[i] for i in index], self.ref.name)
            done_keys += [keys[i] for i in index]
            done.append(vectors)
            advance(len(index))
            if len(done_keys) >= self.shard_rows:
                self.store.append(done_keys, np.concatenate(done))
                done_keys, done = [], []
        if done_keys:
            self.store.append(done_keys, np.concatenate(done))
        self.computed += len(texts)
        self.seconds += time.perf_counter() - start


def _refuse_non_finite(vectors: FloatArray, texts: list[str], name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise NonFiniteError(
            f"{name} gives NaN or infinity for {len(bad)} of {len(texts)} texts, "
            f"first {texts[bad[0]][:60]!r}; expected finite vectors: check its weights, or set "
            "teacher.precision = 'fp32'"
        )
