from __future__ import annotations

import numpy as np
import pytest

from leafembed.errors import NonFiniteError
from leafembed.judge.disagree import disagreements


def circle(*degrees):
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


TEXTS, LANGS = ["a", "b", "c", "d"], ["en", "en", "de", "de"]
TEACHER = circle(0, 10, 100, 110)


def test_the_teacher_agrees_with_itself_and_has_no_example():
    found = disagreements(TEXTS, LANGS, TEACHER, TEACHER, neighbours=1)
    assert (found["overlap"], found["gap"], found["examples"]) == (1.0, 0.0, [])


def test_gap_and_overlap_by_hand():
    # The student puts c beside a: its nearest of a is c, of c is a; b and d keep their neighbours.
    student = circle(0, 30, 5, 110)
    found = disagreements(TEXTS, LANGS, TEACHER, student, neighbours=1)
    gaps = {example["text"]: example["gap"] for example in found["examples"]}
    cos = {d: float(np.cos(np.radians(d))) for d in (10, 90, 100, 110)}
    # Of b (30 degrees) the nearest is c (5), which the teacher sees at 90; of d (110) it is b, seen at 100 degrees.
    expected = {"a": cos[10] - cos[100], "c": cos[10] - cos[100], "b": cos[10] - cos[90], "d": cos[10] - cos[100]}
    assert gaps == pytest.approx(expected, abs=1e-6)
    assert found["gap"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    assert found["overlap"] == 0
    example = next(example for example in found["examples"] if example["text"] == "a")
    assert [near["text"] for near in example["teacher"]] == ["b"]
    assert [(near["text"], near["lang"]) for near in example["student"]] == [("c", "de")]
    assert example["student"][0]["cosine"] == pytest.approx(np.cos(np.radians(5)), abs=1e-6)
    assert {row["lang"]: row["texts"] for row in found["by_language"]} == {"en": 2, "de": 2}


def test_the_largest_gaps_come_first_and_as_many_as_asked():
    rng = np.random.default_rng(0)
    teacher, student = (rng.normal(size=(50, 8)).astype(np.float32) for _ in range(2))
    teacher, student = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (teacher, student))
    found = disagreements([str(i) for i in range(50)], ["en"] * 50, teacher, student, examples=7)
    gaps = [example["gap"] for example in found["examples"]]
    assert len(gaps) == 7
    assert gaps == sorted(gaps, reverse=True)
    assert all(len(example["teacher"]) == len(example["student"]) == 5 for example in found["examples"])


def test_a_text_is_no_neighbour_of_itself_though_another_has_its_vector():
    vectors = circle(0, 0, 0, 90)
    found = disagreements(TEXTS, LANGS, vectors, circle(0, 80, 85, 90), neighbours=2)
    for example in found["examples"]:
        for name in ("teacher", "student"):
            assert example["text"] not in [near["text"] for near in example[name]]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="got 1 texts and 1 languages, expected at least 2"):
        disagreements(["a"], ["en"], TEACHER[:1], TEACHER[:1])
    with pytest.raises(NonFiniteError, match="the student's vectors: row 1 of 4"):
        disagreements(TEXTS, LANGS, TEACHER, np.where(np.arange(4)[:, None] == 1, np.nan, TEACHER).astype(np.float32))
