"""Which engine is chosen of those that were measured; ONNX Runtime's as a candidate."""

from __future__ import annotations

import numpy as np
import pytest
from families import gemma_headless, toy_texts

from leafembed.engines import choose
from leafembed.errors import ModelError, RecipeError
from leafembed.learn.models import load_sentence_transformer
from leafembed.recipe import QuantizeConfig
from leafembed.ship.onnx_dynamic import write_dynamic
from leafembed.ship.onnx_folder import OnnxEncoder

CONFIG = QuantizeConfig(engines=("group-32",))


def figure(name, rate, cosine=0.9999, drop=0.0, why_not=""):
    return {"name": name, "texts_per_second": rate, "cosine_mean": cosine, "drop": drop, "why_not": why_not}


def outcome(*figures):
    result = choose(figures, CONFIG)
    return result["chosen"], [one["outcome"] for one in result["candidates"]]


def test_the_fastest_that_keeps_to_the_bounds_is_taken():
    assert outcome(
        figure("group-128", 100),
        figure("static", 400, cosine=0.9985),
        figure("group-64", 300, drop=0.0021),
        figure("bf16", 500, why_not="vectors would depend on the machine"),
        figure("group-32", 200, cosine=0.999, drop=0.002),
        figure("group-0", 50),
    ) == (
        "group-32",
        [
            "passes, slower than the chosen one",
            "rejected: mean cosine below 0.999",
            "rejected: dev score falls by more than 0.002",
            "rejected: vectors would depend on the machine",
            "chosen",
            "passes, slower than the chosen one",
        ],
    )


def test_what_the_recipe_names_is_kept_unless_another_is_clearly_faster():
    assert outcome(figure("group-128", 100), figure("group-64", 102.9))[0] == "group-128"
    assert outcome(figure("group-128", 100), figure("group-64", 103.1))[0] == "group-64"
    assert outcome(figure("group-128", 100, cosine=0.9), figure("group-0", 50))[0] == "group-0"


def test_where_none_passes_the_gate_decides():
    chosen, words = outcome(figure("group-128", 100, cosine=0.99), figure("static", 200, cosine=0.98))
    assert chosen == "group-128"
    assert words[0] == "chosen, although mean cosine below 0.999: the gate decides"


@pytest.mark.parametrize("name", ["group-", "group-x", "int4", ""])
def test_an_unknown_engine_is_refused(name):
    with pytest.raises(RecipeError, match=r"quantize\.engines: got"):
        QuantizeConfig(engines=(name,))


def test_a_graph_that_onnx_runtime_cannot_run_is_an_error_of_ours(tmp_path, monkeypatch):
    class Broken(Exception):
        """As onnxruntime's, whose base is Exception."""

    model = load_sentence_transformer(gemma_headless(tmp_path / "teacher"))
    write_dynamic(model, tmp_path / "out")
    encoder = OnnxEncoder(tmp_path / "out", name="broken", threads=1)

    class Session:
        def run(self, *_):
            raise Broken("no kernel for this")

    monkeypatch.setattr(encoder, "_session", Session())
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the graph: no kernel for this"):
        encoder.encode(["a text"])


def test_dynamic_int8_of_onnx_runtime_keeps_the_down_projection(tmp_path):
    import onnx

    model = load_sentence_transformer(gemma_headless(tmp_path / "gemma"))
    write_dynamic(model, tmp_path / "onnx")
    texts = toy_texts(12)
    exact = model.encode(texts, normalize_embeddings=True)
    cosines = np.sum(OnnxEncoder(tmp_path / "onnx", name="dynamic", threads=1).encode(texts) * exact, axis=1)
    assert cosines.mean() > 0.95  # .98 with VNNI; without it, ONNX Runtime's sums of products saturate
    assert cosines.max() < 1 - 1e-7  # it is INT8 indeed
    graph = onnx.load(tmp_path / "onnx" / "model.onnx").graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    kept = [shapes[node.input[1]] for node in graph.node if node.op_type == "MatMul" and node.input[1] in shapes]
    assert kept == [[64, 32]] * 2  # one for each layer; the others read INT8
    assert any(node.op_type == "MatMulInteger" for node in graph.node)
