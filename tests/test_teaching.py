"""The teacher's vectors by the engine that bundles run on."""

import shutil

import numpy as np
import pytest
from families import gemma, toy_recipe

from leafembed import teaching
from leafembed.errors import ModelError, RecipeError
from leafembed.prepare import embed
from leafembed.recipe_io import recipe_from_dict


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    return gemma(tmp_path_factory.mktemp("teacher") / "gemma")


def toy(root, teacher_dir, eval_data, engine):
    settings = {"engine": engine, "prompt_name": "STS", "shard_rows": 32}
    return recipe_from_dict(toy_recipe(root, teacher_dir, eval_data, teacher=settings))


@pytest.fixture(scope="module")
def first(tmp_path_factory, teacher_dir, eval_data):
    """What the engine gave in an empty cache."""
    return embed(toy(tmp_path_factory.mktemp("first"), teacher_dir, eval_data, "openvino"))


@pytest.fixture
def recipe(tmp_path, teacher_dir, eval_data, first):
    """Recipes on a cache that holds the export and no vectors."""
    exported = first.teacher.targets.store.folder.parents[1] / "engines"
    shutil.copytree(exported, tmp_path / "cache" / "engines")
    return lambda engine: toy(tmp_path, teacher_dir, eval_data, engine)


def test_rows_learn_the_engines_vectors_and_the_teacher_is_judged_in_torch(first):
    material = first
    rows = [*material.corpus.train, *material.corpus.validation]
    found = material.targets(np.arange(len(rows)))
    exact = material.teacher.torch.encode([row.text for row in rows], prompt_name="STS")
    cosines = np.sum(found * exact, axis=1)
    assert cosines.min() > 0.99
    assert not np.array_equal(found, exact)
    assert len(material.teacher.targets.store) == len(rows)
    assert len(material.teacher.store) == 0
    texts = [row.text for row in rows[:9]]
    assert np.allclose(material.teacher.encode(texts, prompt_name="STS"), exact[:9], atol=1e-5)


def test_what_torch_computed_is_copied_where_it_may_be_and_students_of_both_are_told_apart(recipe):
    plain = embed(recipe("torch"))
    assert embed(recipe("openvino")).teacher.targets.computed == 120
    material = embed(recipe("either"))
    rows = np.arange(len(plain.positions))
    assert material.teacher.targets.computed == 0
    assert np.array_equal(material.targets(rows), plain.targets(rows))
    assert material.targets_id != plain.targets_id


def test_it_is_exported_once_and_an_interrupted_pass_goes_on(recipe, first, monkeypatch):
    monkeypatch.setattr(teaching, "quantize", lambda *args, **how: pytest.fail("exported again"))
    for computed in (120, 0):
        again = embed(recipe("openvino"))
        assert again.teacher.targets.computed == computed
    rows = np.arange(len(first.positions))
    assert np.allclose(first.targets(rows), again.targets(rows), atol=1e-3)


def test_an_engine_that_is_far_from_torch_is_refused(recipe, monkeypatch):
    monkeypatch.setattr(teaching, "MIN_COSINE", 1.01)
    with pytest.raises(ModelError, match=r"got a mean cosine of \S+ between OpenVINO and torch .*engine = 'torch'"):
        embed(recipe("openvino"))


def test_a_teacher_at_a_url_has_no_weights_to_run(recipe):
    material = embed(recipe("torch"))
    material.teacher.encoder = object()
    with pytest.raises(RecipeError, match="'torch': this teacher is at a URL"):
        teaching.in_openvino(recipe("openvino").teacher, material.teacher, material.teacher.store.folder, ["a"])
