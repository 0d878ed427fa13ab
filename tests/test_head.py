from __future__ import annotations

import numpy as np
import pytest
import torch
from families import bert, gemma, toy_texts

from leafembed.learn import head
from leafembed.learn.head import fit_head, is_linear, least_squares, pooled_vectors
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.student import Sample, init_student
from leafembed.recipe_learn import StudentConfig

TEXTS = toy_texts(400)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return load_sentence_transformer(gemma(tmp_path_factory.mktemp("head") / "teacher"))


@pytest.fixture(scope="module")
def vectors(teacher):
    return teacher.encode(TEXTS)


def start(teacher, vectors, folder, **config):
    init_student(StudentConfig(**config), teacher, Sample(TEXTS, vectors), folder)
    return load_sentence_transformer(folder)


def cosine(student, vectors, texts=TEXTS):
    return float(np.sum(student.encode(texts) * vectors, axis=1).mean())


def test_least_squares_finds_the_matrix_that_made_the_targets():
    rng = np.random.default_rng(0)
    inputs, matrix = rng.normal(size=(200, 6)), rng.normal(size=(6, 4))
    assert least_squares(inputs, inputs @ matrix) == pytest.approx(matrix, abs=0.01)


def test_a_head_that_was_turned_is_turned_back(teacher, vectors, tmp_path):
    student = start(teacher, vectors, tmp_path / "student", layers=(0, 1, 2))
    head = student[2].linear
    turn, _ = torch.linalg.qr(
        torch.randn(len(head.weight), len(head.weight), generator=torch.Generator().manual_seed(0))
    )
    with torch.no_grad():
        head.weight.copy_(turn @ head.weight)
    before, after = fit_head(student, TEXTS, vectors)
    assert before < 0.5 < after
    assert cosine(student, vectors, TEXTS) == pytest.approx(after, abs=0.1)


def test_a_start_of_few_layers_is_nearer_to_the_teacher_than_with_the_teacher_s_own_head(teacher, vectors, tmp_path):
    student = start(teacher, vectors, tmp_path / "student", layers=(0,))
    fitted = cosine(student, vectors)
    dense = [module.linear.weight for module in teacher if type(module).__name__ == "Dense"]
    with torch.no_grad():
        student[2].linear.weight.copy_(dense[1] @ dense[0])
    assert fitted > cosine(student, vectors)


def test_what_is_the_teacher_already_stays_as_it_is(teacher, vectors, tmp_path):
    student = start(teacher, vectors, tmp_path / "student", layers=tuple(range(len(teacher[0].auto_model.layers))))
    assert cosine(student, vectors) == pytest.approx(1.0, abs=1e-5)
    before = student[2].linear.weight.clone()
    assert fit_head(student, TEXTS, vectors)[0] == pytest.approx(1.0, abs=5e-4)  # in bf16, where the CPU has it
    assert torch.equal(student[2].linear.weight, before)


def test_a_model_without_a_linear_head_has_nothing_to_fit(teacher, vectors, tmp_path):
    plain = load_sentence_transformer(bert(tmp_path / "plain"))
    assert fit_head(plain, TEXTS, plain.encode(TEXTS)) is None
    student = start(teacher, vectors, tmp_path / "student", layers=(0,))
    student[2].activation_function = torch.nn.Tanh()
    assert not is_linear(student[2])
    assert fit_head(student, TEXTS, vectors) is None


def test_pooled_vectors_are_in_the_order_of_the_texts(teacher):
    texts = [text * (1 + place % 3) for place, text in enumerate(TEXTS[:300])]  # more than are encoded at once
    assert pooled_vectors(teacher, texts) == pytest.approx(teacher.encode(texts), abs=0.03)  # bf16 at the most


def test_long_texts_are_fewer(teacher, vectors, tmp_path, monkeypatch):
    student = start(teacher, vectors, tmp_path / "student", layers=(0, 1, 2))
    seen = []
    monkeypatch.setattr(head, "pooled_vectors", lambda model, texts: seen.append(len(texts)) or model.encode(texts))
    monkeypatch.setattr(head, "FIT_CHARACTERS", sum(map(len, TEXTS[:100])))
    fit_head(student, TEXTS, vectors)
    assert seen == [100]
