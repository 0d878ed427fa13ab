"""Brings the verdict of an older gate up to date: checks that came later are judged by the scores that are stored.

What the older gate asked must come out again as it is stored, number by number, so that only the rest is new.
No score is changed and none is made: this proves as much as the scores do (``docs/bundle-format.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leafembed import __version__
from leafembed.reports import Check
from leafembed.ship.bundle import read_manifest, rewrite, verify
from leafembed.ship.card import MANIFEST
from leafembed.ship.parts import read_points
from leafembed.ship.verdict import read_verdict, unasked

__all__ = ["renew_verdict"]


def renew_verdict(folder: Path) -> tuple[Check, ...]:
    """Judge a bundle, or a student refused before INT8, by today's rules, and write card, plots and manifest anew.

    Nothing is written where the verdict is that of today's rules already.

    Returns:
        The checks that its verdict lacked.

    Raises:
        BundleError: If a file other than card and plots is altered, scores contradict each other, or the older verdict
            does not follow from them.
    """
    manifest = read_manifest(folder, refused=True)
    if "files" in manifest:
        manifest = verify(folder, rendered=False)
    where = str(folder / MANIFEST)
    verdict, stage = read_verdict(manifest, where, outdated=True)
    added = tuple(unasked(manifest, verdict))
    if not added:
        return ()
    read_points(manifest, where)
    rewrite(folder, {
        **manifest,
        "verdict": {**verdict.to_dict(), "stage": stage},
        "renewed": [*manifest.get("renewed", ()), _note(manifest, added)],
    })  # fmt: skip
    return added


def _note(manifest: Mapping[str, Any], added: tuple[Check, ...]) -> dict[str, Any]:
    """What the manifest says of a renewal."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "leafembed": __version__,
        "passed_before": manifest["verdict"]["passed"],
        "added": [check.name for check in added],
    }
