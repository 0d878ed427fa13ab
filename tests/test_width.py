from __future__ import annotations

import numpy as np
import pytest
import torch
from families import FAMILIES, bert, gemma_headless, qwen, toy_texts

from leafembed.errors import ModelError
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.shapes import require_shape
from leafembed.learn.student import Sample, init_student
from leafembed.learn.width import cut_width
from leafembed.recipe_learn import StudentConfig

TEXTS = toy_texts(200)
HELD_OUT = toy_texts(40, seed=7)


def loaded(name, root):
    return load_sentence_transformer(FAMILIES[name].build(root / name))


def shake(model, *, post_norms):
    """Give norms scales of their own, as training does."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model[0].auto_model.named_parameters():
        after = name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight"))
        if "norm" in name and (post_norms or not after):
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def cosines(one, other):
    vectors = [model.encode(HELD_OUT) for model in (one, other)]
    return np.sum(vectors[0] * vectors[1], axis=1)


@pytest.mark.parametrize("name", ["gemma", "gemma_headless"])
def test_a_rotation_alone_changes_nothing_in_gemma(name, tmp_path):
    model = shake(loaded(name, tmp_path), post_norms=False)
    turned = cut_width(model, 32, TEXTS)
    assert cosines(turned, model).min() > 1 - 1e-4
    assert not torch.allclose(turned[0].auto_model.embed_tokens.weight, model[0].auto_model.embed_tokens.weight)


def test_a_rotation_alone_changes_nothing_in_qwen(tmp_path):
    model = loaded("qwen", tmp_path)
    for name, parameter in model[0].auto_model.named_parameters():  # each of its norms can be moved exactly
        if "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    assert cosines(cut_width(model, 32, TEXTS), model).min() > 1 - 1e-4


def test_scales_on_outputs_are_matched_on_average(tmp_path):
    model = shake(loaded("gemma_headless", tmp_path), post_norms=True)
    assert 1 - 1e-3 > cosines(cut_width(model, 32, TEXTS), model).mean() > 0.95


@pytest.mark.parametrize("build", [gemma_headless, qwen])
def test_directions_that_hold_nothing_cost_nothing(build, tmp_path):
    """A stream of 32 dimensions that only ever moves within 16, as no coordinate shows."""
    model = load_sentence_transformer(build(tmp_path / "model"))
    body = model[0].auto_model
    basis, _ = torch.linalg.qr(torch.randn(32, 16, generator=torch.Generator().manual_seed(2)))
    inside = basis @ basis.T
    with torch.no_grad():
        body.embed_tokens.weight.copy_(body.embed_tokens.weight @ inside)
        for layer in body.layers:
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                matrix.weight.copy_(inside @ matrix.weight)
    narrow = cut_width(model, 16, TEXTS)
    assert narrow[0].auto_model.config.hidden_size == 16
    assert cosines(narrow, model).min() > 1 - 1e-4


@pytest.mark.parametrize("name", ["gemma", "qwen"])
def test_principal_directions_lose_less_than_the_first_coordinates(name, tmp_path):
    model = loaded(name, tmp_path)
    narrow = cut_width(model, 24, TEXTS)
    blind = cut_width(model, 24, TEXTS)
    wide = model[0].auto_model.state_dict()
    first = {
        key: wide[key][tuple(slice(n) for n in value.shape)] for key, value in blind[0].auto_model.state_dict().items()
    }
    blind[0].auto_model.load_state_dict(first)
    head = next((module for module in model if hasattr(module, "linear")), None)
    blind[2].linear.weight.data = torch.eye(32, 24) if head is None else head.linear.weight.data[:, :24].contiguous()
    assert cosines(narrow, model).mean() > cosines(blind, model).mean() + 0.05


def test_a_narrow_student_is_a_stock_folder_of_the_teachers_dim(tmp_path):
    teacher = loaded("gemma", tmp_path)
    sample = Sample(TEXTS, teacher.encode(TEXTS))
    init_student(StudentConfig(layers=(0, 1, 5), width=0.75), teacher, sample, tmp_path / "student")
    student = load_sentence_transformer(tmp_path / "student")
    assert [type(module).__name__ for module in student] == ["Transformer", "Pooling", "Dense", "Normalize"]
    config = student[0].auto_model.config
    assert (config.hidden_size, config.head_dim, config.intermediate_size) == (24, 16, 64)
    assert config.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
    assert student.encode(HELD_OUT).shape == (40, 32)
    assert teacher[0].auto_model.config.hidden_size == 32


@pytest.mark.parametrize("name", ["bert", "xlm_roberta", "modernbert"])
def test_a_family_that_cannot_be_narrowed_is_named_also_before_the_teacher_works(name, tmp_path):
    model = loaded(name, tmp_path)
    message = r"student\.width: got a model of type .*gemma3_text, qwen3"
    with pytest.raises(ModelError, match=message):
        cut_width(model, 16, TEXTS)
    with pytest.raises(ModelError, match=message):
        require_shape(StudentConfig(layers=(0,), width=0.5), model, 32)
    require_shape(StudentConfig(layers=(0,)), model, 32)


def test_pooling_that_is_not_linear_is_refused(tmp_path):
    model = loaded("qwen", tmp_path)
    model[1].pooling_mode = "max"
    with pytest.raises(ModelError, match="pooling 'max'"):
        cut_width(model, 16, TEXTS)


def test_an_encoder_start_has_its_own_width(tmp_path):
    teacher = loaded("gemma_headless", tmp_path)
    sample = Sample(TEXTS, teacher.encode(TEXTS))
    folder = bert(tmp_path / "narrow", hidden_size=16)
    init_student(StudentConfig(init="encoder", model=str(folder)), teacher, sample, tmp_path / "student")
    assert load_sentence_transformer(tmp_path / "student")[0].auto_model.config.hidden_size == 16
