from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from conftest import HashEncoder, write_rows
from tiny import make_model_folder

from leafembed import comparing
from leafembed.comparing import judge_all, read_tasks
from leafembed.errors import ModelError
from leafembed.judge.evaluate import evaluate
from leafembed.opening import Opened
from leafembed.ship.encoder import BundleEncoder

NAMES = ("sts/toy.test", "classification/toy")


class Interrupted(HashEncoder):
    """Is stopped after so many calls."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def encode(self, texts, *, prompt_name=None):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().encode(texts, prompt_name=prompt_name)


@pytest.fixture
def tasks(eval_data):
    return read_tasks(eval_data, NAMES)


@pytest.fixture
def folder(tmp_path):
    words = [f"{lang}{i}" for lang in ("en", "de") for i in range(500)]
    return make_model_folder(tmp_path / "model", vocab=["[PAD]", "[UNK]", "[CLS]", *words], dim=32, max_seq_length=32)


def scored(judged):
    return [dict(result.scores) for result in judged.report.results]


def parts_scored(monkeypatch):
    """Task and language of what is computed, and not found, from here on."""
    seen, score = [], comparing.score_part

    def remembered(encoder, task, part):
        seen.append((task.id, part.lang))
        return score(encoder, task, part)

    monkeypatch.setattr(comparing, "score_part", remembered)
    return seen


def test_scores_are_those_of_evaluate_and_are_found_again(folder, tasks, tmp_path, monkeypatch):
    (one,) = judge_all([str(folder)], tasks, cache_dir=tmp_path / "cache")
    report = evaluate(BundleEncoder(folder), tasks)
    for mine, theirs in zip(one.report.results, report.results, strict=True):
        assert dict(mine.scores) == pytest.approx(dict(theirs.scores), abs=1e-6)
        assert mine.interval == pytest.approx(theirs.interval, abs=1e-6)
    seen = parts_scored(monkeypatch)
    (again,) = judge_all([str(folder)], tasks, cache_dir=tmp_path / "cache")
    assert seen == []
    assert again.report == one.report
    assert all((a == b).all() for a, b in zip(again.draws, one.draws, strict=True))


def test_only_what_is_new_is_computed(folder, eval_data, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    judge_all([str(folder)], read_tasks(eval_data, ["sts/toy.test"], languages=["de"]), cache_dir=cache)
    seen = parts_scored(monkeypatch)
    judge_all([str(folder)], read_tasks(eval_data, NAMES), cache_dir=cache)
    assert seen == [("sts/toy.test", "en"), ("classification/toy", "en")]
    seen.clear()
    judge_all([str(folder), "floor:random"], read_tasks(eval_data, ["sts/toy.test"]), cache_dir=cache)
    assert seen == [("sts/toy.test", "de"), ("sts/toy.test", "en")]  # the floor alone


def test_an_interrupted_comparison_goes_on(tasks, tmp_path, monkeypatch, capsys):
    encoders = iter([Interrupted(1), Interrupted(100)])
    monkeypatch.setattr(comparing, "locate", lambda spec, **_: spec)
    monkeypatch.setattr(comparing, "open_model", lambda spec, **_: Opened(spec, next(encoders), "key"))
    with pytest.raises(KeyboardInterrupt):
        judge_all(["model"], tasks, cache_dir=tmp_path)
    assert len(list(tmp_path.rglob("*.json"))) == 1
    seen = parts_scored(monkeypatch)
    judge_all(["model"], tasks, cache_dir=tmp_path)
    assert seen == [("sts/toy.test", "en"), ("classification/toy", "en")]
    assert "model 1 of 1, hash: 3 results, 1 of them from before" in capsys.readouterr().err


def test_a_text_in_several_tasks_is_embedded_once(folder, eval_data, tmp_path, monkeypatch):
    shutil.copytree(eval_data, tmp_path / "data")
    shutil.copy(tmp_path / "data/sts/toy.test.jsonl", tmp_path / "data/sts/same.test.jsonl")
    asked, encode = [], BundleEncoder.encode

    def remembered(self, texts, **options):
        asked.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(BundleEncoder, "encode", remembered)
    tasks = read_tasks(tmp_path / "data", ["sts/toy.test", "sts/same.test"])
    (one,) = judge_all([str(folder)], tasks, cache_dir=tmp_path / "cache")
    assert len(asked) == len(set(asked)) > 200
    assert scored(one)[:2] == scored(one)[2:]


def test_other_data_and_damaged_results_are_computed_again(folder, eval_data, tmp_path, monkeypatch):
    shutil.copytree(eval_data, tmp_path / "data")
    specs = [str(folder), "floor:bag-of-words"]
    before = judge_all(specs, read_tasks(tmp_path / "data", ["sts/toy.test"]), cache_dir=tmp_path / "cache")
    seen = parts_scored(monkeypatch)
    path = tmp_path / "data/sts/toy.test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    write_rows(path, [{**row, "score": 1 - row["score"]} if row["lang"] == "en" else row for row in rows])
    after = judge_all(specs, read_tasks(tmp_path / "data", ["sts/toy.test"]), cache_dir=tmp_path / "cache")
    assert seen == [("sts/toy.test", "en")] * 2
    assert after[0].report.score("sts/toy.test", "en") == -before[0].report.score("sts/toy.test", "en")
    seen.clear()
    write_rows(path, [*rows, {**rows[0], "sentence1": "un autre", "lang": "fr"}])  # not scored, but its words count
    judge_all(specs, read_tasks(tmp_path / "data", ["sts/toy.test"]), cache_dir=tmp_path / "cache")
    assert seen == [("sts/toy.test", lang) for lang in ("de", "en")]
    seen.clear()
    for stored in (tmp_path / "cache" / "judged").rglob("*.json"):
        stored.write_text(stored.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    judge_all(specs, read_tasks(tmp_path / "data", ["sts/toy.test"]), cache_dir=tmp_path / "cache")
    assert len(seen) == 4


def test_models_of_one_name_are_told_apart_by_what_they_were_named_by(folder, tasks, tmp_path):
    other = make_model_folder(tmp_path / "other")
    specs = [str(folder), str(other), "floor:random", str(folder)]
    models = judge_all(specs, tasks, cache_dir=tmp_path / "cache")
    assert [model.label for model in models] == [str(folder), str(other), "floor: random"]


def test_a_typing_error_costs_no_time(folder, tasks, tmp_path, monkeypatch):
    seen = parts_scored(monkeypatch)
    with pytest.raises(ModelError, match="no such folder"):
        judge_all([str(folder), "./nowhere"], tasks, cache_dir=tmp_path / "cache")
    assert seen == []


def test_too_few_rows_are_said_and_not_scored(eval_data, tmp_path):
    tasks = read_tasks(eval_data, ["sts/toy.test", "retrieval/*"])
    (one,) = judge_all(["floor:random"], tasks, cache_dir=tmp_path)
    assert [(few.task, few.n) for few in one.report.too_few] == [("retrieval/toy_de", 30), ("retrieval/toy_en", 30)]
    assert set(one.scores) == {"STS", "mean"}
    assert np.isfinite(list(one.scores.values())).all()
