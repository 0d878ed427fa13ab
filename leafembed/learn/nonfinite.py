"""Refuses a batch that gave NaN or infinity, and keeps what it takes to find out why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from leafembed.errors import NonFiniteError

__all__ = ["EVIDENCE", "keep_evidence", "refuse_batch"]

EVIDENCE = "non-finite"
"""Folder below the checkpoints with the batch that gave NaN or infinity."""


def keep_evidence(work_dir: Path, facts: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """Write ``batch.json`` and ``batch.npz`` to ``work_dir/non-finite`` and say so, as an error ends.

    What an earlier failure left there is replaced: a run ends with its first. That nothing could be written is said
    too: a full disk must not hide what happened.
    """
    folder = work_dir / EVIDENCE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "batch.json").unlink(missing_ok=True)
        np.savez(folder / "batch.npz", **arrays)  # numbers only: nothing is pickled
        (folder / "batch.json").write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        return f"which could not be kept ({error})"
    return f"kept in {folder}"


def refuse_batch(
    what: str,
    rows: Any,
    *,
    step: int,
    work_dir: Path,
    texts: Sequence[str],
    held_out: bool,
    arrays: Mapping[str, Any],
) -> NoReturn:
    """Keep the offending rows in ``work_dir/non-finite`` (``batch.json``, ``batch.npz``) and raise.

    Args:
        what: What was not finite, as the error begins.
        rows: Numbers ``(n,)`` of rows in the corpus, where validation rows follow the training rows.
        step: Optimiser step.
        work_dir: Folder of the checkpoints.
        texts: The text of each row.
        held_out: The rows are validation rows.
        arrays: What else there is of them, by name: token ids, vectors.

    Raises:
        NonFiniteError: Always; names step, rows and where they lie.
    """
    numbers = np.asarray(rows).tolist()
    facts = {"step": step, "what": what, "rows": numbers, "texts": list(texts)}
    kept = keep_evidence(work_dir, facts, arrays)
    kind = "validation rows" if held_out else "rows"
    raise NonFiniteError(
        f"{what} at step {step} on {kind} {numbers[:8]} ({len(numbers)} in all), {kept}: look at its "
        "teacher vectors, or lower train.learning_rate"
    )
