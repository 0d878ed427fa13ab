"""What a comparison leaves behind: ``results.json``, a page with its tables, and a plot.

``results.json`` is written last: where it is, the other two belong to it.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leafembed import __version__
from leafembed.comparing import SCORERS
from leafembed.judge.compare import Estimate, Judged, Pair, pairs, retention
from leafembed.reports import EvalReport
from leafembed.ship.machine import machine_facts, versions
from leafembed.ship.markdown import NOTHING, count, line, table, with_interval
from leafembed.ship.score_plot import MOST_LANGUAGES, Series, plot_scores

__all__ = [
    "PAGE",
    "PLOT",
    "RESULTS",
    "comparison_data",
    "difference_cells",
    "score_cells",
    "task_rows",
    "write_comparison",
]

PAGE, PLOT, RESULTS = "README.md", "plot.png", "results.json"

_MOST_ROWS = 24


def comparison_data(models: Sequence[Judged], *, reference: Judged | None = None) -> dict[str, Any]:
    """Return everything that a comparison found as plain data.

    Args:
        models: Scored on the same tasks.
        reference: One of them, of which it is said how much each other retains; ``None``: nothing is.
    """
    kept = {m.label: retention(m, reference) for m in models if m is not reference} if reference else {}
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "leafembed": __version__,
        "models": [{"label": m.label, "spec": m.spec, "key": m.key, **m.report.to_dict()} for m in models],
        "means": {m.label: dict(m.scores) for m in models},
        "pairs": [pair.to_dict() for pair in pairs(models)],
        "reference": reference.label if reference else None,
        "retention": {
            label: {kind: dataclasses.asdict(estimate) for kind, estimate in by_type.items()}
            for label, by_type in kept.items()
        },
        "machine": machine_facts(),
        "versions": versions(SCORERS),
    }


def write_comparison(models: Sequence[Judged], folder: Path, *, reference: Judged | None = None) -> dict[str, Any]:
    """Write page, plot and, last, results into a folder; return the results.

    Args:
        models: Scored on the same tasks.
        folder: Created where it is missing; its three files are replaced.
        reference: As in :func:`comparison_data`.
    """
    data = comparison_data(models, reference=reference)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).unlink(missing_ok=True)
    plot_scores([_series(model) for model in models], models[0].report, folder / PLOT)
    (folder / PAGE).write_text(_page(models, reference), encoding="utf-8")
    partial = folder / f".{RESULTS}.partial"
    partial.write_text(json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(folder / RESULTS)
    return data


def _series(model: Judged) -> Series:
    types = {kind: (model.scores[kind], interval) for kind, interval in model.report.intervals.items()}
    languages = {key: (estimate.value, estimate.interval) for key, estimate in model.by_language().items()}
    return Series(model.label, types, languages)


def difference_cells(pair: Pair) -> list[str]:
    """The cells of a pair's row: share of resamples, difference of means, then by type."""
    whole = pair.difference["mean"]
    types = [_signed(estimate) for kind, estimate in pair.difference.items() if kind != "mean"]
    return [f"{100 * pair.above:.1f} %", _signed(whole), "yes" if pair.clear else "no", *types]


def _page(models: Sequence[Judged], reference: Judged | None) -> str:
    kinds = [kind for kind in models[0].scores if kind != "mean"]
    parts = [
        f"# {len(models)} models on {len({result.task for result in models[0].report.results})} tasks",
        "Mean main score by task type: languages within a task first, then tasks. In brackets: the 95 % interval, from "
        "drawing the scored items again (bootstrap).",
        _types(models, kinds, reference),
        f"![Scores of each model by task type and language]({PLOT})",
    ]
    languages = _languages(models)
    if max(Counter(kind for kind, _ in languages).values()) > MOST_LANGUAGES:
        parts.append(f"Of a type with more than {MOST_LANGUAGES} languages, the plot shows those with most items.")
    if len(models) > 1:
        header = ["A", "B", "A above B", "mean, A - B", "clear", *(f"{kind}, A - B" for kind in kinds)]
        parts += [
            "## Is A better than B?",
            "Both are scored on the same resamples. \"A above B\" is the share of them in which A's mean is above B's; "
            "a difference is clear if its 95 % interval leaves out 0. With many pairs, some are clear by chance.",
            table(header, [[pair.a, pair.b, *difference_cells(pair)] for pair in pairs(models)], words=2),
        ]
    labels = [model.label for model in models]
    rows = [[kind, lang, *cells] for (kind, lang), cells in languages.items()]
    parts.append(_fold("## By language", table(["task type", "language", *labels], rows, words=2), len(rows)))
    tasks = task_rows([model.report for model in models])
    header = ["task", "language", "metric", "items", *labels]
    parts.append(_fold("## By task", table(header, tasks, words=3), len(tasks)))
    about = [[m.label, m.spec, m.report.model.dim, m.report.model.max_seq_length or "any", m.key] for m in models]
    parts += ["## Models", table(["model", "named by", "dim", "tokens read", "key"], about, words=2)]
    parts.append(
        "Whether text of these sets was in a model's training is not looked at here. The card of a bundle lists the "
        "sets that were kept out of its text, with what they share."
    )
    machine = machine_facts()
    packages = ", ".join(f"{name} {version}" for name, version in versions(SCORERS).items())
    parts.append(line(f"Scored on {machine['cpu']}, {machine['cores']} cores, with {packages}."))
    return "\n\n".join(parts) + "\n"


def _types(models: Sequence[Judged], kinds: Sequence[str], reference: Judged | None) -> str:
    rows = []
    for model in sorted(models, key=lambda one: -one.scores["mean"]):
        rows.append([model.label, *score_cells(model, reference)])
    return table(["model", *kinds, "mean", *(["retention"] if reference else [])], rows)


def score_cells(model: Judged, reference: Judged | None) -> list[str]:
    """The cells of a model's row: each type, the mean, and what it retains of a reference."""
    cells = [with_interval(score, model.report.intervals[kind]) for kind, score in model.scores.items()]
    if reference is None:
        return cells
    kept = retention(model, reference).get("mean")
    return [*cells, "reference" if model is reference else _plain(kept) if kept else NOTHING]


def _languages(models: Sequence[Judged]) -> Mapping[tuple[str, str], list[str]]:
    columns = [model.by_language() for model in models]
    return {key: [_plain(column[key]) for column in columns] for key in columns[0]}


def task_rows(reports: Sequence[EvalReport], *, intervals: bool = True) -> list[list[str]]:
    """A row for each task and language: task, language, metric, items, then the score of each model."""
    rows = []
    for together in zip(*(report.results for report in reports), strict=True):
        first = together[0]
        cells = [with_interval(r.main_score, r.interval if intervals else None) for r in together]
        rows.append([first.task, first.lang, first.metric, count(first.n), *cells])
    for few in reports[0].too_few:
        rows.append([few.task, few.lang, "", count(few.n), *[str(few)] * len(reports)])
    return rows


def _fold(heading: str, text: str, rows: int) -> str:
    if rows <= _MOST_ROWS:
        return f"{heading}\n\n{text}"
    return f"{heading}\n\n<details>\n<summary>{rows} rows</summary>\n\n{text}\n\n</details>"


def _plain(estimate: Estimate) -> str:
    return with_interval(estimate.value, estimate.interval)


def _signed(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{estimate.value:+z.4f} [{low:+z.3f}, {high:+z.3f}]"
