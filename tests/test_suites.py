from __future__ import annotations

from pathlib import Path

import pytest
from hub_cache import write_cache

from leafembed.errors import DataError
from leafembed.judge import suites
from leafembed.judge.mteb_run import find_mteb_tasks
from leafembed.judge.suites import COUNTERPARTS, SUITES, Found, open_suite

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "data" / "eval"


def located(found: list[Found], member: str) -> dict[str, str]:
    return {each.name: each.where for each in found if each.member == member}


def test_every_name_is_one_that_mteb_knows() -> None:
    for name in COUNTERPARTS:
        assert find_mteb_tasks([name])
    for members in SUITES.values():
        for member in members:
            tasks = find_mteb_tasks([member.mteb], subsets=member.subsets)
            assert not member.subsets or sorted(tasks[0].hf_subsets) == sorted(member.subsets)


@pytest.mark.usefixtures("cache")
def test_the_first_models_set_says_of_each_member_what_is_here(tmp_path: Path) -> None:
    found = open_suite("first-model", SHIPPED)
    assert list(dict.fromkeys(each.member for each in found)) == [member.name for member in SUITES["first-model"]]
    assert located(found, "STSBenchmark") == {"STSBenchmark": "missing"}
    english = located(found, "MTEB, English")
    assert len(english) == 41
    assert {name for name, where in english.items() if where == "local"} == {"STS17", "Banking77Classification"}
    # Of STS17 the file here holds English alone: it cannot stand for the pairs of languages.
    assert located(found, "cross-lingual STS") == {"STS17": "missing"}
    assert {each.where for each in open_suite("first-model", tmp_path)} == {"missing"}


def test_data_of_mteb_in_the_cache_goes_before_local_files(cache: Path) -> None:
    write_cache(cache, "mteb/banking77", {"test": [{"text": "a", "label": 0}]}, "c" * 40)
    found = [each for each in open_suite("first-model", SHIPPED) if each.name == "Banking77Classification"]
    assert [(each.where, each.local) for each in found] == [("cache", None)] * len(found)


def test_what_may_be_fetched_is_mtebs_own_data_and_no_stand_in(cache: Path) -> None:
    write_cache(cache, "mteb/banking77", {"test": [{"text": "a", "label": 0}]}, "c" * 40)
    found = open_suite("first-model", SHIPPED, fetch=True)
    assert {(each.where, each.local) for each in found} == {("cache", None), ("hub", None)}
    assert {each.name for each in found if each.where == "cache"} == {"Banking77Classification"}


@pytest.mark.usefixtures("cache")
def test_the_languages_are_those_of_the_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    members = (suites.Member("pairs", "STS17", ("en-de", "es-en")), suites.Member("one", "STSBenchmark"))
    monkeypatch.setattr(suites, "SUITES", {"mine": members})
    pairs, one = open_suite("mine", SHIPPED)
    assert pairs.languages == ["de", "en", "es"]
    assert one.languages == ["en"]


def test_an_unknown_suite_lists_those_there_are() -> None:
    with pytest.raises(DataError, match=r"suite: got 'mine', expected one of \['first-model'\]"):
        open_suite("mine", SHIPPED)
