from __future__ import annotations

import re

import numpy as np
import pytest

from leafembed.evidence import Contamination
from leafembed.learn import overlap
from leafembed.learn.overlap import EXACT, NGRAM, EvaluationTexts, JudgedSet, sets_fingerprint
from leafembed.text import normalise_text

FOX = "The quick brown fox jumps over the lazy dog while seven other foxes are watching it from afar."
NINE = "one two three four five six seven eight nine"
ZH = "黑豹队的防守丢了多少分而且他们在比赛中表现如何请详细说明一下"
TH = "ทีมรับของแพนเธอร์สยอมแพ้ที่คะแนนเท่าไรในการแข่งขันครั้งนี้ที่สนามกีฬา"


def judged(*items, others=()):
    items = [(item,) if isinstance(item, str) else item for item in items]
    plain = [tuple(map(normalise_text, item)) for item in items]
    texts = {text for item in plain for text in item} | set(map(normalise_text, others))
    return JudgedSet(frozenset(plain), frozenset(texts))


def reasons(evaluation, *records):
    records = [(record,) if isinstance(record, str) else record for record in records]
    return evaluation.judge([[normalise_text(text) for text in record] for record in records])


def report(evaluation):
    return {entry["task"]: Contamination(**entry) for entry in evaluation.touched()}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (FOX.upper(), EXACT),
        (FOX.replace(".", " !"), NGRAM),
        ("He said: 'quick brown fox jumps over the lazy, lazy dog'", None),
        ("So quick - brown - fox jumps over the lazy dog while seven OTHER foxes are asleep", NGRAM),  # 13 of its words
        ("So brown fox jumps over the lazy dog while seven other foxes are asleep", None),  # 12 of them
        ("Count: two three four five six seven eight nine, and go on", NGRAM),  # 8 of 9 words
        ("Count: three four five six seven eight nine, and go on", None),
        ("thank you very much!", NGRAM),
        ("thank you very much indeed", None),  # a short text counts only as a whole
        ("据说黑豹队的防守丢了多少分而且他们在比赛中表现如何请详细说。", NGRAM),
        ("据说黑豹队的防守丢了多少分而且他们在比赛中", None),
        ("今天天气很好。我们去公园。", NGRAM),
        ("今天天气很好我们去公园吧", None),
        (f"ดู {TH[:-8]}", NGRAM),
        (TH[:40], None),
        ("...", None),
    ],
)
def test_what_overlaps(text, reason):
    texts = (FOX, NINE, "Thank you very much", ZH, "今天天气很好我们去公园", TH, "?!")
    assert reasons(EvaluationTexts({"a": judged(*texts)}), text) == [reason]


def test_marks_belong_to_words_and_scripts_mix():
    hindi = "पैंथर्स डिफ़ेंस ने कितने अंक दिए और किस टीम ने उन्हें हराया था"
    (every, *_) = overlap._patterns()
    assert len(every.findall(hindi)) == len(hindi.split())
    assert every.findall("iphone手机は3gです") == ["iphone", "手", "机", "は", "3g", "で", "す"]


def test_rows_and_items_are_counted_by_the_set_that_they_touch():
    sets = {
        "sts/a": judged((FOX, "A cat sleeps"), ("Dogs bark", "Birds sing"), ("A cat sleeps", NINE)),
        "retrieval/b": judged("Who jumps?", others=[f"{FOX} And there is more to say about it.", NINE]),
        "bitext/c": judged("nothing at all"),
    }
    evaluation = EvaluationTexts(sets)
    found = reasons(
        evaluation,
        "fine",
        ("fine too", "a CAT  sleeps"),
        "quick brown fox jumps over the lazy dog while seven other foxes are here",
        (NINE, "quick brown fox jumps over the lazy dog while seven other foxes are here"),
        "A cat sleeps.",
    )
    assert found == [None, EXACT, NGRAM, EXACT, NGRAM]
    assert report(evaluation) == {
        "sts/a": Contamination("sts/a", 3, exact=2, ngram=0, rows_exact=2, rows_ngram=2),
        "retrieval/b": Contamination("retrieval/b", 1, exact=0, ngram=0, rows_exact=1, rows_ngram=1),
        "bitext/c": Contamination("bitext/c", 1, exact=0, ngram=0, rows_exact=0, rows_ngram=0),
    }
    assert report(evaluation)["sts/a"].share == 2 / 3


def test_an_item_touched_by_an_ngram_only_counts_as_such():
    evaluation = EvaluationTexts({"a": judged((FOX, "x"), ("y", "z"))})
    assert reasons(evaluation, f"He wrote: {FOX}") == [NGRAM]
    assert (report(evaluation)["a"].exact, report(evaluation)["a"].ngram, report(evaluation)["a"].share) == (0, 1, 0.5)


def test_without_evaluation_sets_nothing_overlaps():
    evaluation = EvaluationTexts({})
    assert reasons(evaluation, FOX, "") == [None, None]
    assert evaluation.touched() == []


def naive(text, evaluation):
    """The definition, word by word, for text with spaces."""
    words, theirs = (re.findall(r"\w+", one) for one in (text, evaluation))
    n = 13 if len(theirs) >= 13 else 8
    if len(theirs) < 8:
        return bool(theirs) and words == theirs
    grams = [{tuple(one[i : i + n]) for i in range(len(one) - n + 1)} for one in (words, theirs)]
    return not grams[0].isdisjoint(grams[1])


def test_it_agrees_with_the_definition_on_random_text(monkeypatch):
    monkeypatch.setattr(overlap, "_KEPT_WORDS", 4)  # forgetting a word's hash must change nothing
    monkeypatch.setattr(overlap, "_BATCH", 7)
    rng = np.random.default_rng(0)
    stream = [f"w{i}" for i in rng.integers(40, size=400)]

    def pieces(n):
        for _ in range(n):
            start, length = int(rng.integers(380)), int(rng.integers(1, 20))
            yield " ".join(stream[start : start + length])

    held = list(dict.fromkeys(pieces(60)))
    asked = list(pieces(200))
    evaluation = EvaluationTexts({"a": judged(*held)})
    expected = [EXACT if t in held else NGRAM if any(naive(t, h) for h in held) else None for t in asked]
    assert evaluation.judge([[text] for text in asked]) == expected
    assert {EXACT, NGRAM, None} == set(expected)
    touched = {h for h in held if any(t == h or naive(t, h) for t in asked)}
    assert report(evaluation)["a"].share == len(touched) / len(held)


def test_order_of_words_matters():
    evaluation = EvaluationTexts({"a": judged(FOX)})
    words = FOX.strip(".").split()
    assert reasons(evaluation, " ".join(reversed(words)), " ".join(words[1:] + words[:1])) == [None, NGRAM]


def test_the_fingerprint_depends_on_every_text_and_on_what_is_scored():
    base = {"a": judged(("x", "y"), others=["z"]), "b": judged("w")}
    changes = [
        {"a": judged(("x", "y"), others=["z"])},
        {"c": base["a"], "b": base["b"]},
        {"a": judged(("x", "z"), others=["y"]), "b": base["b"]},
        {"a": judged(("x", "y")), "b": base["b"]},
        {"a": judged("x", "y", others=["z"]), "b": base["b"]},
    ]
    assert sets_fingerprint(dict(reversed(base.items()))) == sets_fingerprint(base)
    assert len({sets_fingerprint(sets) for sets in (base, *changes)}) == 6


@pytest.mark.parametrize("bad", [{"items": 0}, {"exact": -1}, {"exact": 2, "ngram": 2}])
def test_contamination_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match="contamination"):
        Contamination(**({"task": "a", "items": 3, "exact": 0, "ngram": 0, "rows_exact": 0, "rows_ngram": 0} | bad))
