"""Draws quality against rate, a bubble for each encoder with the area of its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leafembed.errors import MissingExtraError

__all__ = ["Dot", "front", "plot_pareto"]

_COLOURS = {"teacher": "#1f2933", "student": "#c2410c", "peer": "#0369a1"}
_GRID = "#e4e7eb"
_AREA = 6.0
"""Square points of a megabyte."""
_LEAST = 30.0
_NEAR_RATE, _NEAR_QUALITY = 1.4, 0.02
"""Two dots whose numbers would lie on each other: the ratio of their rates, the difference of their scores."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One encoder.

    Attributes:
        label: What the list beside the plot calls it.
        group: ``teacher``, ``student`` or ``peer``.
        rate: Texts a second.
        quality: Mean score.
        megabytes: Of its files.
    """

    label: str
    group: str
    rate: float
    quality: float
    megabytes: float


def front(dots: Sequence[Dot]) -> list[Dot]:
    """Those that no other beats in rate and quality both, slowest first."""
    kept: list[Dot] = []
    for dot in sorted(dots, key=lambda one: (-one.rate, -one.quality)):
        if not kept or dot.quality > kept[-1].quality:
            kept.append(dot)
    return kept[::-1]


def _side(dot: Dot, dots: Sequence[Dot]) -> int:
    """Where a dot's number stands: 1, to its right, or -1 where a near dot lies there."""
    near = [one for one in dots if abs(one.quality - dot.quality) < _NEAR_QUALITY]
    return -1 if any(dot.rate < one.rate < _NEAR_RATE * dot.rate for one in near) else 1


def plot_pareto(dots: Sequence[Dot], path: Path) -> None:
    """Write the plot as PNG; a line joins those that nobody beats in both.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
    except ImportError as error:
        raise MissingExtraError("matplotlib", "train") from error
    figure = Figure(figsize=(9, 4.6), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    best = front(dots)
    axes.plot([dot.rate for dot in best], [dot.quality for dot in best], color="#9aa5b1", linewidth=1, zorder=1)
    for group, colour in _COLOURS.items():
        own = [dot for dot in dots if dot.group == group]
        sizes = [max(_LEAST, _AREA * dot.megabytes) for dot in own]
        places = [dot.rate for dot in own], [dot.quality for dot in own]
        axes.scatter(*places, s=sizes, color=colour, alpha=0.35, linewidth=0, zorder=2)
        axes.scatter(*places, s=14, color=colour, zorder=3, label=group)
    for number, dot in enumerate(dots, start=1):
        side = _side(dot, dots)
        axes.annotate(str(number), (dot.rate, dot.quality), xytext=(7 * side, 0), textcoords="offset points",
                      fontsize=8.5, va="center", ha="left" if side > 0 else "right")  # fmt: skip
    names = "\n".join(f"{number}  {dot.label}, {dot.megabytes:,.0f} MB" for number, dot in enumerate(dots, start=1))
    axes.text(1.02, 0.98, names, transform=axes.transAxes, fontsize=8.5, va="top", linespacing=1.6)
    axes.set_xscale("log")
    wide = max(dot.rate for dot in dots) > 300 * min(dot.rate for dot in dots)  # numbers would touch each other
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.1, y=0.15)
    axes.set_xlabel("sentences a second")
    axes.set_ylabel("mean score")
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(frameon=False, fontsize=9, loc="lower left", title="area: MB on disk")
    legend.get_title().set_fontsize(9)
    figure.savefig(path, metadata={"Software": None})
