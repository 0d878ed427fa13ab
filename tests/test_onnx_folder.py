from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import WORDS, save_tokenizer, token_table

from leafembed.errors import ModelError
from leafembed.ship.onnx_folder import OnnxEncoder, find_graph
from leafembed.types import check_vectors

DIM = 8
TABLE = token_table(len(WORDS), DIM)
CLS, RED, BLUE, ONE = (WORDS.index(word) for word in ("[CLS]", "red", "blue", "one"))
MODULES = ("Transformer", "Pooling", "Normalize")


def write_graph(path, *, pooled=False, inputs=("input_ids", "attention_mask"), kind=TensorProto.INT64):
    """Looks tokens up in a table; pooled: sums them up, whatever the mask says."""
    ports = [helper.make_tensor_value_info(name, kind, ["batch", "tokens"]) for name in inputs]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])]
    shape, name = ["batch", "tokens", DIM], "last_hidden_state"
    if pooled:
        nodes.append(helper.make_node("ReduceSum", ["last_hidden_state", "axis"], ["sentence_embedding"], keepdims=0))
        shape, name = ["batch", DIM], "sentence_embedding"
    constants = [numpy_helper.from_array(TABLE, "table"), numpy_helper.from_array(np.array([1]), "axis")]
    output = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "tiny", ports, [output], constants if pooled else constants[:1])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


@pytest.fixture
def folder(tmp_path):
    """As optimum writes it: the graph gives token vectors."""
    root = tmp_path / "exported"
    write_graph(root / "onnx" / "model.onnx")
    save_tokenizer(root / "tokenizer.json", WORDS)
    write_modules(root, MODULES, pooling_mode_mean_tokens=True)
    return root


def write_modules(root, kinds, **pooling):
    modules = [
        {"idx": i, "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    put(root / "modules.json", modules)
    put(root / "1_Pooling" / "config.json", pooling)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def unit(vector):
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, TABLE[[CLS, RED, BLUE]].mean(axis=0)),
        ({"pooling_mode": "mean", "include_prompt": True}, TABLE[[CLS, RED, BLUE]].mean(axis=0)),
        ({"pooling_mode_cls_token": True}, TABLE[CLS]),
        ({"pooling_mode": "max"}, TABLE[[CLS, RED, BLUE]].max(axis=0)),
        ({"pooling_mode": ["lasttoken"]}, TABLE[BLUE]),
    ],
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_token_vectors_are_pooled_as_the_folder_says(folder, pooling, expected, side):
    write_modules(folder, MODULES, **pooling)
    put(folder / "tokenizer_config.json", {"padding_side": side, "pad_token": "[PAD]"})
    encoder = OnnxEncoder(folder, name="tiny")
    vectors = check_vectors(encoder.encode(["red blue", "one two three red blue one"]), n=2, what="tiny")
    assert vectors[0] == pytest.approx(unit(expected), abs=1e-6)
    assert (encoder.ref.name, encoder.ref.dim) == ("tiny", DIM)


def test_a_graph_that_pools_is_taken_at_its_word(folder):
    (folder / "modules.json").unlink()
    write_graph(folder / "model.onnx", pooled=True)
    vectors = OnnxEncoder(folder, name="tiny").encode(["red blue"])
    assert vectors[0] == pytest.approx(unit(TABLE[[CLS, RED, BLUE]].sum(axis=0)), abs=1e-6)


def test_texts_keep_their_order_over_batches_and_lengths(folder):
    encoder = OnnxEncoder(folder, name="tiny")
    texts = ["red " * (1 + i * 7 % 5) + "blue" for i in range(70)]
    assert np.allclose(encoder.encode(texts), np.concatenate([encoder.encode([text]) for text in texts]), atol=1e-6)
    assert encoder.encode([]).shape == (0, DIM)
    assert np.isfinite(encoder.encode([""])).all()


def test_int32_inputs_and_the_inputs_of_bert_and_decoders(folder):
    expected = OnnxEncoder(folder, name="tiny").encode(["red blue"])
    every = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    write_graph(folder / "onnx" / "model.onnx", inputs=every, kind=TensorProto.INT32)
    assert np.allclose(OnnxEncoder(folder, name="tiny").encode(["red blue"]), expected)


def test_prompts_length_limit_and_case_come_from_the_folder(folder):
    put(folder / "config_sentence_transformers.json", {"prompts": {"query": "one "}})
    put(folder / "sentence_bert_config.json", {"max_seq_length": 3, "do_lower_case": True})
    put(folder / "config.json", {"max_position_embeddings": 512})
    encoder = OnnxEncoder(folder, name="tiny")
    assert encoder.ref.max_seq_length == 3
    assert np.allclose(encoder.encode(["RED"], prompt_name="query"), encoder.encode(["one red"]))
    assert np.allclose(encoder.encode(["red blue one two"]), encoder.encode(["red blue"]))
    (folder / "sentence_bert_config.json").unlink()
    put(folder / "tokenizer_config.json", {"model_max_length": 10**30})
    assert OnnxEncoder(folder, name="tiny").ref.max_seq_length == 512
    (folder / "config.json").unlink()
    unlimited = OnnxEncoder(folder, name="tiny")
    assert unlimited.ref.max_seq_length is None
    assert not np.allclose(unlimited.encode(["red " * 90 + "blue"]), unlimited.encode(["red " * 90]))


def test_one_of_several_graphs_can_be_named_and_is_another_model(folder):
    write_graph(folder / "onnx" / "model_summed.onnx", pooled=True)
    assert find_graph(folder) == folder / "onnx" / "model.onnx"
    assert find_graph(folder / "tokenizer.json") is None
    one = OnnxEncoder(folder, name="a")
    other = OnnxEncoder(folder / "onnx" / "model_summed.onnx", name="b")
    assert one.ref.fingerprint != other.ref.fingerprint
    copied = shutil.copytree(folder, folder.parent / "copy")
    assert OnnxEncoder(copied, name="a").ref.fingerprint == one.ref.fingerprint
    put(copied / "sentence_bert_config.json", {"max_seq_length": 7})
    assert OnnxEncoder(copied, name="a").ref.fingerprint != one.ref.fingerprint


def test_what_is_not_run_here_is_refused(folder):
    graph = folder / "onnx" / "model.onnx"

    def refused(message):
        with pytest.raises(ModelError, match=message):
            OnnxEncoder(folder, name="tiny")

    write_modules(folder, ("Transformer", "Pooling", "Dense", "Normalize"), pooling_mode_mean_tokens=True)
    refused("'Dense'.*expected Transformer, Pooling and at most Normalize")
    write_modules(folder, MODULES, pooling_mode_mean_tokens=True, include_prompt=False)
    refused("that includes the prompt")
    write_modules(folder, MODULES, pooling_mode_mean_tokens=True, pooling_mode_cls_token=True)
    refused("expected one pooling of")
    write_modules(folder, MODULES, pooling_mode_weightedmean_tokens=True)
    refused("expected one pooling of")
    (folder / "modules.json").unlink()
    refused("got the modules none")
    write_graph(graph, inputs=("input_ids", "past_key_values"))
    refused("its inputs are .*past_key_values")
    graph.write_bytes(b"no graph")
    refused("onnxruntime cannot open it")
    (folder / "tokenizer.json").unlink()
    refused("no tokenizer.json beside it or one folder up")
    graph.unlink()
    refused("no ONNX graph")


def test_damaged_settings_are_named(folder):
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json: not a JSON file"):
        OnnxEncoder(folder, name="tiny")
