from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from families import bert, embeddinggemma_config, gemma, gemma_headless, qwen, toy_texts, xlm_roberta

from leafembed.errors import ModelError, RecipeError
from leafembed.learn.factors import read_factors
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.plan import Part, parts_of, plan
from leafembed.learn.student import Sample, init_student
from leafembed.recipe import EvalConfig, Recipe
from leafembed.recipe_io import load_recipe
from leafembed.recipe_learn import Phase, StudentConfig, TeacherConfig, TrainConfig
from leafembed.recipe_text import DataConfig, Source

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


def recipe(teacher, student, **train):
    train.setdefault("freeze_token_table", student.init != "random")
    return Recipe(
        teacher=TeacherConfig(model=str(teacher)),
        student=student,
        train=TrainConfig(precision="fp32", **train),
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
    planned = list(plan(recipe(folders[name], student)).parts)
    assert planned == parts_of(load_sentence_transformer(tmp_path / "student"))
    assert [part.part for part in planned] == ["token table", "body", "head"][: PARTS[init, name]]


SHAPES = {
    "narrow": ("gemma", StudentConfig(layers=(0, 1), width=0.5)),
    "narrow, headless": ("qwen", StudentConfig(layers=(0, 1), width=0.75)),
    "low rank": ("gemma", StudentConfig(layers=(0, 1), table_rank=8)),
    "narrow and low rank": ("gemma", StudentConfig(layers=(0, 1), width=0.75, table_rank=8)),
    "random": ("gemma", StudentConfig(init="random", width=0.5, num_layers=3, num_heads=4)),
    "random bert": ("bert", StudentConfig(init="random", width=0.5, num_layers=2, num_heads=4)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_costs_what_was_planned(folders, tmp_path, name):
    family, student = SHAPES[name]
    teacher = load_sentence_transformer(folders[family])
    texts = toy_texts(40)
    init_student(student, teacher, Sample(texts, teacher.encode(texts)), tmp_path / "student")
    built = parts_of(load_sentence_transformer(tmp_path / "student"), read_factors(tmp_path / "student"))
    assert list(plan(recipe(folders[family], student)).parts) == built


def test_a_pruned_vocabulary_is_priced_by_its_tokens(folders):
    whole, pruned = (plan(recipe(folders["gemma"], StudentConfig(layers=(0, 1), vocab_size=n))) for n in (None, 50))
    assert pruned.parts[0].parameters == 50 * 32
    assert pruned.active == whole.active
    assert whole.total - pruned.total == whole.parts[0].parameters - 50 * 32
    for kind in ({"init": "static"}, {"init": "encoder", "model": str(folders["bert"])}):
        assert plan(recipe(folders["gemma"], StudentConfig(vocab_size=50, **kind))).parts[0].parameters == 50 * 32


def test_a_factorised_table_leaves_its_second_matrix_to_the_body(folders):
    whole, low = (plan(recipe(folders["gemma"], StudentConfig(layers=(0, 1), table_rank=n))) for n in (None, 8))
    vocabulary = whole.parts[0].parameters // 32
    assert low.parts[0].parameters == vocabulary * 8
    assert low.active - whole.active == 8 * 32


def test_each_exit_is_priced_by_the_layers_before_it(folders):
    found = plan(recipe(folders["bert"], StudentConfig(layers=(0, 1, 2), exits=(1, 2))))
    layer = 4 * (32 * 32 + 32) + 2 * 2 * 32 + (32 * 64 + 64) + (64 * 32 + 32)
    assert [one.layers for one in found.exits] == [1, 2, 3]
    assert [found.active - one.active for one in found.exits] == [2 * layer, layer, 0]
    assert plan(recipe(folders["bert"], StudentConfig(layers=(0, 1, 2)))).exits == ()


@pytest.mark.parametrize(
    "student", [StudentConfig(layers=(0, 1), exits=(2,)), StudentConfig(init="static", exits=(1,))]
)
def test_an_exit_lies_before_the_last_layer(folders, student):
    with pytest.raises(RecipeError, match=r"student\.exits: got \[.\], expected fewer than the student's . layers"):
        plan(recipe(folders["bert"], student))


def test_the_memory_of_training_counts_frozen_tables_and_the_teacher(folders):
    phases = (Phase(tokens=16, share=0.5), Phase(tokens=512, share=0.5))
    student = StudentConfig(layers=(0, 1))
    frozen = plan(recipe(folders["bert"], student, curriculum=phases, batch_size=4))
    teacher = sum(part.parameters for part in parts_of(load_sentence_transformer(folders["bert"])))
    assert [one.tokens for one in frozen.memory] == [16, 128]  # it has 128 positions
    assert frozen.memory[0].weights == 4 * (frozen.total + teacher)
    assert frozen.memory[0].optimizer == 8 * frozen.active
    learning = plan(recipe(folders["bert"], student, curriculum=phases, batch_size=4, freeze_token_table=False))
    assert learning.memory[0].optimizer == 8 * learning.total
    static = plan(recipe(folders["bert"], StudentConfig(init="static"), curriculum=phases))
    assert static.memory[0].optimizer == 8 * static.total  # a table alone always learns


def test_parts_by_hand(folders):
    # Two layers of BERT, hidden 32, feed-forward 64, 128 positions, 2 segments; 2 bytes a row for the scale.
    student = plan(recipe(folders["bert"], StudentConfig(layers=(0, 1)))).parts
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
    assert all(isinstance(part, Part) for part in plan(recipe(folder, StudentConfig(layers=(0, 5)))).parts)


def test_layers_the_teacher_lacks_are_refused_before_anything_is_done(folders):
    with pytest.raises(RecipeError, match="the teacher has layers 0 to 5"):
        plan(recipe(folders["gemma"], StudentConfig(layers=(0, 6))))


@pytest.mark.parametrize("name", ["config.json", "modules.json"])
def test_a_folder_without_a_config_is_an_error(folders, tmp_path, name):
    folder = shutil.copytree(folders["gemma"], tmp_path / "teacher")
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        plan(recipe(folder, StudentConfig(layers=(0,))))


def _embeddinggemma(folder):
    """The config files of google/embeddinggemma-300m, without weights."""
    embeddinggemma_config().save_pretrained(folder)
    parts = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    names = ["", *(f"{i}_{part}" for i, part in enumerate(parts[1:], 1))]
    modules = [{"idx": i, "name": str(i), "path": name, "type": f"sentence_transformers.models.{part}"}
               for i, (name, part) in enumerate(zip(names, parts, strict=True))]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    for name, (inputs, outputs) in {"2_Dense": (768, 3072), "3_Dense": (3072, 768)}.items():
        (folder / name).mkdir()
        config = {"in_features": inputs, "out_features": outputs, "bias": False,
                  "activation_function": "torch.nn.modules.linear.Identity"}  # fmt: skip
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_the_second_attempt_has_the_size_of_its_plan_and_fits_a_card_of_6_gb(tmp_path):
    path = Path(__file__).parents[1] / "recipes" / "seed_v2.toml"
    found = plan(load_recipe(path, [f"teacher.model={_embeddinggemma(tmp_path)}", "train.precision=bf16"]))
    assert 110e6 < found.total < 120e6
    assert [(phase.tokens, phase.texts) for phase in found.memory] == [(512, 32), (1024, 16), (2048, 8)]
    assert all(phase.peak < 6e9 for phase in found.memory)
