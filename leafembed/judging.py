"""What ``leaf evaluate`` does: one model on local tasks, on mteb's, or on a named suite of both.

Local results are kept and found again as those of ``leaf compare`` are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leafembed.comparing import judge_one, read_tasks
from leafembed.errors import DataError, NoRowsError
from leafembed.opening import Located, Opened, locate, open_model
from leafembed.progress import say
from leafembed.reports import EvalReport, TaskResult
from leafembed.ship.model_index import model_index, write_model_index

if TYPE_CHECKING:
    from leafembed.judge.evaluate import Candidate
    from leafembed.judge.mteb_run import MtebRun
    from leafembed.judge.suites import Found
    from leafembed.judge.tasks import Task
    from leafembed.types import ModelRef

__all__ = ["Evaluation", "Wanted", "export_card", "export_mteb", "judge", "judge_beside"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to score a model on.

    Attributes:
        data: Folder of local tasks.
        tasks: Local tasks, by id or glob; ``None``: all of them, unless ``mteb`` or ``suite`` names something.
        languages: Languages to score; empty: all.
        max_rows: Most items of a local task in one language; ``None``: all.
        mteb: mteb's tasks and benchmarks, by name.
        suite: Name of a suite; ``None``: none. It chooses languages and tasks itself.
        fetch: Ask the hub for the suite's data that the cache lacks.
    """

    data: Path
    tasks: Sequence[str] | None = None
    languages: Sequence[str] = ()
    max_rows: int | None = None
    mteb: Sequence[str] = ()
    suite: str | None = None
    fetch: bool = False


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model scored, and what it could not be scored on.

    Attributes:
        encoder: What was scored.
        report: All scores; a mean has an interval where all that it is of was resampled, which mteb's scores are not.
        local: Those on local tasks.
        native: mteb's own results on its tasks.
        datasets: Hub ids of the data of mteb's tasks, by our names of these.
        missing: What could not be scored, with the reason.
        members: Each task of the suite: member, task, where its data is, what stands for it and how that differs.
    """

    encoder: Candidate
    report: EvalReport
    local: tuple[TaskResult, ...]
    native: tuple[Any, ...] = ()
    datasets: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    members: tuple[Mapping[str, str], ...] = ()


def judge(opened: Opened, wanted: Wanted, *, cache_dir: Path) -> Evaluation:
    """Score a model on what is wanted, local tasks first.

    Args:
        opened: The model.
        wanted: What to score it on.
        cache_dir: Where results on local tasks are kept.

    Raises:
        DataError: If a name means nothing, local data cannot be read, or no data at all is there.
        ModelError: If mteb is to score a bag of words.
        MissingExtraError: If mteb is wanted and not installed.
    """
    suite = _open_suite(wanted)
    tasks, suite, lacking = _read_local(wanted, suite)
    native = _find_native(wanted, suite)
    local = judge_one(opened, tasks, cache_dir=cache_dir).report if tasks else None
    run = _run_mteb(opened.encoder, native)
    missing = {found.name: lacking.get(found.name, "neither in the cache nor among the local files") + "; --fetch "
               "asks the hub" for found in suite if found.where == "missing"}  # fmt: skip
    missing |= run.missing if run else {}
    if local is None and not (run and run.results):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(missing.items())[:3])
        raise DataError(f"nothing was scored, since no data is there. {reasons}")
    return Evaluation(
        opened.encoder,
        _together(opened.encoder.ref, local, run.results if run else ()),
        local.results if local else (),
        run.native if run else (),
        run.datasets if run else {},
        missing,
        tuple(_describe(found, missing) for found in suite),
    )


def judge_beside(
    spec: str,
    reference: str | None,
    wanted: Wanted,
    *,
    cache_dir: Path,
    allow_failed: bool = False,
) -> tuple[Evaluation, Evaluation | None]:
    """Score a model, and another one beside it; both are found before any is scored.

    Args:
        spec: The model, as ``opening.py`` lists them.
        reference: The other one; ``None``: none.
        wanted: What to score them on.
        cache_dir: Where vectors and results are kept.
        allow_failed: Score bundles that the gate refused, too.

    Raises:
        Error: As :func:`judge`, :func:`~leafembed.opening.locate` and :func:`~leafembed.opening.open_model` do.
    """
    cache_dir = cache_dir.expanduser()
    model = locate(spec, allow_failed=allow_failed)
    other = locate(reference, allow_failed=allow_failed) if reference else None

    def judged(found: Located) -> Evaluation:
        opened = open_model(found, cache_dir=cache_dir, allow_failed=allow_failed)
        return judge(opened, wanted, cache_dir=cache_dir)

    return judged(model), judged(other) if other else None


def export_mteb(folder: Path, evaluation: Evaluation) -> int:
    """Write all results as mteb's result files; return how many tasks they are of."""
    from leafembed.judge.mteb_files import write_mteb_results

    return len(write_mteb_results(folder, evaluation.encoder, evaluation.local, evaluation.native))


def export_card(card: Path, evaluation: Evaluation) -> None:
    """Put all results into the ``model-index`` of a model card."""
    report = evaluation.report
    write_model_index(card, model_index(report.model.name, report.results, datasets=evaluation.datasets))


def _read_local(wanted: Wanted, suite: Sequence[Found]) -> tuple[list[Task], list[Found], dict[str, str]]:
    """The local tasks that are named, then those of the suite; the suite; and what of it has no rows here, and why.

    What is named must be there. A set that stands for a task of the suite may lack its languages: it is missing then.
    """
    read = partial(read_tasks, wanted.data, max_rows=wanted.max_rows)
    names = ["*"] if wanted.tasks is None and not wanted.mteb and wanted.suite is None else wanted.tasks
    tasks = list(read(names, languages=wanted.languages)) if names else []
    located: list[Found] = []
    lacking: dict[str, str] = {}
    for found in suite:
        try:
            tasks += read([found.local.id], languages=found.languages) if found.local else ()
            located.append(found)
        except NoRowsError as error:
            lacking[found.name] = str(error)
            located.append(replace(found, where="missing", local=None))
    return _once(tasks), located, lacking


def _once(read: Sequence[Task]) -> list[Task]:
    """The tasks, each in each language once."""
    tasks: list[Task] = []
    seen: set[tuple[str, str]] = set()
    for task in read:
        parts = tuple(part for part in task.parts if (task.id, part.lang) not in seen)
        few = {lang: n for lang, n in task.too_few.items() if (task.id, lang) not in seen}
        seen |= {(task.id, lang) for lang in (*few, *(part.lang for part in parts))}
        if parts or few:
            tasks.append(replace(task, parts=parts, too_few=few))
    return tasks


def _open_suite(wanted: Wanted) -> list[Found]:
    if wanted.suite is None:
        return []
    from leafembed.judge.suites import open_suite

    return open_suite(wanted.suite, wanted.data, fetch=wanted.fetch)


def _find_native(wanted: Wanted, suite: Sequence[Found]) -> list[Any]:
    """The tasks of mteb to score: those of the suite but what local files stand for, then those that are named."""
    named = [found.task for found in suite if found.where in ("cache", "hub")]
    if wanted.mteb:
        from leafembed.judge.mteb_run import find_mteb_tasks

        named += find_mteb_tasks(wanted.mteb, languages=wanted.languages)
    tasks: dict[str, Any] = {}
    for task in named:  # members may share subsets, and each is scored once
        kept = tasks.setdefault(task.metadata.name, copy(task))
        kept.hf_subsets = list(dict.fromkeys([*kept.hf_subsets, *task.hf_subsets]))
    return list(tasks.values())


def _run_mteb(encoder: Candidate, tasks: Sequence[Any]) -> MtebRun | None:
    if not tasks:
        return None
    from leafembed.judge.mteb_run import run_mteb

    return run_mteb(encoder, tasks, on_task=lambda task: say(f"scoring {encoder.ref.name} on mteb's {task}"))


def _together(model: ModelRef, local: EvalReport | None, native: Sequence[TaskResult]) -> EvalReport:
    """One report; a type that mteb scored a task of has no interval, and nor has the mean."""
    if local is None:
        return EvalReport(model, tuple(native))
    mixed = {"mean", *(result.type for result in native)} if native else set()
    intervals = {kind: interval for kind, interval in local.intervals.items() if kind not in mixed}
    return replace(local, results=(*local.results, *native), intervals=intervals)


def _describe(found: Found, missing: Mapping[str, str]) -> dict[str, str]:
    return {
        "member": found.member,
        "task": found.name,
        "data": "missing" if found.name in missing and not found.local else found.where,
        "local": found.local.id if found.local else "",
        "differs": found.local.differs if found.local else "",
    }
