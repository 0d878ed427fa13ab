from __future__ import annotations

import numpy as np
import pytest
import torch
from families import FAMILIES, PROMPTS, bert, gemma, toy_texts
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from leafembed.errors import CheckpointError, ModelError, RecipeError
from leafembed.learn.models import describe, load_sentence_transformer
from leafembed.learn.student import Sample, fold_dense, init_student, keep_layers, kept_config
from leafembed.learn.teacher import TorchEncoder
from leafembed.recipe_learn import StudentConfig


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("students")
    return {"gemma": gemma(root / "gemma"), "bert": bert(root / "bert")}


@pytest.fixture(scope="module")
def teacher(folders):
    return load_sentence_transformer(folders["gemma"])


@pytest.fixture(scope="module")
def sample(teacher):
    texts = toy_texts(300)
    return Sample(texts, teacher.encode(texts, show_progress_bar=False))


def dense(i, o, *, bias, seed=0):
    from sentence_transformers.base.modules import Dense

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Dense(i, o, bias=bias, activation_function=torch.nn.Identity())


def mean_cosine(a, b):
    return float(np.sum(a * b, axis=1).mean())


def test_all_layers_kept_is_the_teacher(teacher, sample, tmp_path):
    init_student(StudentConfig(layers=tuple(range(6))), teacher, sample, tmp_path / "student")
    student = load_sentence_transformer(tmp_path / "student")
    assert np.allclose(student.encode(sample.texts[:20]), sample.vectors[:20], atol=1e-5)


def test_building_a_student_leaves_the_teacher_as_it_was(teacher, sample, tmp_path):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    init_student(StudentConfig(layers=(0, 5), max_seq_length=16), teacher, sample, tmp_path / "student")
    assert teacher.max_seq_length == 256
    assert teacher.prompts["STS"] == PROMPTS["STS"]
    assert teacher[0].auto_model.config.num_hidden_layers == 6
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert load_sentence_transformer(tmp_path / "student").max_seq_length == 16


@pytest.mark.parametrize("init", ["layers", "encoder"])
def test_a_student_reads_as_much_as_its_teacher_unless_told(folders, teacher, sample, tmp_path, init):
    config = StudentConfig(init=init, layers=(0,), model=str(folders["bert"]))
    init_student(config, teacher, sample, tmp_path / "student")
    # An encoder cannot read beyond its positions, whatever the teacher reads.
    assert load_sentence_transformer(tmp_path / "student").max_seq_length == (256 if init == "layers" else 128)


@pytest.mark.parametrize("prompts", ["none", "teacher"])
@pytest.mark.parametrize("init", ["layers", "encoder", "static"])
def test_prompts_are_the_teachers_or_empty(folders, teacher, sample, tmp_path, init, prompts):
    config = StudentConfig(init=init, layers=(0,), model=str(folders["bert"]), prompts=prompts)
    init_student(config, teacher, sample, tmp_path / "student")
    student = load_sentence_transformer(tmp_path / "student")
    expected = PROMPTS if prompts == "teacher" else dict.fromkeys(PROMPTS, "")
    assert {name: student.prompts[name] for name in PROMPTS} == expected


def test_an_encoder_start_predicts_the_teacher_on_texts_it_was_not_fitted_on(folders, teacher, sample, tmp_path):
    config = StudentConfig(init="encoder", model=str(folders["bert"]))
    init_student(config, teacher, sample, tmp_path / "student")
    student = load_sentence_transformer(tmp_path / "student")
    assert [type(module).__name__ for module in student] == ["Transformer", "Pooling", "Dense", "Normalize"]
    held_out = toy_texts(50, seed=9)
    fitted = mean_cosine(student.encode(held_out), teacher.encode(held_out))
    assert fitted > 0.3  # random vectors of this length: 0
    student[2].linear.weight.data = student[2].linear.weight.data[torch.randperm(32)]
    assert mean_cosine(student.encode(held_out), teacher.encode(held_out)) < fitted - 0.2


def test_a_static_start_predicts_the_teacher_from_rows_of_a_table(teacher, sample, tmp_path):
    init_student(StudentConfig(init="static"), teacher, sample, tmp_path / "student")
    student = load_sentence_transformer(tmp_path / "student")
    assert [type(module).__name__ for module in student] == ["StaticEmbedding", "Normalize"]
    held_out = toy_texts(50, seed=9)
    assert mean_cosine(student.encode(held_out), teacher.encode(held_out)) > 0.3
    encoder = TorchEncoder(student, describe(student, tmp_path / "student", name="static"), precision="fp32")
    texts = ["", "en1", "en1 de2"]
    assert np.isfinite(encoder.encode(texts)).all()


@pytest.mark.parametrize("layers", [(6,), (0, 17)])
def test_layers_the_teacher_lacks_are_refused(teacher, layers):
    with pytest.raises(RecipeError, match=rf"student\.layers: got \[.*{layers[-1]}\], the teacher has layers 0 to 5"):
        keep_layers(teacher[0].auto_model, layers)


def test_per_layer_lists_are_cut_and_the_original_is_not(teacher):
    config = teacher[0].auto_model.config
    cut = kept_config(config, (4, 5))
    assert cut.num_hidden_layers == 2
    assert cut.layer_types == ["sliding_attention", "full_attention"]
    assert cut.sliding_window == config.sliding_window
    assert cut.to_dict()["sliding_window"] == 8
    assert config.num_hidden_layers == len(config.layer_types) == 6


def test_an_architecture_whose_first_layer_differs_asks_for_it(tmp_path):
    model = load_sentence_transformer(FAMILIES["modernbert"].build(tmp_path / "modernbert"))[0].auto_model
    with pytest.raises(ModelError, match="keep layer 0"):
        keep_layers(model, (1, 2))


@pytest.mark.parametrize("first_bias", [False, True])
@pytest.mark.parametrize("second_bias", [False, True])
def test_two_linear_maps_fold_into_one(first_bias, second_bias):
    first, second = dense(6, 9, bias=first_bias), dense(9, 4, bias=second_bias, seed=1)
    folded = fold_dense(first, second)
    inputs = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(folded.linear(inputs), second.linear(first.linear(inputs)), atol=1e-6)
    assert folded.bias == (first_bias or second_bias)


def test_a_head_with_an_activation_is_not_folded(sample, tmp_path):
    folder = bert(tmp_path / "tanh", heads=[(32, 48), (48, 32)], activation=torch.nn.Tanh())
    teacher = load_sentence_transformer(folder)
    init_student(StudentConfig(layers=(0, 1, 2)), teacher, sample, tmp_path / "student")
    student = load_sentence_transformer(tmp_path / "student")
    assert [type(module).__name__ for module in student].count("Dense") == 2
    texts = toy_texts(5)
    assert np.allclose(student.encode(texts), teacher.encode(texts), atol=1e-5)


def test_a_static_teacher_has_no_layers_to_keep(teacher, sample, tmp_path):
    init_student(StudentConfig(init="static"), teacher, sample, tmp_path / "static")
    static = load_sentence_transformer(tmp_path / "static")
    with pytest.raises(ModelError, match="StaticEmbedding, expected a Transformer"):
        init_student(StudentConfig(layers=(0,)), static, sample, tmp_path / "student")


def test_an_encoder_that_cannot_be_loaded_is_an_error(teacher, sample, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        init_student(StudentConfig(init="encoder", model=str(tmp_path / "empty")), teacher, sample, tmp_path / "s")


def test_a_full_disk_is_said_of_the_first_student_too(teacher, sample, tmp_path, monkeypatch):
    def full(*args, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(SentenceTransformer, "save_pretrained", full)
    with pytest.raises(CheckpointError, match=r"cannot write the student that training starts from: .*No space left"):
        init_student(StudentConfig(layers=(0,)), teacher, sample, tmp_path / "student")
