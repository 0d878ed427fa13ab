"""Why a student is below the static token table: what it starts from, and whether training lost some of that.

Each cause is one that was measured: a random start, a cut width, and a rate at which twelve layers lose their start
(``docs/why-v1-failed.md``). The alarm of ``alarms.py`` names them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Start", "causes_below"]

_CAUSES = {
    "random": ("the student starts from random weights", 'start from kept layers: student.init = "layers"'),
    "layers": (
        "the kept layers do not keep the teacher's geometry",
        "keep the first layers unbroken, or more of them, in student.layers",
    ),
    "encoder": ("the encoder's space is not yet the teacher's", "choose another encoder, or a smaller learning rate"),
    "static": ("training moves the token table away from its fit", "lower train.learning_rate"),
}


@dataclass(frozen=True, slots=True)
class Start:
    """What a student starts from, as far as it tells why one does badly.

    Attributes:
        init: The recipe's ``student.init``.
        width: The recipe's ``student.width``, above 0 and at most 1.
        earlier: Whether it is an earlier run's student (``train.start``), which ``init`` then says little about.
    """

    init: str
    width: float = 1.0
    earlier: bool = False


def causes_below(dev: float, start: Start, first: float | None) -> list[tuple[str, str]]:
    """Likely causes of a dev score below the static token table's, each with what to do; at least one.

    Args:
        dev: Dev score of the student.
        start: What it starts from.
        first: Its dev score before the first step; ``None``: it is not known.
    """
    found = []
    if not start.earlier and start.init in ("random", "static"):  # nothing to lose, and a table that says so itself
        return [_CAUSES[start.init]]
    if first is not None and dev < first:
        found.append((f"training loses what the start had, {first:.4f} before the first step",
                      "lower train.learning_rate, or set train.token_distillation if it is 0"))  # fmt: skip
    if start.width < 1 and start.init == "layers":
        found.append((f"student.width = {start.width:g} costs most of what the teacher's layers hold", "1 keeps it"))
    if not found and start.earlier:
        found.append(("the student of train.start is below it before training goes on",
                      "train longer, or go on from a better one"))  # fmt: skip
    return found or [_CAUSES[start.init]]
