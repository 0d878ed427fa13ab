"""What a run measures of a model besides its scores: behaviour, what its vocabulary costs, how near INT8 is to fp32."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.errors import DataError, ModelError
from leafembed.evidence import Behaviour
from leafembed.judge.behaviour import Batching, observe
from leafembed.judge.evaluate import evaluate
from leafembed.judge.tasks import AGREEMENT, Task, contents_of, load_tasks, scored_items
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.teacher import TorchEncoder
from leafembed.learn.vocabulary import read_report, tokenizer_of, with_tokens_of
from leafembed.progress import say
from leafembed.recipe import Recipe
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

_ITEMWISE = frozenset({"STS", "PairClassification", "BitextMining"})  # no documents or probe sets, which stay whole


def observed(line: Line, name: str, encoder: Batching, *, how: Sequence[object] = ()) -> Behaviour:
    """Behaviour of an encoder on held-out texts, or what an interrupted run saw; arguments as of ``steps.scored``."""
    learned, prompt_name = line.learned, line.recipe.teacher.prompt_name
    texts, teacher = learned.validation(OBSERVED_TEXTS), learned.teacher
    base = ("pairs in one forward pass", learned.targets_id, teacher.arithmetic.precision, prompt_name, texts)
    key = fingerprint(dataclasses.asdict(encoder.ref), *base, how, versions(PACKAGES))

    def build(_: Path) -> dict[str, Any]:
        say(f"observing {encoder.ref.name}")
        return dataclasses.asdict(observe(encoder, teacher, texts, prompt_name=prompt_name))

    return Behaviour(**once(line.folder / "reports" / f"{name}-behaviour", key, build))


def vocabulary_facts(line: Line, *, trained: bool = True) -> dict[str, Any] | None:
    """What pruning a student's vocabulary changed, with what it costs the teacher on dev; ``None``: nothing was pruned.

    In a student that cost could not be told from the layers that are missing, so it is the teacher that is scored,
    without a prompt. It takes labelled dev tasks whose texts are those of the drawn items, and tokens that are the
    teacher's; ``dev`` stays empty where they are not there, and where they cannot be scored, which is said.
    """
    recipe, teacher = line.recipe, line.learned.teacher.torch
    folder = student_folder(line, trained)
    found = read_report(folder)
    if found is None or found["size_before"] == found["size_after"]:
        return found
    if teacher is None or recipe.student.init == "encoder":
        return found
    try:
        tasks = _vocabulary_tasks(recipe, line.learned.test)
        if not tasks:
            return found
        bare = dataclasses.replace(teacher.ref, prompts={})
        student = load_sentence_transformer(folder)
        tokens = fingerprint(tokenizer_of(student).to_str())
        key = fingerprint(bare.fingerprint, bare.max_seq_length, teacher.precision, tokens, contents_of(tasks),
                          versions((*PACKAGES, "scikit-learn", "scipy")))  # fmt: skip

        def build(_: Path) -> dict[str, Any]:
            scores: list[float] = []
            for what in ("all of its tokens", "the tokens that are kept"):
                model = with_tokens_of(student, teacher.model) if scores else teacher.model
                say(f"scoring {bare.name} on dev with {what}")
                encoder = TorchEncoder(model, bare, precision=teacher.precision, batch_tokens=teacher.batch_tokens)
                scores.append(evaluate(encoder, tasks).mean)
            return {"dev": scores, "dev_tasks": [task.id for task in tasks]}

        return found | once(line.folder / "reports" / "vocabulary-on-dev", key, build)
    except (DataError, ModelError) as error:
        say(f"what the smaller vocabulary costs on dev was not measured: {error}")
        return found


def _vocabulary_tasks(recipe: Recipe, test: Sequence[Task]) -> tuple[Task, ...]:
    """Labelled dev tasks, up to ``VOCABULARY_ROWS`` items in a language, without what the test tasks score."""
    names = [name for name in recipe.eval.dev if name != AGREEMENT]
    if not names:
        return ()
    most = min(recipe.eval.max_dev_rows, VOCABULARY_ROWS)
    excluded = scored_items(test) if recipe.eval.drop_shared else frozenset()
    tasks = load_tasks(recipe.eval.data, names, languages=recipe.eval.languages, max_rows=most, excluded=excluded,
                       min_rows=min(recipe.eval.min_rows, most), seed=recipe.seed, dev=True)  # fmt: skip
    return tuple(task for task in tasks if task.parts and task.type in _ITEMWISE)


def fidelity(line: Line, student: TorchEncoder, int8: Encoder) -> dict[str, Any]:
    """Cosine between the INT8 model and its student in fp32, on held-out texts."""
    texts, prompt_name = line.learned.validation(line.recipe.quantize.check_texts), line.recipe.teacher.prompt_name
    fp32 = TorchEncoder(student.model, student.ref, precision="fp32")
    exact, rounded = (encoder.encode(texts, prompt_name=prompt_name) for encoder in (fp32, int8))
    cosines = np.sum(exact * rounded, axis=1)
    return {"cosine_mean": float(cosines.mean()), "cosine_min": float(cosines.min()), "texts": len(texts)}
