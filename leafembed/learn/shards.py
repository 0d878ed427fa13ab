"""Files of a cache that grows: shards that are complete or never were, and whose bytes are checked before use.

A shard is ``NAME.npy`` and perhaps other arrays beside it, ``NAME.keys`` with 16 bytes for each row, and ``NAME.json``,
which is written last and holds what the others must be. Bytes are compared with their hash when a shard is first read,
so that a cache of gigabytes opens in seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import CacheError
from leafembed.stages import file_sha256

__all__ = ["KEY", "KEY_BYTES", "OPEN_SHARDS", "Shard", "padded", "write_shard"]

KEY_BYTES = 16

KEY = np.dtype(f"S{KEY_BYTES}")
"""Keys in an array; numpy leaves out zeros at the end of one, :func:`padded` puts them back."""

OPEN_SHARDS = 256
"""Most shards whose memory map is held open; each costs a file descriptor."""


@dataclass(slots=True)
class Shard:
    """A finished shard.

    Attributes:
        marker: Its ``NAME.json``.
        what: What it holds, for messages.
        hashed: Suffixes of the files whose bytes the marker vouches for.
        facts: What the marker says: ``sha256`` and what the writer added.

    Raises:
        CacheError: If the marker cannot be read.
    """

    marker: Path
    what: str
    hashed: tuple[str, ...]
    facts: Mapping[str, Any] = field(init=False)
    _checked: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        try:
            self.facts = json.loads(self.marker.read_text(encoding="utf-8"))
            self.facts["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.damaged(error) from error

    def keys(self) -> NDArray[np.bytes_]:
        """Its keys ``(rows,)``."""
        try:
            return np.frombuffer(self._path(".keys").read_bytes(), dtype=KEY)
        except (OSError, ValueError) as error:
            raise self.damaged(error) from error

    def peek(self, suffix: str = ".npy") -> NDArray[Any]:
        """One of its arrays as it lies there, to look at its shape."""
        try:
            array: NDArray[Any] = np.load(self._path(suffix), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self.damaged(error) from error
        return array

    def read(self, *suffixes: str) -> tuple[NDArray[Any], ...]:
        """Some of its arrays, memory-mapped, compared with their hash the first time.

        Raises:
            CacheError: If the files changed since they were written.
        """
        try:
            if not self._checked and _digest([self._path(suffix) for suffix in self.hashed]) != self.facts["sha256"]:
                raise CacheError(f"{self.marker}: the vectors changed since they were written; {_REMEDY}")
        except OSError as error:
            raise self.damaged(error) from error
        self._checked = True
        return tuple(self.peek(suffix) for suffix in suffixes)

    def damaged(self, error: Exception | str) -> CacheError:
        """What is raised when it is not what its marker says."""
        return CacheError(f"{self.marker}: damaged shard of {self.what} ({error}); {_REMEDY}")

    def _path(self, suffix: str) -> Path:
        return self.marker.with_name(self.marker.stem + suffix)


def write_shard(
    folder: Path,
    number: int,
    arrays: Mapping[str, NDArray[Any]],
    keys: Sequence[bytes],
    facts: Mapping[str, Any],
    *,
    hashed: Sequence[str],
) -> Path:
    """Write a shard and return its marker.

    Args:
        folder: Created if need be.
        number: How many shards there are, for the name.
        arrays: By suffix.
        keys: Of its rows.
        facts: For the marker.
        hashed: As :class:`Shard` has it.

    Raises:
        CacheError: If the disk does not take it; what was finished before stays good.
    """
    name = folder / f"{number:06d}-{uuid.uuid4().hex[:8]}"
    marker = Path(f"{name}.json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, array in arrays.items():
            with Path(f"{name}{suffix}").open("wb") as file:
                np.save(file, array, allow_pickle=False)
                os.fsync(file.fileno())
        with Path(f"{name}.keys").open("wb") as file:
            file.write(b"".join(map(padded, keys)))
            os.fsync(file.fileno())
        digest = _digest([Path(f"{name}{suffix}") for suffix in hashed])
        temporary = Path(f"{name}.tmp")
        temporary.write_text(json.dumps({**facts, "sha256": digest}), encoding="utf-8")
        temporary.replace(marker)
    except OSError as error:
        for part in folder.glob(f"{name.name}.*"):
            part.unlink(missing_ok=True)
        raise CacheError(
            f"{folder}: got {error}, expected room for a shard; make some, or set cache_dir: what is there stays good"
        ) from error
    return marker


def padded(key: bytes) -> bytes:
    """A key with the zeros at its end that numpy left out."""
    return key.ljust(KEY_BYTES, b"\0")


def _digest(paths: Sequence[Path]) -> str:
    """Hash of a file; of several, the hash of theirs one after the other."""
    digests = [file_sha256(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


_REMEDY = "delete the files of that name and run again: only they are computed anew"
