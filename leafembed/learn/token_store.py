"""What a teacher makes of each token, on disk: more to learn from a text than its one vector.

A token's vector is its last hidden state through the teacher's own head, so that a text's vector is the direction of
their mean. Beside each lies the character at which the token ends: a student whose tokenizer cuts words elsewhere is
compared over the stretches between the ends that both have.

Shards (``shards.py``) hold the vectors in fp16 in ``NAME.npy``, the ends in ``NAME.ends.npy`` and the number of tokens
of each text in ``NAME.counts.npy``. A text of 14 tokens and 768 dimensions takes 22 kB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import ModelError, NonFiniteError
from leafembed.learn.shards import OPEN_SHARDS, Shard, padded, write_shard
from leafembed.types import FloatArray

__all__ = ["TokenStore", "TokenTargets", "TokenVectors", "bytes_per_token"]

_FILES = (".npy", ".ends.npy", ".counts.npy", ".keys")
_SAMPLE = 1_000
"""Texts that the scale is measured on."""


def bytes_per_token(dim: int) -> int:
    """What a token takes on the disk: its vector in fp16 and where it ends."""
    return 2 * dim + 4


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """The tokens of some texts, one text after the other.

    Attributes:
        vectors: ``(T, dim)`` float32, as the teacher's head gives them, or in the units of :class:`TokenTargets`.
        ends: Characters of the text up to each token's end ``(T,)`` int64, from 1.
        texts: Place of the text of each token in what was asked for ``(T,)`` int64.
    """

    vectors: FloatArray
    ends: NDArray[np.int64]
    texts: NDArray[np.int64]


class TokenStore:
    """A growing set of texts' token vectors, each text found by its key (:meth:`VectorStore.key`).

    Args:
        folder: Where the shards of one teacher lie; created when the first shard is written.
        dim: Length of a vector.

    Raises:
        CacheError: If a finished shard has the wrong size or belongs to vectors of another length.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder = folder
        self.dim = dim
        self._place: dict[bytes, int] = {}
        self._shards: list[Shard] = []
        self._rows: list[tuple[int, int, int]] = []  # shard, first token, end of its tokens; by place
        self._mapped = lru_cache(maxsize=OPEN_SHARDS // 2)(self._map)  # of two files each
        for marker in sorted(folder.glob("*.json")):
            self._open(marker)

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Place of each text ``(n,)``, for :meth:`take`; -1 where it is not stored."""
        return np.array([self._place.get(padded(key), -1) for key in keys], dtype=np.int64)

    def append(
        self, keys: Sequence[bytes], vectors: Sequence[NDArray[np.float16]], ends: Sequence[NDArray[np.int64]]
    ) -> None:
        """Store one shard, its marker last.

        Args:
            keys: Of its texts.
            vectors: Of each text ``(tokens, dim)``, as the teacher's head gives them.
            ends: Of each text ``(tokens,)``.

        Raises:
            NonFiniteError: If a vector is not finite.
        """
        values = np.concatenate(vectors)
        if values.dtype != np.float16 or not np.isfinite(values).all():
            raise NonFiniteError(f"token vectors: got {values.dtype} or not finite ones, expected finite float16")
        counts = np.array([len(text) for text in ends], dtype=np.int64)
        arrays: dict[str, NDArray[Any]] = {
            ".npy": values,
            ".ends.npy": np.concatenate(ends).astype(np.int32),
            ".counts.npy": counts,
        }
        facts = {"texts": len(keys), "dim": self.dim}
        self._open(write_shard(self.folder, len(self._shards), arrays, keys, facts, hashed=_FILES))

    def take(self, places: NDArray[np.int64]) -> TokenVectors:
        """Tokens of the texts at the given places, which are stored.

        Raises:
            CacheError: If a shard that is read for the first time has changed since it was written.
        """
        found = [(np.empty((0, self.dim), np.float16), np.empty(0, np.int32))] * len(places)
        for i in sorted(range(len(places)), key=lambda i: self._rows[places[i]]):  # a shard is opened once
            shard, first, last = self._rows[places[i]]
            values, ends = self._mapped(shard)
            found[i] = values[first:last], ends[first:last]
        counts = [len(ends) for _, ends in found]
        return TokenVectors(
            np.concatenate([np.empty((0, self.dim), np.float32), *(values for values, _ in found)], dtype=np.float32),
            np.concatenate([np.empty(0, np.int64), *(ends for _, ends in found)]),
            np.repeat(np.arange(len(places)), counts),
        )

    def _open(self, marker: Path) -> None:
        """Add a finished shard after checking its sizes."""
        shard = Shard(marker, "token vectors", _FILES)
        counts, values, keys = np.array(shard.peek(".counts.npy")), shard.peek(), shard.keys()
        wanted = (shard.facts.get("texts"), shard.facts.get("dim"))
        if wanted != (len(counts), self.dim) or values.shape != (counts.sum(), self.dim) or len(keys) != len(counts):
            raise shard.damaged(f"got vectors {values.shape} of {len(counts)} texts, expected {wanted}")
        last = np.cumsum(counts)
        for i, key in enumerate(keys.tolist()):
            self._place.setdefault(padded(key), len(self._rows))
            self._rows.append((len(self._shards), int(last[i] - counts[i]), int(last[i])))
        self._shards.append(shard)

    def _map(self, index: int) -> tuple[NDArray[Any], ...]:
        """Vectors and ends of a shard, checked against their hash the first time."""
        return self._shards[index].read(".npy", ".ends.npy")


@dataclass(frozen=True, slots=True)
class TokenTargets:
    """Token vectors by row number, in units in which the mean of a text's tokens has length 1 on average.

    Attributes:
        store: Where they lie.
        places: Place of each row in the store ``(n_rows,)``; -1: it has no tokens of its own.
        scale: Length of a text's mean in the store, measured on rows evenly over these, so that it does not depend on
            what else is stored.

    Raises:
        ModelError: If no row has a token.
    """

    store: TokenStore
    places: NDArray[np.int64]
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        having = np.flatnonzero(self.places >= 0)
        tokens = self.store.take(self.places[having[:: -(-len(having) // _SAMPLE) or 1]])
        if not len(tokens.ends):
            raise ModelError("train.token_distillation: got no text with tokens of the teacher, expected some")
        starts = np.flatnonzero(np.diff(tokens.texts, prepend=-1))
        counts = np.diff(starts, append=len(tokens.texts))[:, np.newaxis]
        means = np.add.reduceat(tokens.vectors, starts) / counts
        object.__setattr__(self, "scale", float(np.linalg.norm(means, axis=1).mean()))

    def __call__(self, rows: NDArray[np.int64]) -> TokenVectors:
        """Tokens of the rows ``(n,)`` that have any; ``texts`` counts within ``rows``."""
        places = self.places[rows]
        having = np.flatnonzero(places >= 0)
        found = self.store.take(places[having])
        return TokenVectors(found.vectors / np.float32(self.scale), found.ends, having[found.texts])
