"""Commands that score models and hold them against each other."""

from __future__ import annotations

import json

import pytest
from conftest import HashEncoder
from huggingface_hub import constants
from stub_server import serve
from tiny import WORDS, make_model_folder, sample_manifest

from leafembed.ship.bundle import write_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("cli") / "model", prompts={"query": "query: ", "STS": ""})


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("cli") / "bundle", model, sample_manifest())


def test_evaluate_scores_a_bundle_beside_a_reference(leaf, eval_data, tmp_path):
    vocab = [*WORDS, *(f"{lang}{i}" for lang in ("en", "de") for i in range(500))]
    model = make_model_folder(tmp_path / "model", vocab=vocab, dim=64, max_seq_length=32)
    bundle = write_bundle(tmp_path / "bundle", model, sample_manifest())
    argv = ["evaluate", bundle, "--reference", model, "--data", eval_data, "--cache-dir", tmp_path / "cache"]
    argv += ["--tasks", "sts/toy.test", "classification/*", "retrieval/*"]
    status, out, _ = leaf(*argv, "--json")
    data = json.loads(out)
    assert status == 0
    assert {r["task"] for r in data["model"]["results"]} == {"sts/toy.test", "classification/toy"}
    assert all(len(r["interval"]) == 2 for r in data["model"]["results"])
    assert {few["task"] for few in data["model"]["too_few"]} == {"retrieval/toy_de", "retrieval/toy_en"}
    assert data["retention"] == {"STS": 1.0, "Classification": 1.0}
    _, shown, err = leaf(*argv)
    assert "retention" in shown
    assert "too few rows (30)" in shown
    row = next(line for line in shown.splitlines() if line.strip().startswith("sts/toy.test "))
    low, high = data["model"]["results"][0]["interval"]
    assert row.count(f"[{low:.3f}, {high:.3f}]") == 2
    assert err[-1].endswith("3 results, 3 of them from before")


def test_compare_holds_models_against_each_other(leaf, eval_data, tmp_path):
    vocab = [*WORDS, *(f"{lang}{i}" for lang in ("en", "de") for i in range(500))]
    folder = make_model_folder(tmp_path / "model", vocab=vocab, dim=64, max_seq_length=32)
    argv = ["compare", folder, "floor:random", "--reference", "floor:bag-of-words", "--data", eval_data]
    argv += ["--tasks", "sts/toy.test", "--languages", "deu", "--max-rows", 50, "--cache-dir", tmp_path / "cache"]
    status, out, err = leaf(*argv, "--out", tmp_path / "out", "--json")
    data = json.loads(out)
    assert status == 0
    assert [model["label"] for model in data["models"]] == ["tiny", "floor: random", "floor: bag of words"]
    assert {(result["lang"], result["n"]) for model in data["models"] for result in model["results"]} == {("de", 50)}
    assert data["reference"] == "floor: bag of words"
    assert data == json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert str(tmp_path / "out" / "README.md") in err[-1]
    status, shown, err = leaf(*argv)
    assert status == 0
    assert "A above B" in shown
    assert len([line for line in err if "1 results, 1 of them from before" in line]) == 3
    assert leaf("compare", "./nowhere", "--data", eval_data)[0] == 1


def test_a_reference_that_scores_nothing_is_an_error(leaf, bundle, model, eval_data, tmp_path):
    argv = ["--reference", model, "--data", eval_data, "--tasks", "sts/toy.test", "--json", "--cache-dir", tmp_path]
    status, out, err = leaf("evaluate", bundle, *argv)  # every word of these texts is unknown to it
    assert (status, out) == (1, "")
    assert err[-1].startswith("leaf: tiny scores 0.0000 on STS, expected above 0")


def test_evaluate_narrows_to_languages_rows_and_dimensions_and_exports(leaf, eval_data, tmp_path):
    vocab = [*WORDS, *(f"{lang}{i}" for lang in ("en", "de") for i in range(500))]
    model = make_model_folder(tmp_path / "model", vocab=vocab, dim=64, max_seq_length=32)
    argv = [
        "evaluate",
        model,
        "--data",
        eval_data,
        "--tasks",
        "sts/*",
        "sts/*.dev",
        "--languages",
        "de",
        "--max-rows",
        20,
    ]
    argv += ["--dim", 8, "--cache-dir", tmp_path / "cache"]
    exports = ["--export-mteb", tmp_path / "results", "--export-card", tmp_path / "card.md"]
    status, out, err = leaf(*argv, *exports, "--json")
    data = json.loads(out)
    assert status == 0
    assert data["model"]["model"] | {"fingerprint": ""} == data["model"]["model"] | {
        "name": "tiny (dim 8)", "dim": 8, "fingerprint": ""
    }  # fmt: skip
    assert {(r["task"], r["lang"], r["n"]) for r in data["model"]["results"]} == {
        ("sts/toy.test", "de", 20), ("sts/toy.dev", "de", 20)
    }  # fmt: skip
    assert (data["missing"], data["suite"]) == ({}, [])
    assert f"2 result files of mteb below {tmp_path / 'results' / 'results'}" in err
    assert f"model-index of 2 results in {tmp_path / 'card.md'}" in err
    assert len(list((tmp_path / "results").rglob("experiments/embed_dim_8/sts-*.json"))) == 2
    _, shown, _ = leaf(*argv, "--reference", model)
    assert ["tiny (dim 8)", "tiny"] == [
        line.split("  ")[0].strip() for line in shown.splitlines() if "tiny" in line[:9]
    ]
    for part, message in (
        (["--dim", 65], "dim of tiny: got 65, expected 1 to 64"),
        (["--exit", 3], "exit of tiny: got 3"),
    ):
        status, _, err = leaf("evaluate", model, "--data", eval_data, "--cache-dir", tmp_path / "cache", *part)
        assert (status, len(err)) == (1, 1)
        assert message in err[0]


def test_evaluate_shows_what_of_a_suite_is_here(leaf, eval_data, tmp_path, monkeypatch):
    from leafembed.judge import suites

    vocab = [*WORDS, *(f"{lang}{i}" for lang in ("en", "de") for i in range(500))]
    model = make_model_folder(tmp_path / "model", vocab=vocab, dim=64, max_seq_length=32)
    toy = suites.Counterpart("sts/toy.test", differs="a toy")
    monkeypatch.setattr(
        suites, "SUITES", {"mine": (suites.Member("here", "STS12", local=toy), suites.Member("not", "STS13"))}
    )
    argv = ["evaluate", model, "--data", eval_data, "--suite", "mine", "--cache-dir", tmp_path / "cache"]
    status, out, err = leaf(*argv)
    assert status == 0
    assert "sts/toy.test (a toy)" in out
    assert "not scored: STS13: neither in the cache nor among the local files; --fetch asks the hub" in err
    status, _, err = leaf(*argv, "--languages", "de")
    assert (status, len(err)) == (1, 1)
    assert "--languages: got de, expected none beside --suite" in err[0]
    status, _, err = leaf("evaluate", model, "--data", eval_data, "--fetch")
    assert (status, len(err)) == (1, 1)
    assert "--fetch: got it without --suite" in err[0]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, _, err = leaf(*argv, "--fetch")
    assert (status, len(err)) == (1, 1)
    assert "--fetch: got HF_HUB_OFFLINE=1, expected a hub to ask" in err[0]


def test_a_model_at_a_url_needs_its_name_and_hides_no_key(leaf, eval_data, tmp_path):
    argv = ["--data", eval_data, "--tasks", "sts/toy.dev", "--max-rows", 20, "--json", "--cache-dir", tmp_path]
    with serve(HashEncoder(16)) as stub:
        status, out, _ = leaf("evaluate", f"hash-16@{stub.url}", *argv)
        assert status == 0
        assert json.loads(out)["model"]["model"]["name"] == "hash-16"
        status, _, err = leaf("evaluate", stub.url, *argv)
        assert (status, len(err)) == (1, 1)
        assert "expected NAME@URL" in err[0]
    status, _, err = leaf("evaluate", "a@http://me:secret@127.0.0.1/v1", *argv)
    assert status == 1
    assert "secret" not in err[0]


def test_an_unknown_task_is_an_error_that_names_near_ones(leaf, bundle, eval_data):
    status, _, err = leaf("evaluate", bundle, "--data", eval_data, "--tasks", "sts/toy.tset")
    assert (status, len(err)) == (1, 1)
    assert "sts/toy.test" in err[0]
