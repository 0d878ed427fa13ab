from __future__ import annotations

import numpy as np
import pytest

from leafembed.judge.compare import Judged, pairs, retention
from leafembed.judge.evaluate import report_of
from leafembed.judge.intervals import RESAMPLES, Items, bounds, redraw
from leafembed.reports import TaskResult
from leafembed.types import ModelRef

RNG = np.random.default_rng(0)
HARD = {("STS/a", "de"): RNG.random(200), ("STS/a", "fr"): RNG.random(200), ("Retrieval/b", "de"): RNG.random(80)}


def judged(label: str, items: dict[tuple[str, str], np.ndarray], data: str = "d") -> Judged:
    """What each item earned, by task and language."""
    results, draws = [], []
    for (task, lang), values in items.items():
        drawn = redraw(Items("mean", values))
        score = float(values.mean())
        results.append(
            TaskResult(task, task.split("/")[0], lang, "m", score, {"m": score}, len(values), data, 0.1, bounds(drawn))
        )
        draws.append(drawn)
    return Judged(label, label, label, report_of(ModelRef(label, 4), results, draws, ()), tuple(draws))


def shifted(by: float, noise: float = 0.0, seed: int = 1) -> dict[tuple[str, str], np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: values + by + noise * rng.standard_normal(len(values)) for key, values in HARD.items()}


def test_a_small_difference_on_the_same_items_is_clear() -> None:
    a, b = judged("a", HARD), judged("b", shifted(0.01, noise=0.02))
    (pair,) = pairs([a, b])
    assert (pair.a, pair.b) == ("b", "a")
    estimate = pair.difference["mean"]
    assert estimate.value == pytest.approx(b.scores["mean"] - a.scores["mean"])
    assert estimate.interval[0] < estimate.value < estimate.interval[1]
    assert pair.clear
    assert pair.above > 0.975
    # Though the interval of either score is many times as wide as the difference.
    low, high = a.report.intervals["mean"]
    assert high - low > 5 * estimate.value


def test_models_that_differ_by_chance_do_not_differ_clearly() -> None:
    clear = [
        pairs([judged("a", shifted(0, 0.2, seed=2 * i)), judged("b", shifted(0, 0.2, seed=2 * i + 1))])[0].clear
        for i in range(60)
    ]
    assert np.mean(clear) < 0.15


def test_equal_models_are_above_each_other_half_of_the_time() -> None:
    (pair,) = pairs([judged("a", HARD), judged("b", HARD)])
    assert pair.above == 0.5
    assert not pair.clear
    assert pair.difference["STS"].interval == (0.0, 0.0)


def test_every_two_models_are_a_pair_and_the_best_comes_first() -> None:
    models = [judged("low", HARD), judged("high", shifted(0.2)), judged("middle", shifted(0.1))]
    found = [(pair.a, pair.b) for pair in pairs(models)]
    assert found == [("high", "middle"), ("high", "low"), ("middle", "low")]
    assert set(pairs(models)[0].difference) == {"STS", "Retrieval", "mean"}
    assert pairs(models[:1]) == ()
    assert pairs(models)[0].to_dict()["clear"] is True
    with pytest.raises(ValueError, match="different tasks or data"):
        pairs([models[0], judged("other", HARD, data="e")])


def test_retention_is_a_ratio_with_its_interval() -> None:
    teacher = judged("teacher", HARD)
    half = judged("half", {key: 0.5 * values for key, values in HARD.items()})
    kept = retention(half, teacher)
    assert {kind: estimate.value for kind, estimate in kept.items()} == pytest.approx(
        {"STS": 0.5, "Retrieval": 0.5, "mean": 0.5}
    )
    assert kept["mean"].interval == pytest.approx((0.5, 0.5))  # item by item it keeps the same share
    noisy = retention(judged("noisy", shifted(0, noise=0.3)), teacher)["STS"]
    assert noisy.interval[0] < noisy.value < noisy.interval[1]
    assert noisy.value == pytest.approx(judged("noisy", shifted(0, noise=0.3)).scores["STS"] / teacher.scores["STS"])


def test_where_the_reference_scores_nothing_there_is_nothing_to_retain() -> None:
    nothing = {**HARD, ("Retrieval/b", "de"): np.array([0.001, *np.zeros(79)])}
    kept = retention(judged("model", HARD), judged("teacher", nothing))
    assert set(kept) == {"STS"}


def test_few_hits_that_some_resample_misses_give_no_retention_rather_than_nan() -> None:
    few = {**HARD, ("Retrieval/b", "de"): np.array([1.0] * 4 + [0.0] * 96)}
    reference = judged("teacher", few)
    assert reference.report.intervals["Retrieval"][0] > 0
    assert reference.drawn["Retrieval"].min() == 0
    assert set(retention(judged("model", few), reference)) == {"STS"}


def test_in_the_mean_no_type_makes_up_for_another() -> None:
    better = {("Retrieval/b", "de"): np.minimum(1, 1.2 * HARD["Retrieval/b", "de"])}
    kept = retention(judged("model", {**HARD, **better}), judged("teacher", HARD))
    assert kept["Retrieval"].value > 1
    assert kept["mean"].value == pytest.approx(1)
    assert kept["mean"].interval[1] <= 1


def test_a_language_is_the_mean_over_its_tasks() -> None:
    model = judged("a", {**HARD, ("STS/c", "de"): np.full(60, 0.9)})
    scores = model.by_language()
    assert set(scores) == {("STS", "de"), ("STS", "fr"), ("Retrieval", "de")}
    assert scores["STS", "de"].value == pytest.approx((HARD["STS/a", "de"].mean() + 0.9) / 2)
    own = np.ptp(bounds(redraw(Items("mean", HARD["STS/a", "de"]))))
    assert np.ptp(scores["STS", "de"].interval) == pytest.approx(own / 2)
    assert all(len(drawn) == RESAMPLES for drawn in model.drawn.values())
