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
    patterns = manifest["recipe"]["eval"].get("dev", ())
    rows, exposed = manifest["contamination"], manifest.get("teacher_overlap") or {"sources": [], "sets": []}
    return {
        "contamination": _by_set(rows, judged, patterns, "records dropped"),
        "contamination_rows": len(rows),
        "teacher_data": manifest.get("teacher_data"),
        "teacher_sources": exposed["sources"],
        "teacher_overlap": _by_set(exposed["sets"], judged, patterns, "records"),
        "teacher_overlap_rows": len(exposed["sets"]),
    }


def _by_set(entries: Sequence[Mapping[str, Any]], judged: set[str], dev: Sequence[str], records: str) -> str:
    """One row a set; one that is neither in the reports nor among the ``dev`` patterns was kept out for later."""

    def chosen(task: str) -> bool:
        return any(fnmatchcase(task, pattern) for pattern in dev)

    found = [Contamination.from_dict(entry) for entry in entries]
    rows = [
        [
            one.task,
            "test" if one.task in judged else "dev" if chosen(one.task) else "kept out",
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
