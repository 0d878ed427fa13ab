"""The card's section on overlap: of evaluation sets with training text, and with what the teacher was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leafembed.evidence import Contamination
from leafembed.ship.markdown import count, table

__all__ = ["contamination_section"]


def contamination_section(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The table of overlap by evaluation set and what is known of the teacher, by the names of the card's template."""
    found = [Contamination.from_dict(entry) for entry in manifest["contamination"]]
    judged = {result["task"] for report in manifest["reports"].values() for result in report["results"]}
    rows = [
        [
            one.task,
            "test" if one.task in judged else "dev",
            count(one.items),
            count(one.exact),
            count(one.ngram),
            f"{one.share:.2%}",
            count(one.rows_exact + one.rows_ngram),
        ]
        for one in found
    ]
    header = ["evaluation set", "role", "items", "equal", "n-gram", "touched", "records dropped"]
    return {
        "contamination": table(header, rows, words=2) if rows else "",
        "contamination_rows": len(rows),
        "teacher_data": manifest.get("teacher_data"),
    }
