from __future__ import annotations

import numpy as np
import pytest
from conftest import HashEncoder

from leafembed.errors import DataError
from leafembed.judge.agreement import agreement_task
from leafembed.judge.floors import RandomEncoder
from leafembed.judge.tasks import Task
from leafembed.types import Encoder


def score(task: Task, encoder: Encoder) -> float:
    (part,) = task.parts
    scored = part.score(lambda texts, prompt_name: encoder.encode(texts, prompt_name=prompt_name))
    return scored.scores["cosine_spearman"]


def test_agreement_is_one_for_the_teacher_and_nothing_for_chance() -> None:
    texts = [f"w{i % 7} w{i % 5} w{i % 3} w{i}" for i in range(80)]
    teacher = HashEncoder()
    task = agreement_task(texts, ["en", "de"] * 40, teacher.encode(texts), seed=0)
    assert (task.id, task.type, [part.lang for part in task.parts]) == ("agreement", "Agreement", ["all"])
    assert 80 < task.parts[0].n <= 160
    assert score(task, teacher) == pytest.approx(1)
    assert teacher.prompts_seen[-1] is None
    assert score(task, HashEncoder(dim=32)) > 0.5
    assert abs(score(task, RandomEncoder(64))) < 0.3


def test_agreement_pairs_nearest_neighbours_and_partners_of_the_same_language() -> None:
    texts = [f"{lang} {i}" for lang in ("en", "de") for i in range(20)]
    task = agreement_task(texts, ["en"] * 20 + ["de"] * 20, HashEncoder().encode(texts))
    assert all(one.split()[0] == two.split()[0] or one.split()[1] == two.split()[1] for one, two in task.scored)
    assert all(one != two for one, two in task.scored)
    assert {text for pair in task.scored for text in pair} == task.texts == set(texts)


def test_agreement_needs_texts_that_differ() -> None:
    vectors = HashEncoder().encode(["a", "b", "c"])
    with pytest.raises(DataError, match="got 2 different texts"):
        agreement_task(["a", "b", "a"], ["en"] * 3, vectors)
    with pytest.raises(DataError, match="have the same score"):
        agreement_task(["a", "b", "c"], ["en"] * 3, np.repeat(vectors[:1], 3, axis=0))
    with pytest.raises(ValueError, match="2 languages"):
        agreement_task(["a", "b", "c"], ["en"] * 2, vectors)
