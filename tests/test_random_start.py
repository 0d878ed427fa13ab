from __future__ import annotations

import numpy as np
import pytest
import torch
from families import FAMILIES, embeddinggemma_config, toy_texts
from transformers import BertConfig

from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.shapes import legal_width, random_config
from leafembed.learn.student import Sample, init_student
from leafembed.recipe_learn import StudentConfig

TEXTS = toy_texts(40)
EMBEDDINGGEMMA = embeddinggemma_config()


def test_the_shape_of_the_first_failed_model():
    shape = random_config(EMBEDDINGGEMMA, StudentConfig(init="random", width=0.5, num_layers=6, num_heads=6))
    assert (shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size) == (6, 384, 576)
    assert (shape.num_attention_heads, shape.head_dim, shape.num_key_value_heads) == (6, 64, 1)
    assert shape.query_pre_attn_scalar == 64
    assert shape.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert shape.vocab_size == 262_144
    assert EMBEDDINGGEMMA.hidden_size == 768


@pytest.mark.parametrize(("layers", "full"), [(1, [0]), (3, [2]), (24, [5, 11, 17, 23]), (30, [5, 11, 17, 23, 29])])
def test_layer_types_are_the_teachers_and_end_like_it(layers, full):
    shape = random_config(EMBEDDINGGEMMA, StudentConfig(init="random", num_layers=layers))
    assert [i for i, kind in enumerate(shape.layer_types) if kind == "full_attention"] == full
    assert len(shape.layer_types) == layers


@pytest.mark.parametrize("width", [0.1, 0.33, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("heads", [1, 2, 5, 12])
def test_heads_are_of_an_even_size(width, heads):
    student = StudentConfig(init="random", width=width, num_heads=heads)
    bert = random_config(BertConfig(hidden_size=384, num_attention_heads=12), student)
    assert bert.hidden_size % (2 * heads) == 0
    assert abs(bert.hidden_size - 384 * width) <= heads
    assert random_config(EMBEDDINGGEMMA, student).head_dim % 2 == 0


@pytest.mark.parametrize(("width", "expected"), [(1.0, 30), (0.999, 30), (0.5, 16), (0.01, 8)])
def test_a_width_is_a_multiple_of_eight_or_the_teachers(width, expected):
    assert legal_width(30, width) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_a_random_student_is_a_stock_folder_with_the_teachers_tokenizer_and_dim(name, tmp_path, capsys):
    teacher = load_sentence_transformer(FAMILIES[name].build(tmp_path / "teacher"))
    sample = Sample(TEXTS, teacher.encode(TEXTS))
    config = StudentConfig(init="random", width=0.5, num_layers=7, num_heads=4)
    init_student(config, teacher, sample, tmp_path / "student", seed=3)
    assert "7 layers, hidden size 16 (teacher 32), 4 heads of 4" in capsys.readouterr().err
    student = load_sentence_transformer(tmp_path / "student")
    assert [type(module).__name__ for module in student] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert type(student[0].auto_model) is type(teacher[0].auto_model)
    assert student[1].pooling_mode == teacher[1].pooling_mode
    assert student.tokenizer.get_vocab() == teacher.tokenizer.get_vocab()
    vectors = student.encode(TEXTS)
    assert vectors.shape == (40, 32)
    assert abs(np.sum(vectors * sample.vectors, axis=1).mean()) < 0.6  # it knows nothing of the teacher


def test_the_seed_decides_the_weights(tmp_path):
    teacher = load_sentence_transformer(FAMILIES["gemma"].build(tmp_path / "teacher"))
    sample = Sample(TEXTS, teacher.encode(TEXTS))
    config = StudentConfig(init="random", num_layers=1)
    students = [
        load_sentence_transformer(init_student(config, teacher, sample, tmp_path / f"{i}", seed=seed)).state_dict()
        for i, seed in enumerate((1, 1, 2))
    ]
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())
    assert not any(torch.equal(v, students[2][name]) for name, v in students[0].items() if name.endswith("proj.weight"))
