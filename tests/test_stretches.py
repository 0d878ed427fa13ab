from __future__ import annotations

import numpy as np
import pytest
import torch

from leafembed.learn.losses import token_distillation
from leafembed.learn.stretches import mean_by, stretches
from leafembed.learn.token_store import TokenVectors


def tokens(ends, texts, dim=2):
    return TokenVectors(np.zeros((len(ends), dim), np.float32), np.array(ends), np.array(texts))


def test_a_word_that_one_side_cuts_is_one_stretch():
    # "harps go": the student reads har|ps| go, the teacher harps| g|o, and both have padding or special tokens.
    found = stretches(np.array([[0, 3, 5, 8, 0]]), tokens([5, 7, 8], [0, 0, 0]))
    assert found.n == 2
    assert found.places.tolist() == [1, 2, 3]
    assert found.student.tolist() == [0, 0, 1]
    assert found.teacher.tolist() == [0, 1, 1]


def test_texts_do_not_mix_and_what_follows_the_last_common_cut_belongs_to_none():
    # The first text is cut shorter for the student, the second is not compared, the third ends alike.
    found = stretches(np.array([[2, 4], [3, 6], [1, 9]]), tokens([2, 4, 7, 1, 5, 9], [0, 0, 0, 2, 2, 2]))
    assert found.n == 4
    assert found.places.tolist() == [0, 1, 4, 5]
    assert found.teacher.tolist() == [0, 1, -1, 2, 3, 3]
    assert stretches(np.array([[0, 3]]), tokens([4], [0])).n == 0
    assert stretches(np.array([[0, 3]]), tokens([], [])).n == 0


def test_means_and_distance_by_hand():
    means = mean_by(torch.tensor([[1.0, 0.0], [3.0, 2.0], [0.0, 5.0]]), np.array([0, 0, 1]), 2)
    assert means.tolist() == [[2.0, 1.0], [0.0, 5.0]]
    teacher = torch.tensor([[2.0, 3.0], [0.0, 5.0]])
    assert token_distillation(means, teacher, variance=4.0).item() == pytest.approx((4 + 0) / 2 / 4)
    assert token_distillation(teacher, teacher, variance=4.0).item() == 0
