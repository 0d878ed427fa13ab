"""Judges models one after the other, and what was judged before is found again.

A result is kept as soon as it is there, under a hash of the model and of the data: one file for a model, a task and a
language. An interrupted comparison goes on, and one with another model or task computes only what is new. Vectors are
kept too, so that a text is embedded once however many tasks it is in.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.judge.compare import Judged
from leafembed.judge.evaluate import report_of, score_part
from leafembed.judge.floors import BagOfWords
from leafembed.judge.intervals import DRAWN, RESAMPLES, Draws
from leafembed.judge.tasks import Part, Task, load_tasks
from leafembed.judge.views import View
from leafembed.learn.cached import CachedEncoder
from leafembed.opening import Opened, locate, open_model
from leafembed.progress import say
from leafembed.recipe import EvalConfig, Recipe
from leafembed.reports import TaskResult
from leafembed.ship.machine import versions
from leafembed.stages import fingerprint

__all__ = ["CACHE_DIR", "SCORERS", "judge_all", "judge_one", "read_tasks"]

CACHE_DIR: Path = next(f.default for f in dataclasses.fields(Recipe) if f.name == "cache_dir")  # type: ignore[assignment]
"""Where vectors and results are kept unless another folder is named."""

SCORERS = ("leafembed", "numpy", "scikit-learn", "scipy")
"""Packages that a score depends on besides the vectors."""


def read_tasks(
    data: Path, names: Sequence[str], *, languages: Sequence[str] = (), max_rows: int | None = None
) -> tuple[Task, ...]:
    """Read the named tasks, with the fewest rows that a recipe asks for by default, or ``max_rows`` if that is less."""
    fewest = EvalConfig().min_rows
    return load_tasks(data, names, languages=languages, max_rows=max_rows, min_rows=min(fewest, max_rows or fewest))


def judge_all(
    specs: Sequence[str], tasks: Sequence[Task], *, cache_dir: Path = CACHE_DIR, allow_failed: bool = False
) -> tuple[Judged, ...]:
    """Return the scores of every model on every task, in the order named; a model named twice is judged once.

    Args:
        specs: Models, as ``opening.py`` lists them.
        tasks: What to score them on.
        cache_dir: Where vectors and results are kept.
        allow_failed: Judge bundles that the gate refused, too.

    Raises:
        ModelError: If a model is of no kind that is known, before any is judged; or if it cannot be opened.
        GateFailedError: If the gate refused a bundle and ``allow_failed`` is not set, before any is judged.
    """
    cache_dir = cache_dir.expanduser()
    found = [locate(spec, allow_failed=allow_failed) for spec in dict.fromkeys(specs)]
    judged: list[Judged] = []
    for place, model in enumerate(found, start=1):
        opened = open_model(model, cache_dir=cache_dir, allow_failed=allow_failed)
        where = f"model {place} of {len(found)}, {opened.encoder.ref.name}"
        judged.append(judge_one(opened, tasks, cache_dir=cache_dir, where=where))
    names = Counter(one.label for one in judged)
    return tuple(one if names[one.label] == 1 else dataclasses.replace(one, label=one.spec) for one in judged)


def judge_one(opened: Opened, tasks: Sequence[Task], *, cache_dir: Path, where: str = "") -> Judged:
    """Return the scores of a model on every task.

    Args:
        opened: The model.
        tasks: At least one.
        cache_dir: Where results are kept.
        where: What log lines begin with; empty: its name.
    """
    folder = cache_dir.expanduser() / "judged" / opened.key
    where = where or opened.encoder.ref.name
    results: list[TaskResult] = []
    draws: list[Draws] = []
    kept = 0
    for number, task in enumerate(tasks, start=1):
        # A bag of words counts in every language of a set, also in those that are not scored.
        counted = sorted(task.texts) if isinstance(opened.encoder, BagOfWords) else None
        about = fingerprint(task.id, task.type, task.metric, counted, DRAWN, versions(SCORERS))
        paths = [folder / f"{fingerprint(about, part.lang, part.data)}.json" for part in task.parts]
        found = [_read(path) for path in paths]
        kept += len(found) - found.count(None)
        if None in found:
            say(f"{where}: task {number} of {len(tasks)}, {task.id}")
        for part, path, stored in zip(task.parts, paths, found, strict=True):
            result, drawn = stored or _score(opened, task, part, path)
            results.append(result)
            draws.append(drawn)
    say(f"{where}: {len(results)} results, {kept} of them from before{_rate(opened.encoder)}")
    report = report_of(opened.encoder.ref, results, draws, tasks)
    return Judged(report.model.name, opened.spec, opened.key, report, tuple(draws))


def _score(opened: Opened, task: Task, part: Part, path: Path) -> tuple[TaskResult, Draws]:
    """Score, and keep what came of it: a partial file is no result."""
    result, draws = score_part(opened.encoder, task, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"result": dataclasses.asdict(result), "draws": draws.tolist()}), encoding="utf-8")
    partial.replace(path)
    return result, draws


def _rate(encoder: Any) -> str:
    encoder = encoder.encoder if isinstance(encoder, View) else encoder
    if not isinstance(encoder, CachedEncoder) or not encoder.computed:
        return ""
    return f"; {encoder.computed:,} texts encoded, {encoder.computed / max(encoder.seconds, 1e-9):,.0f}/s"


def _read(path: Path) -> tuple[TaskResult, Draws] | None:
    """A stored result; ``None`` where there is none or it is damaged, so that it is computed again."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        draws = np.array(data["draws"], dtype=np.float64)
        result = TaskResult(**{**data["result"], "interval": tuple(data["result"]["interval"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return (result, draws) if draws.shape == (RESAMPLES,) else None
