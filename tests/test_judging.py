from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import pytest
from conftest import HashEncoder, write_rows
from hub_cache import write_cache
from huggingface_hub import ModelCard
from mteb.mocks import mock_tasks
from tiny import make_model_folder

from leafembed.errors import DataError, ModelError
from leafembed.judge import mteb_run, suites
from leafembed.judge.mteb_run import find_mteb_tasks
from leafembed.judging import Evaluation, Wanted, export_card, export_mteb, judge, judge_beside
from leafembed.opening import Opened

Judge = Callable[[Wanted], Evaluation]


@pytest.fixture
def hashed(tmp_path: Path) -> Judge:
    """Judges an encoder that needs no files."""
    return lambda wanted: judge(Opened("hash", HashEncoder(16), "key"), wanted, cache_dir=tmp_path / "kept")


@pytest.fixture
def mocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """mteb knows its mock task too."""
    known = mteb.get_task
    monkeypatch.setattr(
        mteb_run, "_named", lambda name: [mock_tasks.MockSTSTask() if name == "MockSTSTask" else known(name)]
    )


def test_all_local_tasks_are_scored_where_nothing_is_named(hashed: Judge, eval_data: Path) -> None:
    judged = hashed(Wanted(data=eval_data, max_rows=10, languages=["en"]))
    assert {result.type for result in judged.local} == {
        *("STS", "Classification", "Clustering", "Reranking", "Retrieval")
    }
    assert {result.lang for result in judged.local} == {"en"}
    assert max(result.n for result in judged.local) == 10
    assert judged.report.results == judged.local


@pytest.mark.usefixtures("mocks", "cache")
def test_mteb_alone_needs_no_local_data(hashed: Judge, tmp_path: Path) -> None:
    judged = hashed(Wanted(data=tmp_path, mteb=["MockSTSTask", "STS12"]))
    assert [result.task for result in judged.report.results] == ["mteb/MockSTSTask"]
    assert set(judged.missing) == {"STS12"}
    with pytest.raises(DataError, match=r"nothing was scored, since no data is there\. STS12: mteb/sts12-sts: Couldn"):
        hashed(Wanted(data=tmp_path, mteb=["STS12"]))


@pytest.mark.usefixtures("mocks")
def test_local_tasks_and_mteb_are_exported_together(hashed: Judge, eval_data: Path, tmp_path: Path) -> None:
    wanted = Wanted(data=eval_data, tasks=["sts/toy.test"], mteb=["MockSTSTask"])
    judged = hashed(wanted)
    assert len(judged.report.results) == 3
    assert export_mteb(tmp_path / "results", judged) == 2
    assert len(list((tmp_path / "results").rglob("*.json"))) == 3
    export_card(tmp_path / "card.md", judged)
    card = ModelCard.load(tmp_path / "card.md")
    assert [each.dataset_type for each in card.data.eval_results] == ["sts/toy.test", "sts/toy.test", "NA"]


def test_a_suite_scores_each_task_where_its_data_is(
    hashed: Judge,
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
    judged = hashed(Wanted(data=eval_data, suite="mine"))
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


@pytest.mark.usefixtures("cache")
def test_a_local_set_without_the_wanted_rows_is_missing_and_ends_no_suite(
    hashed: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"sentence1": f"a b{i}", "sentence2": f"a b{i % 3}", "score": float(i), "lang": "en"} for i in range(60)]
    write_rows(tmp_path / "sts/english.test.jsonl", rows)
    write_rows(tmp_path / "sts/few.test.jsonl", rows[:9])
    english = suites.Counterpart("sts/english.test", differs="English")
    members = (
        suites.Member("in French", "STS22", ("fr",), local=english),
        suites.Member("across languages", "STS17", ("en-de",), local=suites.Counterpart("sts/english.test@cross")),
        suites.Member("few rows", "STS13", local=suites.Counterpart("sts/few.test")),
        suites.Member("there", "STS12", local=english),
    )
    monkeypatch.setattr(suites, "SUITES", {"mine": members})
    judged = hashed(Wanted(data=tmp_path, suite="mine"))
    assert [(result.task, result.lang) for result in judged.report.results] == [("sts/english.test", "en")]
    assert [(each["member"], each["data"], each["local"], each["differs"]) for each in judged.members] == [
        ("in French", "missing", "", ""),
        ("across languages", "missing", "", ""),
        ("few rows", "missing", "", ""),
        ("there", "local", "sts/english.test", "English"),
    ]
    assert judged.missing["STS22"] == (
        "sts/english.test: holds no row to score in the languages ['fr']; --fetch asks the hub"
    )
    assert "got the languages ['en'], expected en and another one" in judged.missing["STS17"]
    assert "got too few rows in every language, {'en': 9} in sts/few.test" in judged.missing["STS13"]
    monkeypatch.setattr(suites, "SUITES", {"mine": members[:1]})
    with pytest.raises(DataError, match=r"nothing was scored.*STS22: sts/english\.test: holds no row"):
        hashed(Wanted(data=tmp_path, suite="mine"))
    (tmp_path / "sts/few.test.jsonl").write_text("{", encoding="utf-8")  # damaged, which is another matter
    monkeypatch.setattr(suites, "SUITES", {"mine": members[2:]})
    with pytest.raises(DataError, match="malformed JSON"):
        hashed(Wanted(data=tmp_path, suite="mine"))


def test_what_the_hub_gives_is_scored_and_what_it_does_not_is_missing(
    hashed: Judge, cache: Path, eval_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = suites.Counterpart("sts/toy.test")
    members = (suites.Member("there", "STSBenchmark"), suites.Member("not there", "STS12", local=stand_in))
    monkeypatch.setattr(suites, "SUITES", {"mine": members})
    monkeypatch.setattr(suites, "is_cached", lambda task: False)  # what loads it asks in its own way
    (task,) = find_mteb_tasks(["STSBenchmark"])
    rows = [{"sentence1": f"a b{i}", "sentence2": f"a b{i % 3}", "score": float(i)} for i in range(9)]
    write_cache(cache, "mteb/stsbenchmark-sts", {"test": rows}, task.metadata.revision)
    judged = hashed(Wanted(data=eval_data, suite="mine", fetch=True))
    assert [result.task for result in judged.report.results] == ["mteb/STSBenchmark"]
    assert [(each["member"], each["data"]) for each in judged.members] == [("there", "hub"), ("not there", "missing")]
    assert "mteb/sts12" in judged.missing["STS12"]


def test_subsets_that_members_share_are_scored_once(
    hashed: Judge, monkeypatch: pytest.MonkeyPatch, eval_data: Path
) -> None:
    members = (suites.Member("a", "STS17", ("en-de",)), suites.Member("b", "STS17", ("en-de", "en-ar")))
    monkeypatch.setattr(suites, "SUITES", {"mine": members})
    asked: list[tuple[str, list[str]]] = []

    def run(encoder: object, tasks: list[Any], **_: object) -> mteb_run.MtebRun:
        asked.extend((task.metadata.name, list(task.hf_subsets)) for task in tasks)
        return mteb_run.MtebRun((), (), {}, {task.metadata.name: "not here" for task in tasks})

    monkeypatch.setattr(mteb_run, "run_mteb", run)
    with pytest.raises(DataError, match="nothing was scored"):
        hashed(Wanted(data=eval_data, suite="mine", fetch=True))
    ((name, subsets),) = asked
    assert (name, sorted(subsets)) == ("STS17", ["en-ar", "en-de"])


def test_a_local_name_that_means_nothing_is_an_error(hashed: Judge, tmp_path: Path) -> None:
    write_rows(tmp_path / "bitext/a.jsonl", [{"sentence1": "a", "sentence2": "b", "lang_pair": "deu-eng"}])
    with pytest.raises(DataError, match="no task 'bitext/b'"):
        hashed(Wanted(data=tmp_path, tasks=["bitext/b"]))


@pytest.mark.usefixtures("mocks")
def test_what_mteb_scored_is_in_no_interval(hashed: Judge, eval_data: Path) -> None:
    local = ["sts/toy.test", "bitext/toy"]
    alone = hashed(Wanted(data=eval_data, tasks=local, max_rows=40)).report
    assert set(alone.intervals) == {"STS", "BitextMining", "mean"}
    mixed = hashed(Wanted(data=eval_data, tasks=local, max_rows=40, mteb=["MockSTSTask"])).report
    assert mixed.results[: len(alone.results)] == alone.results
    assert mixed.intervals == {"BitextMining": alone.intervals["BitextMining"]}
    assert [result.interval for result in mixed.results[len(alone.results) :]] == [None]


def test_a_task_that_is_named_and_in_the_suite_is_scored_once(
    hashed: Judge, eval_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        suites, "SUITES", {"mine": (suites.Member("one", "STS12", local=suites.Counterpart("sts/toy.test")),)}
    )
    judged = hashed(Wanted(data=eval_data, tasks=["sts/toy.test", "retrieval/*", "bitext/toy"], suite="mine"))
    assert [(result.task, result.lang) for result in judged.local] == [("sts/toy.test", lang) for lang in ("de", "en")]
    few = [(few.task, few.n) for few in judged.report.too_few]
    assert few == [("retrieval/toy_de", 30), ("retrieval/toy_en", 30), ("bitext/toy", 40)]


def test_results_are_found_again_and_a_part_has_its_own(
    eval_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"{lang}{i}" for lang in ("en", "de") for i in range(500)]
    folder = str(
        make_model_folder(tmp_path / "m", vocab=["[PAD]", "[UNK]", "[CLS]", *words], dim=32, max_seq_length=32)
    )
    wanted = Wanted(data=eval_data, tasks=["sts/toy.test"])
    part, whole = judge_beside(f"{folder}@dim=4", folder, wanted, cache_dir=tmp_path / "cache")
    assert whole is not None
    assert (part.report.model.dim, whole.report.model.dim) == (4, 32)
    assert part.report.mean < whole.report.mean
    again, none = judge_beside(f"{folder}@dim=4", None, wanted, cache_dir=tmp_path / "cache")
    assert (again.report, none) == (part.report, None)
    counts = [line.rpartition("results, ")[2] for line in capsys.readouterr().err.splitlines() if "from before" in line]
    assert ["texts encoded" in count for count in counts] == [True, False, False]  # the vectors of one serve the other
    assert [count.split(" ")[0] for count in counts] == ["0", "0", "2"]


def test_a_reference_that_there_is_not_costs_no_time(eval_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        judge_beside("floor:random", "./nowhere", Wanted(data=eval_data), cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())
