"""What a teacher makes of each token, on disk: more to learn from a text than its one vector.

A token's vector is its last hidden state through the teacher's own head, so that a text's vector is the direction of
their mean. Beside each lies the character at which the token ends: a student whose tokenizer cuts words elsewhere is
compared over the stretches between the ends that both have.

Shards are as those of :mod:`~leafembed.learn.cache`: ``NAME.npy`` with the vectors in fp16 (memory-mapped),
``NAME.ends.npy``, ``NAME.counts.npy``, ``NAME.keys``, and ``NAME.json``, which is written last. A text of 14 tokens and
768 dimensions takes 22 kB.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import CacheError, NonFiniteError
from leafembed.learn.cache import KEY_BYTES, OPEN_SHARDS
from leafembed.types import FloatArray

__all__ = ["TokenStore", "TokenTargets", "TokenVectors"]

_KEY = np.dtype(f"S{KEY_BYTES}")
_SAMPLE = 1_000
"""Texts that the scale is measured on, evenly over the store, since shards are sorted by length."""

_REMEDY = "delete the files of that name and run again: only they are computed anew"


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """The tokens of some texts, one text after the other.

    Attributes:
        vectors: ``(T, dim)`` float32, in units in which a text's mean has length 1 on average.
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
        self._markers: list[Path] = []
        self._rows: list[tuple[int, int, int]] = []  # shard, first token, end of its tokens; by place
        self._mapped = lru_cache(maxsize=OPEN_SHARDS)(self._map)
        self._measured: tuple[float, float] | None = None
        for marker in sorted(folder.glob("*.json")):
            self._open(marker)

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Place of each text ``(n,)``, for :meth:`take`; -1 where it is not stored."""
        return np.array([self._place.get(key.ljust(KEY_BYTES, b"\0"), -1) for key in keys], dtype=np.int64)

    def append(self, keys: Sequence[bytes], vectors: Sequence[FloatArray], ends: Sequence[NDArray[np.int64]]) -> None:
        """Store one shard, its marker last.

        Args:
            keys: Of its texts.
            vectors: Of each text ``(tokens, dim)``, as the teacher's head gives them.
            ends: Of each text ``(tokens,)``.

        Raises:
            NonFiniteError: If a vector is not finite, or beyond what fp16 holds.
        """
        with np.errstate(over="ignore"):  # what overflows is refused below
            values = np.concatenate(vectors).astype(np.float16)
        if not np.isfinite(values).all():
            raise NonFiniteError("token vectors: got NaN, infinity or a magnitude above 65,504, expected finite ones")
        self.folder.mkdir(parents=True, exist_ok=True)
        name = self.folder / f"{len(self._markers):06d}-{uuid.uuid4().hex[:8]}"
        counts = np.array([len(text) for text in ends], dtype=np.int64)
        parts: dict[str, NDArray[Any]] = {
            ".npy": values,
            ".ends.npy": np.concatenate(ends).astype(np.int32),
            ".counts.npy": counts,
        }
        for suffix, array in parts.items():
            with Path(f"{name}{suffix}").open("wb") as file:
                np.save(file, array)
                os.fsync(file.fileno())
        with Path(f"{name}.keys").open("wb") as file:
            file.write(b"".join(key.ljust(KEY_BYTES, b"\0") for key in keys))
            os.fsync(file.fileno())
        temporary = Path(f"{name}.tmp")
        temporary.write_text(json.dumps({"texts": len(keys), "dim": self.dim, "sha256": _digest(name)}))
        temporary.replace(f"{name}.json")
        self._open(Path(f"{name}.json"))

    def take(self, places: NDArray[np.int64]) -> TokenVectors:
        """Tokens of the texts at the given places, which are stored."""
        vectors, ends, texts = [np.empty((0, self.dim), np.float16)], [np.empty(0, np.int32)], [np.empty(0, np.int64)]
        for i, place in enumerate(places.tolist()):
            shard, first, last = self._rows[place]
            values, all_ends = self._mapped(shard)
            vectors.append(values[first:last])
            ends.append(all_ends[first:last])
            texts.append(np.full(last - first, i, dtype=np.int64))
        scaled = np.concatenate(vectors).astype(np.float32) / np.float32(self._scale()[0])
        return TokenVectors(scaled, np.concatenate(ends).astype(np.int64), np.concatenate(texts))

    @property
    def variance(self) -> float:
        """Mean squared distance of a token's vector to the mean of all, in the units of :class:`TokenVectors`."""
        return self._scale()[1]

    def _scale(self) -> tuple[float, float]:
        """Mean length of a text's mean, and the variance in its units, over some of the texts stored."""
        if self._measured is None:
            means, tokens = [], []
            for shard, first, last in self._rows[:: -(-len(self._rows) // _SAMPLE)]:
                values = self._mapped(shard)[0][first:last].astype(np.float32)
                means.append(float(np.linalg.norm(values.mean(axis=0))))
                tokens.append(values)
            every = np.concatenate(tokens)
            scale = float(np.mean(means))
            self._measured = scale, float(((every - every.mean(axis=0)) ** 2).sum(axis=1).mean()) / scale**2
        return self._measured

    def _open(self, marker: Path) -> None:
        """Add a finished shard after checking its sizes."""
        name = str(marker.with_suffix(""))
        try:
            facts = json.loads(marker.read_text(encoding="utf-8"))
            counts = np.load(f"{name}.counts.npy", allow_pickle=False)
            values = np.load(f"{name}.npy", mmap_mode="r", allow_pickle=False)
            keys = Path(f"{name}.keys").read_bytes()
            sizes = (int(facts["texts"]), int(facts["dim"]))
        except (OSError, ValueError, KeyError) as error:
            raise CacheError(f"{marker}: damaged shard of token vectors ({error}); {_REMEDY}") from error
        if sizes != (len(counts), self.dim) or values.shape != (counts.sum(), self.dim) or len(keys) != 16 * sizes[0]:
            raise CacheError(
                f"{marker}: got vectors {values.shape} of {len(counts)} texts, expected {sizes}; {_REMEDY}"
            )
        last = np.cumsum(counts)
        for i, key in enumerate(np.frombuffer(keys, dtype=_KEY).tolist()):
            self._place.setdefault(key.ljust(KEY_BYTES, b"\0"), len(self._rows))
            self._rows.append((len(self._markers), int(last[i] - counts[i]), int(last[i])))
        self._markers.append(marker)

    def _map(self, index: int) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        """Vectors and ends of a shard, checked against their hash when it is first read."""
        marker = self._markers[index]
        name = str(marker.with_suffix(""))
        if _digest(Path(name)) != json.loads(marker.read_text(encoding="utf-8"))["sha256"]:
            raise CacheError(f"{marker}: the vectors changed since they were written; {_REMEDY}")
        values: NDArray[np.float16] = np.load(f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return values, np.load(f"{name}.ends.npy", allow_pickle=False)


@dataclass(frozen=True, slots=True)
class TokenTargets:
    """Token vectors by row number.

    Attributes:
        store: Where they lie.
        places: Place of each row in the store ``(n_rows,)``; -1: it has no tokens of its own.
    """

    store: TokenStore
    places: NDArray[np.int64]

    def __call__(self, rows: NDArray[np.int64]) -> TokenVectors:
        """Tokens of the rows ``(n,)`` that have any; ``texts`` counts within ``rows``."""
        places = self.places[rows]
        having = np.flatnonzero(places >= 0)
        found = self.store.take(places[having])
        return TokenVectors(found.vectors, found.ends, having[found.texts])


def _digest(name: Path) -> str:
    digest = hashlib.sha256()
    for suffix in (".npy", ".ends.npy", ".counts.npy", ".keys"):
        with Path(f"{name}{suffix}").open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
