"""The whole line: texts and a teacher go in, a judged INT8 bundle comes out, or a refusal that says why.

Read :func:`run`. The steps are in ``steps.py``; only this module knows their order.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from leafembed.engines import quantized
from leafembed.errors import GateFailedError, StoppedError
from leafembed.guard import refuse_stopped, set_aside
from leafembed.judge.evaluate import Candidate
from leafembed.judge.gate import check
from leafembed.learn.models import fingerprint_folder
from leafembed.measured import fidelity, observed, vocabulary_facts
from leafembed.neighbours import compare_neighbours
from leafembed.points import measure_points
from leafembed.recipe import Recipe
from leafembed.record import manifest
from leafembed.reports import FLOOR, STATIC_TABLE, EvalReport, GateResult
from leafembed.ship.bundle import read_manifest, write_bundle, write_refusal
from leafembed.steps import (
    Line,
    begin,
    build_floors,
    facts_of,
    open_student,
    scored,
    timed,
)
from leafembed.training import adopt_student, train_student
from leafembed.unpacking import pack_source

__all__ = ["Outcome", "run", "train"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ended with.

    Attributes:
        folder: The bundle, or the folder with the refusal.
        manifest: What the card is rendered from.
        verdict: The gate's last word.
    """

    folder: Path
    manifest: Mapping[str, Any]
    verdict: GateResult


def train(recipe: Recipe, run_dir: Path) -> dict[str, Any]:
    """Train the student and stop: the first half of :func:`run`, which a later call of that goes on from.

    Returns:
        What training reported.

    Raises:
        StoppedError: If an alarm says that training cannot succeed and ``alarms.stop`` is set.
    """
    return _trained(begin(recipe, run_dir))


def run(recipe: Recipe, run_dir: Path, *, allow_failed: bool = False, trained: Path | None = None) -> Outcome:
    """Distil, judge, quantise, judge again and bundle.

    A second call with the same recipe and folder repeats only what an interruption left undone.

    Args:
        recipe: What to do.
        run_dir: Folder of the run: checkpoints, models, reports and the bundle.
        allow_failed: Go on after a refusal; the bundle then says that it was refused.
        trained: Folder of a student that :func:`train` made of the same recipe on another machine, instead of training.

    Raises:
        GateFailedError: If the gate refuses the student or its INT8 form and ``allow_failed`` is not set.
        StoppedError: If an alarm says that training cannot succeed and ``alarms.stop`` is set.
    """
    line = begin(recipe, run_dir, trained=trained)
    training = adopt_student(line, trained) if trained else _trained(line)

    shutil.rmtree(run_dir / "refused", ignore_errors=True)  # of an earlier recipe

    floors = build_floors(line)
    student = open_student(line)
    compare_neighbours(line, student)
    reports = _references(line, floors) | {"student": scored(line, "student", student)}
    behaviour = {"student": observed(line, "student", student)}
    judge = partial(check, reference=reports["teacher"], config=recipe.gate, floors={n: reports[n] for n in floors},
                    contamination=line.learned.corpus.contamination)  # fmt: skip
    verdict = judge(reports["student"], behaviour=behaviour["student"])
    facts = facts_of(line, student, training, vocabulary=vocabulary_facts(line))
    if not verdict.passed and not allow_failed:
        set_aside(run_dir / "bundle")
        write_refusal(run_dir / "refused", manifest(facts, reports, verdict, "student", behaviour=behaviour))
        raise GateFailedError(verdict, stage="student")

    int8, engines = quantized(line, student)
    kept = fidelity(line, student, int8) | engines
    how = (fingerprint_folder(run_dir / "int8"), int8.threads, int8.batch_size)
    reports["int8"] = scored(line, "int8", int8, how=how)
    behaviour["int8"] = observed(line, "int8", int8, how=how)
    verdict = judge(
        reports["int8"], fp32=reports["student"], int8_cosine=kept["cosine_mean"], behaviour=behaviour["int8"]
    )
    speed = timed(line, student, int8)
    points = measure_points(line, int8)
    content = manifest(
        facts, reports, verdict, "INT8 model", behaviour=behaviour, int8=kept, speed=speed, points=points
    )
    folder = write_bundle(
        run_dir / "bundle", run_dir / "int8", content, beside=partial(pack_source, run_dir / "student")
    )
    if not verdict.passed and not allow_failed:
        raise GateFailedError(verdict, stage="INT8 model")
    return Outcome(folder, read_manifest(folder), verdict)


def _trained(line: Line) -> dict[str, Any]:
    """Train, held against the static table on dev; a run that stops itself leaves a card that says why.

    Floors are opened when they are scored, here and after it, so that training does not pay for their memory.
    """
    name = f"{FLOOR}{STATIC_TABLE}"
    floor = scored(line, name, build_floors(line)[name], dev=True).mean
    first = line.recipe.train.start is None  # else the tokens are those of the student that it starts from
    vocabulary = vocabulary_facts(line, trained=False) if first else None
    try:
        training = train_student(line, floor)
    except StoppedError as error:
        refuse_stopped(
            error,
            line.folder,
            partial(facts_of, line, open_student(line, trained=False), vocabulary=vocabulary, trained=False),
            _references(line, build_floors(line)),
        )
        raise
    return training


def _references(line: Line, floors: Mapping[str, Candidate]) -> dict[str, EvalReport]:
    """Scores of what the student is held against, on what the gate judges by."""
    return {name: scored(line, name, encoder) for name, encoder in {"teacher": line.learned.teacher, **floors}.items()}
