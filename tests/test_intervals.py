from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap, rankdata, spearmanr
from sklearn.metrics import average_precision_score, v_measure_score

from leafembed.errors import NonFiniteError
from leafembed.judge import intervals
from leafembed.judge.intervals import RESAMPLES, Items, bounds, redraw


def pairs(n: int, *, seed: int = 0, noise: float = 1.0) -> np.ndarray:
    """Two related columns, the second of few values, as gold scores are."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    return np.column_stack([x, np.round(2 * (x + noise * rng.standard_normal(n)))])


def drawn_items(n: int) -> list[np.ndarray]:
    """The items of every resample, one by one."""
    return [np.repeat(np.arange(n), counts) for block in intervals._resamples(n) for counts in block]


def test_each_resample_draws_as_many_items_as_there_are() -> None:
    counts = np.concatenate(list(intervals._resamples(7)))
    assert counts.shape == (RESAMPLES, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert abs(counts.mean(axis=0) - 1).max() < 0.15
    assert len(np.unique(counts, axis=0)) > RESAMPLES / 2


def test_a_mean_is_that_of_the_items_drawn() -> None:
    values = np.array([0.0, 0.25, 1.0, 0.5])
    assert redraw(Items("mean", values)).tolist() == pytest.approx([values[drawn].mean() for drawn in drawn_items(4)])


def test_a_correlation_is_that_of_the_pairs_drawn() -> None:
    values = pairs(40)
    assert len(np.unique(values[:, 1])) < 20  # ties, and more of them in a resample
    expected = [spearmanr(*values[drawn].T).statistic for drawn in drawn_items(40)]
    assert redraw(Items("spearman", values)).tolist() == pytest.approx(expected)


def test_ranks_are_those_of_scipy() -> None:
    values, counts = np.array([3.0, 1.0, 3.0, 2.0]), np.array([[2, 1, 1, 0], [0, 4, 0, 0]])
    ranks = intervals._ranks(values, counts)
    assert ranks[0, [1, 0, 2]].tolist() == rankdata([1.0, 3.0, 3.0, 3.0])[[0, 1, 3]].tolist()
    assert ranks[1, 1] == 2.5


def test_the_best_average_precision_is_that_of_the_pairs_drawn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=50)
    measures = [np.round(labels + rng.standard_normal(50), 1), labels + rng.standard_normal(50)]
    assert len(np.unique(measures[0])) < 40  # ties
    values = np.column_stack([*measures, labels])
    drawn = drawn_items(50)[:200]
    theirs = [[average_precision_score(labels[i], measure[i]) for i in drawn] for measure in measures]
    assert all(np.argmax(theirs, axis=0).tolist().count(i) > 2 for i in range(2))  # now one is best, now the other
    assert redraw(Items("max_ap", values))[:200].tolist() == pytest.approx(np.max(theirs, axis=0).tolist())


def test_without_a_pair_of_one_meaning_there_is_no_precision() -> None:
    values, counts = np.array([[0.9, 1.0], [0.5, 0.0]]), np.array([[0, 2], [2, 0], [1, 1]])
    assert intervals._max_ap(values, counts).tolist() == [0, 1, 1]


def test_a_v_measure_is_that_of_the_documents_drawn_as_often_as_each_clustering_drew_them() -> None:
    rng = np.random.default_rng(0)
    labels, noise = rng.integers(4, size=30), rng.integers(4, size=(30, 2))
    clusters, drawn = np.where(rng.random((30, 2)) < 0.6, labels[:, None], noise), rng.integers(4, size=(30, 2))
    every = np.concatenate(list(intervals._resamples(30)))[:100]
    expected = [
        np.mean(
            [
                v_measure_score(np.repeat(labels, n * w), np.repeat(c, n * w))
                for c, w in zip(clusters.T, drawn.T, strict=True)
            ]
        )
        for n in every
    ]
    values = np.column_stack([labels, clusters, drawn]).astype(float)
    assert intervals._v_measure(values, every).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_interval_of_a_v_measure_lies_about_it(share: float) -> None:
    rng = np.random.default_rng(0)
    labels, noise = rng.integers(20, size=400), rng.integers(20, size=400)
    clusters = np.where(rng.random(400) < share, labels, noise)
    draws = redraw(Items("v_measure", np.column_stack([labels, clusters, np.ones(400)])))
    low, high = bounds(draws)
    assert low <= v_measure_score(labels, clusters) <= high
    assert draws.mean() == pytest.approx(v_measure_score(labels, clusters), abs=1e-9)
    assert 0 <= draws.min() <= draws.max() <= 1


def test_one_label_in_one_cluster_is_whole_and_pure_and_in_two_is_not() -> None:
    values = np.array([[0, 0, 1], [0, 0, 1], [0, 1, 1], [1, 1, 1]])
    counts = np.array([[2, 2, 0, 0], [2, 0, 2, 0], [2, 0, 0, 2]])
    assert intervals._v_measure(values.astype(float), counts).tolist() == pytest.approx([1, 0, 1])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    items = Items("spearman", pairs(60))
    monkeypatch.setattr(intervals, "_BLOCK", 600)
    in_blocks = redraw(items)
    assert in_blocks.shape == (RESAMPLES,)
    assert bounds(in_blocks) == pytest.approx(bounds(redraw(items)), abs=0.02)


def test_a_collapsed_model_has_an_interval_of_zero() -> None:
    values = np.column_stack([np.zeros(30), np.arange(30)])
    assert bounds(redraw(Items("spearman", values))) == (0.0, 0.0)


def test_intervals_agree_with_those_of_scipy() -> None:
    values = pairs(250)
    low, high = bounds(redraw(Items("spearman", values)))
    theirs = bootstrap(
        (values[:, 0], values[:, 1]),
        lambda a, b: spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.015)
    assert low < spearmanr(*values.T).statistic < high


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = rng.random((200, 300)) < 0.7
    covered = [low <= 0.7 <= high for low, high in (bounds(redraw(Items("mean", sample))) for sample in samples)]
    assert 0.90 <= np.mean(covered) <= 0.99


def test_intervals_narrow_with_the_root_of_the_items() -> None:
    few, many = (np.ptp(bounds(redraw(Items("spearman", pairs(n))))) for n in (200, 3_200))
    assert few / many == pytest.approx(4, rel=0.3)


def test_as_many_items_are_drawn_alike_and_others_are_not() -> None:
    values = pairs(50)[:, 0]
    assert (redraw(Items("mean", values)) == redraw(Items("mean", values.copy()))).all()
    # The difference of two models that err on the same items is known far better than either score.
    better = values + 0.1 + 0.01 * np.random.default_rng(1).standard_normal(50)
    difference = redraw(Items("mean", better)) - redraw(Items("mean", values))
    assert np.ptp(bounds(difference)) < 0.05 * np.ptp(bounds(redraw(Items("mean", values))))


def test_what_cannot_be_resampled_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        Items("mean", np.empty(0))
    with pytest.raises(ValueError, match="got statistic 'median', expected one of"):
        Items("median", np.ones(3))
    with pytest.raises(NonFiniteError):
        Items("mean", np.array([0.0, math.nan]))
