"""The step of a run that takes longest: the student is trained here, or was trained on another machine."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.errors import Error, require
from leafembed.guard import watched
from leafembed.judge.evaluate import evaluate
from leafembed.judge.tasks import contents_of
from leafembed.learn.factors import carry_factors
from leafembed.learn.models import fingerprint_folder
from leafembed.learn.rounding import Bits
from leafembed.learn.teacher import TorchEncoder
from leafembed.learn.vocabulary import REPORT
from leafembed.lineage import Lineage, hashes_of, read_lineage, read_training, write_lineage
from leafembed.prepare import Material
from leafembed.progress import say
from leafembed.recipe import Recipe
from leafembed.record import PACKAGES
from leafembed.ship.curves import plot_curves
from leafembed.ship.machine import machine_facts, versions
from leafembed.ship.plots import CURVES
from leafembed.stages import MARKER, fingerprint, once
from leafembed.starting import starting_student
from leafembed.steps import Line
from leafembed.unpacking import earlier_student

__all__ = ["adopt_student", "train_student"]

_SETTINGS = "settings.json"
"""File beside the checkpoints: what they depend on, by name."""

_NO_PART = {"start", "report_to", "targets"}
"""Keys of ``[train]`` on which no weight depends: a place, who is told, and what the result is held against."""

_TRAINS = tuple(package for package in PACKAGES if package not in ("openvino", "nncf"))
"""Packages that compute a step. The teacher's vectors have versions of their own in their store's name."""


def train_student(line: Line, floor: float) -> dict[str, Any]:
    """Train the first student, or an earlier run's, into the run's ``student`` folder; return what training reported.

    Args:
        line: The run.
        floor: Dev score of the static table, which alarms hold the student against.

    Raises:
        RecipeError: If ``train.start`` is no such run, or one that the recipe cannot account for.
        StoppedError: If an alarm says that training cannot succeed and ``alarms.stop`` is set.
    """
    recipe, learned, start = line.recipe, line.learned, starting_student(line)
    bits = Bits(recipe.student.table_bits, recipe.student.matrix_bits)
    shape = {"exits": recipe.student.exits, "dims": recipe.student.dims}
    settings = _depends_on(line, start.folder, shape)
    key = fingerprint(settings)
    work_dir = line.folder / f"checkpoints-{key}"

    def draw(history: Sequence[Mapping[str, Any]], best_step: int) -> None:
        plot_curves(history, best_step, line.folder / CURVES)

    def build(target: Path) -> dict[str, Any]:
        from leafembed.learn.train import train
        from leafembed.learn.watch import Watch

        _begin(work_dir, settings)
        watch = Watch(recipe.alarms, watched(recipe, learned, floor), work_dir)
        facts = train(
            start.folder,
            learned.corpus,
            learned.targets,
            _scorer(learned, recipe.name),
            config=recipe.train,
            seed=recipe.seed,
            work_dir=work_dir,
            target=target,
            callbacks=[watch],
            on_history=draw,
            bits=bits,
            tokens=learned.tokens,
            **shape,
        )
        if (start.folder / REPORT).is_file():
            shutil.copy(start.folder / REPORT, target)
        carry_factors(start.folder, target)
        write_lineage(target, _lineage(line))
        earlier = {"earlier": list(start.earlier)} if start.earlier else {}
        return {**facts, **watch.facts(), **earlier, "floor": floor, "where": _where(learned)}

    # Checkpoints do not depend on how matrices are rounded at the end; a finished run has none left, and trains anew.
    facts = once(line.folder / "student", fingerprint(key, bits.matrices) if bits.matrices else key, build)
    from leafembed.learn.checkpoints import rotate

    rotate(work_dir, ())  # gigabytes of optimiser state, of no use to a finished run; the logs stay
    return _held_against(facts, recipe.train.targets)


def _depends_on(line: Line, start: Path, shape: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint depends on, by the recipe's key or in words, as JSON holds it."""
    recipe, learned = line.recipe, line.learned
    rules = {name: value for name, value in recipe.to_dict()["train"].items() if name not in _NO_PART}
    named = {
        "the student that training starts from": fingerprint_folder(start),
        "the text": learned.corpus.fingerprint,
        "the teacher's vectors": learned.targets_id,
        "dev tasks": fingerprint(contents_of(learned.dev)),
        "seed": recipe.seed,
        "student.table_bits": recipe.student.table_bits,
        **{f"student.{name}": value for name, value in shape.items()},
        **{f"train.{name}": value for name, value in rules.items()},
        **{f"the version of {package}": version for package, version in versions(_TRAINS).items()},
    }
    found: dict[str, Any] = json.loads(json.dumps(named, default=str))
    return found


def _begin(work_dir: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder of the checkpoints; say so where the run has some that other settings made, and begins anew."""
    from leafembed.learn.checkpoints import complete, step_of

    others = [] if complete(work_dir) else sorted(work_dir.parent.glob("checkpoints-*"))
    for other in others:
        if found := complete(other):
            names = _differing(other / _SETTINGS, settings)
            say(f"{other.name} has a checkpoint of step {step_of(found[-1])}, but of other settings"
                f"{f' ({names})' if names else ''}: training begins anew, from step 0")  # fmt: skip
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / _SETTINGS).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _differing(path: Path, settings: Mapping[str, Any]) -> str:
    """Names of the settings that a file has otherwise; empty where it is missing or damaged."""
    try:
        then: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    absent = object()
    names = {*then, *settings} if isinstance(then, dict) else set()
    return ", ".join(sorted(name for name in names if then.get(name, absent) != settings.get(name, absent)))


def _held_against(facts: dict[str, Any], limits: Mapping[str, float]) -> dict[str, Any]:
    """What training reported, held against ``train.targets`` as they are now: a finished student may get others."""
    from leafembed.learn.train import reached

    # An older version kept the losses of its targets alone.
    losses = facts.get("final") or {one["name"]: one["value"] for one in facts.get("targets", ())}
    missing = sorted(limits.keys() - losses.keys())
    require(not missing, "train.targets", missing, f"losses that training measured: {', '.join(sorted(losses))}")
    return facts | {"targets": reached(limits, losses)}


def _scorer(learned: Material, name: str) -> Callable[[Any], dict[str, float]]:
    """What scores a student on the dev tasks: their mean, and each type and task."""

    def score(model: Any) -> dict[str, float]:
        ref = dataclasses.replace(learned.teacher.ref, name=name, prompts=dict(model.prompts))
        report = evaluate(TorchEncoder(model, ref, precision=learned.teacher.arithmetic.precision), learned.dev)
        return {"mean": report.mean, **report.by_type(), **report.by_task()}

    return score


def _lineage(line: Line) -> Lineage:
    """What the trained student learned from, what its earlier parts did included."""
    recipe, learned = line.recipe, line.learned
    texts = hashes_of(row.text for row in learned.corpus.train)
    if recipe.train.start is not None:
        texts = np.union1d(texts, read_lineage(earlier_student(recipe)).texts)
    return Lineage(recipe, learned.teacher.ref.fingerprint or "", learned.kept_out, learned.corpus.sources, texts)


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
        facts, before = read_training(trained), read_lineage(trained)
    except Error as error:
        raise Error(
            f"--trained: {error}; expected the folder student of a run that another machine did with the same recipe "
            "and --until train"
        ) from error
    learned_from = facts["where"]["corpus"]
    own = line.learned.corpus.fingerprint
    if learned_from != own:
        raise Error(
            f"--trained {trained}: learned from text {learned_from}, the recipe's is {own}; give its own recipe"
        )

    then, now = (_settings(recipe, teacher) for recipe, teacher in (
        (before.recipe, before.teacher), (line.recipe, line.learned.teacher.ref.fingerprint)
    ))  # fmt: skip
    other = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
    if other:
        got, expected = ({key: side.get(key) for key in other} for side in (then, now))
        raise Error(f"--trained {trained}: got a student of {got}, the recipe has {expected}; give its own recipe")

    def build(target: Path) -> dict[str, Any]:
        shutil.copytree(trained, target, ignore=shutil.ignore_patterns(MARKER))
        return dict(facts)

    found = once(line.folder / "student", fingerprint("trained elsewhere", fingerprint_folder(trained), facts), build)
    plot_curves(found["history"], found["best_step"], line.folder / CURVES)
    return _held_against(found, line.recipe.train.targets)


def _settings(recipe: Recipe, teacher: str | None) -> dict[str, Any]:
    """What a student depends on besides its text, without what may differ from machine to machine."""
    plain, no_part = recipe.to_dict(), {("train", name) for name in _NO_PART}
    found = {
        f"{section}.{key}": value
        for section in ("student", "train")
        for key, value in plain[section].items()
        if f"{section}.{key}" not in ("student.model", "student.vocab_text") and (section, key) not in no_part
    }
    return {**found, "teacher": teacher, "licence": recipe.teacher.licence, "seed": recipe.seed}
