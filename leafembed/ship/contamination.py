"""The card's section on overlap: of evaluation sets with training text, and with what the teacher was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from leafembed.evidence import Contamination
from leafembed.ship.markdown import count, table

__all__ = ["contamination_section"]


def contamination_section(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of overlap by evaluation set and what is known of the teacher, by the names of the card's template."""
    judged = {result["task"] for report in manifest["reports"].values() for result in report["results"]}
    eval_ = manifest["recipe"].get("eval", {})
    later = {entry["task"] for entry in manifest["contamination"] if _named(entry["task"], eval_.get("decontaminate"))}
    later = {task for task in later - judged if not _named(task, eval_.get("dev"))}
    rows, exposed = manifest["contamination"], manifest.get("teacher_overlap") or {"sources": [], "sets": []}
    return {
        "contamination": _by_set(rows, judged, later, "records dropped"),
        "contamination_rows": len(rows),
        "teacher_data": manifest.get("teacher_data"),
        "teacher_sources": exposed["sources"],
        "teacher_overlap": _by_set(exposed["sets"], judged, later, "records"),
        "teacher_overlap_rows": len(exposed["sets"]),
    }


def _named(task: str, patterns: Sequence[str] | None) -> bool:
    return any(fnmatchcase(task, pattern) for pattern in patterns or ())


def _by_set(entries: Sequence[Mapping[str, Any]], judged: set[str], later: set[str], records: str) -> str:
    """One row a set: judged by, chosen by, or kept out so that it can be judged by later."""
    found = [Contamination.from_dict(entry) for entry in entries]
    rows = [
        [
            one.task,
            "test" if one.task in judged else "kept out" if one.task in later else "dev",
            count(one.items),
            count(one.exact),
            count(one.ngram),
            f"{one.share:.2%}",
            count(one.rows_exact + one.rows_ngram),
        ]
        for one in found
    ]
    header = ["evaluation set", "role", "items", "equal", "n-gram", "touched", records]
    return table(header, rows, words=2) if rows else ""
