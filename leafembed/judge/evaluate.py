"""Score one encoder on tasks. Teacher, student, floors and the INT8 model all pass through this one function."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from leafembed.judge.kinds import Encode, find_prompt
from leafembed.judge.tasks import Part, Task
from leafembed.reports import EvalReport, TaskResult
from leafembed.types import Encoder, FloatArray, check_vectors

__all__ = ["evaluate"]


def evaluate(encoder: Encoder, tasks: Sequence[Task], *, on_task: Callable[[str], None] | None = None) -> EvalReport:
    """Return the scores of ``encoder`` on every task in every language, in the order of the tasks.

    Args:
        encoder: What to score; a text that occurs several times in one call of a task is encoded once.
        tasks: At least one.
        on_task: Called with the id of each task before it starts.

    Raises:
        NonFiniteError: If a vector holds NaN or infinity or is not of unit length; names task and language.
        ValueError: If the encoder returns an array of the wrong shape, or there is no task.
    """
    results = []
    for task in tasks:
        if on_task is not None:
            on_task(task.id)
        results += [_score(encoder, task, part) for part in task.parts]
    return EvalReport(encoder.ref, tuple(results))


def _score(encoder: Encoder, task: Task, part: Part) -> TaskResult:
    start = time.perf_counter()
    scores = part.score(_checked(encoder, f"{encoder.ref.name} on {task.id} ({part.lang})"))
    return TaskResult(
        task=task.id,
        type=task.type,
        lang=part.lang,
        metric=task.metric,
        main_score=scores[task.metric],
        scores=scores,
        n=part.n,
        data=part.data,
        seconds=time.perf_counter() - start,
    )


def _checked(encoder: Encoder, what: str) -> Encode:
    def encode(texts: Sequence[str], prompt_name: str | None) -> FloatArray:
        position = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        # Tasks name the prompt they would like; a model without it reads the bare text.
        known = find_prompt(encoder.ref.prompts, prompt_name)
        unique = check_vectors(encoder.encode(list(position), prompt_name=known), n=len(position), what=what)
        return unique[[position[text] for text in texts]]

    return encode
