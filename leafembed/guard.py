"""Guards a run: gives training what it is watched by, and writes the card of a run that stopped itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leafembed.errors import Error, StoppedError
from leafembed.learn.alarms import BELOW_FLOOR
from leafembed.learn.causes import Start
from leafembed.prepare import Material, language_alarms
from leafembed.progress import say
from leafembed.recipe import Recipe
from leafembed.record import manifest
from leafembed.reports import Check, EvalReport, GateResult
from leafembed.ship.bundle import write_refusal

if TYPE_CHECKING:
    from leafembed.learn.watch import Watched

__all__ = ["LANGUAGE_TEXTS", "WATCHED_TEXTS", "refuse_stopped", "remove_run", "set_aside", "watched"]

WATCHED_TEXTS = 512
"""Most validation texts whose vectors are looked at in each evaluation."""

LANGUAGE_TEXTS = 200
"""Most texts of a language that tell which token rows it uses."""


def watched(recipe: Recipe, learned: Material, floor: float) -> Watched:
    """Return what the student is watched by; ``floor`` is the dev score of the static token table."""
    from leafembed.learn.watch import Watched

    corpus = learned.corpus
    prompts = learned.student_prompts(recipe.student, recipe.teacher.prompt_name)
    rows = {prompts.get(row.prompt_name or "", "") + row.text: i for i, row in enumerate(corpus.validation)}
    texts = list(rows)
    chosen = [texts[i] for i in np.unique(np.linspace(0, len(texts) - 1, WATCHED_TEXTS).astype(int))]
    by_language: dict[str, list[str]] = {}
    for row in corpus.validation:
        by_language.setdefault(row.lang, []).append(row.text)
    for task in learned.dev:  # they may score languages that the text lacks
        for part in task.parts:
            by_language.setdefault(part.lang, []).extend(part.texts)
    numbers = len(corpus.train) + np.array([rows[text] for text in chosen])
    return Watched(
        texts=chosen,
        rows=numbers.tolist(),
        vectors=learned.targets(numbers),
        by_language={lang: some[:LANGUAGE_TEXTS] for lang, some in by_language.items() if lang != "all"},
        floor=floor,
        start=Start(recipe.student.init, recipe.student.width, earlier=recipe.train.start is not None),
        known=language_alarms(recipe, corpus, learned.dev, learned.test),
    )


def refuse_stopped(
    error: StoppedError,
    run_dir: Path,
    facts: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    reports: Mapping[str, EvalReport],
) -> Path:
    """Write the card of a run that stopped itself to ``run_dir/refused`` and return that folder.

    Args:
        error: Why it stopped.
        run_dir: Folder of the run.
        facts: Makes the manifest's facts of what training reported.
        reports: Scores of teacher and floors.
    """
    content = facts({**error.training, "diagnosis": str(error)})
    fatal = [alarm for alarm in error.alarms if alarm.name == BELOW_FLOOR][-1]
    verdict = GateResult((Check("dev score against the static floor", fatal.facts["dev"], fatal.facts["floor"]),))
    set_aside(run_dir / "bundle")
    return write_refusal(run_dir / "refused", manifest(content, reports, verdict, f"training, step {fatal.step}"))


def set_aside(bundle: Path) -> None:
    """Keep the bundle of an earlier recipe, under a name that cannot be taken for this run's."""
    if bundle.is_dir():
        aside = bundle.with_name("bundle-of-earlier-recipe")
        shutil.rmtree(aside, ignore_errors=True)
        bundle.rename(aside)
        say(f"{bundle} was made from an earlier recipe: moved to {aside}")


def remove_run(run_dir: Path, recipe: Path) -> None:
    """Remove a run's folder, so that it begins anew; nothing happens where there is none.

    Raises:
        Error: If the folder is not that of a run, or the recipe lies in it.
    """
    from leafembed.steps import RESOLVED

    if not run_dir.is_dir() or not any(run_dir.iterdir()):
        return
    if not (run_dir / RESOLVED).is_file() or recipe.resolve().is_relative_to(run_dir.resolve()):
        raise Error(f"--fresh: got {run_dir}, expected the folder of a run and nothing else; remove it by hand")
    shutil.rmtree(run_dir)
