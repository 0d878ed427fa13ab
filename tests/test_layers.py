from __future__ import annotations

import numpy as np
import pytest
import torch
from families import FAMILIES, toy_texts

from leafembed.errors import RecipeError
from leafembed.learn.layers import rank_layers
from leafembed.learn.models import describe, load_sentence_transformer
from leafembed.learn.student import Sample, init_student
from leafembed.learn.teacher import TorchEncoder
from leafembed.recipe_learn import StudentConfig

TEXTS = toy_texts(24)


def teacher_of(folder):
    model = load_sentence_transformer(folder)
    return TorchEncoder(model, describe(model, folder, name="tiny"), precision="fp32")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Gemma of six layers, of which layer 2 does nothing and layer 4 little."""
    teacher = teacher_of(FAMILIES["gemma"].build(tmp_path_factory.mktemp("layers") / "gemma"))
    with torch.no_grad():
        for i, factor in ((2, 0.0), (4, 0.05)):
            layer = teacher.model[0].auto_model.layers[i]
            for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
                norm.weight.copy_((1 + norm.weight) * factor - 1)
    return teacher


@pytest.fixture(scope="module")
def ranking(teacher):
    counts = []
    result = rank_layers(teacher, TEXTS, keep=4, prompt_name="STS", advance=counts.append)
    return result, sum(counts)


def test_layers_that_do_nothing_rank_last_by_both_measures(ranking):
    layers = ranking[0].layers
    assert [one.layer for one in layers] == list(range(6))
    assert [one.type for one in layers] == ["sliding_attention"] * 5 + ["full_attention"]
    for measure in ("influence", "damage"):
        values = [getattr(one, measure) for one in layers]
        assert values[2] == pytest.approx(0, abs=1e-5)
        assert sorted(range(6), key=values.__getitem__)[:2] == [2, 4]


def test_the_suggestion_leaves_them_out_and_says_what_that_does(ranking, teacher, tmp_path):
    result, advanced = ranking
    assert result.suggestion == (0, 1, 3, 5)
    assert advanced == 6 + 2
    assert result.texts == len(TEXTS)
    whole = teacher.encode(TEXTS, prompt_name="STS")
    folder = tmp_path / "student"
    config = StudentConfig(layers=result.suggestion, prompts="teacher")
    read = [teacher.ref.prompts["STS"] + text for text in TEXTS]
    student = teacher_of(init_student(config, teacher.model, Sample(read, whole), folder))  # no head fits better
    damage = 1 - np.sum(student.encode(TEXTS, prompt_name="STS") * whole, axis=1).mean()
    assert damage == pytest.approx(result.damage, abs=1e-5)


def test_the_teacher_is_as_before(ranking, teacher):
    again = rank_layers(teacher, TEXTS, keep=6, prompt_name="STS", advance=lambda n: None)
    assert again.suggestion == tuple(range(6))
    assert again.damage == 0
    assert again.layers == ranking[0].layers


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_other_families_have_layers_too(name, tmp_path):
    teacher = teacher_of(FAMILIES[name].build(tmp_path / name))
    result = rank_layers(teacher, TEXTS, keep=2, advance=lambda n: None)
    assert len(result.layers) == 3
    assert len(result.suggestion) == 2
    assert all(one.damage > 1e-4 for one in result.layers)


def test_more_layers_than_there_are_cannot_be_kept(teacher):
    with pytest.raises(RecipeError, match="got 7, the teacher has 6 layers"):
        rank_layers(teacher, TEXTS, keep=7, advance=lambda n: None)
