"""Draws the training history: the objectives with their weighted sum, and the dev scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leafembed.errors import MissingExtraError

__all__ = ["has_curves", "plot_curves"]

_LOSSES = {
    "loss": "weighted sum",
    "distillation": "distillation",
    "alignment": "alignment",
    "token_distillation": "token distillation",
    "exit_alignment": "exit alignment",
    "contrastive": "contrastive",
    "triplet": "triplet",
}
_INK, _GREY, _ACCENT = "#1f2933", "#9aa5b1", "#c2410c"
_COLOURS = (_INK, "#0f766e", "#4d7c0f", "#7c3aed", "#0369a1", "#b45309", "#be185d")
_MOST_TASKS = 6
_Series = tuple[list[int], list[float]]


def has_curves(history: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the history holds anything to draw."""
    return any(key in entry for entry in history for key in (*_LOSSES, "dev"))


def plot_curves(history: Sequence[Mapping[str, Any]], best_step: int, path: Path) -> bool:
    """Write the plot as PNG, about 1000 x 400 pixels; return whether there was anything to draw.

    Args:
        history: One entry a step, as training reports it; its losses are not weighted but for ``loss``, their sum.
        best_step: Step of the checkpoint that became the student; 0 while there is none.
        path: File to write.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    if not has_curves(history):
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "train") from error
    figure = Figure(figsize=(9.1, 3.64), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: no global state, no display
    losses, dev = figure.subplots(1, 2, sharex=True)
    _draw_losses(losses, history)
    _draw_dev(dev, history, best_step)
    for axes in (losses, dev):
        _style(axes)
    figure.savefig(path, metadata={"Software": None})  # so that equal histories give equal files
    return True


def _series(history: Sequence[Mapping[str, Any]], key: str) -> _Series:
    points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _draw_losses(axes: Any, history: Sequence[Mapping[str, Any]]) -> None:
    axes.set_ylabel("training loss")
    values: list[float] = []
    for (key, label), colour in zip(_LOSSES.items(), _COLOURS, strict=True):
        steps, series = _series(history, key)
        if series:
            axes.plot(steps, series, color=colour, label=label, linewidth=1.6, marker="." if len(steps) < 3 else None)
            values += series
    if values and min(values) > 0 and max(values) > 20 * min(values):
        _log_scale(axes)  # or the smaller component would lie flat on the axis


def _log_scale(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_dev(axes: Any, history: Sequence[Mapping[str, Any]], best_step: int) -> None:
    axes.set_ylabel("dev score")
    tasks = [{"step": entry["step"], **entry.get("dev_tasks", {})} for entry in history]
    names = list(dict.fromkeys(name for entry in tasks for name in entry if name != "step"))
    for index, name in enumerate(names if 1 < len(names) <= _MOST_TASKS else []):
        style = ("--", ":", "-.")[index % 3]
        axes.plot(*_series(tasks, name), color=_GREY, linewidth=1.1, linestyle=style, label=name)
    steps, scores = _series(history, "dev")
    if steps:
        axes.plot(steps, scores, color=_INK, linewidth=1.8, marker="o", markersize=4, label="mean")
    if best_step in steps:
        best = scores[steps.index(best_step)]
        label = f"best: {best:.4f} at step {best_step}"
        axes.plot([best_step], [best], "o", color=_ACCENT, markersize=8, label=label, zorder=5)


def _style(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(True, color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5)
