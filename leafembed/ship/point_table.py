"""The card's table of early exits and dimensions: what each costs and what it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leafembed.reports import FLOOR
from leafembed.ship.markdown import fixed, table
from leafembed.ship.parts import read_points

__all__ = ["exit_name", "points_section", "rate_name"]


def rate_name(exit: int | None) -> str:
    """What the INT8 student is called where it is timed at an exit; ``None``: the whole."""
    return "student, INT8" if exit is None else f"student, INT8, exit {exit}"


def exit_name(exit: int | None) -> str:
    """An exit as people read it."""
    return "all layers" if exit is None else f"exit {exit}"


def _floors(under: Sequence[str] | None) -> str:
    if under is None:
        return "not judged"
    return ", ".join(name.removeprefix(FLOOR) for name in under) or "none"


def points_section(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return ``points``, the table; empty where a bundle has one exit and one dimension."""
    points = read_points(manifest, "manifest")
    if not points:
        return {"points": ""}
    rates = {entry["name"]: entry["texts_per_second"] for entry in manifest.get("speed", ())}
    types = list(points[0]["types"])
    rows = [
        [
            exit_name(point["exit"]),
            point["dim"],
            *(fixed(point["types"][kind], 4) for kind in types),
            fixed(point["retention"], 3),
            fixed(rates.get(rate_name(point["exit"])), 0),
            fixed(point["weights_mb"], 1),
            4 * point["dim"],
            _floors(point["under"]),
        ]
        for point in points
    ]
    heads = [
        "layers",
        "dimensions",
        *types,
        "retention",
        "texts/s",
        "MB of weights",
        "bytes of a vector",
        "floors not beaten",
    ]
    return {"points": table(heads, rows, words=1)}
