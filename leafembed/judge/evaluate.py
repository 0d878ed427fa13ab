"""Score one encoder on tasks. Teacher, student, floors and the INT8 model all pass through this one function."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from leafembed.errors import NonFiniteError
from leafembed.judge.floors import BagOfWords
from leafembed.judge.intervals import RESAMPLES, Draws, bounds, redraw
from leafembed.judge.kinds import Encode, find_prompt
from leafembed.judge.tasks import Part, Task
from leafembed.reports import EvalReport, TaskResult, TooFew, mean_by_type
from leafembed.types import Encoder, FloatArray, ModelRef, check_vectors

__all__ = ["Candidate", "draws_by_type", "evaluate", "report_of", "score_part"]

Candidate = Encoder | BagOfWords
"""What can be scored: a bag of words becomes an encoder on each set."""


def evaluate(encoder: Candidate, tasks: Sequence[Task], *, on_task: Callable[[str], None] | None = None) -> EvalReport:
    """Return the scores of ``encoder`` on every task in every language, in the order of the tasks.

    Args:
        encoder: What to score; a text that occurs several times in one call of a task is encoded once.
        tasks: At least one.
        on_task: Called with the id of each task before it starts.

    Raises:
        NonFiniteError: If a vector holds NaN or infinity or is not of unit length; names task and language.
        ValueError: If the encoder returns an array of the wrong shape, or there is no task.
    """
    results: list[TaskResult] = []
    draws: list[Draws] = []
    for task in tasks:
        if on_task is not None:
            on_task(task.id)
        for part in task.parts:
            result, drawn = score_part(encoder, task, part)
            results.append(result)
            draws.append(drawn)
    return report_of(encoder.ref, results, draws, tasks)


def score_part(encoder: Candidate, task: Task, part: Part) -> tuple[TaskResult, Draws]:
    """Return the scores of ``encoder`` on one task in one language, and the main score in each resample.

    Raises:
        NonFiniteError: As :func:`evaluate`, or if a score is NaN; carries the texts.
    """
    try:
        return _scored(encoder, task, part)
    except NonFiniteError as error:
        if error.texts:
            raise
        where = f"{encoder.ref.name} on {task.id} ({part.lang}): "
        raise NonFiniteError(f"{where}{error}", texts=part.texts) from error


def _scored(encoder: Candidate, task: Task, part: Part) -> tuple[TaskResult, Draws]:
    start = time.perf_counter()
    here = encoder.fitted(task.texts) if isinstance(encoder, BagOfWords) else encoder
    scored = part.score(_checked(here, f"{encoder.ref.name} on {task.id} ({part.lang})"))
    seconds, draws = time.perf_counter() - start, redraw(scored.items)
    result = TaskResult(
        task=task.id,
        type=task.type,
        lang=part.lang,
        metric=task.metric,
        main_score=scored.scores[task.metric],
        scores=scored.scores,
        n=part.n,
        data=part.data,
        seconds=seconds,
        interval=bounds(draws),
    )
    return result, draws


def report_of(
    model: ModelRef, results: Sequence[TaskResult], draws: Sequence[Draws], tasks: Sequence[Task]
) -> EvalReport:
    """Return the report on a model.

    Args:
        model: What was scored.
        results: From :func:`score_part`, for every part of the tasks.
        draws: The resampled main score of each.
        tasks: What was scored; they name the languages that have too few rows.
    """
    few = [TooFew(task.id, task.type, lang, n) for task in tasks for lang, n in task.too_few.items()]
    intervals = {kind: bounds(drawn) for kind, drawn in draws_by_type(results, draws).items()} if results else {}
    return EvalReport(model, tuple(results), tuple(few), intervals)


def draws_by_type(results: Sequence[TaskResult], draws: Sequence[Draws]) -> dict[str, Draws]:
    """Return the mean score of each task type in each resample and, under ``mean``, the mean over types."""
    types = mean_by_type(results, draws)
    return {**types, "mean": sum(types.values(), np.zeros(RESAMPLES)) / len(types)}


def _checked(encoder: Encoder, what: str) -> Encode:
    def encode(texts: Sequence[str], prompt_name: str | None) -> FloatArray:
        position = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        # Tasks name the prompt they would like; a model without it reads the bare text.
        known = find_prompt(encoder.ref.prompts, prompt_name)
        some = list(position)
        unique = check_vectors(encoder.encode(some, prompt_name=known), n=len(some), what=what, texts=some)
        return unique[[position[text] for text in texts]]

    return encode
