"""Vectors at early exits: what the student would give if it ended after k layers.

An exit's vector is the hidden state after layer k through the model's own final norm, pooling and head, so that it is
the vector of the stock model ``keep_layers(student, range(k))``. All exits come from one forward pass, caught by hooks
on the layers. After LayerSkip (arXiv 2404.16710) and sentence-transformers' AdaptiveLayerLoss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from leafembed.errors import ModelError
from leafembed.learn.shapes import require_exits

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Exits"]

_FINAL_NORMS = ("norm", "final_norm", "final_layer_norm", "ln_f")
"""What architectures with a norm after the last layer call it; BERT and its kin have none."""

_OF_THE_FULL_MODEL = {"sentence_embedding", "cls_token_embeddings", "all_layer_embeddings"}


class Exits:
    """The early exits of one student.

    Args:
        model: The student, a transformer first.
        layers: Numbers of layers after which a vector is wanted, from 1, fewer than the student has.

    Raises:
        RecipeError: If the student has no such exit.
        ModelError: If the architecture is not understood: the exit after all layers is not the student's own vector.
    """

    def __init__(self, model: SentenceTransformer, layers: Sequence[int]) -> None:
        body = getattr(model[0], "auto_model", None)
        total = int(body.config.num_hidden_layers) if body is not None else 0
        require_exits(layers, total)
        self.layers = tuple(layers)
        self._stack = _layer_stack(body, total)
        self._norm = next((norm for name in _FINAL_NORMS if (norm := getattr(body, name, None)) is not None), None)
        self._rest: list[nn.Module] = list(model)[1:]
        self._check(model, total)

    @contextmanager
    def watching(self) -> Iterator[dict[int, Tensor]]:
        """Fill the given dict with hidden states ``(B, tokens, hidden)`` by exit while a forward pass runs.

        Hooks are gone afterwards, so that a layer that is computed again by gradient checkpointing is not caught twice.
        """
        with _hooked(self._stack, self.layers) as caught:
            yield caught

    def vectors(self, caught: Mapping[int, Tensor], features: Mapping[str, Any]) -> list[Tensor]:
        """The vectors ``(B, D)`` of each exit, in order.

        Args:
            caught: What :meth:`watching` gave.
            features: What the student's forward pass returned; its attention mask is read.
        """
        return [self._vector(caught[layer], features) for layer in self.layers]

    def _vector(self, hidden: Tensor, features: Mapping[str, Any]) -> Tensor:
        kept = {name: value for name, value in features.items() if name not in _OF_THE_FULL_MODEL}
        # In fp32: outside the student's own forward pass no autocast casts the head's weights.
        state = hidden.float()
        kept["token_embeddings"] = state if self._norm is None else self._norm(state)
        for module in self._rest:
            kept = module(kept)
        vector: Tensor = kept["sentence_embedding"]
        return vector

    def _check(self, model: SentenceTransformer, total: int) -> None:
        training = model.training
        model.eval()
        features = {
            name: value.to(model.device) if isinstance(value, Tensor) else value
            for name, value in model.preprocess(["the exit after all layers"]).items()
        }
        with torch.no_grad(), _hooked(self._stack, (total,)) as caught:
            output = model(features)
            found = self._vector(caught[total], output)
        model.train(training)
        if not torch.allclose(found, output["sentence_embedding"].float(), atol=1e-3):
            kind = type(model[0].auto_model).__name__
            raise ModelError(f"student.exits: the last layer of {kind} does not give its vector; leave exits empty")


@contextmanager
def _hooked(stack: nn.ModuleList, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    caught: dict[int, Tensor] = {}

    def hook(number: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            caught[number] = output[0] if isinstance(output, tuple) else output

        return keep

    handles = [stack[number - 1].register_forward_hook(hook(number)) for number in layers]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _layer_stack(body: Any, total: int) -> nn.ModuleList:
    for module in body.modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return module
    raise ModelError(f"student.exits: {type(body).__name__} has no list of {total} layers; leave exits empty")
