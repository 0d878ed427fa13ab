"""Draws scores: by task type and language, and quality against rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafembed.errors import MissingExtraError
from leafembed.reports import EvalReport, Interval

__all__ = ["MOST_LANGUAGES", "Dot", "Rated", "Series", "plot_rates", "plot_scores", "series_of"]

MOST_LANGUAGES = 16
"""Most languages of a type that are drawn one by one; those with most items come first."""

Dot = tuple[float, Interval | None]
"""A score, and its 95 % interval where there is one."""

_ALL = "all"
_INK, _GRID = "#1f2933", "#e4e7eb"
_COLOURS = (_INK, "#c2410c", "#0f766e", "#7c3aed", "#0369a1", "#b45309", "#be185d", "#65a30d")
_MARKERS = "osD^vPX*"
_AREA = 2.0
"""Square points of a megabyte."""


@dataclass(frozen=True, slots=True)
class Series:
    """The scores of one model, as they are drawn.

    Attributes:
        label: What the legend calls it.
        types: Mean by task type.
        languages: Mean over the tasks of a type in a language.
    """

    label: str
    types: Mapping[str, Dot]
    languages: Mapping[tuple[str, str], Dot]


@dataclass(frozen=True, slots=True)
class Rated:
    """A model that was both timed and scored.

    Attributes:
        rate: Texts a second.
        ends: Of the slowest and of the fastest round.
        score: Its mean.
        megabytes: Of its files.
    """

    rate: float
    ends: tuple[float, float]
    score: Dot
    megabytes: float


def series_of(label: str, report: EvalReport) -> Series:
    """Return what a report has to draw; a mean over several tasks has no interval, since no report stores one."""
    groups: dict[tuple[str, str], list[Dot]] = {}
    for result in report.results:
        groups.setdefault((result.type, result.lang), []).append((result.main_score, result.interval))
    languages = {
        key: dots[0] if len(dots) == 1 else (sum(score for score, _ in dots) / len(dots), None)
        for key, dots in groups.items()
    }
    types = {kind: (score, report.intervals.get(kind)) for kind, score in report.by_type().items()}
    return Series(label, types, languages)


def plot_scores(series: Sequence[Series], report: EvalReport, path: Path) -> None:
    """Write the plot as PNG: a panel for each task type, the mean above its languages, scores from left to right.

    Args:
        series: Models scored on the same tasks.
        report: Any of their reports; it says which types and languages there are, and how many items each has.
        path: File to write.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    kinds = list(report.by_type())
    rows = {kind: _rows(report, kind) for kind in kinds}
    most = max(map(len, rows.values()))
    # Room for each model within a row, and for the legend above.
    height = 1.6 + most * (0.2 + 0.07 * len(series)) + 0.2 * ((len(series) + 2) // 3)
    figure = _figure(max(5.5, 3.1 * len(kinds) + 0.6), height)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for place, one in enumerate(series):
            _draw(axes, one, place, len(series), rows[kind], kind)
        langs, drawn = len({result.lang for result in report.results if result.type == kind}), len(rows[kind]) - 1
        _style(axes, kind if drawn < 1 or drawn == langs else f"{kind}, {drawn} of {langs} languages", rows[kind], most)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(3, len(series)), frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Software": None})


def plot_rates(points: Mapping[str, Rated], path: Path) -> None:
    """Write the plot of quality against rate as PNG, each model in a disc with the area of its files.

    Args:
        points: By what the legend calls a model.
        path: File to write.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = _figure(5.5, 3.4)
    axes = figure.subplots()
    for place, (label, one) in enumerate(points.items()):
        colour, (score, interval) = _COLOURS[place % len(_COLOURS)], one.score
        axes.scatter([one.rate], [score], s=_AREA * one.megabytes, color=colour, alpha=0.2, linewidth=0)
        axes.plot(one.ends, [score] * 2, color=colour, linewidth=1.2, alpha=0.6)
        if interval:
            axes.plot([one.rate] * 2, interval, color=colour, linewidth=1.2, alpha=0.6)
        name = f"{label}, {one.megabytes:,.0f} MB"
        axes.plot([one.rate], [score], _MARKERS[place % len(_MARKERS)], color=colour, markersize=6, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.15, y=0.25)
    axes.set_xlabel("texts a second")
    axes.set_ylabel("mean score")
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, title="area: MB on disk").get_title().set_fontsize(9)
    figure.savefig(path, metadata={"Software": None})


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "train") from error
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: no global state, no display
    return figure


def _rows(report: EvalReport, kind: str) -> list[str]:
    """The rows of a type's panel: all languages together, then each, if there are several."""
    items: dict[str, int] = {}
    for result in report.results:
        if result.type == kind:
            items[result.lang] = items.get(result.lang, 0) + result.n
    if len(items) == 1:
        return list(items)
    chosen = sorted(items, key=lambda lang: -items[lang])[:MOST_LANGUAGES]
    return [_ALL, *sorted(chosen)]


def _draw(axes: Any, one: Series, place: int, count: int, rows: Sequence[str], kind: str) -> None:
    colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
    offset = 0.7 * ((place + 0.5) / count - 0.5)
    for row, lang in enumerate(rows):
        score, interval = one.types[kind] if lang == _ALL else one.languages[kind, lang]
        if interval:
            axes.plot(interval, [row + offset] * 2, color=colour, linewidth=1.2, alpha=0.6)
        axes.plot([score], [row + offset], marker, color=colour, markersize=5, label=None if row else one.label)


def _style(axes: Any, kind: str, rows: Sequence[str], most: int) -> None:
    axes.set_title(kind, fontsize=10, loc="left")
    axes.set_yticks(range(len(rows)), rows, fontsize=8.5)
    axes.set_ylim(most - 0.4, -0.6)  # the first row on top, rows of all panels as high
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(True, axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for row in range(1, len(rows)):
        axes.axhline(row - 0.5, color=_GRID, linewidth=0.6)
