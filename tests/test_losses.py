from __future__ import annotations

import math

import pytest
import torch

from leafembed.learn.losses import alignment, contrastive, cut, distillation, token_distillation, triplet


def unit(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


def some(n=6, dim=5, seed=0):
    return unit(*torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)).tolist())


def test_distillation_by_hand():
    student, teacher = unit([1, 0], [0, 1]), unit([1, 0], [1, 1])
    assert distillation(student, teacher).item() == pytest.approx((0 + 1 - math.sqrt(0.5)) / 2, abs=1e-6)


@pytest.mark.parametrize(("teacher", "value"), [([1, 0], 0.0), ([0, 1], 1.0), ([-1, 0], 2.0)])
def test_distillation_of_equal_unrelated_and_opposite_vectors(teacher, value):
    assert distillation(unit([1, 0]), unit(teacher)).item() == pytest.approx(value, abs=1e-6)


def test_alignment_by_hand():
    # Each row is a softmax over the two other texts. Student: all three at right angles, so (1/2, 1/2).
    # Teacher: texts 0 and 1 are the same, 2 is at right angles, so with temperature 1 rows are softmax(1, 0) twice.
    student, teacher = unit([1, 0, 0], [0, 1, 0], [0, 0, 1]), unit([1, 0, 0], [1, 0, 0], [0, 1, 0])
    p = math.e / (math.e + 1)
    row = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert alignment(student, teacher, temperature=1.0).item() == pytest.approx(2 * row / 3, abs=1e-6)


def test_two_texts_have_one_neighbour_each_and_nothing_to_align():
    assert alignment(unit([1, 0], [0, 1]), unit([1, 0], [1, 1]), temperature=0.05).item() == pytest.approx(0, abs=1e-6)


def test_alignment_is_zero_for_equal_vectors_and_any_rotation_of_them():
    teacher = some()
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]
    assert alignment(teacher, teacher, temperature=0.05).item() == pytest.approx(0, abs=1e-6)
    assert alignment(teacher @ rotation, teacher, temperature=0.05).item() == pytest.approx(0, abs=1e-4)
    assert distillation(teacher @ rotation, teacher).item() > 0.1


def test_alignment_punishes_other_neighbours():
    assert alignment(some(seed=2), some(seed=3), temperature=0.05).item() > 0.1


def test_alignment_takes_vectors_of_another_length():
    assert alignment(some(dim=3), some(dim=5), temperature=0.1).item() > 0


@pytest.mark.parametrize(("teacher", "value"), [([1, 0], 0.0), ([0, 1], math.sqrt(2)), ([-1, 0], 2.0)])
def test_l2_distillation_is_the_length_of_the_difference(teacher, value):
    assert distillation(unit([1, 0]), unit(teacher), kind="l2").item() == pytest.approx(value, abs=1e-6)


def test_l2_is_the_root_of_twice_the_cosine_distance_and_has_a_gradient_where_it_is_perfect():
    student, teacher = some(n=1, seed=2), some(n=1, seed=3)
    l2, cosine = distillation(student, teacher, kind="l2").item(), distillation(student, teacher).item()
    assert l2**2 == pytest.approx(2 * cosine, rel=1e-5)
    same = teacher.clone().requires_grad_()
    distillation(same, teacher, kind="l2").backward()
    assert torch.isfinite(same.grad).all()


def test_contrastive_by_hand():
    # Anchor 0 has cosine 1 to its positive and 0 to the other; anchor 1 has 0 to its own and 1 to the other.
    anchors, positives = unit([1, 0], [1, 0]), unit([1, 0], [0, 1])
    own = math.exp(1 / 0.5)
    expected = (-math.log(own / (own + 1)) - math.log(1 / (own + 1))) / 2
    assert contrastive(anchors, positives, temperature=0.5).item() == pytest.approx(expected, abs=1e-6)


def test_contrastive_is_log_of_the_pairs_when_nothing_is_told_apart_and_near_zero_when_all_is():
    same = unit(*[[1, 0]] * 4)
    assert contrastive(same, same, temperature=0.1).item() == pytest.approx(math.log(4), abs=1e-6)
    apart = torch.eye(4)
    assert contrastive(apart, apart, temperature=0.02).item() == pytest.approx(0, abs=1e-6)
    assert contrastive(same[:1], same[:1], temperature=0.02).item() == pytest.approx(0, abs=1e-6)


def test_triplet_by_hand():
    # Distances to the positive and the negative: 0 and 1 (won by more than the margin), then 1 and 0.5.
    anchors, positives = unit([1, 0], [1, 0]), unit([1, 0], [0, 1])
    negatives = unit([0, 1], [0.5, math.sqrt(0.75)])
    assert triplet(anchors, positives, negatives, margin=0.2).item() == pytest.approx((0 + 1 - 0.5 + 0.2) / 2, abs=1e-6)


def test_triplet_wants_the_margin_and_no_more():
    anchor, positive, negative = unit([1, 0]), unit([1, 0]), unit([1, 0])
    assert triplet(anchor, positive, negative, margin=0.3).item() == pytest.approx(0.3, abs=1e-6)
    assert triplet(anchor, positive, unit([0.7, math.sqrt(0.51)]), margin=0.3).item() == pytest.approx(0, abs=1e-6)


def test_token_distillation_by_hand():
    # Two stretches. Squared distances 1 and 4; the teacher's vectors are (0, 0) and (2, 0), their mean (1, 0), so that
    # the mean squared distance to it is 1.
    student, teacher = torch.tensor([[0.0, 1.0], [2.0, 2.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    assert token_distillation(student, teacher, variance=1.0).item() == pytest.approx((1 + 4) / 2, abs=1e-6)
    assert token_distillation(student, teacher, variance=5.0).item() == pytest.approx((1 + 4) / 2 / 5, abs=1e-6)
    mean = teacher.mean(dim=0).expand(2, 2)
    assert token_distillation(mean, teacher, variance=1.0).item() == pytest.approx(1, abs=1e-6)
    assert token_distillation(teacher, teacher, variance=1.0).item() == 0


def test_cut_vectors_are_unit_again():
    assert torch.allclose(cut(unit([3, 4, 12]), 2), torch.tensor([[0.6, 0.8]]))
