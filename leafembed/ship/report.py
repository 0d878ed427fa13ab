"""One self-contained HTML page of a run: verdict, curves, scores by language, speed, and where the student errs.

It is made of the run's manifest and of the neighbours that the run compared, and of nothing else; the page fetches
nothing. Text is escaped by the template. The plots are plotly's, which carries its own script into the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leafembed.errors import MissingExtraError
from leafembed.reports import FLOOR, SHIPPED, STATIC_TABLE, EvalReport, GateResult
from leafembed.ship.markdown import count
from leafembed.ship.scores import TIMED, reading_order, renewals
from leafembed.ship.templates import fill_html

__all__ = ["render_report"]

_GREY, _GRID = "#7b8794", "rgba(123, 135, 148, 0.25)"  # of lines; text takes the colour of the page
_COLOURS = ("#0f9d8a", "#8b5cf6", "#65a30d", "#2f80d0", "#d97706", "#d6336c", "#7b8794")
_LOSSES = ("loss", "distillation", "alignment", "token_distillation", "exit_alignment", "contrastive", "triplet")
_CONFIG = {"responsive": True, "displayModeBar": False}


def render_report(manifest: Mapping[str, Any], neighbours: Mapping[str, Any] | None) -> str:
    """Return the page.

    Args:
        manifest: Of a bundle, or of a run that was refused or stopped itself.
        neighbours: What :func:`~leafembed.judge.disagree.disagreements` found; ``None``: the run compared none.

    Raises:
        MissingExtraError: If jinja2 or plotly is not installed.
    """
    reports = {name: EvalReport.from_dict(report) for name, report in manifest["reports"].items()}
    verdict = GateResult.from_dict(manifest["verdict"])
    values = {
        "manifest": manifest,
        "verdict": verdict,
        "renewals": renewals(manifest),
        "diagnosis": manifest["training"].get("diagnosis", ""),
        "alarms": manifest["training"].get("alarms", ()),
        "facts": _facts(manifest, reports),
        "columns": reading_order(reports),
        "scores": _scores(reports),
        "too_few": reports["teacher"].too_few,
        "plots": _plots(manifest, reports),
        "neighbours": neighbours,
    }
    return fill_html("report.html.jinja", values)


def _judged(reports: Mapping[str, EvalReport]) -> str:
    """The model of the line that came farthest; the teacher where training stopped."""
    return next(name for name in (*SHIPPED, "teacher") if name in reports)


def _facts(manifest: Mapping[str, Any], reports: Mapping[str, EvalReport]) -> list[tuple[str, str]]:
    """What one wants to know first."""
    facts: list[tuple[str, str]] = []
    last = _judged(reports)
    if last != "teacher":
        facts.append(("of the teacher kept", f"{reports[last].mean_retention(reports['teacher']):.1%}"))
    size = manifest.get("sizes", {}).get("total_bytes")
    if size:
        facts.append(("size", f"{size / 1e6:.0f} MB"))
    speed = {entry["name"]: entry["texts_per_second"] for entry in manifest.get("speed", ())}
    if "student, INT8" in speed:
        facts.append(("INT8 rate", f"{speed['student, INT8']:,.0f} texts/s"))
        if "teacher, INT8" in speed:
            facts.append(("as fast as the INT8 teacher", f"{speed['student, INT8'] / speed['teacher, INT8']:.1f} x"))
    if "int8" in manifest:
        facts.append(("cosine of INT8 to fp32", f"{manifest['int8']['cosine_mean']:.4f}"))
    training = manifest["training"]
    return [*facts, ("steps", count(training["steps"])), ("training", f"{training['seconds'] / 60:.0f} min")]


def _scores(reports: Mapping[str, EvalReport]) -> list[dict[str, Any]]:
    """A row for each task and language; ``kept`` is the judged model's score over the teacher's."""
    names, last = reading_order(reports), _judged(reports)
    found = {name: {(r.task, r.lang): r.interval for r in reports[name].results} for name in names}
    rows: list[dict[str, Any]] = []
    for result in reports["teacher"].results:
        values = {name: reports[name].score(result.task, result.lang) for name in names}
        intervals = {name: found[name].get((result.task, result.lang)) for name in names}
        mine, theirs = values[last], values["teacher"]
        kept = mine / theirs if last != "teacher" and mine is not None and theirs else None
        where = {"task": result.task, "lang": result.lang, "n": result.n}
        rows.append({**where, "values": values, "intervals": intervals, "kept": kept})
    return rows


def _plots(manifest: Mapping[str, Any], reports: Mapping[str, EvalReport]) -> dict[str, str]:
    """The plots as HTML, by name, empty where there is nothing to draw; the first brings plotly's script along."""
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise MissingExtraError("plotly", "report") from error
    training = manifest["training"]
    figures = {
        "losses": _losses(go, training["history"]),
        "dev": _dev(go, training),
        "languages": _languages(go, reports),
        "speed": _speed(go, manifest, reports),
    }
    plots = dict.fromkeys(figures, "")
    for name, figure in figures.items():
        if figure is not None:
            first = not any(plots.values())
            plots[name] = figure.to_html(full_html=False, include_plotlyjs=first, config=_CONFIG, div_id=name)
    return plots


def _losses(go: Any, history: Sequence[Mapping[str, Any]]) -> Any:
    figure = go.Figure()
    for key, colour in zip(_LOSSES, _COLOURS, strict=True):
        for label, dash, entries in (
            (key, "solid", history),
            (f"{key}, held out", "dot", [{"step": e["step"], **e["validation"]} for e in history if "validation" in e]),
        ):
            points = [(entry["step"], entry[key]) for entry in entries if entry.get(key) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                style = {"color": colour, "dash": dash}
                visible = "legendonly" if dash == "dot" and key != "loss" else True
                figure.add_scatter(x=steps, y=values, name=label, mode="lines", line=style, visible=visible)
    return _styled(figure, "step", "loss") if figure.data else None


def _dev(go: Any, training: Mapping[str, Any]) -> Any:
    points = [(e["step"], e["dev"], e.get("dev_tasks", {})) for e in training["history"] if e.get("dev") is not None]
    if not points:
        return None
    figure = go.Figure()
    steps = [step for step, _, _ in points]
    names = list(dict.fromkeys(name for _, _, tasks in points for name in tasks))
    for name in names if len(names) > 1 else []:
        figure.add_scatter(x=steps, y=[tasks.get(name) for _, _, tasks in points], name=name, mode="lines",
                           line={"color": _GREY, "dash": "dot"})  # fmt: skip
    scores = [score for _, score, _ in points]
    figure.add_scatter(x=steps, y=scores, name="dev", mode="lines+markers", line={"color": _COLOURS[0]})
    if training.get("floor") is not None:
        figure.add_scatter(x=[steps[0], steps[-1]], y=[training["floor"]] * 2, name="static table", mode="lines",
                           line={"color": _COLOURS[3], "dash": "dash"})  # fmt: skip
    known = dict(zip(steps, scores, strict=True))
    alarms = [alarm for alarm in training.get("alarms", ()) if alarm["step"] in known]
    if alarms:
        figure.add_scatter(
            x=[alarm["step"] for alarm in alarms], y=[known[alarm["step"]] for alarm in alarms], name="alarms",
            mode="markers", marker={"color": _COLOURS[4], "size": 11, "symbol": "x"},
            text=[alarm["name"] for alarm in alarms], hovertemplate="%{text} at step %{x}<extra></extra>",
        )  # fmt: skip
    return _styled(figure, "step", "dev score")


def _languages(go: Any, reports: Mapping[str, EvalReport]) -> Any:
    """Mean main score by language: teacher, static table and the judged model."""
    table = next((name for name in reports if name == f"{FLOOR}{STATIC_TABLE}"), None)
    names = [name for name in ("teacher", table, _judged(reports)) if name is not None]
    means = {name: _by_language(reports[name]) for name in dict.fromkeys(names)}
    order = sorted(means["teacher"], key=lambda lang: means[names[-1]][lang])
    figure = go.Figure()
    for (name, scores), colour in zip(means.items(), (_GREY, _COLOURS[3], _COLOURS[0]), strict=False):
        figure.add_scatter(y=order, x=[scores[lang] for lang in order], name=name, mode="markers",
                           marker={"color": colour, "size": 9})  # fmt: skip
    styled = _styled(figure, "mean main score", "")
    height = max(220, 22 * len(order) + 110)
    styled.update_layout(height=height, legend_y=_below(height))
    return styled


def _by_language(report: EvalReport) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for result in report.results:
        scores.setdefault(result.lang, []).append(result.main_score)
    return {lang: sum(values) / len(values) for lang, values in scores.items()}


def _speed(go: Any, manifest: Mapping[str, Any], reports: Mapping[str, EvalReport]) -> Any:
    """Quality against rate of what was both scored and timed."""
    timed = {entry["name"]: entry["texts_per_second"] for entry in manifest.get("speed", ())}
    both = [(name, timed[engine]) for name, engine in TIMED.items() if name in reports and engine in timed]
    points = [(rate, reports[name].mean, name) for name, rate in both]
    if not points:
        return None
    figure = go.Figure()
    for (rate, score, name), colour in zip(points, (_GREY, _COLOURS[2], _COLOURS[0]), strict=False):
        figure.add_scatter(x=[rate], y=[score], name=TIMED[name], mode="markers", marker={"color": colour, "size": 13})
    return _styled(figure, "texts per second", "mean over task types")


def _below(height: int) -> float:
    """Place of the legend under a plot of this many pixels, in heights of its axes: 75 pixels lower."""
    return -75 / (height - 75)


def _styled(figure: Any, x: str, y: str) -> Any:
    axis = {"gridcolor": _GRID, "zerolinecolor": _GRID, "automargin": True}
    height = max(340, 30 + 42 * len(figure.data))  # half is for the legend: on a phone each of its names has a line
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"color": _GREY, "size": 12}, height=height,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "y": _below(height), "x": 0},
        xaxis={"title": {"text": x}, **axis}, yaxis={"title": {"text": y}, **axis},
    )  # fmt: skip
    return figure
