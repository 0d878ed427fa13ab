from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, ndcg_score

from leafembed.errors import NonFiniteError
from leafembed.judge.metrics import (
    average_precision_at_k,
    bitext,
    cosine_spearman,
    ndcg_at_k,
    pair_classification,
    rank,
    recall_at_k,
)
from leafembed.types import FloatArray


def unit(*degrees: float) -> FloatArray:
    """Vectors in the plane at these angles."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def random_unit(n: int, dim: int, seed: int) -> FloatArray:
    vectors = np.random.default_rng(seed).standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_spearman_by_hand() -> None:
    # Cosines fall with the angle: ranks 4 3 2 1 against 4 2 3 1, so 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15) = 0.8.
    a, b = unit(0, 0, 0, 0), unit(0, 20, 40, 60)
    assert cosine_spearman(a, b, [9, 3, 5, 1]) == pytest.approx(0.8)
    assert cosine_spearman(a, b, [4, 3, 2, 1]) == pytest.approx(1)
    assert cosine_spearman(a, b, [1, 2, 3, 4]) == pytest.approx(-1)


def test_spearman_of_a_collapsed_model_is_zero_not_nan() -> None:
    same = np.repeat(random_unit(1, 16, 0), 5, axis=0)
    noise = same + 1e-8 * random_unit(5, 16, 1)
    assert cosine_spearman(same, same, [1, 2, 3, 4, 5]) == 0.0
    assert cosine_spearman(same, noise, [1, 2, 3, 4, 5]) == 0.0


def test_spearman_refuses_what_cannot_be_scored() -> None:
    a = unit(0, 10)
    with pytest.raises(ValueError, match=r"all 2 gold scores are 3\.0"):
        cosine_spearman(a, a, [3, 3])
    with pytest.raises(ValueError, match="2 and 2 vectors and 1 scores"):
        cosine_spearman(a, a, [3])
    with pytest.raises(ValueError, match="empty"):
        cosine_spearman(a[:0], a[:0], [])
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteError):
            cosine_spearman(np.full_like(a, bad), a, [1, 2])
        with pytest.raises(NonFiniteError):
            cosine_spearman(a, a, [1, bad])


def test_rank_puts_the_nearest_first_and_the_earlier_of_equals() -> None:
    ranked = rank(unit(0, 90), unit(80, 10, 10, 45), k=3)
    assert ranked.tolist() == [[1, 2, 3], [0, 3, 1]]
    assert rank(unit(0), unit(80, 10), k=10).tolist() == [[1, 0]]


def test_rank_in_blocks_is_rank_at_once() -> None:
    queries, documents = random_unit(600, 8, 0), random_unit(50, 8, 1)
    expected = np.argsort(-(queries @ documents.T), axis=1, kind="stable")
    assert (rank(queries, documents, k=50) == expected).mean() > 0.999  # the last bit of a dot product may differ


def test_ndcg_and_recall_by_hand() -> None:
    # Relevance 1 at rank 0 and 3 at rank 2 of k = 3, another 2 not found; ideal 3, 2, 1.
    ranked, relevance = np.array([[7, 8, 9, 5]]), [{7: 1.0, 9: 3.0, 5: 2.0, 4: 0.0}]
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert ndcg_at_k(ranked, relevance, k=3) == pytest.approx([(1 + 3 / 2) / ideal])
    assert recall_at_k(ranked, relevance, k=3) == pytest.approx([2 / 3])
    assert recall_at_k(ranked, relevance, k=1) == pytest.approx([1 / 3])
    assert ndcg_at_k(np.array([[9, 5, 7]]), relevance, k=3) == pytest.approx(1)
    assert ndcg_at_k(np.array([[1, 2, 3]]), relevance, k=3) == 0


def test_ndcg_agrees_with_scikit_learn_on_graded_relevance() -> None:
    rng = np.random.default_rng(0)
    similarity, gains = rng.standard_normal((20, 15)), rng.integers(0, 4, (20, 15))
    ranked = np.argsort(-similarity, axis=1)
    relevance = [dict(enumerate(row.tolist())) for row in gains]
    assert ndcg_at_k(ranked, relevance, k=10).mean() == pytest.approx(ndcg_score(gains, similarity, k=10))


def test_retrieval_refuses_empty_and_unjudged_queries() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ndcg_at_k(np.zeros((0, 10), dtype=np.int64), [], k=10)
    with pytest.raises(ValueError, match="without a relevant document"):
        recall_at_k(np.array([[0]]), [{0: 0.0}], k=10)
    with pytest.raises(NonFiniteError):
        rank(np.full((1, 2), np.nan, dtype=np.float32), unit(0), k=1)


def test_bitext_by_hand() -> None:
    # Sentences 0 and 1 both pick target 0, sentence 2 its own: F1 of target 0 is 2/3, of 1 is 0, of 2 is 1.
    scored = bitext(unit(0, 4, 90), unit(1, 40, 90))
    assert scored.items.values[:, 0].tolist() == pytest.approx([2 / 3, 0, 1])
    assert scored.scores == pytest.approx({"f1": (2 / 3 + 0 + 1) / 3, "accuracy": 2 / 3})
    assert bitext(unit(0, 50), unit(0, 50)).scores == {"f1": 1.0, "accuracy": 1.0}
    with pytest.raises(ValueError, match="2 and 1 vectors"):
        bitext(unit(0, 50), unit(0))


def test_bitext_f1_is_the_weighted_f1_of_scikit_learn() -> None:
    a, b = random_unit(200, 4, 0), random_unit(200, 4, 1)
    b = (a + 0.4 * b) / np.linalg.norm(a + 0.4 * b, axis=1, keepdims=True)
    picked = (a @ b.T).argmax(axis=1)
    expected = f1_score(np.arange(200), picked, average="weighted", zero_division=0)
    assert 0.1 < expected < 0.9
    assert bitext(a, b).scores["f1"] == pytest.approx(expected)


def test_average_precision_of_pairs_by_hand() -> None:
    # Nearest first the labels are 1 0 1 0: precision 1 at the first hit and 2/3 at the second.
    a, b = unit(0, 0, 0, 0), unit(10, 20, 30, 40)
    scored = pair_classification(a, b, [1, 0, 1, 0])
    assert scored.scores["cosine_ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert scored.items.values.shape == (4, 5)
    assert scored.items.values[:, -1].tolist() == [1, 0, 1, 0]
    assert pair_classification(a, b, [1, 1, 0, 0]).scores["max_ap"] == 1.0
    assert pair_classification(a, b, [0, 0, 0, 1]).scores["cosine_ap"] == pytest.approx(1 / 4)


def test_the_better_of_two_distances_counts() -> None:
    # From 0 to 40 degrees is further than from 25 to 63, but 0.88 along the axes against 0.92.
    scores = pair_classification(unit(0, 25), unit(40, 63), [1, 0]).scores
    assert scores == pytest.approx(
        {"max_ap": 1, "cosine_ap": 1 / 2, "dot_ap": 1 / 2, "euclidean_ap": 1 / 2, "manhattan_ap": 1}
    )


def test_pairs_of_one_text_twice_are_a_tie() -> None:
    same = random_unit(40, 64, 0)
    scores = pair_classification(same, same, [1, 0] * 20).scores
    assert scores["euclidean_ap"] == scores["manhattan_ap"] == scores["cosine_ap"] == 0.5


def test_pairs_are_refused_without_both_labels() -> None:
    a = unit(0, 10)
    for labels in ([1, 1], [0, 2], [1]):
        with pytest.raises(ValueError, match="labelled 0 and 1"):
            pair_classification(a, a, labels)
    with pytest.raises(NonFiniteError):
        pair_classification(np.full_like(a, np.nan), a, [0, 1])


def test_average_precision_of_candidates_by_hand_and_the_tie_goes_against_the_model() -> None:
    # Relevant first: cosines .9 .2 relevant, .5 .1 not; order .9+ .5 .2+ .1, so (1 + 2/3) / 2. Then one at rank 2.
    cosines = [np.float32([0.9, 0.2, 0.5, 0.1]), np.float32([0.3, 0.4])]
    assert average_precision_at_k(cosines, [2, 1], k=10) == pytest.approx([(1 + 2 / 3) / 2, 1 / 2])
    assert average_precision_at_k(cosines, [2, 1], k=1) == pytest.approx([1 / 2, 0])
    assert average_precision_at_k([np.float32([0.5, 0.5, 0.5])], [1], k=10) == pytest.approx(1 / 3)
    assert average_precision_at_k([np.float32([0.5, 0.5])], [2], k=10) == 1.0


def test_average_precision_refuses_what_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="expected as many"):
        average_precision_at_k([], [], k=10)
    with pytest.raises(ValueError, match="0 relevant of 1"):
        average_precision_at_k([np.float32([0.5])], [0], k=10)
    with pytest.raises(NonFiniteError):
        average_precision_at_k([np.float32([np.nan, 0.5])], [1], k=10)
