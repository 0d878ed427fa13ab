from __future__ import annotations

import pytest
from conftest import write_rows

from leafembed.errors import DataError, RecipeError
from leafembed.evidence import Contamination
from leafembed.learn import exposure
from leafembed.learn.exposure import teacher_overlap
from leafembed.learn.overlap import JudgedSet
from leafembed.recipe import EvalConfig
from leafembed.recipe_text import DataConfig, Source

LONG = " ".join(f"word{i}" for i in range(20))
JUDGED = {
    "sts/a.test": JudgedSet(
        frozenset({("a man eats", "a man sleeps"), ("one cat", "two cats")}),
        frozenset({"a man eats", "a man sleeps", "one cat", "two cats"}),
    ),
    "retrieval/b": JudgedSet(frozenset({("q0",), ("q1",), ("q2",), (LONG,)}), frozenset({"q0", "q1", "q2", LONG})),
}


@pytest.fixture
def config(tmp_path):
    write_rows(tmp_path / "snli.jsonl", [
        {"text": "A man EATS", "other": "something else"},
        {"text": "another", "other": f"before {' '.join(LONG.split()[3:17])} after"},
        {"text": "nothing of the kind", "other": "at all", "lang": "de"},
    ])  # fmt: skip
    return DataConfig(root=tmp_path, languages=("en",))


def test_text_of_the_teacher_is_compared_as_training_text_is(config, tmp_path):
    found = teacher_overlap([Source(path="snli.jsonl", positive="other")], config, tmp_path / "kept", judged=JUDGED)
    assert found == (
        Contamination("sts/a.test", items=2, exact=1, ngram=0, rows_exact=1, rows_ngram=0),
        Contamination("retrieval/b", items=4, exact=0, ngram=1, rows_exact=0, rows_ngram=1),
    )


def test_short_texts_and_other_languages_were_learned_too(config, tmp_path):
    """Unlike rows to train on, none is left out for its length or language."""
    write_rows(tmp_path / "short.jsonl", [{"text": "q1", "lang": "fr"}])
    found = teacher_overlap([Source(path="short.jsonl")], config, tmp_path / "kept", judged=JUDGED)
    assert [one.exact for one in found] == [0, 1]


def test_it_is_compared_once_for_the_same_text_and_sets(config, tmp_path, monkeypatch):
    sources, folder = [Source(path="snli.jsonl")], tmp_path / "kept"
    first = teacher_overlap(sources, config, folder, judged=JUDGED)
    read = []
    real = exposure.read_source
    monkeypatch.setattr(exposure, "read_source", lambda *args, **options: read.append(1) or real(*args, **options))
    assert teacher_overlap(sources, config, folder, judged=JUDGED) == first
    assert read == []
    teacher_overlap(sources, config, folder, judged={"sts/a.test": JUDGED["sts/a.test"]})
    write_rows(tmp_path / "snli.jsonl", [{"text": "one cat"}, {"text": "two cats"}])
    again = teacher_overlap(sources, config, folder, judged=JUDGED)
    assert (len(read), again[0].exact, again[0].rows_exact) == (2, 1, 2)


def test_without_a_source_nothing_is_claimed_and_a_missing_one_is_an_error(config, tmp_path):
    assert teacher_overlap([], config, tmp_path / "kept", judged=JUDGED) == ()
    with pytest.raises(DataError, match=r"no file matches .*nowhere\.jsonl"):
        teacher_overlap([Source(path="nowhere.jsonl")], config, tmp_path / "kept", judged=JUDGED)


def test_keys_that_say_how_to_learn_are_refused():
    EvalConfig(teacher_sources=(Source(path="a.txt", licence="CC0-1.0"), Source(named="all-nli")))
    with pytest.raises(RecipeError, match=r"eval\.teacher_sources: got \['weight', 'max_rows'\], expected only named"):
        EvalConfig(teacher_sources=(Source(path="a.txt", weight=2.0, max_rows=5),))
