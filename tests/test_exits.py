from __future__ import annotations

import copy

import pytest
import torch
from families import FAMILIES, bert, toy_texts

from leafembed.errors import RecipeError
from leafembed.learn.exits import Exits
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.student import Sample, init_student, keep_layers
from leafembed.recipe_learn import StudentConfig

TEXTS = toy_texts(5, seed=3)


@pytest.fixture(scope="module", params=FAMILIES)
def student(request, tmp_path_factory):
    return load_sentence_transformer(FAMILIES[request.param].build(tmp_path_factory.mktemp("exits") / request.param))


def exit_vectors(model, layers, texts=TEXTS):
    exits = Exits(model, layers)
    with exits.watching() as caught:
        output = model(model.preprocess(texts))
    return exits.vectors(caught, output), output["sentence_embedding"]


def test_an_exit_is_the_vector_of_the_stock_model_with_the_first_layers(student):
    total = student[0].auto_model.config.num_hidden_layers
    layers = tuple(range(1, total))
    with torch.no_grad():
        vectors, full = exit_vectors(student, layers)
        for k, vector in zip(layers, vectors, strict=True):
            shorter = copy.deepcopy(student)
            shorter[0].model = keep_layers(student[0].auto_model, range(k))
            expected = shorter(shorter.preprocess(TEXTS))["sentence_embedding"]
            assert torch.allclose(vector, expected, atol=1e-5), k
            assert not torch.allclose(vector, full, atol=1e-3), k
        assert torch.equal(full, student(student.preprocess(TEXTS))["sentence_embedding"])


def test_gradients_are_the_same_with_gradient_checkpointing(student):
    def gradients():
        torch.manual_seed(0)  # of the dropout
        student.zero_grad()
        student.train()
        vectors, full = exit_vectors(student, (1,))
        (vectors[0] - full).square().sum().backward()
        return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}

    body = student[0].auto_model
    plain = gradients()
    body.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = gradients()
    body.activation_checkpointing_disable()
    student.eval()
    assert plain.keys() == checkpointed.keys()
    assert sum(value.abs().sum() for value in plain.values()) > 0
    for name, value in plain.items():
        assert torch.allclose(value, checkpointed[name], atol=1e-6), name


def test_no_hook_stays_behind(student):
    def hooks():
        return [len(module._forward_hooks) for module in student[0].auto_model.modules()]

    student(student.preprocess(TEXTS))  # transformers puts hooks of its own there at the first pass
    before = hooks()
    exit_vectors(student, (1,))
    assert hooks() == before


def test_exits_that_the_student_does_not_have_are_refused(tmp_path):
    teacher = load_sentence_transformer(bert(tmp_path / "teacher"))
    with pytest.raises(RecipeError, match=r"student.exits: got \[1, 3\], expected fewer than the student's 3 layers"):
        Exits(teacher, (1, 3))
    sample = Sample(TEXTS, teacher.encode(TEXTS))
    init_student(StudentConfig(init="static"), teacher, sample, tmp_path / "static")
    with pytest.raises(RecipeError, match="the student's 0 layers"):
        Exits(load_sentence_transformer(tmp_path / "static"), (1,))
