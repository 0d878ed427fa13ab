"""What a bundle gives at each early exit and dimension: one checkpoint, a choice of prices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.judge.evaluate import evaluate
from leafembed.judge.intervals import DRAWN
from leafembed.judge.tasks import contents_of
from leafembed.judge.views import View
from leafembed.learn.models import fingerprint_folder
from leafembed.progress import say
from leafembed.record import PACKAGES
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.engine import weight_megabytes
from leafembed.ship.folder import EncoderConfig
from leafembed.ship.machine import versions
from leafembed.stages import fingerprint, once
from leafembed.steps import Line
from leafembed.types import FloatArray

__all__ = ["measure_points"]


class _Remembered:
    """One exit of an encoder that computes a text once, since each dimension asks for the same texts."""

    def __init__(self, encoder: BundleEncoder, exit: int | None) -> None:
        self.encoder = encoder
        self.exit = exit
        self.ref = encoder.ref
        self._known: dict[tuple[str | None, str], FloatArray] = {}

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        new = [text for text in dict.fromkeys(texts) if (prompt_name, text) not in self._known]
        vectors = self.encoder.encode(new, prompt_name=prompt_name, exit=self.exit)
        self._known |= {(prompt_name, text): vector for text, vector in zip(new, vectors, strict=True)}
        return np.stack([self._known[prompt_name, text] for text in texts]) if len(texts) else vectors


def measure_points(line: Line, int8: BundleEncoder) -> list[dict[str, Any]]:
    """Score an INT8 model at each of its early exits and of the dimensions it was trained for, on the test tasks.

    Args:
        line: The run.
        int8: The model.

    Returns:
        For each exit (``None``: the whole model) and ``dim``: ``report``, its scores, and ``weights_mb`` that are
        loaded for it; ``ship/parts.py`` tells what follows. Empty if it has neither exits nor further dimensions.
    """
    dims = sorted({int8.dim, *line.recipe.student.dims}, reverse=True)
    exits = [None, *sorted(int8.exits, reverse=True)]
    if len(dims) == len(exits) == 1:
        return []
    learned = line.learned
    tasks = contents_of(learned.test)
    how = (fingerprint_folder(line.folder / "int8"), int8.threads, int8.batch_size)
    key = fingerprint(dataclasses.asdict(int8.ref), how, tasks, dims, exits, DRAWN, versions(PACKAGES))

    def build(_: Path) -> dict[str, Any]:
        found = []
        config = EncoderConfig.read(line.folder / "int8")
        for exit in exits:
            remembered = _Remembered(int8, exit)
            megabytes = weight_megabytes(line.folder / "int8" / "model.xml", config, exit)
            for dim in dims:
                say(f"scoring exit {exit or 'none'}, {dim} dimensions")
                report = evaluate(View(remembered, dim=dim), learned.test)
                found.append({"exit": exit, "dim": dim, "report": report.to_dict(), "weights_mb": megabytes})
        return {"points": found}

    return list(once(line.folder / "reports" / "int8-points", key, build)["points"])
