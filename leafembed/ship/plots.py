"""The plots of a card: which of them a manifest has numbers for, and how they are made of these."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leafembed.reports import FLOOR, STATIC_TABLE, EvalReport
from leafembed.ship.curves import has_curves, plot_curves
from leafembed.ship.point_table import rate_name
from leafembed.ship.score_plot import Rated, plot_rates, plot_scores, series_of
from leafembed.ship.scores import TIMED

__all__ = ["CURVES", "PLOTS", "RATES", "SCORES", "draw_plots", "plots_of"]

CURVES, SCORES, RATES = PLOTS = ("curves.png", "scores.png", "rates.png")
"""Files that a bundle may have: training, scores by language, quality against rate."""

_COMPARED = {"teacher": "teacher", f"{FLOOR}{STATIC_TABLE}": STATIC_TABLE, "student": "student", "int8": "INT8"}
"""Reports that are drawn, and what the legend calls them."""


def plots_of(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the plots that there are numbers for."""
    found = {
        CURVES: has_curves(manifest["training"]["history"]),
        SCORES: "student" in manifest["reports"],
        RATES: len(_points(manifest)) > 1,
    }
    return tuple(name for name, there in found.items() if there)


def draw_plots(manifest: Mapping[str, Any], folder: Path) -> None:
    """Write the plots of :func:`plots_of` into a folder.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    plots = plots_of(manifest)
    if CURVES in plots:
        plot_curves(manifest["training"]["history"], manifest["training"]["best_step"], folder / CURVES)
    if SCORES in plots:
        names = [name for name in _COMPARED if name in manifest["reports"]]
        if "int8" in names:
            names.remove("student")  # the two lie on each other
        reports = {_COMPARED[name]: EvalReport.from_dict(manifest["reports"][name]) for name in names}
        plot_scores([series_of(*one) for one in reports.items()], reports["teacher"], folder / SCORES)
    if RATES in plots:
        plot_rates(_points(manifest), folder / RATES)


def _points(manifest: Mapping[str, Any]) -> dict[str, Rated]:
    """Rate, mean score and size of each encoder that was both timed and scored, early exits of all dimensions too."""
    speeds = {entry["name"]: entry for entry in manifest.get("speed") or ()}
    scored = {timed: manifest["reports"].get(name) for name, timed in TIMED.items()}
    for point in manifest.get("points") or ():
        if point["exit"] is not None and point["dim"] == manifest["student"]["dim"]:
            scored[rate_name(point["exit"])] = point.get("report")
    points: dict[str, Rated] = {}
    for timed, stored in scored.items():
        if timed in speeds and stored is not None:
            report, speed = EvalReport.from_dict(stored), speeds[timed]
            low, high = speed["spread"]
            score = (report.mean, report.intervals.get("mean"))
            points[timed] = Rated(speed["texts_per_second"], (low, high), score, speed["size_mb"])
    return points
