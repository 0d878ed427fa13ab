"""Training that goes on from the student of an earlier run."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from families import gemma, toy_recipe

from leafembed.errors import RecipeError
from leafembed.learn.models import load_sentence_transformer
from leafembed.pipeline import run, train
from leafembed.recipe_io import recipe_from_dict


@pytest.fixture(scope="module")
def first(tmp_path_factory, eval_data):
    """A recipe and the folder of its finished training."""
    root = tmp_path_factory.mktemp("first")
    plain = toy_recipe(root, gemma(root / "gemma"), eval_data, student={"layers": [0, 5]})
    train(recipe_from_dict(plain), root / "run")
    return plain, root / "run"


def after(plain, folder, **sections):
    """The same recipe with another seed, going on from ``folder``."""
    changed = {name: plain.get(name, {}) | section for name, section in sections.items()}
    return recipe_from_dict(plain | {"seed": 1} | changed | {"train": plain["train"] | {"start": str(folder)}})


def test_it_starts_with_the_earlier_weights_and_the_card_counts_both_parts(first, tmp_path):
    plain, folder = first
    outcome = run(after(plain, folder), tmp_path / "run", allow_failed=True)
    training = outcome.manifest["training"]
    (earlier,) = training["earlier"]
    assert (earlier["steps"], earlier["texts"]) == (12, 12 * 16)
    history = training["history"]
    before = load_sentence_transformer(folder / "student")
    untrained = load_sentence_transformer(tmp_path / "run" / "untrained-student")
    assert not np.allclose(before.encode(["red river"]), untrained.encode(["red river"]), atol=1e-4)
    assert history[0]["step"] == 0
    card = (outcome.folder / "README.md").read_text(encoding="utf-8")
    assert "training before it, part 1: 192 texts in 12 steps" in card.replace("**", "")


def test_a_third_part_lists_both_before_it(first, tmp_path):
    plain, folder = first
    facts = train(after(plain, folder), tmp_path / "second")
    assert len(facts["earlier"]) == 1
    facts = train(after(plain, tmp_path / "second"), tmp_path / "third")
    assert len(facts["earlier"]) == 2


def test_where_the_earlier_run_lies_does_not_matter(first, tmp_path):
    plain, folder = first
    train(after(plain, folder), tmp_path / "run")
    moved = shutil.copytree(folder, tmp_path / "moved")
    marker = (tmp_path / "run" / "student" / "model.safetensors").stat().st_mtime_ns
    train(after(plain, moved), tmp_path / "run")
    assert (tmp_path / "run" / "student" / "model.safetensors").stat().st_mtime_ns == marker  # not trained again


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"student": {"layers": [0, 1, 5]}}, r"train\.start: got .*'num_hidden_layers': 2.*expected a student of the"),
        ({"teacher": {"licence": "mit"}}, r"teacher\.licence of train\.start: got None, expected 'mit'"),
        (
            {"student": {"table_bits": 4, "layers": [0, 5]}},
            r"student\.table_bits of train\.start: got None, expected 4",
        ),
        ({"eval": {"decontaminate": ["sts/toy.test"]}}, r"eval: got \['sts/toy\.test'\].*train\.start kept out"),
    ],
)
def test_what_the_card_could_not_account_for_is_refused(first, tmp_path, sections, message):
    plain, folder = first
    with pytest.raises(RecipeError, match=message):
        train(after(plain, folder, **sections), tmp_path / "run")


def test_a_source_that_the_recipe_does_not_list_is_refused(first, tmp_path):
    plain, folder = first
    (tmp_path / "other.txt").write_text((folder.parent / "corpus.txt").read_text(encoding="utf-8"), encoding="utf-8")
    data = {"root": str(tmp_path), "sources": [{"path": "other.txt", "lang": "en"}]}
    with pytest.raises(
        RecipeError, match=r"data\.sources: got 'nothing of corpus\.txt', expected every source of train"
    ):
        train(after(plain, folder, data=data), tmp_path / "run")


def test_a_folder_that_is_no_run_is_refused(first, tmp_path):
    plain, _ = first
    with pytest.raises(RecipeError, match=r"train\.start: got .*expected the folder of a run that trained a student"):
        train(after(plain, tmp_path), tmp_path / "run")
