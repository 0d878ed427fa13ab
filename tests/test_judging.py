from __future__ import annotations

from pathlib import Path

import mteb
import pytest
from conftest import HashEncoder, write_rows
from hub_cache import write_cache
from huggingface_hub import ModelCard
from mteb.mocks import mock_tasks

from leafembed.errors import DataError
from leafembed.judge import mteb_run, suites
from leafembed.judge.mteb_run import find_mteb_tasks
from leafembed.judging import Wanted, export_card, export_mteb, judge


@pytest.fixture
def mocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """mteb knows its mock task too."""
    known = mteb.get_task
    monkeypatch.setattr(
        mteb_run, "_named", lambda name: [mock_tasks.MockSTSTask() if name == "MockSTSTask" else known(name)]
    )


def test_all_local_tasks_are_scored_where_nothing_is_named(eval_data: Path) -> None:
    judged = judge(HashEncoder(16), Wanted(data=eval_data, max_rows=10, languages=["en"]))
    assert {result.type for result in judged.local} == {
        *("STS", "Classification", "Clustering", "Reranking", "Retrieval")
    }
    assert {result.lang for result in judged.local} == {"en"}
    assert max(result.n for result in judged.local) == 10
    assert judged.report.results == judged.local


@pytest.mark.usefixtures("mocks", "cache")
def test_mteb_alone_needs_no_local_data(tmp_path: Path) -> None:
    judged = judge(HashEncoder(16), Wanted(data=tmp_path, mteb=["MockSTSTask", "STS12"]))
    assert [result.task for result in judged.report.results] == ["mteb/MockSTSTask"]
    assert set(judged.missing) == {"STS12"}
    with pytest.raises(DataError, match=r"nothing was scored, since no data is there\. STS12: mteb/sts12-sts: Couldn"):
        judge(HashEncoder(16), Wanted(data=tmp_path, mteb=["STS12"]))


@pytest.mark.usefixtures("mocks")
def test_local_tasks_and_mteb_are_exported_together(eval_data: Path, tmp_path: Path) -> None:
    wanted = Wanted(data=eval_data, tasks=["sts/toy.test"], mteb=["MockSTSTask"])
    judged = judge(HashEncoder(16), wanted)
    assert len(judged.report.results) == 3
    assert export_mteb(tmp_path / "results", judged) == 2
    assert len(list((tmp_path / "results").rglob("*.json"))) == 3
    export_card(tmp_path / "card.md", judged)
    card = ModelCard.load(tmp_path / "card.md")
    assert [each.dataset_type for each in card.data.eval_results] == ["sts/toy.test", "sts/toy.test", "NA"]


def test_a_suite_scores_each_task_where_its_data_is(
    cache: Path,
    tmp_path: Path,
    eval_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members = (
        suites.Member("from the cache", "STSBenchmark"),
        suites.Member("the same", "STSBenchmark"),
        suites.Member("from a file", "STS12", local=suites.Counterpart("sts/toy.test", differs="a toy")),
        suites.Member("the same file", "STS13", local=suites.Counterpart("sts/toy.test")),
        suites.Member("nowhere", "STS14"),
    )
    monkeypatch.setattr(suites, "SUITES", {"mine": members})
    (task,) = find_mteb_tasks(["STSBenchmark"])
    rows = [{"sentence1": f"a b{i}", "sentence2": f"a b{i % 3}", "score": float(i)} for i in range(9)]
    write_cache(cache, "mteb/stsbenchmark-sts", {"test": rows}, task.metadata.revision)
    judged = judge(HashEncoder(16), Wanted(data=eval_data, suite="mine"))
    assert [(result.task, result.lang, result.n) for result in judged.report.results] == [
        ("sts/toy.test", "en", 60),
        ("mteb/STSBenchmark", "en", 9),
    ]
    assert [(each["member"], each["data"], each["local"], each["differs"]) for each in judged.members] == [
        ("from the cache", "cache", "", ""),
        ("the same", "cache", "", ""),
        ("from a file", "local", "sts/toy.test", "a toy"),
        ("the same file", "local", "sts/toy.test", ""),
        ("nowhere", "missing", "", ""),
    ]
    assert set(judged.missing) == {"STS14"}
    assert not (tmp_path / "results").exists()


def test_a_local_name_that_means_nothing_is_an_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "bitext/a.jsonl", [{"sentence1": "a", "sentence2": "b", "lang_pair": "deu-eng"}])
    with pytest.raises(DataError, match="no task 'bitext/b'"):
        judge(HashEncoder(16), Wanted(data=tmp_path, tasks=["bitext/b"]))
