from __future__ import annotations

from pathlib import Path

import mteb
import pytest
from conftest import HashEncoder
from hub_cache import write_cache
from mteb.mocks import mock_tasks

from leafembed.errors import DataError
from leafembed.judge.evaluate import evaluate
from leafembed.judge.mteb_run import find_mteb_tasks, is_cached, run_mteb
from leafembed.judge.tasks import load_tasks


def test_a_task_of_mteb_runs_from_the_cache_without_a_hub(cache: Path, eval_data: Path) -> None:
    from leafembed.text import read_rows

    (task,) = find_mteb_tasks(["STSBenchmark"])
    assert not is_cached(task)
    rows = read_rows(eval_data / "sts/toy.test.jsonl", texts=("sentence1", "sentence2"), names=("lang",),
                     numbers=("score",))  # fmt: skip
    german = [{key: row[key] for key in ("sentence1", "sentence2", "score")} for row in rows if row["lang"] == "de"]
    write_cache(cache, "mteb/stsbenchmark-sts", {"test": german}, task.metadata.revision)
    assert is_cached(task)
    run = run_mteb(HashEncoder(16), [task])
    (result,) = run.results
    assert not run.missing
    assert (result.task, result.type, result.lang, result.n) == ("mteb/STSBenchmark", "STS", "en", len(german))
    assert result.data == task.metadata.revision
    assert run.datasets == {"mteb/STSBenchmark": "mteb/stsbenchmark-sts"}
    ours = evaluate(HashEncoder(16), load_tasks(eval_data, ["sts/toy.test"], languages=["de"]))
    assert result.main_score == pytest.approx(ours.results[0].main_score, abs=1e-5)


def test_data_that_cannot_be_had_is_told_with_the_reason(cache: Path) -> None:
    started: list[str] = []
    tasks = [*find_mteb_tasks(["STSBenchmark", "SciFact"]), mock_tasks.MockSTSTask(), mock_tasks.MockVisualSTSTask()]
    run = run_mteb(HashEncoder(8), tasks, on_task=started.append)
    assert started == ["MockSTSTask"]
    assert [result.task for result in run.results] == ["mteb/MockSTSTask"]
    assert set(run.missing) == {"STSBenchmark", "SciFact", "MockVisualSTS"}
    assert "mteb/stsbenchmark-sts: Couldn't reach" in run.missing["STSBenchmark"]
    assert "these models read text" in run.missing["MockVisualSTS"]


def test_every_split_and_subset_is_a_result_of_its_own() -> None:
    run = run_mteb(HashEncoder(8), [mock_tasks.MockMultilingualRetrievalTask()])
    assert [(result.task.partition("Task")[2], result.lang, result.split, result.n) for result in run.results] == [
        ("@val", "eng", "val", 2),
        ("@val", "fra", "val", 2),
        ("", "eng", "test", 2),
        ("", "fra", "test", 2),
    ]
    assert len(run.native) == 1
    assert {result.metric for result in run.results} == {"ndcg_at_10"}


def test_an_aggregate_is_one_result() -> None:
    (result,) = run_mteb(HashEncoder(8), [mock_tasks.MockAggregatedTask()]).results
    assert (result.lang, result.n) == ("en", 4)


def test_names_are_tasks_or_benchmarks_each_task_once() -> None:
    names = [task.metadata.name for task in find_mteb_tasks(["STS12", "MTEB(eng, v2)", "STSBenchmark"])]
    assert names[0] == "STS12"
    assert len(names) == len(set(names)) == 41
    assert find_mteb_tasks(["BEIR"])


def test_an_unknown_name_lists_near_ones() -> None:
    with pytest.raises(DataError, match=r"STSBenchmarc.*Did you mean.*STSBenchmark"):
        find_mteb_tasks(["STSBenchmarc"])
    with pytest.raises(DataError, match=r"MTEB\(eng, v9\).*Did you mean"):
        find_mteb_tasks(["MTEB(eng, v9)"])


def test_languages_and_subsets_narrow_a_task_and_not_mteb_itself() -> None:
    (task,) = find_mteb_tasks(["STS22.v2"], languages=["de", "pl"])
    assert task.hf_subsets == ["de", "pl", "de-en", "pl-en", "de-pl"]
    (task,) = find_mteb_tasks(["STS17"], subsets=["en-de"])
    assert task.hf_subsets == ["en-de"]
    narrowed = find_mteb_tasks(["MTEB(Multilingual, v2)"], languages=["sw"])
    assert 0 < len(narrowed) < 131
    assert len(find_mteb_tasks(["MTEB(Multilingual, v2)"])) == 131
    with pytest.raises(DataError, match="STSBenchmark: got language fr, expected some that mteb has"):
        find_mteb_tasks(["STSBenchmark"], languages=["fr"])
    with pytest.raises(DataError, match="STS17: got subset en-xx, expected some"):
        find_mteb_tasks(["STS17"], subsets=["en-xx"])


def test_the_version_is_the_one_that_is_pinned() -> None:
    pins = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"mteb=={mteb.__version__}" in pins
