from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from leafembed.errors import NonFiniteError
from leafembed.learn.losses import DistillationLoss, alignment, distillation
from leafembed.recipe_learn import TrainConfig


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


class Lookup(torch.nn.Module):
    """A student that is a table: features hold its row numbers."""

    def __init__(self, vectors):
        super().__init__()
        self.table = torch.nn.Parameter(vectors)

    def forward(self, features):
        return {"sentence_embedding": self.table[features["rows"]]}


def test_the_loss_is_the_weighted_sum_of_its_named_parts():
    student, teacher = some(seed=2), some(seed=3)
    rows = torch.tensor([4, 0, 2])
    config = TrainConfig(distillation=2.0, alignment=0.5, alignment_temperature=0.1)
    loss = DistillationLoss(Lookup(student), lambda index: teacher.numpy()[index], config)
    parts = loss([{"rows": rows}], rows)
    assert parts.keys() == {"distillation", "alignment"}
    assert parts["distillation"].item() == pytest.approx(2 * distillation(student[rows], teacher[rows]).item())
    expected = 0.5 * alignment(student[rows], teacher[rows], temperature=0.1).item()
    assert parts["alignment"].item() == pytest.approx(expected, rel=1e-5)


def test_a_part_of_weight_zero_is_left_out():
    teacher, rows = some(), torch.arange(3)
    loss = DistillationLoss(Lookup(some()), lambda index: teacher.numpy()[index], TrainConfig(alignment=0))
    assert loss([{"rows": rows}], rows).keys() == {"distillation"}


def test_every_part_teaches():
    teacher, rows = some(seed=3), torch.arange(6)
    for config in (TrainConfig(alignment=0), TrainConfig(distillation=0)):
        student = Lookup(some(seed=2))
        loss = DistillationLoss(student, lambda index: teacher.numpy()[index], config)
        sum(loss([{"rows": rows}], rows).values()).backward()
        assert student.table.grad.abs().sum() > 0


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_nan_raises_and_names_the_loss_and_the_rows(side):
    student, teacher = some(), some().numpy()
    if side == "student":
        student[1, 0] = math.nan
    else:
        teacher = np.where(np.arange(6)[:, None] == 1, np.float32("nan"), teacher)
    loss = DistillationLoss(Lookup(student), lambda index: teacher[index], TrainConfig())
    with pytest.raises(NonFiniteError, match=r"distillation loss is nan on rows \[0, 1, 2\]"):
        loss([{"rows": torch.arange(3)}], torch.arange(3))
