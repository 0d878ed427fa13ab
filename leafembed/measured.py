"""What a run measures of a model besides its scores: how it behaves, and how near INT8 is to fp32."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.evidence import Behaviour
from leafembed.judge.behaviour import observe
from leafembed.learn.teacher import TorchEncoder
from leafembed.progress import say
from leafembed.record import PACKAGES
from leafembed.ship.machine import versions
from leafembed.stages import fingerprint, once
from leafembed.steps import Line
from leafembed.types import Encoder

__all__ = ["OBSERVED_TEXTS", "fidelity", "observed"]

OBSERVED_TEXTS = 1_000
"""Most held-out texts to choose from when a model's behaviour is observed."""


def observed(line: Line, name: str, encoder: Encoder, *, how: Sequence[object] = ()) -> Behaviour:
    """Behaviour of an encoder on held-out texts, or what an interrupted run saw; arguments as of ``steps.scored``."""
    learned, prompt_name = line.learned, line.recipe.teacher.prompt_name
    texts, teacher = learned.validation(OBSERVED_TEXTS), learned.teacher
    base = (learned.targets_id, teacher.arithmetic.precision, prompt_name, texts)
    key = fingerprint(dataclasses.asdict(encoder.ref), *base, how, versions(PACKAGES))

    def build(_: Path) -> dict[str, Any]:
        say(f"observing {encoder.ref.name}")
        return dataclasses.asdict(observe(encoder, teacher, texts, prompt_name=prompt_name))

    return Behaviour(**once(line.folder / "reports" / f"{name}-behaviour", key, build))


def fidelity(line: Line, student: TorchEncoder, int8: Encoder) -> dict[str, Any]:
    """Cosine between the INT8 model and its student in fp32, on held-out texts."""
    texts, prompt_name = line.learned.validation(line.recipe.quantize.check_texts), line.recipe.teacher.prompt_name
    fp32 = TorchEncoder(student.model, student.ref, precision="fp32")
    exact, rounded = (encoder.encode(texts, prompt_name=prompt_name) for encoder in (fp32, int8))
    cosines = np.sum(exact * rounded, axis=1)
    return {"cosine_mean": float(cosines.mean()), "cosine_min": float(cosines.min()), "texts": len(texts)}
