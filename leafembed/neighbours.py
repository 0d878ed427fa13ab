"""Keeps, in a run's folder, the texts that teacher and student see differently; the run's report shows them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from leafembed.judge.disagree import disagreements
from leafembed.stages import MARKER, fingerprint, once
from leafembed.steps import Line
from leafembed.types import Encoder

__all__ = ["MOST_TEXTS", "NEIGHBOURS", "compare_neighbours", "read_neighbours"]

NEIGHBOURS = "neighbours"
"""Folder of a run that they are kept in."""

MOST_TEXTS = 1_000
"""Most held-out texts among which neighbours are compared."""


def compare_neighbours(line: Line, student: Encoder) -> None:
    """Compare the student's nearest held-out texts with the teacher's, once for the same student and corpus."""
    prompt_name = line.recipe.teacher.prompt_name
    key = fingerprint(dataclasses.asdict(student.ref), line.learned.corpus.fingerprint, line.learned.targets_id)

    def build(_: Path) -> dict[str, Any]:
        texts, langs, vectors = line.learned.held_out(MOST_TEXTS)
        return disagreements(texts, langs, vectors, student.encode(texts, prompt_name=prompt_name))

    once(line.folder / NEIGHBOURS, key, build)


def read_neighbours(run: Path) -> dict[str, Any] | None:
    """What a run compared; ``None`` if it did not come to that."""
    marker = run / NEIGHBOURS / MARKER
    if not marker.is_file():
        return None
    facts: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))["facts"]
    return facts
