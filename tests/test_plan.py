from __future__ import annotations

import shutil

import pytest
import torch
from families import bert, gemma, gemma_headless, qwen, toy_texts, xlm_roberta

from leafembed.errors import ModelError, RecipeError
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.plan import Part, parts_of, plan
from leafembed.learn.student import Sample, init_student
from leafembed.recipe import EvalConfig, Recipe
from leafembed.recipe_learn import DataConfig, Source, StudentConfig, TeacherConfig

BUILDERS = {
    "gemma": gemma,
    "headless": gemma_headless,
    "qwen": qwen,
    "bert": bert,
    "xlm_roberta": xlm_roberta,
    "one biased head": lambda folder: bert(folder, heads=[(32, 24)], activation=torch.nn.Identity()),
    "two heads with tanh": lambda folder: bert(folder, heads=[(32, 48), (48, 32)], activation=torch.nn.Tanh()),
}

HEADLESS = {"headless", "qwen", "bert", "xlm_roberta"}
PARTS = {("static", name): 1 for name in BUILDERS} | {("encoder", name): 3 for name in BUILDERS}
PARTS |= {("layers", name): 2 if name in HEADLESS else 3 for name in BUILDERS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("plan")
    return {name: build(root / name.replace(" ", "-")) for name, build in BUILDERS.items()}


def recipe(teacher, student):
    return Recipe(
        teacher=TeacherConfig(model=str(teacher)),
        student=student,
        data=DataConfig(sources=(Source(path="x.txt"),)),
        eval=EvalConfig(dev=("agreement",), test=("sts/x",)),
    )


@pytest.mark.parametrize("init", ["layers", "encoder", "static"])
@pytest.mark.parametrize("name", BUILDERS)
def test_the_plan_is_what_the_student_turns_out_to_be(folders, tmp_path, name, init):
    student = StudentConfig(init=init, layers=(0, 1), model=str(folders["bert"]))
    teacher = load_sentence_transformer(folders[name])
    texts = toy_texts(40)
    init_student(student, teacher, Sample(texts, teacher.encode(texts)), tmp_path / "student")
    planned = plan(recipe(folders[name], student))
    assert planned == parts_of(load_sentence_transformer(tmp_path / "student"))
    assert [part.part for part in planned] == ["token table", "body", "head"][: PARTS[init, name]]


def test_parts_by_hand(folders):
    # Two layers of BERT, hidden 32, feed-forward 64, 128 positions, 2 segments; 2 bytes a row for the scale.
    student = plan(recipe(folders["bert"], StudentConfig(layers=(0, 1))))
    vocabulary = len(load_sentence_transformer(folders["bert"]).tokenizer)
    table, body = student
    assert (table.part, table.parameters) == ("token table", vocabulary * 32)
    assert table.int8_mb == pytest.approx((vocabulary * 32 + vocabulary * 2) / 1e6)
    layer = 4 * (32 * 32 + 32) + 2 * 2 * 32 + (32 * 64 + 64) + (64 * 32 + 32)
    assert body.parameters == (128 + 2) * 32 + 2 * 32 + 2 * layer
    assert body.fp32_mb == pytest.approx(body.parameters * 4 / 1e6)


def test_planning_reads_no_weights(folders, tmp_path):
    folder = shutil.copytree(folders["gemma"], tmp_path / "teacher")
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    assert all(isinstance(part, Part) for part in plan(recipe(folder, StudentConfig(layers=(0, 5)))))


def test_layers_the_teacher_lacks_are_refused_before_anything_is_done(folders):
    with pytest.raises(RecipeError, match="the teacher has layers 0 to 5"):
        plan(recipe(folders["gemma"], StudentConfig(layers=(0, 6))))


@pytest.mark.parametrize("name", ["config.json", "modules.json"])
def test_a_folder_without_a_config_is_an_error(folders, tmp_path, name):
    folder = shutil.copytree(folders["gemma"], tmp_path / "teacher")
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        plan(recipe(folder, StudentConfig(layers=(0,))))
