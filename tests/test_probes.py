from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from test_metrics import random_unit, unit

from leafembed.errors import NonFiniteError
from leafembed.judge.probes import classification, clustering, draw_documents, draw_examples, pick_documents


def test_draws_hold_each_label_equally_often_and_follow_the_seed() -> None:
    labels = ["a"] * 30 + ["b"] * 20 + ["c"] * 3
    draws = draw_examples(labels, seed=0)
    assert len(draws) == 10
    for draw in draws:
        assert len(set(draw.tolist())) == len(draw)
        assert sorted(labels[i] for i in draw) == ["a"] * 8 + ["b"] * 8 + ["c"] * 3
    assert all(sorted(one) != sorted(two) for one, two in pairwise(map(list, draws)))
    again, other = draw_examples(labels, seed=0), draw_examples(labels, seed=1)
    assert all((one == two).all() for one, two in zip(draws, again, strict=True))
    assert not all((one == two).all() for one, two in zip(draws, other, strict=True))


def test_classification_of_separable_and_of_unrelated_labels() -> None:
    train, test = unit(*[0, 90, 180] * 20), unit(*[5, 95, 185] * 10)
    labels, gold = ["x", "y", "z"] * 20, ["x", "y", "z"] * 10
    draws = draw_examples(labels, seed=0)
    assert classification(train, labels, test, gold, draws=draws).scores == {"accuracy": 1.0, "f1": 1.0}
    # Turned by one label everything is wrong; half of it turned, half is.
    turned = gold[1:] + gold[:1]
    assert classification(train, labels, test, turned, draws=draws).scores == {"accuracy": 0.0, "f1": 0.0}
    mixed = gold[:15] + turned[15:]
    half = classification(train, labels, test, mixed, draws=draws)
    assert half.scores["accuracy"] == pytest.approx(0.5)
    assert half.items.values[:, 0].tolist() == [1.0] * 15 + [0.0] * 15


def test_classification_of_a_collapsed_model_is_chance_and_warns_of_nothing() -> None:
    same = np.repeat(random_unit(1, 16, 0), 40, axis=0)
    labels = ["x", "y"] * 20
    scores = classification(same, labels, same, labels, draws=draw_examples(labels, seed=0)).scores
    assert scores["accuracy"] == pytest.approx(0.5)


def test_classification_refuses_nan_and_missing_labels() -> None:
    train, labels = unit(0, 90), ["x", "y"]
    draws = draw_examples(labels, seed=0)
    with pytest.raises(NonFiniteError):
        classification(train, labels, np.full_like(train, np.nan), labels, draws=draws)
    with pytest.raises(ValueError, match="expected a label for each vector"):
        classification(train, labels, train, ["x"], draws=draws)


def test_clusters_of_separate_and_of_unrelated_labels() -> None:
    # Every direction of the plane is its own label; then labels that know nothing of direction.
    vectors, labels = unit(*[0, 2, 120, 122, 240, 242] * 10), ["x", "x", "y", "y", "z", "z"] * 10
    draws = draw_documents(60)
    assert clustering(vectors, labels, draws=draws).scores == pytest.approx({"v_measure": 1, "v_measure_std": 0})
    assert clustering(vectors, ["x", "y"] * 30, draws=draws).scores["v_measure"] < 0.01


def test_v_measure_by_hand() -> None:
    # Two clusters of two and one of one label x y: homogeneity is H(C) - H(C|K) over H(C), here with one y astray.
    vectors = unit(0, 0, 0, 90)
    found = clustering(vectors, ["x", "x", "y", "y"], draws=[np.arange(4)]).scores["v_measure"]
    h_labels, h_clusters = np.log(2), -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    h_given = 0.75 * -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    shared = h_labels - h_given
    homogeneity, completeness = shared / h_labels, shared / h_clusters
    assert found == pytest.approx(2 * homogeneity * completeness / (homogeneity + completeness))


def test_documents_are_drawn_among_those_picked_the_same_each_time() -> None:
    picked, draws = pick_documents(5_000), draw_documents(5_000)
    assert len(set(picked)) == len(picked) == 2_048
    assert max(picked) < 5_000
    assert [draw.shape for draw in draws] == [(16_384,)] * 10
    assert {int(draw.max()) for draw in draws} <= set(range(2_040, 2_048))
    assert not (draws[0] == draws[1]).all()
    assert (draws[0] == draw_documents(5_000)[0]).all()
    assert sorted(pick_documents(7)) == list(range(7))
    assert pick_documents(0) == []


def test_clustering_of_a_collapsed_model_is_nothing_and_warns_of_nothing() -> None:
    same = np.repeat(random_unit(1, 16, 0), 40, axis=0)
    assert clustering(same, ["x", "y"] * 20, draws=draw_documents(40)).scores["v_measure"] < 0.01


def test_each_document_has_its_cluster_and_how_often_a_clustering_drew_it() -> None:
    vectors, draws = unit(0, 1, 90, 91, 180), [np.array([0, 0, 1, 2, 3]), np.array([3, 2, 1, 0, 4])]
    items = clustering(vectors, ["x", "x", "y", "y", "y"], draws=draws).items
    labels, first, second, *drawn = items.values.T.tolist()
    assert (items.statistic, labels) == ("v_measure", [0, 0, 1, 1, 1])
    for clusters in (first, second):
        assert clusters[0] == clusters[1] != clusters[2] == clusters[3]
    assert drawn == [[2, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_clustering_refuses_what_cannot_be_scored() -> None:
    vectors = unit(0, 90)
    with pytest.raises(ValueError, match="1 different"):
        clustering(vectors, ["x", "x"], draws=draw_documents(2))
    with pytest.raises(ValueError, match="2 vectors and 3 labels"):
        clustering(vectors, ["x", "y", "y"], draws=draw_documents(2))
    with pytest.raises(NonFiniteError):
        clustering(np.full_like(vectors, np.nan), ["x", "y"], draws=draw_documents(2))
