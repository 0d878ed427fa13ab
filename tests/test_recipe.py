from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from leafembed.errors import RecipeError
from leafembed.recipe import Recipe
from leafembed.recipe_io import field_docs, load_recipe, recipe_from_dict, reference_page
from leafembed.recipe_learn import StudentConfig, TrainConfig
from leafembed.recipe_text import DataConfig, Source

ROOT = Path(__file__).parent.parent
MINIMAL = """
[[data.sources]]
path = "corpus.txt"
[teacher]
model = "./teacher"
[student]
layers = [0, 3]
[eval]
data = "tasks"
dev = ["agreement"]
test = ["sts/toy.test"]
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "toy.toml").write_text(MINIMAL, encoding="utf-8")
    return tmp_path / "toy.toml"


def test_a_recipe_is_named_after_its_file_and_keeps_the_defaults(path):
    recipe = load_recipe(path)
    assert recipe.name == "toy"
    assert recipe.train == TrainConfig(freeze_token_table=True)
    assert recipe.student == StudentConfig(layers=(0, 3))
    assert recipe.data.sources == (Source(path="corpus.txt"),)


def test_paths_are_relative_to_the_file_and_home_is_spelled_out(path, tmp_path):
    recipe = load_recipe(path)
    assert recipe.eval.data == tmp_path / "tasks"
    assert recipe.teacher.model == str(tmp_path / "teacher")
    assert recipe.cache_dir == Path("~/.cache/leafembed").expanduser()


@pytest.mark.parametrize(
    ("overrides", "frozen"),
    [([], True), (["student.init=random"], False), (["train.freeze_token_table=false"], False)],
)
def test_a_table_is_frozen_where_it_was_trained_before_unless_asked(path, overrides, frozen):
    assert load_recipe(path, overrides).train.freeze_token_table is frozen


def test_hub_ids_and_packages_are_not_paths(path):
    for model in ("org/name", "package:name", "/abs/folder"):
        path.write_text(MINIMAL.replace("./teacher", model), encoding="utf-8")
        assert load_recipe(path).teacher.model == model


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("seed=7", None, "seed", 7),
        ("train.learning_rate=1e-4", "train", "learning_rate", 1e-4),
        ("train.learning_rate = 1", "train", "learning_rate", 1.0),
        ("train.max_steps=5", "train", "max_steps", 5),
        ("train.freeze_token_table=false", "train", "freeze_token_table", False),
        ("student.layers=[1, 2]", "student", "layers", (1, 2)),
        ("student.layers=[]", "student", "layers", ()),
        ("teacher.prompt_name=STS", "teacher", "prompt_name", "STS"),
        ('eval.test=["bitext/a"]', "eval", "test", ("bitext/a",)),
        ("gate.min_retention.STS=0.9", "gate", "min_retention", {"STS": 0.9}),
        ("gate.min_score.sts/stsb.test=0.6", "gate", "min_score", {"sts/stsb.test": 0.6}),
        ("data.root=elsewhere", "data", "root", Path("elsewhere")),
    ],
)
def test_set_overrides_a_key(path, override, section, key, value):
    overrides = [override, "student.init=static"] if override.endswith("[]") else [override]
    recipe = load_recipe(path, overrides)
    assert getattr(getattr(recipe, section) if section else recipe, key) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lerning_rate=1", r"unknown key train\.lerning_rate in the recipe: did you mean train\.learning_rate\?"),
        ("trian.epochs=1", r"unknown key trian in the recipe: did you mean train\?"),
        ("train.xyzzy=1", r"unknown key train\.xyzzy in the recipe: known keys are distillation, "),
        ("train.epochs=fast", r"train\.epochs: got 'fast', expected a finite number"),
        ("train.epochs=nan", r"train\.epochs: got nan, expected a finite number"),
        ("train.epochs=true", r"train\.epochs: got True, expected a finite number"),
        ("train.batch_size=1.5", r"train\.batch_size: got 1\.5, expected a whole number"),
        ("train.batch_size=-3", r"train\.batch_size: got -3, expected a whole number"),
        ("train.batch_size=1", r"train\.batch_size: got 1, expected at least 2"),
        ("train.freeze_token_table=1", r"train\.freeze_token_table: got 1, expected true or false"),
        ("train.precision=fp16", r"train\.precision: got 'fp16', expected one of auto, bf16, fp32"),
        ("student.init=best", r"student\.init: got 'best', expected one of layers, encoder, static, random"),
        ("student.layers=[3, 1]", r"student\.layers: got \[3, 1\], expected layer numbers from 0, ascending"),
        ("student.layers=[1, 1]", r"student\.layers"),
        ("student.layers=3", r"student\.layers: got 3, expected a list"),
        ('student.layers=["a"]', r"student\.layers\[0\]: got 'a', expected a whole number"),
        ("student.init=encoder", r"student\.model: got ''"),
        ("data.validation_rows=3", r"data\.validation_rows: got 3, expected at least 16"),
        ("data.temperature=0.5", r"data\.temperature: got 0\.5"),
        ("data=3", r"data: got 3, expected a table"),
        ("gate.min_retention=0.9", r"gate\.min_retention: got 0\.9, expected a table"),
        ("gate.min_retention.STS=high", r"gate\.min_retention\.STS: got 'high', expected a finite number"),
        ('eval.dev=["sts/toy.test"]', r"eval\.dev: got \['sts/toy\.test'\], expected tasks that are not in eval\.test"),
        ("eval.dev=[]", r"eval\.dev: got 'nothing'"),
        ("seed", r"--set 'seed': expected KEY=VALUE"),
        ("=3", r"--set '=3': expected KEY=VALUE"),
        ("seed.x=3", r"seed: got \{'x': 3\}"),
        ("teacher.model.x=3", r"--set 'teacher\.model\.x=3': model is not a section"),
        ("teacher.model=3", r"teacher\.model: got 3, expected text in quotes"),
    ],
)
def test_what_cannot_work_is_refused_by_key(path, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.init=static", "student.width=0.5"], r"student\.width: got 0\.5, expected 1 for init = 'static'"),
        (["student.init=random", "student.table_rank=8"], r"student\.table_rank: .* unless student\.init is 'layers'"),
        (["student.table_rank=8", "train.freeze_token_table=false"], r"student\.table_rank: .*freeze_token_table"),
    ],
)
def test_keys_that_a_start_does_not_read_are_refused(path, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[train", "not a TOML file"), (b"name = '\xff'", "not a TOML file"), (None, "No such file")],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, content, message):
    path = tmp_path / "broken.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=rf"broken\.toml: .*{message}"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("left_out", "key"), [("teacher", "teacher.model"), ("eval", "eval.test"), ("data", "data.sources")]
)
def test_what_has_no_default_must_be_given(path, left_out, key):
    plain = load_recipe(path).to_dict()
    del plain[left_out]
    with pytest.raises(RecipeError, match=key):
        recipe_from_dict(plain)


def test_plain_data_and_back(path):
    overrides = ["gate.min_retention.STS=0.9", "train.max_steps=4", "teacher.prompt_name=STS", 'data.languages=["de"]']
    recipe = load_recipe(path, overrides)
    assert recipe_from_dict(recipe.to_dict()) == recipe
    assert isinstance(recipe.to_dict()["cache_dir"], str)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.name)
def test_the_recipes_we_ship_are_legal(path):
    assert recipe_from_dict(load_recipe(path).to_dict()) == load_recipe(path)


def test_the_reference_page_is_what_the_code_says():
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == reference_page(), "generate docs/recipe.md anew"


def test_every_key_is_explained():
    for kind in (Recipe, DataConfig, Source, StudentConfig, TrainConfig):
        assert all(field_docs(kind).values())


@pytest.mark.parametrize(
    "override",
    [
        *("benchmark.repeats=0", "benchmark.threads=0", "quantize.check_texts=0", "train.alignment_temperature=0.0"),
        *("train.average_checkpoints=1", "train.weight_decay=-0.1", "train.best_metric=validation_alignement"),
        *("train.stop_metric=validation_", "train.targets={validation_dev=1.0}"),
        *("train.learning_rate=0.0", "train.learning_rate=-1.0", "train.epochs=0.0", "train.max_seq_length=0"),
        *(
            "eval.max_dev_rows=0",
            "data.max_chars=0",
            "train.distillation=-1.0",
            "teacher.shard_rows=0",
        ),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(path, override):
    with pytest.raises(RecipeError, match=override.partition("=")[0].replace(".", r"\.")):
        load_recipe(path, [override])


@pytest.mark.parametrize("plan", sorted((ROOT / "recipes" / "ablations").glob("*.toml")), ids=lambda path: path.stem)
def test_every_change_of_an_ablation_is_a_legal_recipe(plan, monkeypatch):
    monkeypatch.chdir(ROOT)  # where the tool is called from
    content = tomllib.loads(plan.read_text(encoding="utf-8"))
    overrides = list(content["set"])
    for change in content["change"]:
        overrides += change["set"]
        assert load_recipe(plan.parent / content["recipe"], overrides).student.init in ("random", "layers")
