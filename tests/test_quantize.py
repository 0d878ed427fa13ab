from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from families import bert, gemma_headless, toy_texts, xlm_roberta

from leafembed.errors import ModelError
from leafembed.learn.models import describe, load_sentence_transformer
from leafembed.learn.plan import parts_of
from leafembed.learn.student import Sample, init_student, keep_layers
from leafembed.learn.teacher import TorchEncoder
from leafembed.recipe_learn import StudentConfig
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.quantize import quantize

FILES = {
    *("model.xml", "model.bin", "tokenizer.json", "encoder.json"),
    *("tokenizer_config.json", "config.json", "config_sentence_transformers.json"),
}


def build(folder, target, *, group_size=32, int8=True):
    """Quantise a folder; return the torch encoder, the exported one and its settings."""
    model = load_sentence_transformer(folder)
    exact = TorchEncoder(model, describe(model, folder, name="tiny", licence="MIT"), precision="fp32")
    quantize(model, target, ref=exact.ref, group_size=group_size, int8=int8)
    return exact, BundleEncoder(target, threads=1), json.loads((target / "encoder.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """BERT, wide enough that its weights outweigh the graph's other constants, as INT8."""
    root = tmp_path_factory.mktemp("wide")
    folder = bert(root / "bert", hidden_size=256, intermediate_size=512, num_hidden_layers=2)
    return build(folder, root / "int8")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """XLM-R with its weights as they are."""
    root = tmp_path_factory.mktemp("exported")
    return build(xlm_roberta(root / "xlm"), root / "fp32", int8=False)


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    root = tmp_path_factory.mktemp("static")
    teacher = load_sentence_transformer(gemma_headless(root / "teacher"))
    texts = toy_texts(60)
    init_student(
        StudentConfig(init="static", prompts="teacher"), teacher, Sample(texts, teacher.encode(texts)), root / "s"
    )
    return build(root / "s", root / "int8")


def test_the_folder_holds_exactly_these_files_and_says_what_it_is(wide, tmp_path_factory):
    exact, _, settings = wide
    folder = next(path for path in tmp_path_factory.getbasetemp().glob("wide*/int8"))
    assert {path.name for path in folder.iterdir()} == FILES
    assert settings == {
        **{"name": "tiny", "dim": 256, "max_seq_length": 128, "pad_token_id": 0, "padding_side": "right"},
        **{"add_special_tokens": True, "group_size": 32, "licence": "MIT", "fingerprint": exact.ref.fingerprint},
        "exits": [],
    }


def test_int8_is_as_large_as_planned(wide, tmp_path_factory):
    planned = sum(part.int8_mb for part in parts_of(wide[0].model))
    real = next(tmp_path_factory.getbasetemp().glob("wide*/int8/model.bin")).stat().st_size / 1e6
    assert real == pytest.approx(planned, rel=0.05)


def test_int8_is_near_fp32(wide):
    texts = toy_texts(30, words=(1, 30))
    cosines = np.sum(wide[0].encode(texts) * wide[1].encode(texts), axis=1)
    assert cosines.mean() > 0.999
    assert cosines.max() < 1 - 1e-7  # it is INT8 indeed


def test_without_int8_the_vectors_are_the_torch_ones(exported):
    exact, fp32, settings = exported
    texts = [*toy_texts(20, words=(1, 30)), "", "   ", "Unknown \u4f60\u597d 7"]
    assert np.allclose(fp32.encode(texts), exact.encode(texts), atol=1e-4)
    assert settings["group_size"] == 0
    assert settings["pad_token_id"] == 1


def test_long_texts_are_cut_where_positions_end(exported):
    exact, fp32, settings = exported
    assert settings["max_seq_length"] == 128  # 130 positions, which start after the padding id 1
    long = " ".join(["en1"] * 300)
    assert np.allclose(fp32.encode([long]), exact.encode([long]), atol=1e-4)
    assert fp32.count_tokens([long]) == [128]


def test_a_table_gives_the_torch_vectors_and_keeps_its_prompts(static):
    exact, int8, settings = static
    texts = [*toy_texts(20, words=(1, 30)), ""]
    for prompt_name in (None, "query"):
        vectors = [encoder.encode(texts, prompt_name=prompt_name) for encoder in (exact, int8)]
        assert np.sum(vectors[0] * vectors[1], axis=1).min() > 0.999
    assert not np.allclose(int8.encode(texts), int8.encode(texts, prompt_name="query"), atol=1e-3)
    assert settings["add_special_tokens"] is False
    assert int8.encode([" ".join(["en1"] * 5000)]).shape == (1, 32)


def test_pooling_that_leaves_the_prompt_out_is_refused(tmp_path):
    model = load_sentence_transformer(gemma_headless(tmp_path / "gemma"))
    model[1].include_prompt = False
    model.save_pretrained(str(tmp_path / "masked"), create_model_card=False)
    with pytest.raises(ModelError, match="include_prompt"):
        build(tmp_path / "masked", tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


EXITS, TEXTS = (1, 2), toy_texts(12, seed=3)


@pytest.fixture(scope="module", params=[False, True], ids=["fp32", "int8"])
def with_exits(request, tmp_path_factory):
    """A BERT of three layers and its folder with two early exits."""
    root = tmp_path_factory.mktemp("exits")
    folder = bert(root / "bert", hidden_size=256, intermediate_size=512, num_hidden_layers=3)
    model = load_sentence_transformer(folder)
    ref = describe(model, folder, name="tiny", licence="MIT")
    for name, exits in (("plain", ()), ("exits", EXITS)):
        quantize(model, root / name, ref=ref, group_size=32, exits=exits, int8=request.param)
    return model, root, request.param


def test_every_exit_gives_the_vector_of_the_first_layers_alone(with_exits):
    model, root, int8 = with_exits
    whole = BundleEncoder(root / "exits", threads=1)
    assert whole.exits == EXITS
    plain = BundleEncoder(root / "plain", threads=1).encode(TEXTS)
    assert whole.encode(TEXTS) == pytest.approx(plain, abs=1e-5)
    for exit in EXITS:
        shorter = copy.deepcopy(model)
        shorter[0].model = keep_layers(model[0].auto_model, range(exit))
        want = shorter.encode(TEXTS)
        for found in (
            whole.encode(TEXTS, exit=exit),
            BundleEncoder(root / "exits", threads=1, exit=exit).encode(TEXTS),
        ):
            assert np.sum(found * want, axis=1).min() > (0.99 if int8 else 1 - 1e-5)
        assert np.sum(want * plain, axis=1).max() < 0.999


def test_exits_share_the_weights_on_the_disk(with_exits):
    _, root, _ = with_exits
    plain, exits = ((root / name / "model.bin").stat().st_size for name in ("plain", "exits"))
    assert exits < 1.01 * plain + 4_096
    assert {path.name for path in (root / "exits").iterdir()} == FILES


def test_an_encoder_can_be_opened_at_an_exit_and_a_dim(with_exits):
    _, root, _ = with_exits
    small = BundleEncoder(root / "exits", threads=1, exit=1, dim=16)
    assert (small.dim, small.ref.dim) == (16, 16)
    want = BundleEncoder(root / "exits", threads=1).encode(TEXTS, exit=1, dim=16)
    assert small.encode(TEXTS) == pytest.approx(want, abs=1e-6)
    with pytest.raises(ModelError, match="exit: got 3, the model's early exits are 1, 2"):
        small.encode(TEXTS, exit=3)
    with pytest.raises(ModelError, match="the model's early exits are none"):
        BundleEncoder(root / "plain", exit=1)
    with pytest.raises(ValueError, match="dim: got 257, expected 1 to 256"):
        BundleEncoder(root / "plain", dim=257)


def test_a_folder_of_before_there_were_exits_opens(with_exits):
    _, root, _ = with_exits
    settings = json.loads((root / "plain" / "encoder.json").read_text(encoding="utf-8"))
    assert settings.pop("exits") == []
    (root / "plain" / "encoder.json").write_text(json.dumps(settings), encoding="utf-8")
    assert BundleEncoder(root / "plain", threads=1).exits == ()
