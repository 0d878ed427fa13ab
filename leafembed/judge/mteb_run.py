"""Runs mteb's own tasks and benchmarks on an encoder, as far as their data can be had.

mteb asks a hub for a task's data, or takes it from the cache of ``datasets``: with ``HF_HUB_OFFLINE=1`` from there
only. A task whose data is in neither is told, with the reason, and never scored as something else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafembed.errors import DataError
from leafembed.judge.evaluate import Candidate
from leafembed.judge.formats import Options
from leafembed.judge.mteb_model import MtebModel, import_mteb
from leafembed.reports import TaskResult
from leafembed.text import normalise_lang

__all__ = ["MtebRun", "find_mteb_tasks", "is_cached", "run_mteb"]


@dataclass(frozen=True, slots=True)
class MtebRun:
    """What came of mteb's tasks.

    Attributes:
        results: One for each task, split and subset, in our terms; the task is called ``mteb/NAME``, with ``@SPLIT``
            where it is not test.
        native: mteb's own ``TaskResult`` of each task, for its files.
        datasets: Hub id of the data by our name of the task.
        missing: Tasks whose data cannot be had, each with the reason.
    """

    results: tuple[TaskResult, ...]
    native: tuple[Any, ...]
    datasets: Mapping[str, str]
    missing: Mapping[str, str]


def find_mteb_tasks(names: Sequence[str], *, languages: Sequence[str] = (), subsets: Sequence[str] = ()) -> list[Any]:
    """Return mteb's tasks of these names, in order, each once; no data is loaded.

    Args:
        names: Tasks, as ``STSBenchmark``, or benchmarks, as ``MTEB(eng, v2)``.
        languages: Languages to score, in any spelling; a pair counts when both sides are named or English. Empty: all.
        subsets: mteb's names of the subsets to score; empty: all. It is for one task.

    Raises:
        MissingExtraError: If mteb is not installed.
        DataError: If mteb knows no such name, or none of the tasks has a subset in these languages.
    """
    wanted = Options(frozenset(map(normalise_lang, languages)), None, 0)
    tasks: dict[str, Any] = {}
    for name in names:
        # Copies, since mteb hands out the same object of a benchmark each time.
        kept = [task for task in map(copy, _named(name)) if _keep_subsets(task, wanted, subsets)]
        if not kept:
            among = [*(f"subset {subset}" for subset in subsets), *(f"language {lang}" for lang in languages)]
            raise DataError(f"{name}: got {', '.join(among)}, expected some that mteb has of it")
        tasks |= {task.metadata.name: task for task in kept}
    return list(tasks.values())


def run_mteb(encoder: Candidate, tasks: Sequence[Any], *, on_task: Callable[[str], None] | None = None) -> MtebRun:
    """Score an encoder on mteb's tasks, by mteb's code.

    Args:
        encoder: What to score.
        tasks: As :func:`find_mteb_tasks` returns them.
        on_task: Called with the name of each task whose data is there, before it starts.

    Raises:
        ModelError: If the encoder is a bag of words.
        NonFiniteError: If a vector or a main score is not finite.
    """
    mteb, model = import_mteb(), MtebModel(encoder)
    results: list[TaskResult] = []
    native: list[Any] = []
    datasets: dict[str, str] = {}
    missing: dict[str, str] = {}
    for task in tasks:
        with _one_voice():
            reason = _load(task)
            if reason is not None:
                missing[task.metadata.name] = reason
                continue
            if on_task is not None:
                on_task(task.metadata.name)
            quiet = {"batch_size": 32, "show_progress_bar": False}
            (found,) = mteb.evaluate(
                model, task, cache=None, co2_tracker=False, encode_kwargs=quiet, show_progress_bar=False
            ).task_results
        native.append(found)
        mine = _in_our_terms(task, found)
        results += mine
        datasets |= {result.task: task.metadata.dataset["path"] for result in mine}
        for part in _parts(task):
            part.unload_data()
    return MtebRun(tuple(results), tuple(native), datasets, missing)


def is_cached(task: Any) -> bool:
    """Whether the cache of ``datasets`` holds data of a task; the hub is not asked.

    Data of another commit counts as well: offline, ``datasets`` takes what it has.
    """
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    def folder(hub_id: str) -> Path:
        *namespace, name = hub_id.split("/")
        return Path(config.HF_DATASETS_CACHE, "___".join([*namespace, camelcase_to_snakecase(name)]))

    return all(any(folder(part.metadata.dataset["path"]).glob("*/*/*")) for part in _parts(task))


def _named(name: str) -> list[Any]:
    mteb = import_mteb()
    if "(" in name:
        try:
            return list(mteb.get_benchmark(name).tasks)
        except KeyError as error:
            raise DataError(f"mteb benchmark: {error.args[0]}") from error
    try:
        return [mteb.get_task(name)]
    except KeyError as error:
        try:  # some benchmarks have names without brackets
            return list(mteb.get_benchmark(name).tasks)
        except KeyError:
            raise DataError(f"mteb task: {error.args[0]}") from error


def _keep_subsets(task: Any, wanted: Options, subsets: Sequence[str]) -> bool:
    """Narrow a task to the wanted subsets; whether any is left."""
    languages = task.metadata.hf_subsets_to_langscripts
    kept = [
        subset
        for subset in task.hf_subsets
        if (not subsets or subset in subsets) and wanted.wants([normalise_lang(tag) for tag in languages[subset]])
    ]
    task.hf_subsets = kept
    return bool(kept)


def _parts(task: Any) -> list[Any]:
    """The tasks that an aggregate is made of; else the task itself."""
    return list(task.metadata.tasks) if task.is_aggregate else [task]


def _load(task: Any) -> str | None:
    """Load the data of a task; the reason if it cannot be had."""
    if set(task.metadata.modalities) != {"text"}:
        return f"holds {', '.join(task.metadata.modalities)}, and these models read text"
    for part in _parts(task):
        try:
            part.load_data()
        # What datasets raises offline, for an unknown set, for one that needs a password and for one that needs code.
        except (OSError, ValueError, RuntimeError) as error:
            return f"{part.metadata.dataset['path']}: {' '.join(str(error).split())[:200]}"
    return None


def _in_our_terms(task: Any, found: Any) -> list[TaskResult]:
    metric = task.metadata.main_score
    entries = [(split, entry) for split, scores in found.scores.items() for entry in scores]
    return [
        TaskResult(
            task=f"mteb/{found.task_name}" + ("" if split == "test" else f"@{split}"),
            type=task.metadata.type,
            lang=_language(entry),
            metric=metric,
            main_score=float(entry["main_score"]),
            scores={metric: float(entry["main_score"])},
            n=sum(_count(part, split, entry["hf_subset"]) for part in _parts(task)),
            data=found.dataset_revision,
            seconds=(found.evaluation_time or 0.0) / len(entries),
        )
        for split, entry in entries
    ]


def _language(entry: Mapping[str, Any]) -> str:
    """The subset, which names a language or a pair of them; where there is one only, the languages of the task."""
    if entry["hf_subset"] != "default":
        return str(entry["hf_subset"])
    return "-".join(dict.fromkeys(normalise_lang(tag) for tag in entry["languages"]))


def _count(task: Any, split: str, subset: str) -> int:
    """How many items were scored: queries, pairs or texts."""
    data = task.dataset[subset] if subset in task.dataset else task.dataset
    rows = data.get(split, ())
    return len(rows["queries"]) if isinstance(rows, dict) else len(rows)


@contextmanager
def _one_voice() -> Iterator[None]:
    """Python warnings off: mteb logs the same words, and numerical ones belong to its definitions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
