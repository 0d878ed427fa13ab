from __future__ import annotations

from pathlib import Path

import pytest
from conftest import write_rows

from leafembed.errors import RecipeError
from leafembed.learn.data import prepare_corpus
from leafembed.recipe_io import load_recipe, recipe_from_dict

SHIPPED = Path(__file__).parent.parent / "recipes" / "mixtures" / "multilingual.toml"
RECIPE = """
[data]
mixture = "mixes/all.toml"
{data}
[teacher]
model = "./teacher"
[eval]
dev = ["agreement"]
test = ["sts/toy.test"]
"""
MIXTURE = """
root = "../text"
[languages]
en = 0.5
de = 2.0
[lengths]
long = 3.0
[[sources]]
path = "a.jsonl"
licence = "CC0-1.0"
[[sources]]
path = "sub/*.txt"
weight = 0.5
"""


@pytest.fixture
def load(tmp_path):
    def load(data="", mixture=MIXTURE, overrides=()):
        (tmp_path / "mixes").mkdir(exist_ok=True)
        (tmp_path / "mixes" / "all.toml").write_text(mixture, encoding="utf-8")
        (tmp_path / "recipe.toml").write_text(RECIPE.format(data=data), encoding="utf-8")
        return load_recipe(tmp_path / "recipe.toml", overrides)

    return load


def test_a_mixture_is_as_if_the_recipe_said_it(load, tmp_path):
    data = load().data
    assert (data.root, data.mixture) == (tmp_path / "text", None)
    assert [(s.path, s.weight) for s in data.sources] == [("a.jsonl", 1.0), ("sub/*.txt", 0.5)]
    assert (data.language_weights, data.length_weights) == ({"en": 0.5, "de": 2.0}, {"long": 3.0})
    assert recipe_from_dict(load().to_dict()) == load()


def test_the_recipe_adds_sources_of_its_own_root_and_its_weights_win(load, tmp_path):
    own = 'root = "mine"\nvalidation_rows = 16\nsources = [{ path = "b.txt" }]\nlanguage_weights = { de = 1.0 }'
    recipe = load(own)
    assert recipe.data.root == tmp_path / "mine"
    assert [s.path for s in recipe.data.sources] == ["b.txt", "../text/a.jsonl", "../text/sub/*.txt"]
    assert recipe.data.language_weights == {"en": 0.5, "de": 1.0}
    write_rows(tmp_path / "text" / "a.jsonl", [{"text": f"a number {i}", "lang": "en"} for i in range(60)])
    for folder in ("text/sub", "mine"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "b.txt").write_text("\n".join(f"{folder} {i}" for i in range(60)), encoding="utf-8")
    corpus = prepare_corpus(recipe.data, tmp_path / "kept", seed=0, prompt_name=None)
    assert {name: n for name, n in corpus.counts.items() if name.startswith("read")} == {
        "read from b.txt": 60, "read from ../text/a.jsonl": 60, "read from ../text/sub/*.txt": 60}  # fmt: skip


def test_a_mixture_is_given_on_the_command_line_too(load, tmp_path):
    (tmp_path / "other.toml").write_text('[[sources]]\npath = "x.txt"', encoding="utf-8")
    data = load(overrides=[f"data.mixture={tmp_path / 'other.toml'}"]).data
    assert ([s.path for s in data.sources], data.root) == (["x.txt"], tmp_path)


@pytest.mark.parametrize("own", ["", 'root = "mine"\nsources = [{ path = "b.txt" }]'])
def test_a_root_on_the_command_line_moves_the_mixture_too(load, tmp_path, own):
    data = load(own, overrides=[f"data.root={tmp_path / 'moved'}"]).data
    assert data.root == tmp_path / "moved"
    assert [s.path for s in data.sources][-2:] == ["a.jsonl", "sub/*.txt"]


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ("sorces = []", r"all\.toml: unknown key sorces in the recipe: did you mean sources\?"),
        ("[[sources]]\npth = 'a'", r"all\.toml: unknown key sources\[0\]\.pth .*did you mean sources\[0\]\.path\?"),
        ("[[sources]]\npath = 'a'\nweight = -1", r"all\.toml: data\.sources\.weight: got -1"),
        (
            "[[sources]]\npath = 'a'\n[languages]\nen = 'much'",
            r"all\.toml: languages\.en: got 'much', expected a finite",
        ),
        ("[[sources]]\npath = 'a'\n[languages]\nen = -1", r"data\.language_weights: got \{'en': -1"),
        ("[[sources]]\npath = 'a'\n[lengths]\nhuge = 1", r"data\.length_weights: got \['huge'\]"),
        ("[languages]\nen = 1", r"all\.toml: got 'no \[\[sources\]\]'"),
        ("[sources", r"all\.toml: not a TOML file"),
    ],
)
def test_what_cannot_work_is_refused(load, mixture, message):
    with pytest.raises(RecipeError, match=message):
        load(mixture=mixture)


def test_a_mixture_that_is_missing_is_named(load, tmp_path):
    with pytest.raises(RecipeError, match=r"no\.toml: No such file or directory; expected a mixture"):
        load(overrides=[f"data.mixture={tmp_path / 'no.toml'}"])


def test_the_shipped_mixture_names_licence_and_origin_and_aligns_translations(load):
    data = load(overrides=[f"data.mixture={SHIPPED}"]).data
    assert len(data.sources) == 25
    assert all(source.licence and source.origin for source in data.sources)
    translations = [source for source in data.sources if source.path.endswith("_parallel.jsonl.gz")]
    assert len(translations) == 8
    assert {source.positive_target for source in translations} == {"text"}
    assert {s.prompt_name for s in data.sources} == {None, "query", "document"}
