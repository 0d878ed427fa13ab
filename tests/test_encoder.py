from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from tiny import WORDS, make_model_folder, token_table

from leafembed.errors import ModelError, NonFiniteError
from leafembed.ship.encoder import BundleEncoder

TEXTS = ["red", "one two three red green blue", "grün 赤", "blue", "two green", "🙂 unknown", "green", "three three"]
TABLE = token_table(len(WORDS), 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("encoder") / "model", prompts={"query": "query: ", "STS": ""})


@pytest.fixture(scope="module")
def encoder(folder):
    return BundleEncoder(folder, threads=1)


def test_vectors_are_those_of_the_table_computed_by_hand(encoder):
    mean = TABLE[[WORDS.index(word) for word in ("[CLS]", "red", "blue")]].mean(0)
    (vector,) = encoder.encode(["red blue"])
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_order_is_kept_and_the_batch_size_does_not_matter(encoder, batch_size):
    single = np.vstack([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=batch_size), single, atol=1e-6)
    assert len({vector.tobytes() for vector in single}) == len(TEXTS)


def test_padding_side_does_not_matter_to_a_masked_mean(encoder, tmp_path):
    left = BundleEncoder(make_model_folder(tmp_path / "left", padding_side="left"), threads=1)
    np.testing.assert_allclose(left.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize(("side", "first"), [("right", "[CLS]"), ("left", "[PAD]")])
def test_padding_goes_to_the_side_the_folder_names(tmp_path, side, first):
    folder = make_model_folder(tmp_path / "m", first_token_only=True, padding_side=side)
    short, _ = BundleEncoder(folder, threads=1).encode(["red", "red green"])
    row = TABLE[WORDS.index(first)]
    np.testing.assert_allclose(short, row / np.linalg.norm(row), atol=1e-6)


def test_empty_input_and_empty_text(encoder, tmp_path):
    assert encoder.encode([]).shape == (0, 8)
    assert encoder.encode([], dim=3).shape == (0, 3)
    assert encoder.encode([""]).shape == (1, 8)
    bare = BundleEncoder(make_model_folder(tmp_path / "bare", add_special_tokens=False), threads=1)
    assert np.isfinite(bare.encode(["", "red"])).all()  # a mean over no tokens would be NaN


def test_cut_to_fewer_dimensions(encoder):
    full = encoder.encode(TEXTS)
    plain = encoder.encode(TEXTS, dim=3, normalize=False)
    np.testing.assert_array_equal(plain, full[:, :3])
    cut = encoder.encode(TEXTS, dim=3)
    np.testing.assert_allclose(cut, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(encoder.encode(TEXTS, dim=8), full)


@pytest.mark.parametrize("options", [{"dim": 0}, {"dim": 9}, {"batch_size": 0}])
def test_numbers_out_of_range_are_refused(encoder, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        encoder.encode(["red"], **options)


def test_prompts_are_put_before_the_text_and_unknown_names_are_refused(encoder):
    assert encoder.prompts == {"query": "query: ", "STS": ""}
    np.testing.assert_array_equal(encoder.encode(["red"], prompt_name="query"), encoder.encode(["query: red"]))
    assert not np.allclose(encoder.encode(["red"], prompt_name="query"), encoder.encode(["red"]))
    np.testing.assert_array_equal(encoder.encode(["red"], prompt_name="STS"), encoder.encode(["red"]))
    with pytest.raises(ValueError, match="got 'qurey', expected one of query, STS"):
        encoder.encode(["red"], prompt_name="qurey")


def test_token_counts_include_prompt_and_special_tokens_and_stop_at_the_limit(encoder):
    assert encoder.count_tokens(["", "red", "red " * 50]) == [1, 2, 8]
    assert encoder.count_tokens(["red"], "query") == [4]


def test_truncation_is_logged_once_a_call(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        encoder.encode(["one two three red green blue one"])
        assert not caplog.records
        encoder.encode(["red " * 50, "red", "blue " * 9])
    assert [record.getMessage() for record in caplog.records] == ["2 of 3 texts were cut to 8 tokens"]


def test_a_cut_text_is_its_beginning(encoder):
    np.testing.assert_allclose(encoder.encode(["red " * 7 + "blue"]), encoder.encode(["red " * 7]), atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("red", r"got a single text"),
        (["red", 3], r"texts\[1\]: got int"),
        (["red", None], r"texts\[1\]: got NoneType"),
        (["red", "blue", "a\ud800"], r"texts\[2\]: a lone surrogate at character 1"),
    ],
)
def test_what_is_not_text_is_refused_by_place(encoder, texts, message):
    with pytest.raises(ValueError, match=message):
        encoder.encode(texts)


def test_ref_says_what_the_folder_says(encoder):
    ref = encoder.ref
    assert (ref.name, ref.dim, ref.licence, ref.max_seq_length) == ("tiny", 8, "MIT", 8)
    assert (encoder.dim, encoder.max_seq_length, encoder.manifest) == (8, 8, None)


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "tokenizer.json", "encoder.json"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = make_model_folder(tmp_path / "m")
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        BundleEncoder(folder)


@pytest.mark.parametrize("name", ["model.xml", "tokenizer.json", "encoder.json", "config_sentence_transformers.json"])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, name):
    folder = make_model_folder(tmp_path / "m")
    (folder / name).write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=name) as caught:
        BundleEncoder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"padding_side": "up"}, {"dim": 0}, {"dim": "8"}, {"group_size": -1}, {"extra": 1}])
def test_encoder_json_must_hold_legal_values(tmp_path, change):
    folder = make_model_folder(tmp_path / "m")
    settings = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    (folder / "encoder.json").write_text(json.dumps(settings | change), encoding="utf-8")
    with pytest.raises(ModelError, match=next(iter(change))):
        BundleEncoder(folder)


def test_a_graph_of_another_dim_than_promised_is_refused(tmp_path):
    folder = make_model_folder(tmp_path / "m")
    text = (folder / "encoder.json").read_text(encoding="utf-8").replace('"dim": 8', '"dim": 9')
    (folder / "encoder.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"returned \(1, 8\), encoder.json promises \(1, 9\)"):
        BundleEncoder(folder, threads=1).encode(["red"])


@pytest.mark.parametrize("options", [{"threads": 0}, {"batch_size": 0}])
def test_threads_and_batch_size_must_be_positive(folder, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BundleEncoder(folder, **options)


def test_a_model_that_returns_nan_is_refused(tmp_path):
    folder = make_model_folder(tmp_path / "m")
    weights = bytearray((folder / "model.bin").read_bytes())
    start = WORDS.index("red") * 8 * 4
    weights[start : start + 4] = np.float32("nan").tobytes()
    (folder / "model.bin").write_bytes(weights)
    encoder = BundleEncoder(folder, threads=1)
    assert encoder.encode(["blue"]).shape == (1, 8)
    with pytest.raises(NonFiniteError, match="row 1 of 2"):
        encoder.encode(["blue", "red"])


def test_an_iterator_is_sent_to_the_method_that_takes_one(encoder):
    with pytest.raises(TypeError, match=r"texts: got a generator, expected a list; encode_stream takes any iterable"):
        encoder.encode(text for text in ("red",))
