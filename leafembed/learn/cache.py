"""Teacher vectors on disk, found by what they are vectors of.

A key is a hash of the text, its prompt and the teacher (files, precision, length limit), so a changed text, prompt
or teacher is a miss and never a wrong hit. Vectors lie in shards: ``NAME.npy`` (memory-mapped), ``NAME.keys``, and
``NAME.json``, which is written last: a shard without it never happened. A killed pass repeats at most one shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import CacheError
from leafembed.types import FloatArray, check_vectors

__all__ = ["KEY_BYTES", "VectorStore"]

KEY_BYTES = 16


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
        self._shards: list[NDArray[np.float32]] = []
        self._where: dict[bytes, int] = {}
        self._starts: list[int] = [0]
        for marker in sorted(folder.glob("*.json")):
            self._open(marker)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, key: bytes) -> bool:
        return key in self._where

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
        vectors = check_vectors(vectors, n=len(keys), what="teacher vectors")
        self.folder.mkdir(parents=True, exist_ok=True)
        name = self.folder / f"{len(self._shards):06d}-{uuid.uuid4().hex[:8]}"
        with name.with_suffix(".npy").open("wb") as file:
            np.save(file, vectors)
            os.fsync(file.fileno())
        with name.with_suffix(".keys").open("wb") as file:
            file.write(b"".join(keys))
            os.fsync(file.fileno())
        marker = {"rows": len(keys), "dim": self.dim, "sha256": _sha256(name.with_suffix(".npy"))}
        temporary = name.with_suffix(".tmp")
        temporary.write_text(json.dumps(marker), encoding="utf-8")
        temporary.replace(name.with_suffix(".json"))
        self._open(name.with_suffix(".json"))

    def positions(self, keys: Iterable[bytes]) -> NDArray[np.int64]:
        """Where each key's vector lies, for :meth:`take`.

        Raises:
            KeyError: If a key is not stored.
        """
        return np.array([self._where[key] for key in keys], dtype=np.int64)

    def take(self, positions: NDArray[np.int64]) -> FloatArray:
        """Vectors at the given positions, ``(n, dim)`` float32, copied out of the memory map."""
        result = np.empty((len(positions), self.dim), dtype=np.float32)
        shard = np.searchsorted(np.array(self._starts[1:]), positions, side="right")
        for index in np.unique(shard):
            rows = np.flatnonzero(shard == index)
            result[rows] = self._shards[index][positions[rows] - self._starts[index]]
        return result

    def _open(self, marker: Path) -> None:
        try:
            facts = json.loads(marker.read_text(encoding="utf-8"))
            vectors = np.load(marker.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
            keys = marker.with_suffix(".keys").read_bytes()
            rows, dim, digest = int(facts["rows"]), int(facts["dim"]), str(facts["sha256"])
        except (OSError, ValueError, KeyError) as error:
            raise CacheError(f"{marker}: damaged shard of teacher vectors ({error}); {_REMEDY}") from error
        if vectors.shape != (rows, self.dim) or dim != self.dim or len(keys) != rows * KEY_BYTES:
            raise CacheError(
                f"{marker}: got vectors {vectors.shape} and {len(keys)} key bytes, expected ({rows}, {self.dim}) "
                f"and {rows * KEY_BYTES}; {_REMEDY}"
            )
        if _sha256(marker.with_suffix(".npy")) != digest:
            raise CacheError(f"{marker}: the vectors changed since they were written; {_REMEDY}")
        start = self._starts[-1]
        for i in range(rows):
            self._where[keys[i * KEY_BYTES : (i + 1) * KEY_BYTES]] = start + i
        self._shards.append(vectors)
        self._starts.append(start + rows)


_REMEDY = "delete the three files of that name and run again: only they are computed anew"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
