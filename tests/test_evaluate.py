from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import HashEncoder

from leafembed.errors import NonFiniteError
from leafembed.judge.evaluate import evaluate, score_part
from leafembed.judge.floors import BagOfWords
from leafembed.judge.intervals import Scored
from leafembed.judge.tasks import load_tasks
from leafembed.reports import EvalReport
from leafembed.types import FloatArray

NAMES = ("sts/toy.test", "bitext/toy", "classification/toy", "retrieval/toy_en", "clustering/toy", "pair/toy",
         "reranking/toy")  # fmt: skip


class Broken(HashEncoder):
    """Changes the last vector of each call, or all of them, by ``how``."""

    def __init__(self, how: str) -> None:
        super().__init__(name="broken")
        self.how = how

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        vectors = super().encode(texts, prompt_name=prompt_name)
        if self.how == "short":
            return vectors[:-1]
        vectors[-1] *= {"nan": np.nan, "inf": np.inf, "long": 2.0, "zero": 0.0}[self.how]
        return vectors


def test_every_task_in_every_language_is_scored_in_order(eval_data: Path) -> None:
    started: list[str] = []
    report = evaluate(HashEncoder(), load_tasks(eval_data, NAMES), on_task=started.append)
    assert started == list(NAMES)
    assert [(result.task, result.lang) for result in report.results] == [
        ("sts/toy.test", "de"),
        ("sts/toy.test", "en"),
        ("bitext/toy", "de-en"),
        ("classification/toy", "en"),
        ("retrieval/toy_en", "en"),
        ("clustering/toy", "en"),
        ("pair/toy", "de"),
        ("reranking/toy", "en"),
    ]
    for result in report.results:
        assert result.main_score == result.scores[result.metric] > 0.8
        assert result.seconds > 0
        assert len(result.data) == 16
    assert report.model == HashEncoder().ref
    assert EvalReport.from_dict(report.to_dict()) == report


def test_the_same_encoder_scores_the_same_twice(eval_data: Path) -> None:
    first, second = (evaluate(HashEncoder(), load_tasks(eval_data, NAMES)) for _ in range(2))
    assert [dict(result.scores) for result in first.results] == [dict(result.scores) for result in second.results]
    assert set(first.retention(second).values()) == {1.0}


def test_a_repeated_text_is_encoded_once_and_keeps_its_places(eval_data: Path) -> None:
    calls: list[list[str]] = []

    class Recording(HashEncoder):
        def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
            calls.append(list(texts))
            return super().encode(texts, prompt_name=prompt_name)

    evaluate(Recording(), load_tasks(eval_data, NAMES))
    assert calls
    assert all(len(texts) == len(set(texts)) for texts in calls)


@pytest.mark.parametrize("how", ["nan", "inf", "long", "zero"])
def test_a_bad_vector_raises_where_it_arises(eval_data: Path, how: str) -> None:
    tasks = load_tasks(eval_data, NAMES)
    with pytest.raises(NonFiniteError, match=r"broken on sts/toy\.test \(de\): row \d+ of \d+") as caught:
        evaluate(Broken(how), tasks)
    (text,) = caught.value.texts
    assert text in tasks[0].parts[0].texts
    assert caught.value.vectors.shape[0] == 1


def test_a_score_that_is_nan_names_its_task_and_carries_its_texts(eval_data: Path) -> None:
    (task,) = load_tasks(eval_data, NAMES[:1])
    part = task.parts[0]
    scored = replace(part, score=lambda encode: Scored({task.metric: math.nan}, part.score(encode).items))
    with pytest.raises(NonFiniteError, match=r"sts/toy\.test \(de\).* is nan") as caught:
        score_part(HashEncoder(), task, scored)
    assert caught.value.texts == part.texts


def test_missing_vectors_and_missing_tasks_raise(eval_data: Path) -> None:
    with pytest.raises(ValueError, match="got shape"):
        evaluate(Broken("short"), load_tasks(eval_data, NAMES))
    with pytest.raises(ValueError, match="no task was scored"):
        evaluate(HashEncoder(), ())


def test_every_score_has_an_interval_and_so_has_every_type(eval_data: Path) -> None:
    report = evaluate(HashEncoder(), load_tasks(eval_data, NAMES))
    for result in report.results:
        assert result.interval is not None
        low, high = result.interval
        assert 0 < low <= result.main_score <= high <= 1
    assert set(report.intervals) == {*report.by_type(), "mean"}
    for kind, score in {**report.by_type(), "mean": report.mean}.items():
        low, high = report.intervals[kind]
        assert low <= score <= high
    widths = [np.ptp(result.interval) for result in report.results if result.type == "STS"]
    assert np.ptp(report.intervals["STS"]) < max(widths)


def test_a_language_with_too_few_rows_is_named_and_not_scored(eval_data: Path) -> None:
    report = evaluate(HashEncoder(), load_tasks(eval_data, NAMES, min_rows=40))
    assert [(few.task, few.lang, few.n) for few in report.too_few] == [
        ("retrieval/toy_en", "en", 30),
        ("reranking/toy", "en", 20),
    ]
    assert str(report.too_few[0]) == "too few rows (30)"
    assert "Retrieval" not in report.by_type()
    assert report.score("retrieval/toy_en", "en") is None
    assert EvalReport.from_dict(report.to_dict()) == report


def test_a_report_of_before_there_were_intervals_is_read(eval_data: Path) -> None:
    report = evaluate(HashEncoder(), load_tasks(eval_data, NAMES))
    old = json.loads(json.dumps(report.to_dict()))
    del old["intervals"], old["too_few"]
    for result in old["results"]:
        del result["interval"]
    read = EvalReport.from_dict(old)
    assert (read.by_type(), read.intervals, read.too_few) == (report.by_type(), {}, ())
    assert all(result.interval is None for result in read.results)


def test_the_bag_of_words_counts_on_the_set_that_is_scored(eval_data: Path) -> None:
    tasks = load_tasks(eval_data, NAMES)
    together = evaluate(BagOfWords(), tasks)
    alone = [evaluate(BagOfWords(), [task]).results for task in tasks]
    scores = [dict(result.scores) for result in together.results]
    assert scores == [dict(result.scores) for results in alone for result in results]
    assert all(result.main_score > 0.7 for result in together.results)


def test_a_prompt_is_looked_for_by_type_and_role_then_type_then_role(eval_data: Path) -> None:
    wanted = {
        ("Retrieval-query", "Retrieval", "query", "document"): {"Retrieval-query", "Retrieval"},
        ("query", "document"): {"query", "document"},
        ("query", "STS"): {"query", None},
        (): {None},
    }
    for known, used in wanted.items():
        encoder = HashEncoder()
        encoder.ref = replace(encoder.ref, prompts=dict.fromkeys(known, "prompt: "))
        evaluate(encoder, load_tasks(eval_data, ["retrieval/toy_en"]))
        assert set(encoder.prompts_seen) == used
