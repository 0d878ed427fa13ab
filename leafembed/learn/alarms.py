"""What a run must shout about: each alarm is a function of plain numbers that returns an :class:`Alarm` or ``None``.

A first student trained for two hours to a score of 0.22 while every curve looked good (``docs/method.md``). Each cause
of that has an alarm here, so that a run that goes wrong says so, and why, within minutes. ``watch.py`` measures.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from leafembed.errors import NonFiniteError
from leafembed.learn.causes import Start, causes_below
from leafembed.text import languages_of, normalise_lang
from leafembed.types import FloatArray

__all__ = [
    "BELOW_FLOOR",
    "MIN_LANGUAGE_ROWS",
    "MIXED",
    "STALL_FALL",
    "Alarm",
    "Spread",
    "below_floor",
    "check_languages",
    "collapse",
    "diagnosis",
    "spread",
    "stall",
    "starved_rows",
]

BELOW_FLOOR = "below floor"
"""Name of the alarm that ends a run."""

MIXED = "all"
"""Language tag of a task over text of every language."""

MIN_LANGUAGE_ROWS = 100
"""Training rows below which a language counts as missing."""

STALL_FALL = 0.02
"""Least fall of the training loss, as a share, that should have moved the dev score."""

_LEFT = 0.25
_UNKNOWN = "und"
_WORST = 4


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that a run shouts about; goes through JSON and back.

    Attributes:
        name: Which alarm, the same each time it rings.
        step: Optimiser step; 0: before the first.
        message: What was got, what was expected, what to do.
        fatal: Whether the run cannot succeed.
        facts: The numbers behind the message, by name; all finite.
    """

    name: str
    step: int
    message: str
    fatal: bool = False
    facts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.facts.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"{name} of alarm {self.name!r} is {value} at step {self.step}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; ``Alarm(**data)`` is the inverse."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name} at step {self.step:,}: {self.message}"


@dataclass(frozen=True, slots=True)
class Spread:
    """How far apart the vectors of different texts lie.

    Attributes:
        mean_cosine: Mean cosine between different texts, -1..1; 1: all vectors are one.
        effective_rank: Directions that they use, from 1 to the lesser of texts and dim.
    """

    mean_cosine: float
    effective_rank: float


def spread(vectors: FloatArray, *, what: str) -> Spread:
    """Return the spread of unit vectors ``(n_texts, dim)``, at least two.

    The effective rank is exp(H), H the entropy of the centred vectors' singular values over their sum (Roy & Vetterli,
    EUSIPCO 2007). It is 1 when all vectors lie on a line, and when they are all the same.

    Raises:
        NonFiniteError: If a vector holds NaN or infinity; says ``what`` they are.
    """
    if len(vectors) < 2:
        raise ValueError(f"{what}: got {len(vectors)} vectors, expected at least 2")
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise NonFiniteError(f"{what}: row {int(bad.argmax())} of {len(vectors)} holds NaN or infinity "
                             f"({int(bad.sum())} rows do); lower train.learning_rate")  # fmt: skip
    exact, n = vectors.astype(np.float64), len(vectors)
    total = exact.sum(axis=0)
    mean_cosine = (total @ total - (exact * exact).sum()) / (n * (n - 1))
    values = np.linalg.svd(exact - exact.mean(axis=0), compute_uv=False)
    # What is left of equal vectors after centring is rounding, and rounding has full rank.
    shares = values[values > 1e-6 * np.sqrt(n)]
    shares = shares / shares.sum()
    return Spread(float(mean_cosine), float(np.exp(-(shares * np.log(shares)).sum())))


def below_floor(
    dev: float, floor: float, *, step: int, evaluation: int, start: Start, first: float | None, grace: int
) -> Alarm | None:
    """Ring when the dev score is below the static token table's; fatal from evaluation ``grace`` on.

    Args:
        dev: Dev score of the student.
        floor: Dev score of a token table made from the teacher, without any transformer.
        step: Optimiser step.
        evaluation: Number of this evaluation; 0 is the one before the first step.
        start: What the student starts from, which names the likely cause beside ``first``.
        first: Dev score before the first step; ``None``: it is not known.
        grace: The recipe's ``alarms.grace_evaluations``.
    """
    if dev >= floor:
        return None
    cause = "; and ".join(f"{what}; {remedy}" for what, remedy in causes_below(dev, start, first))
    when = f"after {evaluation} evaluations" if evaluation else "before the first step"
    message = (
        f"got a dev score of {dev:.4f} {when}, expected at least {floor:.4f}, that of a static token table; likely "
        f"cause: {cause}"
    )
    return Alarm(BELOW_FLOOR, step, message, evaluation >= grace, {"dev": dev, "floor": floor})


def collapse(
    student: Spread, teacher: Spread, *, step: int, max_mean_cosine: float, min_effective_rank: float
) -> Alarm | None:
    """Ring when vectors of different texts are nearly one vector, or lie in few directions.

    A teacher whose own vectors are crowded is not held against the student: less than a quarter of the teacher's mean
    cosine distance must be left too, and the rank is judged as a share of the teacher's on the same texts.
    """
    most = max(max_mean_cosine, 1 - _LEFT * (1 - teacher.mean_cosine))
    least = min_effective_rank * teacher.effective_rank
    found = []
    if student.mean_cosine > most:
        found.append(
            f"a mean cosine of {student.mean_cosine:.3f} between different texts, expected at most {most:.3f} "
            f"(the teacher's is {teacher.mean_cosine:.3f})"
        )
    if student.effective_rank < least:
        found.append(
            f"an effective rank of {student.effective_rank:.1f}, expected at least {least:.1f} "
            f"(the teacher's is {teacher.effective_rank:.1f})"
        )
    if not found:
        return None
    message = (
        f"vectors collapse: got {' and '.join(found)}; lower train.learning_rate, raise train.alignment, or start "
        "from kept layers"
    )
    facts = {
        "mean_cosine": student.mean_cosine,
        "effective_rank": student.effective_rank,
        "teacher_mean_cosine": teacher.mean_cosine,
        "teacher_effective_rank": teacher.effective_rank,
    }
    return Alarm("collapse", step, message, facts=facts)


def starved_rows(
    by_language: Mapping[str, float], overall: float, rows: int, *, step: int, init: str, minimum: float
) -> Alarm | None:
    """Ring when too few rows of a token table that learns ever got a gradient: of a language, or of the whole table.

    Args:
        by_language: Share of trained rows among those that texts of the language use, 0..1.
        overall: Share of trained rows in the whole table.
        rows: Rows of the table.
        step: Optimiser step.
        init: The recipe's ``student.init``, which says what the other rows hold.
        minimum: Least share.
    """
    worst = sorted((share, lang) for lang, share in by_language.items() if share < minimum)
    if not worst and overall >= minimum:
        return None
    named = ", ".join(f"{lang} {share:.0%}" for share, lang in worst[:_WORST])
    more = f" and {len(worst) - _WORST} more" if len(worst) > _WORST else ""
    languages = f"; least trained: {named}{more}" if worst else ""
    if init == "random":
        left, remedy = "are still random", 'start from the teacher\'s table (student.init = "layers")'
    else:
        left, remedy = "stay while the layers above them move", "set train.freeze_token_table = true"
    message = (
        f"{1 - overall:.0%} of the {rows:,} token rows never got a gradient{languages}; expected at least "
        f"{minimum:.0%} trained; the others {left}: add text in these languages, lower student.vocab_size, or {remedy}"
    )
    return Alarm("starved token rows", step, message, facts={"all": overall, **by_language})


def stall(dev: Sequence[float], losses: Sequence[float | None], *, step: int, evaluations: int) -> Alarm | None:
    """Ring when the training loss fell over the last evaluations and the dev score set no new best in any of them.

    Args:
        dev: Dev scores of all evaluations so far.
        losses: Mean training loss since the evaluation before; ``None`` where there was none.
        step: Optimiser step.
        evaluations: How many without a new best ring the alarm.
    """
    if len(dev) <= evaluations or max(dev[-evaluations:]) > max(dev[:-evaluations]):
        return None
    known = [loss for loss in losses[-evaluations - 1 :] if loss is not None]
    if len(known) < 2 or known[-1] > known[0] * (1 - STALL_FALL):
        return None
    best, since = max(dev[:-evaluations]), max(dev[-evaluations:])
    message = (
        f"the training loss fell from {known[0]:.4f} to {known[-1]:.4f} while the dev score got no higher than "
        f"{since:.4f} in {evaluations} evaluations, expected above {best:.4f}; add text that is like the dev tasks, or "
        "stop here: train.stop_patience"
    )
    return Alarm("stall", step, message, facts={"loss_before": known[0], "loss": known[-1], "best": best, "dev": since})


def check_languages(trained: Mapping[str, int], *, declared: Collection[str], dev: Collection[str]) -> list[Alarm]:
    """Return what is known before training: languages that are judged but not taught, and taught but not watched.

    Args:
        trained: Training rows by language.
        declared: Short tags of what the gate and the evaluation name or score; ``de-en`` names two.
        dev: The same of what dev tasks score; ``all``: a task over validation text of every language.
    """
    rows: dict[str, int] = {}
    for lang, n in trained.items():
        rows[normalise_lang(lang)] = rows.get(normalise_lang(lang), 0) + n
    alarms = []
    wanted, scored = _tags(declared), _tags(dev)
    lacking = {lang: rows.get(lang, 0) for lang in sorted(wanted) if rows.get(lang, 0) < MIN_LANGUAGE_ROWS}
    if lacking:
        named = ", ".join(f"{lang} {n:,}" for lang, n in lacking.items())
        unknown = f" ({rows[_UNKNOWN]:,} rows state no language: set data.sources.lang)" if _UNKNOWN in rows else ""
        message = (
            f"got training rows {named}{unknown}, expected at least {MIN_LANGUAGE_ROWS} in each language that the gate "
            "and the tasks name; add text in these languages or leave them out of gate.languages and eval"
        )
        alarms.append(Alarm("missing languages", 0, message, facts=lacking))
    taught = {lang for lang, n in rows.items() if n >= MIN_LANGUAGE_ROWS} - {_UNKNOWN}
    blind = {} if MIXED in dev else {lang: rows.get(lang, 0) for lang in sorted(taught | wanted) if lang not in scored}
    if blind:
        message = (
            f"got no dev task in {', '.join(blind)}, expected one for each language that is trained or judged; add a "
            'task to eval.dev, or "agreement", which needs no labels'
        )
        alarms.append(Alarm("unwatched languages", 0, message, facts=blind))
    return alarms


def diagnosis(alarms: Sequence[Alarm]) -> str:
    """Return one paragraph that names every cause seen, the fatal first; each alarm by its latest word."""
    latest = {alarm.name: alarm for alarm in alarms}
    fatal = [alarm for alarm in latest.values() if alarm.fatal]
    others = [alarm for alarm in latest.values() if not alarm.fatal]
    parts = [f"The run stopped itself. {'. '.join(f'{a.name.capitalize()}: {a.message}' for a in fatal)}."]
    if others:
        parts.append(f"Seen besides: {'. '.join(f'{a.name.capitalize()}: {a.message}' for a in others)}.")
    return " ".join(parts)


def _tags(languages: Collection[str]) -> set[str]:
    """Short tags of languages and pairs of languages, without those that name none."""
    return {one for lang in languages for one in languages_of(lang)} - {_UNKNOWN, MIXED, "mul"}
