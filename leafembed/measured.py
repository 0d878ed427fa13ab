"""What a run measures of a model besides its scores: behaviour, what its vocabulary costs, how near INT8 is to fp32."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.evidence import Behaviour
from leafembed.judge.behaviour import observe
from leafembed.judge.evaluate import evaluate
from leafembed.judge.tasks import AGREEMENT, contents_of, load_tasks
from leafembed.learn.teacher import TorchEncoder
from leafembed.learn.vocabulary import read_report, with_tokens_of
from leafembed.progress import say
from leafembed.record import PACKAGES
from leafembed.ship.machine import versions
from leafembed.stages import fingerprint, once
from leafembed.steps import Line, student_folder
from leafembed.types import Encoder

__all__ = ["OBSERVED_TEXTS", "VOCABULARY_ROWS", "fidelity", "observed", "vocabulary_facts"]

OBSERVED_TEXTS = 1_000
"""Most held-out texts to choose from when a model's behaviour is observed."""

VOCABULARY_ROWS = 100
"""Most dev items in one language that a cut of the vocabulary is judged by."""


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


def vocabulary_facts(line: Line, student: TorchEncoder) -> dict[str, Any]:
    """What the manifest says of a vocabulary that was cut, under ``vocabulary``; empty where it is whole.

    What the cut itself costs is measured on the teacher, without a prompt: in a student it could not be told from the
    layers that are missing. That needs labelled dev tasks, and tokens that are the teacher's.
    """
    recipe, teacher = line.recipe, line.learned.teacher.torch
    report = read_report(student_folder(line, trained=True))
    names = [name for name in recipe.eval.dev if name != AGREEMENT]
    if report is None or not names or teacher is None or recipe.student.init == "encoder":
        return {} if report is None else {"vocabulary": report}
    most = min(recipe.eval.max_dev_rows, VOCABULARY_ROWS)
    tasks = load_tasks(recipe.eval.data, names, languages=recipe.eval.languages, max_rows=most,
                       min_rows=min(recipe.eval.min_rows, most), seed=recipe.seed, dev=True)  # fmt: skip
    bare = dataclasses.replace(teacher.ref, prompts={})
    key = fingerprint(bare.fingerprint, bare.max_seq_length, teacher.precision, student.ref.fingerprint,
                      contents_of(tasks), versions(PACKAGES))  # fmt: skip

    def build(_: Path) -> dict[str, Any]:
        models = {"all tokens": teacher.model, "those that are kept": with_tokens_of(student.model, teacher.model)}
        scores = []
        for what, model in models.items():
            say(f"scoring {bare.name} on dev with {what}")
            encoder = TorchEncoder(model, bare, precision=teacher.precision, batch_tokens=teacher.batch_tokens)
            scores.append(evaluate(encoder, tasks).mean)
        return {"dev": scores, "dev_tasks": [task.id for task in tasks]}

    return {"vocabulary": report | once(line.folder / "reports" / "vocabulary-on-dev", key, build)}


def fidelity(line: Line, student: TorchEncoder, int8: Encoder) -> dict[str, Any]:
    """Cosine between the INT8 model and its student in fp32, on held-out texts."""
    texts, prompt_name = line.learned.validation(line.recipe.quantize.check_texts), line.recipe.teacher.prompt_name
    fp32 = TorchEncoder(student.model, student.ref, precision="fp32")
    exact, rounded = (encoder.encode(texts, prompt_name=prompt_name) for encoder in (fp32, int8))
    cosines = np.sum(exact * rounded, axis=1)
    return {"cosine_mean": float(cosines.mean()), "cosine_min": float(cosines.min()), "texts": len(texts)}
