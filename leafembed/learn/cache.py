"""Teacher vectors on disk, found by what they are vectors of.

A key is a hash of the text, its prompt and the teacher (files, precision, length limit), so a changed text, prompt
or teacher is a miss and never a wrong hit. Vectors lie in shards (``shards.py``), so that a killed pass repeats at most
one. Opening a store reads markers and keys and checks every size. The index is a sorted array of keys, 24 bytes a
vector; at most :data:`~leafembed.learn.shards.OPEN_SHARDS` files are held open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leafembed.learn.shards import KEY, KEY_BYTES, OPEN_SHARDS, Shard, padded, write_shard
from leafembed.types import FloatArray, check_vectors

__all__ = ["VectorStore"]

_RECENT = 65_536  # new keys are looked up in a dict until there are so many, then merged into the sorted index
_FILES = (".npy",)


class VectorStore:
    """A growing set of unit vectors, each found by its key.

    Args:
        folder: Where the shards of this teacher lie; created when the first shard is written.
        dim: Length of a vector.

    Raises:
        CacheError: If a finished shard has the wrong size or belongs to vectors of another length.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder = folder
        self.dim = dim
        self._shards: list[Shard] = []
        self._starts: list[int] = [0]
        self._keys = np.empty(0, dtype=KEY)
        self._where = np.empty(0, dtype=np.int64)
        self._recent: dict[bytes, int] = {}
        self._mapped = lru_cache(maxsize=OPEN_SHARDS)(self._map)
        found = [self._open(marker) for marker in sorted(folder.glob("*.json"))]
        if found:
            # Of a key that two writers stored, one is as good as the other.
            self._keys, self._where = np.unique(np.concatenate(found), return_index=True)

    def __len__(self) -> int:
        return len(self._keys) + len(self._recent)

    def __contains__(self, key: bytes) -> bool:
        return key in self._recent or bool(self._find(np.array([key], dtype=KEY))[0] >= 0)

    @staticmethod
    def key(text: str, prompt: str) -> bytes:
        """The key of a text under a prompt; the teacher is in the store's folder name."""
        parts = prompt.encode("utf-8", "surrogatepass") + b"\0" + text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(parts, digest_size=KEY_BYTES).digest()

    def append(self, keys: Sequence[bytes], vectors: FloatArray) -> None:
        """Store one shard, its marker last.

        Raises:
            NonFiniteError: If a vector is not finite or not of unit length.
        """
        vectors, keys = check_vectors(vectors, n=len(keys), what="teacher vectors"), [*map(padded, keys)]
        facts = {"rows": len(keys), "dim": self.dim}
        marker = write_shard(self.folder, len(self._shards), {".npy": vectors}, keys, facts, hashed=_FILES)
        start = self._starts[-1]
        self._open(marker)
        self._recent |= {key: start + i for i, key in enumerate(keys) if key not in self}
        if len(self._recent) >= _RECENT:
            self._merge()

    def positions(self, keys: Iterable[bytes] | NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Where each key's vector lies ``(n,)``, for :meth:`take`.

        Raises:
            KeyError: If a key is not stored.
        """
        found = self.find(keys)
        if (found < 0).any():
            raise KeyError(f"{int((found < 0).sum())} of {len(found)} keys are not stored")
        return found

    def find(self, keys: Iterable[bytes] | NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Where each key's vector lies ``(n,)``, -1 where it is not stored.

        Args:
            keys: Keys of :meth:`key`, or an array of them, 16 bytes each.
        """
        self._merge()
        return self._find(keys if isinstance(keys, np.ndarray) else np.array(list(keys), dtype=KEY))

    def take(self, positions: NDArray[np.int64]) -> FloatArray:
        """Vectors at the given positions, ``(n, dim)`` float32, copied out of the memory map.

        Raises:
            CacheError: If a shard that is read for the first time has changed since it was written.
        """
        result = np.empty((len(positions), self.dim), dtype=np.float32)
        shard = np.searchsorted(np.array(self._starts[1:]), positions, side="right")
        order = np.argsort(shard, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
            if len(rows):
                index = int(shard[rows[0]])
                result[rows] = self._mapped(index)[positions[rows] - self._starts[index]]
        return result

    def _find(self, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """As :meth:`find`, in the sorted index alone."""
        if not len(self._keys):
            return np.full(len(keys), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[place] == keys, self._where[place], -1)

    def _merge(self) -> None:
        """Move the recent keys into the sorted index."""
        if self._recent:
            keys = np.array(list(self._recent), dtype=KEY)
            order = np.argsort(keys)
            where = np.array(list(self._recent.values()), dtype=np.int64)[order]
            place = np.searchsorted(self._keys, keys[order])
            self._keys = np.insert(self._keys, place, keys[order])
            self._where = np.insert(self._where, place, where)
            self._recent = {}

    def _open(self, marker: Path) -> NDArray[np.bytes_]:
        """Add a finished shard after checking its sizes, and return its keys ``(rows,)``."""
        shard = Shard(marker, "teacher vectors", _FILES)
        rows, dim, vectors, keys = shard.facts.get("rows"), shard.facts.get("dim"), shard.peek(), shard.keys()
        if vectors.shape != (rows, self.dim) or dim != self.dim or len(keys) != rows:
            raise shard.damaged(
                f"got vectors {vectors.shape} and {len(keys)} keys, expected ({rows}, {self.dim}) and {rows} keys"
            )
        self._shards.append(shard)
        self._starts.append(self._starts[-1] + len(keys))
        return keys

    def _map(self, index: int) -> NDArray[np.float32]:
        """The vectors of a shard, checked against their hash the first time."""
        (vectors,) = self._shards[index].read(".npy")
        return vectors
