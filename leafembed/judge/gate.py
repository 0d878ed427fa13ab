"""The gate: may this model ship? The same conditions for the trained student and again for its INT8 form.

A condition that cannot be judged, because the task it names was not scored, is an error and never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from leafembed.errors import DataError, RecipeError
from leafembed.evidence import Behaviour, Contamination
from leafembed.judge.tasks import Task
from leafembed.recipe import GateConfig
from leafembed.reports import BAG_OF_WORDS, FLOOR, Check, EvalReport, GateResult
from leafembed.text import languages_of, normalise_lang

__all__ = ["check", "floors_above", "require_known"]

_NO_REACTION = 1e-6
_CHANCE = 3  # items of a language's smallest task that INT8 may turn from right to wrong

# Where questions repeat the words of passages, a bag of words beats good models, teachers among them: it is a floor of
# the mean over types, of a type and of a language only where the teacher itself is above it.
_WORDS = f"{FLOOR}{BAG_OF_WORDS}"


def check(
    report: EvalReport,
    reference: EvalReport,
    config: GateConfig,
    *,
    floors: Mapping[str, EvalReport],
    fp32: EvalReport | None = None,
    int8_cosine: float | None = None,
    contamination: Sequence[Contamination] | None = None,
    behaviour: Behaviour | None = None,
) -> GateResult:
    """Return the verdict on ``report``: one check for each condition, all of which must hold.

    Args:
        report: Scores of the student, or of its INT8 form.
        reference: Scores of the teacher on the same tasks and data.
        config: The thresholds.
        floors: Scores of what the student must beat, by name, e.g. ``floor: random``.
        fp32: Scores of the student before INT8; ``None``: ``report`` is that student.
        int8_cosine: Mean cosine between INT8 and fp32 vectors; ``None``: not judged.
        contamination: What training text shared with each task, other tasks ignored; ``None``: not judged.
        behaviour: How the model of ``report`` behaves where no task looks; ``None``: not judged.

    Raises:
        RecipeError: If a threshold names a task or type that was not scored.
        DataError: If the teacher scores nothing in a type, or does not react to the end of a text: there is nothing to
            hold a model against.
        ValueError: If the reports were not made on the same tasks and data, contamination leaves a task out, or floors
            are judged but none given.
        NonFiniteError: If a value is NaN or infinite.
    """
    for name, other in {"the reference": reference, **floors, **({"fp32": fp32} if fp32 else {})}.items():
        _require_same_data(report, other, name)
    checks = [
        *_retention(report, reference, config),
        *_scores(report, config),
        *(_above(report, reference, floors) if config.beat_floors else ()),
        *_languages(report, config),
    ]
    if fp32 is not None:
        checks += _drops(report, fp32, config)
    if int8_cosine is not None:
        checks.append(Check("mean cosine of INT8 with fp32", int8_cosine, config.min_int8_cosine))
    if contamination is not None:
        checks += _contamination(report, contamination, config)
    if behaviour is not None:
        checks += _behaviour(behaviour, config)
    return GateResult(tuple(checks))


def floors_above(report: EvalReport, reference: EvalReport, floors: Mapping[str, EvalReport]) -> list[str]:
    """Return the names of the floors that a model does not beat in some type or language, as the gate holds them.

    Args:
        report: Scores of the model, or of a part of it.
        reference: Scores of the teacher on the same tasks and data.
        floors: Scores of what must be beaten, by name.
    """
    return [
        name
        for name, floor in floors.items()
        if not all(check.passed for check in _above(report, reference, {name: floor}))
    ]


def require_known(config: GateConfig, tasks: Iterable[Task]) -> None:
    """Check that every score, type and language that the gate asks for will be there, before hours are spent.

    Raises:
        RecipeError: If one will not be.
    """
    known, kinds, covered = set(), set(), set()
    for task in tasks:
        kinds.add(task.type)
        known |= {task.id, *(f"{task.id}@{part.lang}" for part in task.parts)}
        covered |= {lang for part in task.parts for lang in languages_of(part.lang)}
    for name, given, there in (("min_score", config.min_score, known), ("min_retention", config.min_retention, kinds)):
        for what in given:
            if what not in there:
                raise RecipeError(f"gate.{name}: got {what!r}, expected one of what eval.test scores: {sorted(there)}")
    for lang in config.languages:
        if normalise_lang(lang) not in covered:
            raise RecipeError(
                f"gate.languages: got {lang!r}, expected languages that eval.test scores: {sorted(covered)}; leave it "
                "out, or name a task in eval.test that has at least eval.min_rows items in it"
            )


def _retention(report: EvalReport, reference: EvalReport, config: GateConfig) -> Iterator[Check]:
    retention = report.retention(reference)
    yield Check("mean retention", report.mean_retention(reference), config.min_mean_retention)
    for kind, limit in config.min_retention.items():
        if kind not in retention:
            raise RecipeError(f"gate.min_retention: got {kind!r}, expected a type that was scored: {sorted(retention)}")
        yield Check(f"retention of {kind}", retention[kind], limit)


def _scores(report: EvalReport, config: GateConfig) -> Iterator[Check]:
    for task, limit in config.min_score.items():
        name, _, lang = task.rpartition("@")
        results = [r for r in report.results if r.task == task or (r.task == name and r.lang == lang)]
        if not results:
            known = sorted({result.task for result in report.results})
            raise RecipeError(f"gate.min_score: got {task!r}, expected a task that was scored: {known}")
        for result in results:
            yield Check(f"{task} in {result.lang}", result.main_score, limit)


def _above(report: EvalReport, reference: EvalReport, floors: Mapping[str, EvalReport]) -> Iterator[Check]:
    if not floors:
        raise ValueError("gate.beat_floors is set but no floor was scored: expected at least one report in floors")
    for name, floor in floors.items():
        # The next number up makes "at least" mean "above": to equal a floor is to fail.
        if name == _WORDS and reference.mean > floor.mean:
            yield Check(f"mean above {name}", report.mean, math.nextafter(floor.mean, math.inf))
        for scores in (EvalReport.by_type, _by_language):
            theirs, teachers = scores(floor), scores(reference)
            for what, score in scores(report).items():
                if name != _WORDS or teachers[what] > theirs[what]:
                    yield Check(f"{what} above {name}", score, math.nextafter(theirs[what], math.inf))


def _by_language(report: EvalReport) -> dict[str, float]:
    # Means over the tasks of a language: one task with few rows would fail good models by chance.
    scores: dict[str, list[float]] = {}
    for result in report.results:
        scores.setdefault(f"{result.type} in {result.lang}", []).append(result.main_score)
    return {what: sum(values) / len(values) for what, values in scores.items()}


def _drops(report: EvalReport, fp32: EvalReport, config: GateConfig) -> Iterator[Check]:
    types, langs = fp32.by_type(), _by_language(fp32)
    for kind, score in report.by_type().items():
        yield Check(f"INT8 drop in {kind}", types[kind] - score, config.max_int8_drop, at_least=False)
    items: dict[str, list[int]] = {}
    for result in report.results:
        items.setdefault(f"{result.type} in {result.lang}", []).append(result.n)
    for what, score in _by_language(report).items():
        # Where a language has few items, so many of them may turn out otherwise by chance. The drop is that of a mean
        # over tasks, which items of one of these move by so much less.
        limit = max(config.max_int8_drop_in_language, _CHANCE / (len(items[what]) * min(items[what])))
        yield Check(f"INT8 drop in {what}", langs[what] - score, limit, at_least=False)


def _languages(report: EvalReport, config: GateConfig) -> Iterator[Check]:
    for lang in config.languages:
        covering = [result for result in report.results if normalise_lang(lang) in languages_of(result.lang)]
        yield Check(f"results in language {lang}", len(covering), 1)


def _contamination(report: EvalReport, found: Sequence[Contamination], config: GateConfig) -> Iterator[Check]:
    shares = {entry.task: entry.share for entry in found}
    for task in dict.fromkeys(result.task for result in report.results):
        if task not in shares:
            raise ValueError(f"contamination of {task} was not measured, only of {sorted(shares)}")
        yield Check(f"contamination of {task}", shares[task], config.max_contamination, at_least=False)


def _behaviour(seen: Behaviour, config: GateConfig) -> Iterator[Check]:
    yield Check("least cosine of a text alone and in a batch", seen.batch_cosine, config.min_batch_cosine)
    if seen.teacher_tail < _NO_REACTION:
        raise DataError(
            f"the teacher's vectors change by {seen.teacher_tail:.1e} when a text gets another end, expected at least "
            f"{_NO_REACTION:.0e}: it reads too little of the held-out texts, so choose longer ones or another teacher"
        )
    yield Check(
        "response to the end of a text, of the teacher's", seen.tail / seen.teacher_tail, config.min_tail_response
    )


def _require_same_data(report: EvalReport, other: EvalReport, name: str) -> None:
    mine, theirs = ({(r.task, r.type, r.lang, r.data) for r in each.results} for each in (report, other))
    if mine != theirs:
        differing = sorted(mine ^ theirs)[:4]
        raise ValueError(f"{report.model.name!r} and {name} were scored on different tasks or data: {differing}")
