"""The card's table of engines that were measured, when a recipe named several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leafembed.ship.markdown import bullets, fixed, table

__all__ = ["engines_section"]

_HEADS = ("engine", "texts/s", "range", "cosine, mean", "cosine, least", "dev score falls by", "MB", "outcome")


def engines_section(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return ``engines``, the table; empty where one engine was named and none measured."""
    int8 = manifest.get("int8", {})
    rows = [
        [
            one["name"],
            fixed(one["texts_per_second"], 0),
            f"{fixed(one['spread'][0], 0)} to {fixed(one['spread'][1], 0)}",
            fixed(one["cosine_mean"], 5),
            fixed(one["cosine_min"], 5),
            f"{one['drop']:+z.4f}",
            fixed(one["mb"], 1),
            one["outcome"],
        ]
        for one in int8.get("candidates", ())
    ]
    unmeasured = bullets({f"not measured: {name}": why for name, why in int8.get("unmeasured", {}).items()})
    return {"engines": f"{table(_HEADS, rows)}\n\n{unmeasured}".strip() if rows else ""}
