"""What a bundle's early exits and shorter vectors are worth, from their stored scores, and which of them may be used.

A manifest holds the scores of each part and nothing that follows from them: means, retention and the floors that a part
does not beat are computed whenever they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leafembed.errors import BundleError, Error
from leafembed.judge.gate import floors_above
from leafembed.recipe_io import load_gate
from leafembed.reports import FLOOR, EvalReport
from leafembed.ship.verdict import REMEDY, consistent

__all__ = ["read_points", "require_part", "why_not"]

_UNJUDGED = "was not held against the floors"


def read_points(manifest: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return what a bundle gives at each early exit and dimension that was scored; empty: it has one of each.

    Args:
        manifest: Of the bundle.
        where: What an error calls it.

    Returns:
        For each ``exit`` (``None``: all layers) and ``dim``: ``mean`` score, ``retention`` of the teacher, scores by
        ``types``, ``weights_mb`` that are loaded for it, ``under``, the floors that it does not beat (``None``: not
        asked), and ``why_not``, how it fails; empty: it may be used.

    Raises:
        BundleError: If scores are missing, damaged or of other tasks than the whole model's.
    """
    try:
        points = manifest.get("points", ())
        _require_all(points, manifest)
        reports = {name: EvalReport.from_dict(report) for name, report in manifest["reports"].items()} if points else {}
        beat_floors = bool(points) and _judges_floors(manifest)
        return [_read_point(point, manifest["student"], reports, beat_floors=beat_floors) for point in points]
    except (KeyError, TypeError, ValueError, AttributeError, Error) as error:
        raise BundleError(f"{where}: the scores of its parts are not readable ({error!r}); {REMEDY}") from error


def why_not(
    manifest: Mapping[str, Any], points: Sequence[Mapping[str, Any]], *, exit: int | None, dim: int | None
) -> str:
    """Return why an early exit or fewer dimensions of a bundle may not be used; empty: they may.

    A dimension that was not scored is as good as the next smaller one that was; below the smallest nothing is known.
    The whole has its verdict. Where neither exits nor dimensions were scored, fewer dimensions are nobody's promise.

    Args:
        manifest: Of the bundle.
        points: Its parts, from :func:`read_points`.
        exit: Layer after which the vector is taken; ``None``: after the last.
        dim: Leading dimensions that are kept; ``None``: all.
    """
    dim = dim or manifest["student"]["dim"]
    if not _judges_floors(manifest) or (exit, dim) == (None, manifest["student"]["dim"]):
        return ""
    known = {point["dim"]: point for point in points if point["exit"] == exit}
    if not known:
        return _UNJUDGED if exit is not None else ""
    nearest = max((scored for scored in known if scored <= dim), default=None)
    return _UNJUDGED if nearest is None else str(known[nearest]["why_not"])


def require_part(manifest: Mapping[str, Any], where: str, *, exit: int | None, dim: int | None) -> None:
    """Check that a part of a bundle may be used; ``exit`` and ``dim`` as of :func:`why_not`.

    Raises:
        BundleError: If it may not, or its parts cannot be judged; says ``where``.
    """
    if problem := why_not(manifest, read_points(manifest, where), exit=exit, dim=dim):
        layers = "all layers" if exit is None else f"exit {exit}"
        raise BundleError(
            f"{where}: got {layers} at {dim or manifest['student']['dim']} dimensions, which {problem}; take another "
            "part (leaf choose names one), or this one with --allow-failed (allow_failed=True)"
        )


def _require_all(points: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]) -> None:
    """Every exit and dimension that was trained is among the points: a bad one was not left out."""
    if "int8" not in manifest.get("reports", ()):
        return  # refused before there was a bundle
    asked = manifest["recipe"].get("student", {})
    exits, dims = asked.get("exits") or (), asked.get("dims") or ()
    if not exits and not dims:
        return  # there is the whole alone, which has its verdict
    wanted = {(exit, dim) for exit in (None, *exits) for dim in (manifest["student"]["dim"], *dims)}
    if missing := wanted - {(point["exit"], point["dim"]) for point in points}:
        raise ValueError(f"no scores of exit and dimension {sorted(missing, key=str)}, which the recipe trains")


def _read_point(
    point: Mapping[str, Any], student: Mapping[str, Any], reports: Mapping[str, EvalReport], *, beat_floors: bool
) -> dict[str, Any]:
    found = {key: point[key] for key in ("exit", "dim", "weights_mb")}
    under: list[str] | None = None
    if "report" in point:
        report, teacher = consistent(EvalReport.from_dict(point["report"])), reports["teacher"]
        if (report.model.fingerprint, report.model.dim) != (student["fingerprint"], point["dim"]):
            raise ValueError(f"scores of exit {point['exit']} at {point['dim']} dimensions are of {report.model}")
        found |= {"mean": report.mean, "retention": report.mean_retention(teacher), "types": report.by_type()}
        if beat_floors:
            floors = {name: other for name, other in reports.items() if name.startswith(FLOOR)}
            under = floors_above(report, teacher, floors)
    else:  # of before scores were kept by language
        found |= {key: point[key] for key in ("mean", "retention", "types")}
    problem = _UNJUDGED if under is None else f"does not beat {', '.join(under)}" if under else ""
    whole = (point["exit"], point["dim"]) == (None, student["dim"])  # which has the gate's verdict
    return {**found, "under": under, "why_not": problem if beat_floors and not whole else ""}


def _judges_floors(manifest: Mapping[str, Any]) -> bool:
    return load_gate(manifest["recipe"].get("gate", {})).beat_floors
