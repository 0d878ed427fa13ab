"""The card's section on a pruned vocabulary: what stayed the same, by language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leafembed.reports_vocabulary import Retokenised, VocabularyReport
from leafembed.ship.markdown import count, fixed, table

__all__ = ["MOST_LANGUAGES", "vocabulary_section"]

MOST_LANGUAGES = 20
"""Languages that have a row of their own: those of most held-out texts."""

_COLUMNS = ("language", "texts", "same tokens", "tokens after / before", "fallback before", "fallback after")


def vocabulary_section(vocabulary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the card's template needs: sizes, number of texts, and the table.

    Args:
        vocabulary: A ``VocabularyReport`` as plain data.
    """
    report = VocabularyReport.from_dict(vocabulary)
    shown = report.languages[:MOST_LANGUAGES]
    return {
        "before": count(report.size_before),
        "after": count(report.size_after),
        "counted": count(report.counted_texts),
        "table": table(_COLUMNS, [_row(entry) for entry in (report.total, *shown)]),
        "rows": len(shown) + 1,
        "rest": len(report.languages) - len(shown),
        "dev": [fixed(score, 3) for score in report.dev],
        "dev_tasks": ", ".join(f"`{task}`" for task in report.dev_tasks),
    }


def _row(entry: Retokenised) -> list[str]:
    before, after = entry.fallback_shares
    return [
        entry.lang,
        count(entry.texts),
        _percent(entry.identical_share),
        fixed(entry.inflation, 3),
        _percent(before),
        _percent(after),
    ]


def _percent(share: float) -> str:
    return f"{fixed(100 * share, 2)} %"
