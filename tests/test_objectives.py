from __future__ import annotations

import numpy as np
import pytest
import torch
from families import bert

from leafembed.errors import RecipeError
from leafembed.learn.links import Links
from leafembed.learn.losses import alignment, contrastive, cut, distillation, triplet
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.objectives import Objectives
from leafembed.recipe_learn import OBJECTIVES, TrainConfig
from leafembed.ship import curves, report
from leafembed.types import Row

N, DIM = 6, 5
ROWS = (Row("a", "en", negative=2), Row("b", "de", pair=0), Row("c", "en"), Row("d", "en"), Row("e", "de", pair=3),
        Row("f", "en"))  # fmt: skip


class Lookup(torch.nn.Module):
    """A student that is a table: features hold its row numbers."""

    def __init__(self, vectors):
        super().__init__()
        self.table = torch.nn.Parameter(vectors)

    def forward(self, features):
        return {"sentence_embedding": self.table[features["rows"]]}

    def get_embedding_dimension(self):
        return self.table.shape[1]


def some(seed, n=N):
    vectors = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


def objectives(config, *, student=None, teacher=None, **options):
    teacher = some(3) if teacher is None else teacher
    return Objectives(Lookup(some(2) if student is None else student), lambda rows: teacher.numpy()[rows], config,
                      **options)  # fmt: skip


def run(loss, rows):
    rows = torch.tensor(rows)
    return loss([{"rows": rows}], rows)


ALL = TrainConfig(distillation=2.0, alignment=0.5, alignment_temperature=0.1, contrastive=3.0, triplet=0.25,
                  contrastive_temperature=0.2, triplet_margin=1.0)  # fmt: skip


def test_parts_are_unweighted_and_the_total_is_their_weighted_sum():
    student, teacher, rows = some(2), some(3), [4, 0, 2, 1, 3]
    total, parts = run(objectives(ALL, links=Links.of(ROWS)), rows)
    assert parts.keys() == {"distillation", "alignment", "contrastive", "triplet"}
    s, t = student[rows], teacher[rows]
    # Rows 1 and 4 are positives of 0 and 3; 2 is the hard negative of 0.
    expected = {
        "distillation": distillation(s, t),
        "alignment": alignment(s, t, temperature=0.1),
        "contrastive": contrastive(student[[3, 0]], student[[4, 1]], temperature=0.2),
        "triplet": triplet(student[[0]], student[[1]], student[[2]], margin=1.0),
    }
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value.item(), rel=1e-5), name
    weighted = sum(getattr(ALL, name) * value.item() for name, value in expected.items())
    assert total.item() == pytest.approx(weighted, rel=1e-5)


def test_a_batch_without_pairs_leaves_those_objectives_out_and_still_has_a_gradient():
    assert run(objectives(ALL, links=Links.of(ROWS)), [0, 2, 5])[1].keys() == {"distillation", "alignment"}
    only = TrainConfig(distillation=0, alignment=0, contrastive=1.0)
    total, parts = run(objectives(only, links=Links.of(ROWS)), [2, 5])
    assert (total.item(), parts) == (0, {})
    total.backward()


def test_validation_rows_follow_the_training_rows():
    student, teacher = some(2, n=8), some(3, n=8)
    loss = objectives(ALL, student=student, teacher=teacher, links=Links.of(ROWS))
    assert run(loss, [6, 7])[1].keys() == {"distillation", "alignment"}  # the links are those of training rows
    held_out = objectives(ALL, student=student, teacher=teacher, links=Links.of(ROWS).after(2))
    parts = run(held_out, [2, 3, 4, 5, 6])[1]
    assert parts["contrastive"].item() == pytest.approx(
        contrastive(student[[2, 5]], student[[3, 6]], temperature=0.2).item(), rel=1e-5
    )
    assert parts["triplet"].item() == pytest.approx(
        triplet(student[[2]], student[[3]], student[[4]], margin=1.0).item(), rel=1e-5
    )


def test_weights_of_zero_are_left_out_unless_every_objective_is_wanted():
    config = TrainConfig(alignment=0)
    assert run(objectives(config), [0, 1, 2])[1].keys() == {"distillation"}
    total, parts = run(objectives(config, every=True), [0, 1, 2])
    assert parts.keys() == {"distillation", "alignment"}
    assert total.item() == pytest.approx(parts["distillation"].item())


def test_dims_average_every_objective_over_the_leading_values():
    student, teacher = some(2), some(3)
    rows = [0, 1, 2, 3]
    config = TrainConfig(alignment=0.1, alignment_temperature=0.1)
    _, parts = run(objectives(config, dims=(3, 2)), rows)
    s, t = student[rows], teacher[rows]
    pairs = [(s, t), (cut(s, 3), cut(t, 3)), (cut(s, 2), cut(t, 2))]
    assert parts["distillation"].item() == pytest.approx(np.mean([distillation(*p).item() for p in pairs]), rel=1e-5)
    kl = [alignment(*p, temperature=0.1).item() for p in pairs]
    assert parts["alignment"].item() == pytest.approx(np.mean(kl), rel=1e-5)
    assert abs(np.mean(kl) - kl[0]) > 1e-3


def test_dims_that_the_student_does_not_have_are_refused():
    with pytest.raises(RecipeError, match=r"student.dims: got \[5\], expected fewer than the student's 5"):
        objectives(TrainConfig(), dims=(5,))


@pytest.mark.parametrize("name", ["distillation", "alignment", "contrastive", "triplet"])
def test_every_objective_teaches(name):
    weights = dict.fromkeys(OBJECTIVES, 0.0) | {name: 1.0}
    student = Lookup(some(2))
    loss = Objectives(student, lambda rows: some(3).numpy()[rows], TrainConfig(**weights, triplet_margin=1.0),
                      links=Links.of(ROWS))  # fmt: skip
    run(loss, list(range(N)))[0].backward()
    assert student.table.grad.abs().sum() > 0


def test_exits_are_aligned_to_the_same_teacher_vectors(tmp_path):
    model = load_sentence_transformer(bert(tmp_path / "student"))
    teacher = torch.nn.functional.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    features = model.preprocess(["en1 en2", "de3", "en4 en5 en6"])
    loss = Objectives(model, lambda rows: teacher.numpy()[rows], TrainConfig(exit_alignment=2.0), exits=(1, 2))
    total, parts = loss([dict(features)], torch.arange(3))
    distances = []
    for k in (1, 2):
        stack = model[0].auto_model.encoder.layer
        whole, model[0].auto_model.encoder.layer = stack, stack[:k]
        vectors = model(dict(features))["sentence_embedding"]
        model[0].auto_model.encoder.layer = whole
        distances.append(distillation(vectors, teacher).item())
    assert parts["exit_alignment"].item() == pytest.approx(np.mean(distances), abs=1e-5)
    others = parts["distillation"].item() + 0.1 * parts["alignment"].item()
    assert total.item() == pytest.approx(others + 2 * parts["exit_alignment"].item(), rel=1e-5)
    model.zero_grad()
    parts["exit_alignment"].backward()
    layers = model[0].auto_model.encoder.layer
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in layers[0].named_parameters() if "weight" in n)
    assert all(p.grad is None for p in layers[2].parameters())


def _process(rank, address, results):
    """One of two processes that bring two pairs and one."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    only = TrainConfig(distillation=0, alignment=0, contrastive=1.0, contrastive_temperature=0.2)
    loss = objectives(only, links=Links.of(ROWS))
    loss.model.device = torch.device("cpu")
    total, _ = run(loss, [0, 1, 3, 4] if rank == 0 else [3, 4])
    total.backward()
    np.save(f"{results}/{rank}.npy", np.array([total.item(), loss.model.table.grad.abs().sum().item()]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_positives_of_all_processes_are_candidates(tmp_path):
    torch.multiprocessing.spawn(_process, args=(tmp_path / "meet", tmp_path), nprocs=2)
    student = some(2)
    for rank, (anchor, own, other) in enumerate([(0, 1, 4), (3, 4, 1)]):  # as many pairs from each: the first
        scores = student[anchor] @ student[[own, other]].T / 0.2
        value, gradient = np.load(tmp_path / f"{rank}.npy")
        assert value == pytest.approx(-scores.log_softmax(0)[0].item(), rel=1e-4)
        assert gradient > 0


def test_every_objective_is_drawn_in_card_and_page():
    assert [*curves._LOSSES] == [*report._LOSSES] == ["loss", *OBJECTIVES]
