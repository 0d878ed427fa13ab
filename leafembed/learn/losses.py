"""What the student is trained to do: each objective a function of unit vectors, unweighted.

``objectives.py`` decides which of them apply to a batch, and weighs them. Shapes: B = batch, P = pairs, T = triplets,
D = dim. ``student_BD`` and ``teacher_BD`` are unit vectors of the same texts in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["alignment", "contrastive", "cut", "distillation", "exit_alignment", "token_distillation", "triplet"]


def distillation(student_BD: Tensor, teacher_BD: Tensor, *, kind: Literal["cosine", "l2"] = "cosine") -> Tensor:
    """Mean distance between the student's and the teacher's vector of a text.

    ``cosine``: ``1 - cos(s, t)``, range 0 to 2; 0 is perfect, 1 means unrelated directions. ``l2``: ``|s - t|``, range
    0 to 2; 0 is perfect, 1.414 means unrelated directions. For unit vectors ``|s - t|² = 2 (1 - cos)``, so both order
    students alike; l2 pulls as hard on near vectors as on far ones, cosine pulls less the nearer they are.

    Regression onto teacher vectors: Reimers & Gurevych 2020 (arXiv 2004.09813, section 2); l2 as in LEAF (arXiv
    2509.12539). Says nothing about how texts relate to each other; :func:`alignment` does.
    """
    from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss

    loss = EmbedDistillLoss(model=None, distance_metric=kind)
    value: Tensor = loss.compute_loss_from_embeddings([student_BD], [teacher_BD])
    return value


def exit_alignment(exits_EBD: Sequence[Tensor], teacher_BD: Tensor, *, kind: Literal["cosine", "l2"]) -> Tensor:
    """Mean over the E early exits of :func:`distillation`: each exit's vector against the one target of its text.

    ``(1 / E) sum_e distillation(x_e, t)``, range 0 to 2; 0 when the vector is the teacher's after every exit layer
    already. Training all exits at once after LayerSkip (arXiv 2404.16710, section 4.1.2), with equal weights.
    """
    return torch.stack([distillation(exit_BD, teacher_BD, kind=kind) for exit_BD in exits_EBD]).mean()


def alignment(student_BD: Tensor, teacher_BD: Tensor, *, temperature: float) -> Tensor:
    """KL divergence from the teacher's to the student's in-batch similarity rows, mean over rows, in nats.

    Row i is ``softmax_j(cos(x_i, x_j) / temperature)`` over the other texts j of the batch. Range 0 upwards; 0 when
    both models rank and space the batch alike, whatever rotation lies between them. After "similarity-preserving"
    distillation (Tung & Mori, arXiv 1907.09682), with the softmax of SEED (arXiv 2101.04731, eq. 5).

    Args:
        student_BD: Student vectors.
        teacher_BD: Teacher vectors.
        temperature: Above 0; small values look at the nearest texts only.
    """
    own = torch.eye(len(student_BD), dtype=torch.bool, device=student_BD.device)
    student_BB = (student_BD @ student_BD.T / temperature).masked_fill(own, -1e4).log_softmax(dim=-1)
    teacher_BB = (teacher_BD @ teacher_BD.T / temperature).masked_fill(own, -1e4).log_softmax(dim=-1)
    return functional.kl_div(student_BB, teacher_BB, reduction="batchmean", log_target=True)


def token_distillation(student_SD: Tensor, teacher_SD: Tensor, *, variance: float) -> Tensor:
    """Mean squared distance of the two models' vectors of a stretch of text, as a share of the teacher's variance.

    ``|s - t|² / variance``, range 0 upwards; 0 is perfect, about 1 is what a student reaches that gives every stretch
    the teacher's mean. A text's vector is the direction of the mean of its tokens', so that what is perfect here is
    nearly perfect in :func:`distillation` (prompts, special tokens and how often a stretch counts aside); but it learns
    from every word of a text and not from one vector.

    Hidden states as targets after TinyBERT (arXiv 1909.10351, eq. 8), here of the last layer through the head.

    Args:
        student_SD: Student vectors of S stretches, not normalised.
        teacher_SD: Teacher vectors of the same.
        variance: Above 0: mean squared distance of the teacher's vectors of stretches to their mean.
    """
    distances: Tensor = (student_SD - teacher_SD).square().sum(dim=-1)
    return distances.mean() / variance


def contrastive(anchor_PD: Tensor, positive_PD: Tensor, *, temperature: float, gather: bool = False) -> Tensor:
    """InfoNCE over pairs, in nats: ``-log softmax_j(cos(a_i, p_j) / temperature)`` at j = i, mean over i.

    Range 0 upwards; 0 when each anchor is infinitely nearer to its own positive than to the others, ``log P`` when
    it cannot tell them apart. van den Oord et al. 2018 (arXiv 1807.03748, eq. 4) with in-batch negatives as in
    Henderson et al. 2017 (arXiv 1705.00652, section 4.4). Needs no teacher.

    Args:
        anchor_PD: One text of each pair.
        positive_PD: The other, in the same order.
        temperature: Above 0.
        gather: Whether positives of all processes are candidates; each must then bring as many pairs.
    """
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(model=None, scale=1 / temperature, gather_across_devices=gather)
    value: Tensor = loss.compute_loss_from_embeddings([anchor_PD, positive_PD], torch.empty(0))
    return value


def triplet(anchor_TD: Tensor, positive_TD: Tensor, negative_TD: Tensor, *, margin: float) -> Tensor:
    """Mean of ``max(0, d(a, p) - d(a, n) + margin)`` with the cosine distance ``d = 1 - cos``.

    Range 0 to 2 + margin; 0 when each anchor is nearer to its positive than to its negative by the margin. Reimers &
    Gurevych 2019 (arXiv 1908.10084, section 3, "Triplet Objective Function"), with cosines for the norms.
    """
    from sentence_transformers.sentence_transformer.losses import TripletDistanceMetric, TripletLoss

    loss = TripletLoss(model=None, distance_metric=TripletDistanceMetric.COSINE, triplet_margin=margin)
    value: Tensor = loss.compute_loss_from_embeddings([anchor_TD, positive_TD, negative_TD], torch.empty(0))
    return value


def cut(vectors: Tensor, dim: int) -> Tensor:
    """The leading ``dim`` values of each vector, of unit length again (Matryoshka, arXiv 2205.13147, section 3)."""
    return functional.normalize(vectors[..., :dim], dim=-1)
