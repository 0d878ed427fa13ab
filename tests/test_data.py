"""The corpus: its rows, what is dropped or held out, and how it is kept; reading is in test_sources."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_rows
from corpora import both, corpus, lines, texts

from leafembed.errors import DataError
from leafembed.evidence import Contamination
from leafembed.learn.data import prepare_corpus
from leafembed.recipe_text import DataConfig, Source
from leafembed.text import normalise_text, text_hash


def test_pairs_and_negatives_point_at_each_other_and_stay_on_one_side(tmp_path):
    rows = [
        {"q": f"question {i}", "a": f"Antwort {i}", "n": f"falsch {i}", "lang": "en", "other": "deu"} for i in range(60)
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    source = Source(path="a.jsonl", text="q", positive="a", negative="n", positive_lang="other", prompt_name="query",
                    positive_prompt_name="document")  # fmt: skip
    found = corpus(tmp_path, source)
    for side in (found.train, found.validation):
        assert len(side) % 3 == 0
        for i in range(0, len(side), 3):
            question, answer, negative = side[i : i + 3]
            number = question.text.split()[1]
            assert (answer.text, negative.text) == (f"Antwort {number}", f"falsch {number}")
            assert (question.pair, answer.pair, negative.pair) == (None, i, None)
            assert (question.negative, answer.negative, negative.negative) == (i + 2, None, None)
            assert [row.lang for row in side[i : i + 3]] == ["en", "de", "de"]
            assert [row.prompt_name for row in side[i : i + 3]] == ["query", "document", "document"]
    assert len(found.train) + len(found.validation) == 180


def test_the_prompt_of_the_recipe_holds_where_a_source_names_none(text_folder):
    assert {row.prompt_name for row in corpus(text_folder, Source(path="plain.txt"), prompt_name="STS").train} == {
        "STS"
    }
    named = corpus(text_folder, Source(path="plain.txt", prompt_name="query"), prompt_name="STS")
    assert {row.prompt_name for row in named.train} == {"query"}


def test_a_translation_may_learn_the_vector_of_its_text(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"q": f"text {i}", "a": f"Text {i}!", "n": f"falsch {i}"} for i in range(60)])
    source = Source(
        path="a.jsonl", text="q", positive="a", negative="n", positive_target="text", roles=("query", "STS")
    )
    found = corpus(tmp_path, source, validation_rows=20)
    for side in (found.train, found.validation):
        for i in range(0, len(side), 5):
            block = side[i : i + 5]
            assert [row.pair for row in block] == [None, i, None, None, None]
            assert [row.target for row in block] == [None, i, None, None, None]
            assert [row.negative for row in block] == [i + 2, None, None, None, None]
            assert [row.prompt_name for row in block] == [None, None, None, "query", "STS"]
            assert block[0].text == block[3].text == block[4].text
    own = corpus(tmp_path, dataclasses.replace(source, positive_target="own"), validation_rows=20)
    assert sorted(texts(both(own))) == sorted(texts(both(found)))
    assert own.fingerprint != found.fingerprint
    assert {row.target for row in both(own)} == {None}


def test_roles_of_one_text_stay_on_one_side_and_are_no_duplicates(text_folder):
    found = corpus(
        text_folder, Source(path="plain.txt", prompt_name="STS", roles=("query", "document")), validation_rows=31
    )
    assert not set(texts(found.train)) & set(texts(found.validation))
    assert len(both(found)) == 300
    assert len(found.validation) == 33
    assert {(row.text, row.prompt_name) for row in both(found)} == {
        (text, role) for text in lines(100) for role in ("STS", "query", "document")
    }
    assert found.counts["train"] == len(found.train) == 267


def test_duplicates_short_texts_and_other_languages_are_dropped_and_counted(tmp_path):
    rows = [{"text": text, "lang": "en"} for text in lines(60)]
    rows += [
        {"text": "WORD  Number 3 ", "lang": "en"},
        {"text": "ab", "lang": "en"},
        {"text": "hola que tal", "lang": "es"},
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    found = corpus(tmp_path, Source(path="a.jsonl"), languages=("eng",))
    assert found.counts["dropped: duplicate"] == 1
    assert found.counts["dropped: too short"] == 1
    assert found.counts["dropped: language not asked for"] == 1
    assert sorted(map(normalise_text, texts([*found.train, *found.validation]))) == sorted(lines(60))


def test_evaluation_texts_are_dropped_with_their_pair_and_counted(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": f"question {i}", "a": f"answer {i}"} for i in range(60)])
    source = Source(path="a.jsonl", positive="a")
    found = corpus(tmp_path, source, judged=["Question 5", "ANSWER  7", "word"])
    assert found.counts["dropped: equals an evaluation text"] == 2
    assert found.contamination == (Contamination("sts/judged", 3, exact=2, ngram=0, rows_exact=2, rows_ngram=0),)
    assert not {"question 5", "answer 5", "question 7", "answer 7"} & set(texts([*found.train, *found.validation]))


def test_a_text_held_out_is_in_no_training_pair(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": f"shared {i % 30}", "a": f"answer {i}"} for i in range(120)])
    found = corpus(tmp_path, Source(path="a.jsonl", positive="a"))
    assert not set(texts(found.train)) & set(texts(found.validation))


def test_text_that_is_known_already_is_not_enough_to_hold_out(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(lines(200)), encoding="utf-8")
    source = Source(path="a.txt", lang="en")
    config = DataConfig(root=tmp_path, sources=(source,), validation_rows=40)
    known = np.array([text_hash(normalise_text(line)) for line in lines(200)[:190]], dtype=np.uint64)
    with pytest.raises(DataError, match="got 10 texts to hold out that the student has not learned from before"):
        prepare_corpus(config, tmp_path / "corpora", seed=0, prompt_name=None, learned=known)
    enough = prepare_corpus(config, tmp_path / "corpora", seed=0, prompt_name=None, learned=known[:150])
    assert len(enough.validation) == 40


def test_one_changed_text_changes_the_fingerprint(text_folder):
    before = corpus(text_folder, Source(path="plain.txt")).fingerprint
    content = (text_folder / "plain.txt").read_text(encoding="utf-8")
    (text_folder / "plain.txt").write_text(content.replace("number 57", "number 570"), encoding="utf-8")
    assert corpus(text_folder, Source(path="plain.txt")).fingerprint != before


def test_where_text_came_from_is_kept(text_folder):
    found = corpus(text_folder, Source(path="plain.txt", licence="CC0-1.0", origin="a friend"))
    sha256 = hashlib.sha256((text_folder / "plain.txt").read_bytes()).hexdigest()
    assert found.sources == ({"path": "plain.txt", "licence": "CC0-1.0", "origin": "a friend", "sha256": sha256},)


def test_a_second_run_of_the_same_finds_the_corpus_and_a_changed_file_does_not(text_folder, capsys):
    first = corpus(text_folder, Source(path="plain.txt"))
    (folder,) = (text_folder / "kept").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["stage.json", "train.arrow", "validation.arrow"]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (text_folder / "plain.txt").rename(text_folder / "renamed.txt")
    (text_folder / "renamed.txt").rename(text_folder / "plain.txt")
    (text_folder / "plain.txt").touch()
    assert corpus(text_folder, Source(path="plain.txt")) == first
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    for change in ({"seed": 1}, {"prompt_name": "STS"}, {"max_rows": 40}, {"judged": ("word number 3",)}):
        corpus(text_folder, Source(path="plain.txt"), **change)
    corpus(text_folder, Source(path="plain.txt", lang="en"))
    (text_folder / "plain.txt").write_text("\n".join(lines(101)), encoding="utf-8")
    assert len(both(corpus(text_folder, Source(path="plain.txt")))) == 101
    assert len(list((text_folder / "kept").iterdir())) == 7


def test_an_interrupted_build_is_built_again(text_folder, monkeypatch):
    from leafembed.learn import data

    def cut_off(path, rows):
        if path.name == "validation.arrow":
            raise KeyboardInterrupt
        return write(path, rows)

    write = data.write_rows
    monkeypatch.setattr(data, "write_rows", cut_off)
    with pytest.raises(KeyboardInterrupt):
        corpus(text_folder, Source(path="plain.txt"))
    monkeypatch.undo()
    found = corpus(text_folder, Source(path="plain.txt"))
    assert sorted(texts(both(found))) == sorted(lines(100))
    assert len(list((text_folder / "kept").iterdir())) == 1


MEASURE = """
import re, pyarrow, pyarrow.ipc
from pathlib import Path
from leafembed.learn.data import prepare_corpus
from leafembed.recipe_text import DataConfig, Source

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

config = DataConfig(root=Path("."), sources=(Source(path="rows.txt"),))
before = peak()
found = prepare_corpus(config, Path("kept"), seed=0, prompt_name=None)
print(len(found.train), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to read a process's peak memory")
def test_memory_stays_below_the_size_of_the_text(tmp_path):
    body = "word" * 1500  # 6,000 characters a row: 120 MB of text
    with (tmp_path / "rows.txt").open("w", encoding="utf-8") as file:
        file.writelines(f"{i} {body}\n" for i in range(20_000))
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    rows, grown = map(int, done.stdout.split())
    assert rows == 19_000
    assert grown < 100e6  # a third of it are pyarrow's own pages
