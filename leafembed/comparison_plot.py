"""Draws a comparison: a panel for each task type, in it a row for each language and in that a dot for each model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leafembed.errors import MissingExtraError
from leafembed.judge.compare import Estimate, Judged

__all__ = ["MOST_LANGUAGES", "plot_comparison"]

MOST_LANGUAGES = 16
"""Most languages of a type that are drawn one by one; those with most items come first."""

_ALL = "all"
_COLOURS = ("#1f2933", "#c2410c", "#0f766e", "#7c3aed", "#0369a1", "#b45309", "#be185d", "#65a30d")
_MARKERS = "osD^vPX*"


def plot_comparison(models: Sequence[Judged], path: Path) -> None:
    """Write the plot as PNG: scores from left to right, the mean of each type above its languages.

    Args:
        models: Scored on the same tasks.
        path: File to write.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "train") from error
    kinds = list(models[0].report.by_type())
    rows = {kind: _rows(models[0], kind) for kind in kinds}
    most = max(map(len, rows.values()))
    # Room for each model within a row, and for the legend above.
    height = 1.6 + most * (0.2 + 0.07 * len(models)) + 0.2 * ((len(models) + 2) // 3)
    figure = Figure(figsize=(max(5.5, 3.1 * len(kinds) + 0.6), height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)  # not pyplot: no global state, no display
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for place, model in enumerate(models):
            _draw(axes, model, place, len(models), rows[kind], kind)
        _style(axes, kind, rows[kind], most)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(3, len(models)), frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Software": None})


def _rows(model: Judged, kind: str) -> list[str]:
    """The rows of a type's panel: all languages together, then each, if there are several."""
    items: dict[str, int] = {}
    for result in model.report.results:
        if result.type == kind:
            items[result.lang] = items.get(result.lang, 0) + result.n
    if len(items) == 1:
        return list(items)
    chosen = sorted(items, key=lambda lang: -items[lang])[:MOST_LANGUAGES]
    return [_ALL, *sorted(chosen)]


def _draw(axes: Any, model: Judged, place: int, count: int, rows: Sequence[str], kind: str) -> None:
    languages = model.by_language()
    whole = Estimate(model.scores[kind], model.report.intervals[kind])
    colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
    offset = 0.7 * ((place + 0.5) / count - 0.5)
    for row, lang in enumerate(rows):
        estimate = whole if lang == _ALL else languages[kind, lang]
        axes.plot(estimate.interval, [row + offset] * 2, color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(
            [estimate.value], [row + offset], marker, color=colour, markersize=5, label=None if row else model.label
        )


def _style(axes: Any, kind: str, rows: Sequence[str], most: int) -> None:
    axes.set_title(kind, fontsize=10, loc="left")
    axes.set_yticks(range(len(rows)), rows, fontsize=8.5)
    axes.set_ylim(most - 0.4, -0.6)  # the first row on top, rows of all panels as high
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(True, axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for row in range(1, len(rows)):
        axes.axhline(row - 0.5, color="#e4e7eb", linewidth=0.6)
