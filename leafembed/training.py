"""The step of a run that takes longest: the student is trained here, or was trained on another machine."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leafembed.errors import Error
from leafembed.guard import watched
from leafembed.judge.evaluate import evaluate
from leafembed.learn.factors import carry_factors
from leafembed.learn.models import fingerprint_folder
from leafembed.learn.teacher import TorchEncoder
from leafembed.learn.vocabulary import REPORT
from leafembed.prepare import Material
from leafembed.record import PACKAGES
from leafembed.ship.curves import plot_curves
from leafembed.ship.machine import machine_facts, versions
from leafembed.ship.plots import CURVES
from leafembed.stages import MARKER, fingerprint, once
from leafembed.steps import Line, student_folder

__all__ = ["adopt_student", "train_student"]


def train_student(line: Line, floor: float) -> dict[str, Any]:
    """Train the untrained student into the run's ``student`` folder, drop checkpoints, return what training reported.

    Args:
        line: The run.
        floor: Dev score of the static table, which alarms hold the student against.

    Raises:
        StoppedError: If an alarm says that training cannot succeed and ``alarms.stop`` is set.
    """
    recipe, learned, untrained = line.recipe, line.learned, student_folder(line, trained=False)

    def score(model: Any) -> dict[str, float]:
        ref = dataclasses.replace(learned.teacher.ref, name=recipe.name, prompts=dict(model.prompts))
        report = evaluate(TorchEncoder(model, ref, precision=learned.teacher.arithmetic.precision), learned.dev)
        return {"mean": report.mean, **report.by_type(), **report.by_task()}

    dev = [(task.id, part.lang, part.data) for task in learned.dev for part in task.parts]
    shape = {"exits": recipe.student.exits, "dims": recipe.student.dims}
    bits = recipe.student.table_bits
    how = (recipe.to_dict()["train"], shape, bits, recipe.seed, versions(PACKAGES))
    key = fingerprint(fingerprint_folder(untrained), learned.corpus.fingerprint, learned.targets_id, how, dev)
    work_dir = line.folder / f"checkpoints-{key}"

    def draw(history: Sequence[Mapping[str, Any]], best_step: int) -> None:
        plot_curves(history, best_step, line.folder / CURVES)

    def build(target: Path) -> dict[str, Any]:
        from leafembed.learn.train import train
        from leafembed.learn.watch import Watch

        work_dir.mkdir(parents=True, exist_ok=True)
        watch = Watch(recipe.alarms, watched(recipe, learned, floor), work_dir)
        facts = train(
            untrained,
            learned.corpus,
            learned.targets,
            score,
            config=recipe.train,
            seed=recipe.seed,
            work_dir=work_dir,
            target=target,
            callbacks=[watch],
            on_history=draw,
            table_bits=bits,
            **shape,
        )
        if (untrained / REPORT).is_file():
            shutil.copy(untrained / REPORT, target)
        carry_factors(untrained, target)
        return {**facts, **watch.facts(), "floor": floor, "where": _where(learned)}

    facts = once(line.folder / "student", key, build)
    from leafembed.learn.checkpoints import rotate

    rotate(work_dir, ())  # gigabytes of optimiser state, of no use to a finished run; the logs stay
    return facts


def _where(learned: Material) -> dict[str, Any]:
    """What a student learned from and where: ``corpus``, ``gpu`` (``None`` without one), ``machine``, ``versions``."""
    import torch

    gpu = torch.cuda.get_device_name() if learned.teacher.arithmetic.device == "cuda" else None
    return {
        "corpus": learned.corpus.fingerprint,
        "gpu": gpu,
        "machine": machine_facts(),
        "versions": versions(PACKAGES),
    }


def adopt_student(line: Line, trained: Path) -> dict[str, Any]:
    """Take a student that ``leaf run --until train`` made of the same text elsewhere; return what training reported.

    Raises:
        Error: If the folder is no such student, or it learned from another text.
    """
    try:
        facts = json.loads((trained / MARKER).read_text(encoding="utf-8"))["facts"]
        learned_from = facts["where"]["corpus"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Error(
            f"--trained {trained}: no record of training in it ({error!r}); expected the folder student of a run that "
            "another machine did with the same recipe and --until train"
        ) from error
    own = line.learned.corpus.fingerprint
    if learned_from != own:
        raise Error(
            f"--trained {trained}: learned from text {learned_from}, the recipe's is {own}; give its own recipe"
        )

    def build(target: Path) -> dict[str, Any]:
        shutil.copytree(trained, target, ignore=shutil.ignore_patterns(MARKER))
        return dict(facts)

    found = once(line.folder / "student", fingerprint("trained elsewhere", fingerprint_folder(trained), facts), build)
    plot_curves(found["history"], found["best_step"], line.folder / CURVES)
    return found
