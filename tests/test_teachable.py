"""What the text cannot teach or measure is found out before the teacher works."""

from __future__ import annotations

import pytest
from families import gemma_headless, toy_recipe

from leafembed.errors import RecipeError
from leafembed.learn.teachable import require_teachable
from leafembed.prepare import embed
from leafembed.recipe_io import recipe_from_dict
from leafembed.recipe_learn import TrainConfig
from leafembed.types import Corpus, Row

BARE = (Row("a", "en"), Row("b", "en"))
PAIRS = (Row("a", "en"), Row("b", "de", pair=0))
TRIPLETS = (Row("a", "en", negative=2), Row("b", "de", pair=0), Row("c", "en"))
NEGATIVES_ELSEWHERE = (Row("a", "en"), Row("b", "de", pair=0), Row("c", "en", negative=0))


def check(train, validation, *, exits=(), mined=False, **settings):
    require_teachable(TrainConfig(**settings), Corpus(train, validation, {}, "f"), exits=exits, mined=mined)


@pytest.mark.parametrize(
    ("train", "settings", "message"),
    [
        (BARE, {"contrastive": 0.5}, r"train\.contrastive: got 0\.5, expected 0, or text with positives"),
        (PAIRS, {"triplet": 0.5}, r"train\.triplet: got 0\.5, expected 0, or text with positives and hard negatives"),
        (NEGATIVES_ELSEWHERE, {"triplet": 0.5}, r"train\.triplet: "),
        (BARE, {"triplet": 0.5, "mined": True}, r"train\.triplet: "),  # mined for pairs alone
        (PAIRS, {"contrastive": 0.5}, None),
        (PAIRS, {"triplet": 0.5, "mined": True}, None),
        (TRIPLETS, {"triplet": 0.5, "contrastive": 0.5}, None),
    ],
)
def test_an_objective_needs_training_rows(train, settings, message):
    if message is None:
        check(train, BARE, **settings)
    else:
        with pytest.raises(RecipeError, match=message):
            check(train, BARE, **settings)


@pytest.mark.parametrize(
    ("name", "why", "measured"),
    [
        ("exit_alignment", "student.exits is empty", {"exits": (1,)}),
        ("token_distillation", "its weight is 0", {"token_distillation": 0.5}),
        ("contrastive", "no validation row has a positive", {"validation": PAIRS}),
        ("triplet", "no validation row has both", {"validation": TRIPLETS}),
        ("triplet", "no validation row has both", {"validation": PAIRS, "mined": True}),
    ],
)
def test_a_loss_that_is_watched_needs_what_it_measures(name, why, measured):
    for key, settings in {
        "best_metric": {"best_metric": f"validation_{name}"},
        "stop_metric": {"stop_metric": f"validation_{name}", "stop_patience": 1},
        "targets": {"targets": {f"validation_{name}": 1.0}},
    }.items():
        with pytest.raises(RecipeError, match=rf"train\.{key}: got 'validation_{name}', expected .*since {why}"):
            check(TRIPLETS, BARE, **settings)
        check(TRIPLETS, **{"validation": BARE} | settings | measured)
    check(TRIPLETS, BARE, stop_metric=f"validation_{name}")  # without patience nobody looks at it
    check(TRIPLETS, BARE, targets={"validation_near_alignment": 1.0, "validation_loss": 1.0})


@pytest.mark.parametrize("train", [{"contrastive": 0.5}, {"best_metric": "validation_triplet"}])
def test_a_run_says_it_before_the_teacher_is_loaded(tmp_path, eval_data, monkeypatch, train):
    monkeypatch.setattr("leafembed.prepare.load_teacher", lambda *args: pytest.fail("the teacher was loaded"))
    plain = toy_recipe(tmp_path, gemma_headless(tmp_path / "gemma"), eval_data, train=train)
    with pytest.raises(RecipeError, match=rf"train\.{next(iter(train))}: got "):
        embed(recipe_from_dict(plain))
