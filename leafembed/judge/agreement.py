"""The task without labels: does the student find the same texts near each other as the teacher does?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leafembed.errors import DataError
from leafembed.judge import metrics
from leafembed.judge.formats import require_spread
from leafembed.judge.kinds import Kind, score_pairs
from leafembed.judge.tasks import AGREEMENT, Task, build_task
from leafembed.types import FloatArray

__all__ = ["AGREEMENT_TYPE", "agreement_task"]

AGREEMENT_TYPE = "Agreement"
"""Its type of task, beside those of mteb."""


def agreement_task(
    texts: Sequence[str], langs: Sequence[str], vectors: FloatArray, *, prompt_name: str | None = None, seed: int = 0
) -> Task:
    """Return a task without labels: Spearman between the encoder's cosines and the teacher's over pairs of texts.

    Each text is paired with its nearest neighbour by the teacher and with a random text, of its own language where
    that has another one: otherwise telling languages apart would be enough to score.

    Args:
        texts: At least three different texts that are not trained on.
        langs: The language of each.
        vectors: ``(n_texts, dim)``, what the teacher makes of them, unit length.
        prompt_name: Prompt that the encoder reads them with; ``None``: no prompt.
        seed: Seed of the random partners.

    Raises:
        DataError: If there are too few texts or the teacher sees all pairs alike.
    """
    if not len(texts) == len(langs) == len(vectors):
        raise ValueError(f"got {len(texts)} texts, {len(langs)} languages, {len(vectors)} vectors, expected as many")
    if len(set(texts)) < 3:
        raise DataError(f"{AGREEMENT}: got {len(set(texts))} different texts, expected at least 3 to form pairs")
    neighbours = metrics.rank(vectors, vectors, k=2)
    nearest = np.where(neighbours[:, 0] == np.arange(len(texts)), neighbours[:, 1], neighbours[:, 0])
    partners = [*enumerate(nearest.tolist()), *enumerate(_partners(langs, seed))]
    couples = sorted({(min(i, j), max(i, j)) for i, j in partners})
    # A text and its copy have cosine 1 under every encoder: such a pair tells nothing.
    pairs = [(texts[i], texts[j], float(vectors[i] @ vectors[j])) for i, j in couples if texts[i] != texts[j]]
    require_spread(pairs, AGREEMENT)
    kind = Kind(AGREEMENT_TYPE, "cosine_spearman", 2, score_pairs)
    return build_task(AGREEMENT, kind, {"all": (pairs, prompt_name)}, texts)


def _partners(langs: Sequence[str], seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    members: dict[str, list[int]] = {}
    for i, lang in enumerate(langs):
        members.setdefault(lang, []).append(i)
    partners = []
    for i, lang in enumerate(langs):
        pool = members[lang] if len(members[lang]) > 1 else range(len(langs))
        draw = int(rng.integers(len(pool) - 1))
        # Drawing from one fewer and stepping over the text itself keeps the draw uniform over the others.
        partners.append(pool[draw] if pool[draw] < i else pool[draw + 1])
    return partners
