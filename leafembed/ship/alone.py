"""Keeps other processes out of a folder in which something is being put together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leafembed.errors import Error

__all__ = ["alone"]


@contextmanager
def alone(folder: Path, busy: Error) -> Iterator[None]:
    """Keep every other call out of a folder; the system lets go of it when this process ends, however it ends.

    Args:
        folder: It is there; the lock is a file in it.
        busy: What to raise where another call holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    lock = folder / "lock"
    try:
        opened = lock.open("w")
    except FileNotFoundError:  # removed with the folder by one that has just ended
        raise busy from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except (BlockingIOError, FileNotFoundError):  # held by another, or removed
            held = False
        if not held:
            raise busy
        yield
