from __future__ import annotations

import json

import numpy as np
import pytest
from model2vec import StaticModel
from tiny import WORDS, save_tokenizer, token_table
from tokenizers import Tokenizer

from leafembed.errors import ModelError
from leafembed.ship.model2vec_folder import Model2VecEncoder, is_model2vec
from leafembed.types import check_vectors

TEXTS = ["red blue", "one", "two three red green"]
TABLE = token_table(len(WORDS), 16)


@pytest.fixture
def folder(tmp_path):
    save_tokenizer(tmp_path / "tokenizer.json", WORDS)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model = StaticModel(TABLE.astype(np.float16), tokenizer, {"model_type": "model2vec"}, normalize=True, max_length=4)
    model.save_pretrained(tmp_path / "static")
    return tmp_path / "static"


def test_vectors_are_those_of_the_library(folder):
    encoder = Model2VecEncoder(folder, name="static")
    vectors = check_vectors(encoder.encode(TEXTS), n=3, what="static")
    assert np.allclose(vectors, StaticModel.from_pretrained(folder).encode(TEXTS), atol=1e-3)
    mean = TABLE[[WORDS.index("red"), WORDS.index("blue")]].mean(axis=0)
    assert vectors[0] == pytest.approx(mean / np.linalg.norm(mean), abs=2e-3)
    assert (encoder.ref.name, encoder.ref.dim, encoder.ref.max_seq_length) == ("static", 16, 4)
    assert encoder.encode([]).shape == (0, 16)


def test_unknown_tokens_are_left_out_and_long_texts_cut(folder):
    encoder = Model2VecEncoder(folder, name="static")
    assert np.allclose(*encoder.encode(["red zz blue", "red blue"]))
    assert np.allclose(*encoder.encode(["red blue one two three green", "red blue one two"]))


def test_a_text_of_unknown_tokens_gets_a_vector_of_its_own(folder):
    encoder = Model2VecEncoder(folder, name="static")
    vectors = check_vectors(encoder.encode(["nonsense", "more of it", "nonsense", ""]), n=4, what="static")
    assert (vectors[0] == vectors[2]).all()
    assert len(np.unique(vectors, axis=0)) == 3


def test_it_is_known_by_its_config(folder, tmp_path):
    assert is_model2vec(folder)
    assert not is_model2vec(tmp_path)
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    assert not is_model2vec(folder)
    (folder / "config.json").write_text("[", encoding="utf-8")
    assert not is_model2vec(folder)


def test_another_table_is_another_model(folder):
    before = Model2VecEncoder(folder, name="static").ref.fingerprint
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "max_length": 3}), encoding="utf-8")
    assert Model2VecEncoder(folder, name="static").ref.fingerprint != before


def test_missing_and_damaged_files_are_named(folder):
    (folder / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ModelError, match="model2vec cannot open it"):
        Model2VecEncoder(folder, name="static")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"it lacks tokenizer\.json"):
        Model2VecEncoder(folder, name="static")
