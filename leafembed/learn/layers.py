"""Ranks a teacher's layers by what leaving them out does to its vectors, and suggests which to keep.

Two measures, both on the same texts:

* *damage*: 1 - mean cosine between the vectors of the model without the layer and of the whole model, with its head.
* *block influence*: 1 - mean cosine between a token's state before and after the layer (ShortGPT, arXiv 2403.03853).

The suggestion removes, one after the other, the layer whose loss does least damage at that point. It tells what stays
near the teacher untrained, which is not what trains best (``docs/method.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from leafembed.errors import ModelError, RecipeError
from leafembed.learn.observe import observed
from leafembed.learn.shapes import LAYER_NAME
from leafembed.learn.teacher import TorchEncoder
from leafembed.types import FloatArray

__all__ = ["LayerRank", "Ranking", "rank_layers"]


@dataclass(frozen=True, slots=True)
class LayerRank:
    """What one layer contributes.

    Attributes:
        layer: Its number, from 0.
        type: ``sliding_attention``, ``full_attention``, or empty where the model knows one kind only.
        influence: Block influence, from 0 (the layer changes no direction) to 2.
        damage: Damage of leaving this layer out alone, from 0 (no vector changes) to 2.
    """

    layer: int
    type: str
    influence: float
    damage: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Every layer, and a selection.

    Attributes:
        layers: In order.
        suggestion: Numbers of the layers to keep, ascending.
        damage: Damage of keeping these alone, untrained.
        texts: Texts it was measured on.
    """

    layers: tuple[LayerRank, ...]
    suggestion: tuple[int, ...]
    damage: float
    texts: int


def rank_layers(
    teacher: TorchEncoder,
    texts: Sequence[str],
    *,
    keep: int,
    prompt_name: str | None = None,
    advance: Callable[[int], None],
) -> Ranking:
    """Measure every layer of a teacher and choose ``keep`` of them.

    The choice is lazy: of the layers that are left, the one with the least damage when last measured is measured again,
    until the least is a fresh figure. Damage can also fall as others go, so this is a heuristic.

    Args:
        teacher: The teacher; left as it is.
        texts: Short texts, a few hundred.
        keep: Layers to suggest.
        prompt_name: The teacher's prompt for the texts.
        advance: Called with the number of layers measured or removed: twice the number of layers less ``keep`` in all.

    Raises:
        RecipeError: If there are fewer layers than ``keep``.
        ModelError: If the layers cannot be found.
    """
    layers = _layers(teacher.model[0].auto_model)
    if keep > len(layers):
        raise RecipeError(f"--layers: got {keep}, the teacher has {len(layers)} layers")
    influence = [_Influence() for _ in layers]
    with observed(teacher.model, dict(zip(layers, (one.watch for one in influence), strict=True))):
        whole = teacher.encode(texts, prompt_name=prompt_name)

    def damage_without(left_out: set[int]) -> float:
        with _skipped([layers[i] for i in left_out]):
            return _apart(teacher.encode(texts, prompt_name=prompt_name), whole)

    damage = []
    for i in range(len(layers)):
        damage.append(damage_without({i}))
        advance(1)
    removed, last = _remove(damage, damage_without, keep, advance)
    types = getattr(teacher.model[0].auto_model.config, "layer_types", None) or [""] * len(layers)
    ranks = [LayerRank(i, types[i], influence[i].value, damage[i]) for i in range(len(layers))]
    kept = tuple(i for i in range(len(layers)) if i not in removed)
    return Ranking(tuple(ranks), kept, last, len(texts))


def _remove(
    damage: Sequence[float], damage_without: Callable[[set[int]], float], keep: int, advance: Callable[[int], None]
) -> tuple[set[int], float]:
    """Layers to leave out, and the damage of that."""
    known = dict(enumerate(damage))
    removed: set[int] = set()
    last = 0.0
    while len(known) > keep:
        fresh: set[int] = set() if removed else set(known)
        while (least := min(known, key=lambda i: (known[i], i))) not in fresh:
            known[least] = damage_without(removed | {least})
            fresh.add(least)
        last = known.pop(least)
        removed.add(least)
        advance(1)
    return removed, last


class _Influence:
    """Mean of 1 - cosine between what goes into a layer and what comes out, over tokens."""

    def __init__(self) -> None:
        self.total, self.tokens = 0.0, 0

    def watch(self, before: Any, after: Any) -> None:
        import torch

        cosines = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        self.total += float((1 - cosines).sum())
        self.tokens += len(cosines)

    @property
    def value(self) -> float:
        return self.total / max(1, self.tokens)


def _layers(model: Any) -> list[Any]:
    """The layers of a transformer, in order."""
    for name, module in model.named_modules():
        children = list(module.named_children())
        if children and LAYER_NAME.search(f"{name}.0.") and children[0][0] == "0":
            return [child for _, child in children]
    raise ModelError(
        f"{type(model).__name__}: got a transformer without a list of layers, expected layers.0 or layer.0"
    )


@contextmanager
def _skipped(layers: Sequence[Any]) -> Iterator[None]:
    """Let layers pass on what they get, within this block."""

    def forward(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return hidden_states

    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _apart(vectors: FloatArray, reference: FloatArray) -> float:
    return float(1 - np.sum(vectors * reference, axis=1).mean())
