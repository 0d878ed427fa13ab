"""Prints results on the terminal: the table that ends a run, and the verdict."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from leafembed.errors import MissingExtraError
from leafembed.reports import EvalReport, GateResult

__all__ = ["print_export", "print_members", "print_reports", "print_results"]

_ORDER = ("teacher", "floor: random", "floor: static table", "floor: untrained student", "student", "int8")
_SPEED = {"teacher": "teacher, torch fp32", "student": "student, torch fp32", "int8": "student, INT8"}


def print_results(manifest: Mapping[str, Any]) -> None:
    """Print quality, size and speed of everything measured in a run, then the verdict, to stdout."""
    reports = {name: EvalReport.from_dict(manifest["reports"][name]) for name in _ORDER if name in manifest["reports"]}
    speeds = {entry["name"]: entry for entry in manifest.get("speed", ())}
    rows = {name: speeds.get(_SPEED.get(name, "")) for name in reports}
    extra = {"teacher, INT8": speeds["teacher, INT8"]} if "teacher, INT8" in speeds else {}
    _print_table(reports, reference="teacher", speeds={**rows, **extra})
    verdict = GateResult.from_dict(manifest["verdict"])
    console = _console()
    if "int8" in manifest:
        fidelity = manifest["int8"]
        console.print(
            f"INT8 against fp32: mean cosine {fidelity['cosine_mean']:.4f}, least {fidelity['cosine_min']:.4f}, "
            f"over {fidelity['texts']} held-out texts"
        )
    for check in verdict.failed:
        console.print(f"failed: {check}", style="red")
    word = "PASSED" if verdict.passed else "REFUSED"
    passed = len(verdict.checks) - len(verdict.failed)
    console.print(f"gate: {word}, {passed} of {len(verdict.checks)} checks hold", style="bold")


def print_reports(reports: Mapping[str, EvalReport], *, reference: str | None) -> None:
    """Print scores by task type, and by task and language, to stdout."""
    _print_table(reports, reference=reference, speeds={})
    from rich.table import Table

    table = Table(box=None)
    for column in ("task", "language", "metric", "n", *(report.model.name for report in reports.values())):
        table.add_column(column, justify="left" if column in ("task", "language", "metric") else "right")
    for result in next(iter(reports.values())).results:
        scores = [report.score(result.task, result.lang) for report in reports.values()]
        cells = [f"{score:.4f}" if score is not None else "" for score in scores]
        table.add_row(result.task, result.lang, result.metric, str(result.n), *cells)
    _console().print(table)


def print_members(members: Sequence[Mapping[str, str]]) -> None:
    """Print for each member of a suite how many of its tasks have data here, and which local files stand in."""
    from rich.table import Table

    if not members:
        return
    table = Table(box=None)
    for column in ("member", "tasks", "from the cache", "from local files", "missing"):
        table.add_column(column, justify="left" if column in ("member", "from local files") else "right")
    for name in dict.fromkeys(member["member"] for member in members):
        own = [member for member in members if member["member"] == name]
        count = {where: sum(member["data"] == where for member in own) for where in ("cache", "missing")}
        local = [
            member["local"] + (f" ({member['differs']})" if member["differs"] else "")
            for member in own
            if member["data"] == "local"
        ]
        table.add_row(name, str(len(own)), str(count["cache"]), ", ".join(local) or "-", str(count["missing"]))
    _console().print(table)


def print_export(files: Sequence[Mapping[str, Any]], *, texts: int) -> None:
    """Print size and cosines of exported files, to stdout."""
    from rich.table import Table

    table = Table(box=None)
    for column in ("file", "MB", "cosine, mean", "cosine, least"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for file in files:
        cosines = (f"{file[key]:.5f}" for key in ("cosine_mean", "cosine_min"))
        table.add_row(file["file"], f"{file['mb']:.2f}", *cosines)
    _console().print(table, f"cosine to the student's own fp32 vectors, over {texts} texts")


def _print_table(
    reports: Mapping[str, EvalReport], *, reference: str | None, speeds: Mapping[str, Mapping[str, Any] | None]
) -> None:
    console = _console()
    from rich.table import Table

    table = Table(box=None)
    types = list(next(iter(reports.values())).by_type())
    table.add_column("")
    for column in (*types, "mean", *(["retention"] if reference else []), *(["MB", "texts/s"] if speeds else [])):
        table.add_column(column, justify="right")
    for name in {**reports, **speeds}:
        report = reports.get(name)
        cells = [f"{value:.4f}" for value in report.by_type().values()] if report else [""] * len(types)
        cells.append(f"{report.mean:.4f}" if report else "")
        if reference:
            cells.append(f"{report.mean_retention(reports[reference]):.4f}" if report else "")
        if speeds:
            speed = speeds.get(name)
            cells += [f"{speed['size_mb']:.1f}", f"{speed['texts_per_second']:.0f}"] if speed else ["", ""]
        table.add_row(name, *cells)
    console.print(table)


def _console() -> Any:
    try:
        from rich.console import Console
    except ImportError as error:
        raise MissingExtraError("rich", "train") from error
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)
