"""A student's queries in its teacher's index."""

import json
import tracemalloc

import numpy as np
import pytest
from conftest import HashEncoder
from served import make_bundle, serving

from leafembed.cli import main
from leafembed.errors import ModelError
from leafembed.indexing import compare_index
from leafembed.judge import overlap
from leafembed.judge.overlap import index_overlap


def unit(*rows):
    vectors = np.array(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


DOCUMENTS = unit([1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9])


def test_by_hand():
    teacher, student = unit([1, 0], [0, 1]), unit([1, 0.01], [1, 0])
    found = index_overlap(DOCUMENTS, teacher, student, k=2)
    assert found["overlap"] == 0.5  # the first query finds both, the second none of the teacher's
    assert (found["first_kept"], found["same_first"]) == (0.5, 0.5)
    assert found["interval"][0] == 0 and found["interval"][1] == 1
    near = (1 + 0.9 / np.hypot(0.9, 0.1)) / 2
    far = (0 + 0.1 / np.hypot(0.9, 0.1)) / 2
    assert found["kept"] == pytest.approx((near + far) / 2 / near, abs=1e-6)
    assert found["cosine"] == pytest.approx((1 / np.hypot(1, 0.01) + 0) / 2, abs=1e-6)


def test_the_same_queries_agree_and_unrelated_ones_do_not():
    encoder = HashEncoder(32)
    documents = encoder.encode([f"a{i} b{i % 7} c{i % 5}" for i in range(60)])
    queries = encoder.encode([f"b{i % 7} c{i % 5}" for i in range(20)])
    assert index_overlap(documents, queries, queries, k=10)["overlap"] == 1
    rng = np.random.default_rng(0)
    found = index_overlap(documents, queries, unit(*rng.standard_normal((20, 32))), k=10)
    assert found["overlap"] < 0.4


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2, 2 and 3 dimensions"):
        index_overlap(DOCUMENTS, unit([1, 0]), unit([1, 0, 0]), k=2)
    with pytest.raises(ValueError, match="got 4 documents, 0 and 0 queries"):
        index_overlap(DOCUMENTS, unit([1, 0])[:0], unit([1, 0])[:0], k=2)


def test_the_command_takes_any_model(tmp_path, capsys):
    bundle = make_bundle(tmp_path)
    (tmp_path / "docs").write_text("red one\ngreen two\nblue three\nred\n", encoding="utf-8")
    (tmp_path / "queries").write_text("red\nblue\n", encoding="utf-8")
    with serving({"leaf": bundle}) as served:
        command = [
            "overlap",
            str(bundle),
            f"leaf-query@{served.url}/v1",
            "--k",
            "2",
            "--cache-dir",
            str(tmp_path / "c"),
        ]
        files = ["--documents", str(tmp_path / "docs"), "--queries", str(tmp_path / "queries")]
        files += ["--cache-dir", str(tmp_path / "c")]
        assert main([*command, *files, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == found | {"documents": 4, "queries": 2, "k": 2, "overlap": 1.0, "same_first": 1.0}
        assert found["cosine"] == pytest.approx(1, abs=1e-5)  # both take the prompt "query"
        assert main([*command, *files]) == 0
    assert "1.000 of the teacher's results are the student's too" in capsys.readouterr().out


def test_a_prompt_that_is_not_there(tmp_path):
    bundle = str(make_bundle(tmp_path))
    with pytest.raises(ModelError, match="got the prompt 'no', expected one of query, document, STS"):
        compare_index(bundle, bundle, ["red"], ["red"], prompts=(None, "no"), cache_dir=tmp_path / "c")
    with pytest.raises(ModelError, match="expected a model with vectors of its own"):
        compare_index(bundle, "floor:bag-of-words", ["red"], ["red"], cache_dir=tmp_path / "c")


def test_memory_does_not_grow_with_queries_times_documents(monkeypatch):
    monkeypatch.setattr(overlap, "_RESAMPLES", 10)  # they take memory by queries alone
    rng = np.random.default_rng(0)
    documents, queries = (unit(*rng.standard_normal((n, 2))) for n in (1500, 2560))
    tracemalloc.start()
    try:
        index_overlap(documents, queries, queries, k=3)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A whole matrix is 15 MB, its order 31 MB; cosines, their negative and their order for 256 queries are 6 MB.
    assert most < 12e6


def test_more_queries_than_one_block_by_hand():
    teacher = np.tile(unit([1, 0], [0, 1]), (300, 1))
    student = np.concatenate([teacher[:450], teacher[450:, ::-1]])  # the last quarter finds what is at right angles
    assert index_overlap(DOCUMENTS, teacher, student, k=1)["kept"] == 0.75
