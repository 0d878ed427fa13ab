"""Results on the terminal: the table that ends a run, and the verdict."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from leafembed.comparison_page import difference_cells, score_cells, task_rows
from leafembed.errors import MissingExtraError
from leafembed.judge.compare import Judged, pairs
from leafembed.progress import say
from leafembed.recipe_io import softer_rules
from leafembed.reports import EvalReport, GateResult
from leafembed.ship.markdown import with_interval
from leafembed.ship.point_table import exit_name
from leafembed.ship.scores import TIMED, reading_order

__all__ = [
    "print_checks",
    "print_comparison",
    "print_export",
    "print_info",
    "print_members",
    "print_overlap",
    "print_points",
    "print_reports",
    "print_results",
    "print_speed",
    "say_missing",
]

_WIDEST = 3
"""Most models whose intervals fit into a table of the terminal beside each other."""
_MISSING = 8
"""Most lines about tasks that could not be scored."""


def print_results(manifest: Mapping[str, Any]) -> None:
    """Print quality, size and speed of everything measured in a run, then the verdict, to stdout."""
    reports = {name: EvalReport.from_dict(manifest["reports"][name]) for name in reading_order(manifest["reports"])}
    speeds = {entry["name"]: entry for entry in manifest.get("speed", ())}
    rows = {name: speeds.get(TIMED.get(name, "")) for name in reports}
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


def print_comparison(models: Sequence[Judged], *, reference: Judged | None) -> None:
    """Print scores by task type, every two models against each other, and scores by task and language, to stdout."""
    kinds = [kind for kind in models[0].scores if kind != "mean"]
    console = _console()
    retained = ["retention"] if reference else []
    rows = [[model.label, *score_cells(model, reference)] for model in models]
    console.print(_table(["model", *kinds, "mean", *retained], rows, words=1))
    if len(models) > 1:
        found = [[pair.a, pair.b, *difference_cells(pair)[:3]] for pair in pairs(models)]  # types are on the page
        console.print(_table(["A", "B", "A above B", "mean, A - B", "clear"], found, words=2))
    labels = [model.label for model in models]
    rows = task_rows(
        [model.report for model in models], intervals=len(models) <= _WIDEST
    )  # else they are on the page and in the JSON
    console.print(_table(["task", "language", "metric", "n", *labels], rows, words=3))


def print_reports(reports: Mapping[str, EvalReport], *, reference: str | None) -> None:
    """Print scores by task type, and by task and language, to stdout.

    Args:
        reports: On the same tasks, by what the tables call each.
        reference: Which of them it is said of how much the others retain of it; ``None``: none.

    Raises:
        DataError: If the reference scores nothing in a type.
    """
    rows = []
    for label, report in reports.items():
        means = {**report.by_type(), "mean": report.mean}
        cells = [with_interval(score, report.intervals.get(kind)) for kind, score in means.items()]
        if reference is not None:
            kept = report.mean_retention(reports[reference])
            cells.append("reference" if label == reference else f"{kept:.4f}")
        rows.append([label, *cells])
    first = next(iter(reports.values()))
    console = _console()
    header = ["model", *first.by_type(), "mean", *(["retention"] if reference is not None else [])]
    console.print(_table(header, rows, words=1))
    rows = task_rows(list(reports.values()))
    console.print(_table(["task", "language", "metric", "n", *reports], rows, words=3))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None)
    for i, column in enumerate(header):
        table.add_column(column, justify="left" if i < words else "right")
    for row in rows:
        table.add_row(*map(escape, row))  # an interval is no markup
    return table


def print_checks(verdict: GateResult) -> None:
    """Print a line for each check of a verdict, to stdout: whether it holds, its value and its limit."""
    for check in verdict.checks:
        print(f"{'pass' if check.passed else 'FAIL'}  {check}")


def say_missing(missing: Mapping[str, str]) -> None:
    """Log which tasks could not be scored, each with its reason; of many, the first few."""
    for name, reason in list(missing.items())[:_MISSING]:
        say(f"not scored: {name}: {reason}")
    if len(missing) > _MISSING:
        say(f"not scored: {len(missing) - _MISSING} more; --json names them")


def print_members(members: Sequence[Mapping[str, str]]) -> None:
    """Print for each member of a suite how many of its tasks have data here, and which local files stand in."""
    if not members:
        return
    rows = []
    for name in dict.fromkeys(member["member"] for member in members):
        own = [member for member in members if member["member"] == name]
        count = {where: sum(member["data"] == where for member in own) for where in ("cache", "hub", "missing")}
        local = [
            member["local"] + (f" ({member['differs']})" if member["differs"] else "")
            for member in own
            if member["data"] == "local"
        ]
        rows.append([name, ", ".join(local) or "-", str(len(own)), *map(str, count.values())])
    header = ["member", "from local files", "tasks", "from the cache", "from the hub", "missing"]
    _console().print(_table(header, rows, words=2))


def print_export(files: Sequence[Mapping[str, Any]], *, texts: int) -> None:
    """Print size and cosines of exported files, to stdout."""
    rows = [
        [file["file"], f"{file['mb']:.2f}", *(f"{file[key]:.5f}" for key in ("cosine_mean", "cosine_min"))]
        for file in files
    ]
    table = _table(["file", "MB", "cosine, mean", "cosine, least"], rows, words=1)
    _console().print(table, f"cosine to the student's own fp32 vectors, over {texts} texts")


def print_info(manifest: Mapping[str, Any], verdict: GateResult) -> None:
    """Print what a bundle is and whether the gate passed it, to stdout."""
    student = manifest["student"]
    facts = {
        "name": manifest["name"],
        "verdict": "passed the gate" if verdict.passed else f"REFUSED: {'; '.join(map(str, verdict.failed))}",
        "rules": "; ".join(softer_rules(manifest["recipe"])) or "none softer than usual",
        "teacher": manifest["teacher"]["name"],
        "licence": student["licence"] or "not stated by the teacher",
        "dim": student["dim"],
        "reads": f"{student['max_seq_length']} tokens",
        "size": f"{manifest['sizes']['total_bytes'] / 1e6:.1f} MB",
        "made": f"{manifest['created']} by leafembed {manifest['leafembed']}",
        "files": f"{len(manifest['files'])}, all hashes verified",
    }
    for name, value in facts.items():
        print(f"{name + ':':<10}{value}")


def print_overlap(found: Mapping[str, Any]) -> None:
    """How far two models agree on one index."""
    low, high = found["interval"]
    print(f"{found['queries']:,} queries in {found['documents']:,} documents, the first {found['k']} results of each:")
    print(f"  {found['overlap']:.3f} of the teacher's results are the student's too (95 %: {low:.3f} to {high:.3f})")
    first, same = found["first_kept"], found["same_first"]
    print(f"  {first:.3f} of its first results are among the student's, {same:.3f} are first there too")
    print(f"  {found['kept']:.3f} of the teacher's cosine to its own results is left in the student's")
    print(f"  {found['cosine']:.3f} is the mean cosine of the two models' queries")


def print_points(result: Mapping[str, Any], bundle: object, *, allow_failed: bool = False) -> None:
    """Every exit and dimension, the one to take, and how to load it; ``result`` is what ``leaf choose`` found."""
    points, chosen = result["points"], result["chosen"]
    rows = [
        [
            "*" if point == chosen else "",
            exit_name(point["exit"]),
            str(point["dim"]),
            f"{point['retention']:.3f}",
            f"{point['texts_per_second']:,.0f}",
            f"{point['weights_mb']:.1f}",
        ]
        for point in points
    ]
    head = ["", "layers", "dimensions", "retention", "texts/s here", "MB of weights"]
    _console().print(_table(head, rows, words=2))
    print(f"texts/s {_read_with(result['prompt_name'])}")
    options = [f"{name}={chosen[name]}" for name in ("exit", "dim") if chosen[name] is not None]
    options += ["allow_failed=True"] if allow_failed else []
    print(f"leafembed.load({str(bundle)!r}, {', '.join(options)})")


def print_speed(result: Mapping[str, Any]) -> None:
    """Print how fast a bundle was on a machine, to stdout; ``result`` is what ``leaf benchmark`` measured."""
    speed, machine = result["speed"], result["machine"]
    slowest, fastest = speed["spread"]
    print(
        f"{speed['texts_per_second']:.0f} texts/s (slowest {slowest:.0f}, fastest {fastest:.0f}), "
        f"{speed['tokens_per_text']:.1f} tokens a text, {_read_with(result['prompt_name'])}, "
        f"batch {speed['batch_size']}, {speed['threads']} threads, {machine['cpu']}"
    )


def _read_with(prompt_name: str | None) -> str:
    return "without a prompt" if prompt_name is None else f"with the prompt {prompt_name!r}"


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
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)
