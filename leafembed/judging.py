"""What ``leaf evaluate`` does: any model on local tasks, on mteb's, or on a named suite of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leafembed.errors import DataError
from leafembed.progress import say
from leafembed.reports import EvalReport, TaskResult
from leafembed.ship.model_index import model_index, write_model_index
from leafembed.single import score

if TYPE_CHECKING:
    from leafembed.judge.mteb_run import MtebRun
    from leafembed.judge.suites import Found
    from leafembed.types import Encoder

__all__ = ["Judged", "Wanted", "export_card", "export_mteb", "judge"]


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
    """

    data: Path
    tasks: Sequence[str] | None = None
    languages: Sequence[str] = ()
    max_rows: int | None = None
    mteb: Sequence[str] = ()
    suite: str | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model scored, and what it could not be scored on.

    Attributes:
        encoder: What was scored.
        report: All scores.
        local: Those on local tasks.
        native: mteb's own results on its tasks.
        datasets: Hub ids of the data of mteb's tasks, by our names of these.
        missing: What could not be scored, with the reason.
        members: Each task of the suite: member, task, where its data is, what stands for it and how that differs.
    """

    encoder: Encoder
    report: EvalReport
    local: tuple[TaskResult, ...]
    native: tuple[Any, ...] = ()
    datasets: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    members: tuple[Mapping[str, str], ...] = ()


def judge(encoder: Encoder, wanted: Wanted) -> Judged:
    """Score an encoder on what is wanted, local tasks first.

    Raises:
        DataError: If a name means nothing, local data cannot be read, or no data at all is there.
        MissingExtraError: If mteb is wanted and not installed.
    """
    local: list[TaskResult] = []
    names = ["*"] if wanted.tasks is None and not wanted.mteb and wanted.suite is None else wanted.tasks
    if names:
        local += _local(encoder, wanted, names, wanted.languages)
    suite = _open_suite(wanted)
    for id, languages in dict.fromkeys((found.local.id, tuple(found.languages)) for found in suite if found.local):
        local += _local(encoder, wanted, [id], languages)
    unique = tuple({(result.task, result.lang): result for result in local}.values())
    cached = {(found.name, *found.task.hf_subsets): found.task for found in suite if found.where == "cache"}
    run = _run_mteb(encoder, wanted, list(cached.values()))
    missing = {found.name: "neither in the cache nor among the local files" for found in suite
               if found.where == "missing"}  # fmt: skip
    missing |= run.missing if run else {}
    results = (*unique, *(run.results if run else ()))
    if not results:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(missing.items())[:3])
        raise DataError(f"nothing was scored, since no data is there. {reasons}")
    return Judged(
        encoder,
        EvalReport(encoder.ref, results),
        unique,
        run.native if run else (),
        run.datasets if run else {},
        missing,
        tuple(_describe(found) for found in suite),
    )


def export_mteb(folder: Path, judged: Judged) -> int:
    """Write all results as mteb's result files; return how many tasks they are of."""
    from leafembed.judge.mteb_files import write_mteb_results

    return len(write_mteb_results(folder, judged.encoder, judged.local, judged.native))


def export_card(card: Path, judged: Judged) -> None:
    """Put all results into the ``model-index`` of a model card."""
    write_model_index(card, model_index(judged.report.model.name, judged.report.results, datasets=judged.datasets))


def _local(encoder: Encoder, wanted: Wanted, names: Sequence[str], languages: Sequence[str]) -> Sequence[TaskResult]:
    return score(encoder, wanted.data, names, languages=languages, max_rows=wanted.max_rows).results


def _open_suite(wanted: Wanted) -> list[Found]:
    if wanted.suite is None:
        return []
    from leafembed.judge.suites import open_suite

    return open_suite(wanted.suite, wanted.data)


def _run_mteb(encoder: Encoder, wanted: Wanted, cached: Sequence[Any]) -> MtebRun | None:
    if not wanted.mteb and not cached:
        return None
    from leafembed.judge.mteb_run import find_mteb_tasks, run_mteb

    tasks = [*cached, *find_mteb_tasks(wanted.mteb, languages=wanted.languages)]
    return run_mteb(encoder, tasks, on_task=lambda task: say(f"scoring {encoder.ref.name} on mteb's {task}"))


def _describe(found: Found) -> dict[str, str]:
    return {
        "member": found.member,
        "task": found.name,
        "data": found.where,
        "local": found.local.id if found.local else "",
        "differs": found.local.differs if found.local else "",
    }
