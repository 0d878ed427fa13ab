"""Runs a stage once: its folder counts when a marker, written last, names the inputs that it was made from.

A folder is made in ``.NAME.RANDOM.partial`` beside it, which is removed when its process ends, or by the next one if
that was killed, where the file system has locks; elsewhere it stays.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from leafembed.progress import say

__all__ = ["MARKER", "file_sha256", "fingerprint", "once"]

MARKER = "stage.json"


def fingerprint(*inputs: Any) -> str:
    """Hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def once(folder: Path, inputs: str, build: Callable[[Path], dict[str, Any] | None]) -> dict[str, Any]:
    """Make sure ``folder`` holds what ``build`` makes of ``inputs``, and return the facts that it reported.

    ``build`` writes into a new folder beside it, which takes the place only when complete; an interrupted build
    leaves what was there. Processes that make the same folder at once do not see each other's: the first one's is kept
    if it was made from the same inputs.

    Args:
        folder: Where the result lies.
        inputs: Fingerprint of everything the result depends on.
        build: Fills the folder that it is given and may return facts for JSON.
    """
    stored = _facts(folder, inputs)
    if stored is not None:
        say(f"{folder.name}: done before, kept")
        return stored
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _own(folder) as own:
        target = own / folder.name
        facts = build(target) or {}
        target.mkdir(exist_ok=True)
        (target / MARKER).write_text(json.dumps({"inputs": inputs, "facts": facts}), encoding="utf-8")
        return _put(target, folder, inputs, facts)


def _put(target: Path, folder: Path, inputs: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Let a finished folder take its place, unless another process has just put the same there; return its facts."""
    while True:
        stored = _facts(folder, inputs)
        if stored is not None:
            return stored
        with suppress(FileNotFoundError):  # aside and not removed: that would take time, in which others come
            folder.replace(Path(tempfile.mkdtemp(dir=target.parent)) / folder.name)
        try:
            target.replace(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return facts


@contextmanager
def _own(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` for this call alone, removed at its end; those of killed processes are removed too."""
    name = glob.escape(folder.name)
    for left in [*folder.parent.glob(f".{name}.*.partial"), *folder.parent.glob(f".{name}.partial")]:
        lock = _locked(left)
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    while True:
        own = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        lock = _locked(own, wait=True)
        if own.exists():
            break
        if lock is not None:  # a process that came in between took it for a dead one's
            os.close(lock)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(folder: Path, *, wait: bool = False) -> int | None:
    """A lock on a folder, which the system lets go of when this process ends; ``None``: it is not to be had.

    Where a file system has no locks nothing is removed, since nobody knows whose it is.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:  # removed
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(opened)
        return None
    return opened


def _facts(folder: Path, inputs: str) -> dict[str, Any] | None:
    """The facts of a complete folder that was made from these inputs; ``None``: it is not there."""
    stored = _read(folder / MARKER)
    facts: dict[str, Any] | None = stored.get("facts") if stored.get("inputs") == inputs else None
    return facts if isinstance(facts, dict) else None


def _read(marker: Path) -> dict[str, Any]:
    """The marker's content; nothing where it is missing or damaged, so that the stage is built again."""
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
