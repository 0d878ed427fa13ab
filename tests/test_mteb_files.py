from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mteb
import pytest
from conftest import HashEncoder
from mteb.mocks import mock_tasks

from leafembed.judge.evaluate import evaluate
from leafembed.judge.mteb_files import write_mteb_results
from leafembed.judge.mteb_model import model_meta
from leafembed.judge.mteb_run import run_mteb
from leafembed.judge.tasks import load_tasks
from leafembed.judge.views import View
from leafembed.reports import EvalReport, TaskResult

NAMES = ("sts/toy.test", "sts/toy.dev", "bitext/toy", "pair/toy@dev", "retrieval/toy_en")


@pytest.fixture
def encoder() -> HashEncoder:
    encoder = HashEncoder(16, name="org/model")
    encoder.ref = replace(encoder.ref, fingerprint="f" * 16)
    return encoder


@pytest.fixture
def report(encoder: HashEncoder, eval_data: Path) -> EvalReport:
    return evaluate(encoder, load_tasks(eval_data, NAMES))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_mteb_reads_back_what_was_written(tmp_path: Path, encoder: HashEncoder, report: EvalReport) -> None:
    native = run_mteb(encoder, [mock_tasks.MockSTSTask()]).native
    written = write_mteb_results(tmp_path / "results of mine", encoder, report.results, native)
    tasks = ["sts-toy.test", "sts-toy.dev", "bitext-toy", "pair-toy@dev", "retrieval-toy_en", "MockSTSTask"]
    base = f"results/org__model/{'f' * 16}"
    assert files(tmp_path / "results of mine") == {
        *(f"{base}/{task}.json" for task in tasks),
        f"{base}/model_meta.json",
        f"{base}/run_settings.jsonl",
    }
    assert written == [tmp_path / "results of mine" / base / f"{task}.json" for task in tasks]
    cache = mteb.ResultCache(tmp_path / "results of mine")
    found = cache.load_results(models=[model_meta(encoder)], include_remote=False)
    (model,) = found.model_results
    assert (model.model_name, model.model_revision) == ("org/model", "f" * 16)
    assert set(found.to_dataframe()["task_name"]) == set(tasks)
    for result in report.results:
        (loaded,) = [each for each in model.task_results if each.task_name == result.task.replace("/", "-")]
        (entry,) = [each for each in loaded.scores[result.split] if each["hf_subset"] == result.lang]
        assert entry["main_score"] == entry[result.metric] == pytest.approx(result.main_score, abs=1e-6)
        assert loaded.mteb_version is None


def test_languages_are_those_that_mteb_filters_by(tmp_path: Path, encoder: HashEncoder, report: EvalReport) -> None:
    write_mteb_results(tmp_path, encoder, report.results, ())
    cache = mteb.ResultCache(tmp_path)
    sts = cache.load_task_result("sts-toy.test", model_meta(encoder))
    by_lang = {result.lang: result.main_score for result in report.results if result.task == "sts/toy.test"}
    assert sts.get_score(languages=["deu"]) == pytest.approx(by_lang["de"], abs=1e-6)
    assert sts.get_score() == pytest.approx(sum(by_lang.values()) / 2, abs=1e-6)
    bitext = cache.load_task_result("bitext-toy", model_meta(encoder))
    assert sorted(bitext.languages) == ["deu", "eng"]
    write_mteb_results(tmp_path, encoder, [replace(report.results[0], task="sts/variant", lang="en_ext")], ())
    assert cache.load_task_result("sts-variant", model_meta(encoder)).languages == ["eng"]


def test_the_revision_of_the_data_follows_the_data(tmp_path: Path, encoder: HashEncoder, report: EvalReport) -> None:
    revisions = set()
    for number, data in enumerate(("a" * 16, "b" * 16)):
        (result, *_) = report.results
        write_mteb_results(tmp_path / str(number), encoder, [replace(result, data=data)], ())
        loaded = mteb.ResultCache(tmp_path / str(number)).load_task_result("sts-toy.test", model_meta(encoder))
        revisions.add(loaded.dataset_revision)
    assert len(revisions) == 2


def test_a_part_of_a_model_has_a_folder_of_its_own(tmp_path: Path, encoder: HashEncoder, report: EvalReport) -> None:
    for each in (encoder, View(encoder, dim=4)):
        write_mteb_results(tmp_path, each, report.results[:1], ())
    assert f"results/org__model/{'f' * 16}/experiments/embed_dim_4/sts-toy.test.json" in files(tmp_path)
    everything = mteb.ResultCache(tmp_path).load_results(include_remote=False, load_experiments="match_name")
    assert len(everything.model_results) == 2


def test_a_second_call_adds_and_replaces(tmp_path: Path, encoder: HashEncoder, report: EvalReport) -> None:
    write_mteb_results(tmp_path, encoder, report.results[:1], ())
    (result,) = report.results[:1]
    better = TaskResult(**{name: getattr(result, name) for name in result.__dataclass_fields__} | {"main_score": 1.0})
    write_mteb_results(tmp_path, encoder, [better, *report.results[-1:]], ())
    cache = mteb.ResultCache(tmp_path)
    assert cache.load_task_result("sts-toy.test", model_meta(encoder)).get_score() == 1.0
    assert cache.load_task_result("retrieval-toy_en", model_meta(encoder)) is not None
    settings = (tmp_path / f"results/org__model/{'f' * 16}/run_settings.jsonl").read_text(encoding="utf-8")
    assert {json.loads(line)["task"] for line in settings.splitlines()} == {"sts-toy.test", "retrieval-toy_en"}
    assert not list(tmp_path.glob(".partial*"))


def test_nothing_is_left_of_a_call_that_fails(
    tmp_path: Path, encoder: HashEncoder, report: EvalReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(mteb.ResultCache, "save_to_cache", fail)
    with pytest.raises(OSError, match="disk full"):
        write_mteb_results(tmp_path, encoder, report.results, ())
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("task", "split"),
    [
        *[("sts/a.test", "test"), ("sts/a.dev", "dev"), ("sts/a.dev@cross", "dev"), ("sts/a.de", "test")],
        *[("pair/a@valid", "valid"), ("bitext/a", "test"), ("mteb/A.v2", "test"), ("mteb/A.v2@val", "val")],
    ],
)
def test_the_split_is_part_of_a_task_id(report: EvalReport, task: str, split: str) -> None:
    assert replace(report.results[0], task=task).split == split
