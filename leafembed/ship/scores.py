"""The card's tables of scores: by task type, by task and language, INT8 beside fp32, and the gate's checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leafembed.reports import FLOOR, SHIPPED, EvalReport, GateResult
from leafembed.ship.markdown import count, fixed, ratio, table, with_interval

__all__ = ["TIMED", "reading_order", "renewals", "score_tables"]

TIMED = {"teacher": "teacher, torch fp32", "student": "student, torch fp32", "int8": "student, INT8"}
"""Names of reports to what the same model is called where it was timed."""

_LANGUAGES = 5  # that are named where INT8 loses most


def score_tables(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of scores and the verdict, by the name that the card's template knows them by."""
    reports = {name: EvalReport.from_dict(report) for name, report in manifest["reports"].items()}
    verdict = GateResult.from_dict(manifest["verdict"])
    by_task = _results_by_task(reports)
    int8 = manifest.get("int8")
    return {
        "stage": "; ".join([manifest["verdict"]["stage"], *renewals(manifest)]),
        "checks": verdict.checks,
        "failed": verdict.failed,
        "shipped": next((word for name, word in SHIPPED.items() if name in reports), ""),
        "results": _results(reports),
        "results_by_task": table(
            ["task", "language", "metric", "items", *_words(reading_order(reports))], by_task, words=3
        ),
        "result_rows": len(by_task),
        "has_intervals": any(report.intervals for report in reports.values()),
        "has_too_few": any(report.too_few for report in reports.values()),
        "int8": int8,
        "int8_drop": _int8_drop(reports) if "int8" in reports else "",
        "int8_worst": _int8_worst(reports) if "int8" in reports else "",
        "behaviour": _behaviour(manifest.get("behaviour") or {}),
        "gate": table(
            ["check", "value", "limit", "outcome"],
            [
                [c.name, fixed(c.value, 4), f"{'≥' if c.at_least else '≤'} {c.limit:.4f}", _outcome(c.passed)]
                for c in sorted(verdict.checks, key=lambda check: check.passed)
            ],
        ),
    }


def renewals(manifest: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of each time that a verdict was brought up to date."""
    return [
        f"renewed {one['time']} with leafembed {one['leafembed']}, by the stored scores: {count(len(one['added']))} "
        f"checks were not asked for before, and the verdict was {_outcome(one['passed_before'])}"
        for one in manifest.get("renewed", ())
    ]


def _outcome(passed: bool) -> str:
    return "pass" if passed else "FAIL"


def reading_order(reports: Mapping[str, EvalReport]) -> list[str]:
    """Return the names of reports as one reads them: what ships, what it came from, what it must beat."""
    floors = [name for name in reports if name.startswith(FLOOR)]
    return [name for name in [*SHIPPED, "teacher", *floors] if name in reports]


def _words(names: Sequence[str]) -> list[str]:
    return [SHIPPED.get(name, name) for name in names]


def _results(reports: Mapping[str, EvalReport]) -> str:
    names = reading_order(reports)
    types = {name: reports[name].by_type() for name in names}
    types = {name: {**types[name], "mean": reports[name].mean} for name in names}
    rows = [
        [kind, *(with_interval(types[name].get(kind), reports[name].intervals.get(kind)) for name in names)]
        for kind in types["teacher"]
    ]
    shipped = names[0]
    if shipped not in SHIPPED:  # training stopped: nothing to compare with the teacher
        return table(["task type", *names], rows)
    retention = [ratio(types[shipped].get(kind), score) for kind, score in types["teacher"].items() if kind != "mean"]
    retention.append(fixed(reports[shipped].mean_retention(reports["teacher"]), 3))
    rows = [[*row[:2], kept, *row[2:]] for row, kept in zip(rows, retention, strict=True)]
    first, *others = _words(names)
    return table(["task type", first, "retention", *others], rows)


def _results_by_task(reports: Mapping[str, EvalReport]) -> list[list[str]]:
    names = reading_order(reports)
    found = {name: {(r.task, r.lang): r for r in reports[name].results} for name in names}
    rows = []
    for r in reports["teacher"].results:
        others = [found[name].get((r.task, r.lang)) for name in names]
        cells = [with_interval(other.main_score, other.interval) if other else fixed(None, 4) for other in others]
        rows.append([r.task, r.lang, r.metric, count(r.n), *cells])
    for few in reports["teacher"].too_few:
        rows.append([few.task, few.lang, "", count(few.n), *[str(few)] * len(names)])
    return rows


def _behaviour(seen: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the models behave where no task looks; ``None``: none was observed."""
    if not seen:
        return None
    rows = [
        [SHIPPED[name], fixed(one["batch_cosine"], 5), fixed(one["tail"], 4), fixed(one["teacher_tail"], 4)]
        for name, one in seen.items()
    ]
    header = ["model", "least cosine, alone and in a batch", "change by another end", "of the teacher"]
    return {"texts": next(iter(seen.values()))["texts"], "table": table(header, rows)}


def _int8_drop(reports: Mapping[str, EvalReport]) -> str:
    student, int8 = reports["student"].by_type(), reports["int8"].by_type()
    rows = [
        [kind, fixed(student[kind], 4), fixed(int8[kind], 4), f"{student[kind] - int8[kind]:+z.4f}"] for kind in int8
    ]
    return table(["task type", "student", "INT8", "drop"], rows)


def _int8_worst(reports: Mapping[str, EvalReport]) -> str:
    """Where INT8 loses most: the drops of single languages of a type, each the mean over its tasks, largest first."""
    before = {(r.task, r.lang): r.main_score for r in reports["student"].results}
    drops: dict[str, list[float]] = {}
    for r in reports["int8"].results:
        drops.setdefault(f"{r.type} in {r.lang}", []).append(before[r.task, r.lang] - r.main_score)
    means = sorted(((sum(some) / len(some), what) for what, some in drops.items()), reverse=True)
    return ", ".join(f"{what} {drop:+z.4f}" for drop, what in means[:_LANGUAGES])
