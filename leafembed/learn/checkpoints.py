"""Checkpoints that can be trusted: sealed with a hash of every file, verified before use, rotated only then.

A checkpoint counts when its seal is there, which is written last, and its files are what the seal says. A killed run
goes on from the newest that counts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from leafembed.errors import CheckpointError
from leafembed.learn.models import load_sentence_transformer
from leafembed.progress import say

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

__all__ = [
    "MARKER",
    "average",
    "complete",
    "newest_checkpoint",
    "read_seal",
    "rotate",
    "seal",
    "step_of",
    "verified",
    "writing",
]

MARKER = "complete.json"
"""File that makes a checkpoint count; written after all others."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def seal(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Make a checkpoint count: write ``facts`` and the SHA-256 of every file, after all of it is on the disk."""
    files = {path.relative_to(checkpoint).as_posix(): _hash(path, sync=True) for path in _files(checkpoint)}
    partial = checkpoint / f".{MARKER}"
    with partial.open("w", encoding="utf-8") as file:
        json.dump({**facts, "files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(checkpoint / MARKER)


def read_seal(checkpoint: Path) -> dict[str, Any]:
    """What :func:`seal` wrote."""
    content: dict[str, Any] = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    return content


def complete(work_dir: Path) -> list[Path]:
    """Sealed checkpoints, oldest first."""
    return sorted((path.parent for path in work_dir.glob(f"checkpoint-*/{MARKER}")), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Step at which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_checkpoint(work_dir: Path) -> Path | None:
    """The newest checkpoint that verifies.

    Unfinished ones are removed. One whose files are not what its seal says is set aside as ``damaged-...``, with a
    line that says so.
    """
    sealed = complete(work_dir)
    for path in set(work_dir.glob("checkpoint-*")) - set(sealed):
        shutil.rmtree(path)
    return next((checkpoint for checkpoint in reversed(sealed) if _is_good(checkpoint)), None)


def verified(work_dir: Path) -> list[Path]:
    """Checkpoints that verify, oldest first; the others are set aside, with a line each."""
    return [checkpoint for checkpoint in complete(work_dir) if _is_good(checkpoint)]


def _is_good(checkpoint: Path) -> bool:
    problem = _problem(checkpoint)
    if problem is not None:
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        say(f"{checkpoint.name} is damaged ({problem}): set aside as {aside.name}, the one before it is used")
    return problem is None


def rotate(work_dir: Path, keep: Collection[int]) -> None:
    """Remove sealed checkpoints of other steps than ``keep``."""
    for checkpoint in complete(work_dir):
        if step_of(checkpoint) not in keep:
            (checkpoint / MARKER).unlink()  # first: half a checkpoint must not pass for a whole one
            shutil.rmtree(checkpoint)


@contextmanager
def writing(work_dir: Path, what: str, *, anything: bool = False) -> Iterator[None]:
    """Turn the errors of a full or broken disk into one that says what is still good and what to do.

    Args:
        work_dir: Folder of the checkpoints.
        what: What is being written.
        anything: Whether every error of the writers counts, since safetensors and torch hide the cause in their own.
            torch's is a ``RuntimeError``.

    Raises:
        CheckpointError: If it could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.AcceleratorError | torch.OutOfMemoryError):  # of a GPU, not of the disk
            raise
        if not anything and not (isinstance(error, OSError) and error.errno in _FULL):
            raise
        last = complete(work_dir)
        kept = f"{last[-1].name} is still good" if last else "there is no checkpoint yet"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{work_dir}: cannot write {what}: {reason}; {kept}: see to it that the disk is not full and can be "
            "written, and run the same command again"
        ) from error


def average(model: SentenceTransformer, checkpoints: Sequence[Path]) -> None:
    """Give a model the mean of the weights of checkpoints of it ("model soup", arXiv 2203.05482, eq. 1).

    Integers, positions for example, are taken from the last.
    """
    mean: dict[str, Tensor] = {}
    for checkpoint in checkpoints:
        for name, value in load_sentence_transformer(checkpoint).state_dict().items():
            if not value.is_floating_point():
                mean[name] = value
            else:
                mean[name] = mean[name] + value.double() if name in mean else value.double()
    for name, value in mean.items():
        if value.is_floating_point():
            mean[name] = (value / len(checkpoints)).float()
    model.load_state_dict(mean)


def _files(checkpoint: Path) -> list[Path]:
    own = {MARKER, f".{MARKER}"}
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name not in own)


def _problem(checkpoint: Path) -> str | None:
    try:
        expected = dict(read_seal(checkpoint)["files"])
    except (ValueError, KeyError, TypeError):
        return f"{MARKER} cannot be read"
    found = {path.relative_to(checkpoint).as_posix(): path for path in _files(checkpoint)}
    for name, digest in expected.items():
        if name not in found:
            return f"{name} is missing"
        if _hash(found[name]) != digest:
            return f"{name} has changed"
    return None


def _hash(path: Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
