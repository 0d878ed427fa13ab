"""Turns a sentence-transformers model into one program, from token ids to the unit vector.

Encoder, pooling, head and normalisation are in it, so that no runtime re-implements a part of the model. What is
shipped is made from it: OpenVINO INT8 for bundles, and the formats of ``leaf export``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from leafembed.errors import ModelError, first_line

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from leafembed.types import Factors

__all__ = [
    "INPUTS",
    "MAX_BATCH",
    "NO_LIMIT",
    "capture",
    "eager_attention",
    "factored_table",
    "length_limit",
]

MAX_BATCH = 65_536
"""Upper bound of the batch dimension that the exporter is told about."""

INPUTS = ("input_ids", "attention_mask")
"""Inputs of a captured model, in order."""

NO_LIMIT = 1 << 20
"""Tokens that a model without a length limit reads."""


def capture(
    model: SentenceTransformer, *, closing: Sequence[int] = (), exits: Sequence[int] = (), tokens: bool = False
) -> Any:
    """Trace a sentence-transformers model as one program; it shares the model's weights.

    Args:
        model: The model, on the CPU.
        closing: Token ids that a text of the full length ends with; the program writes them over whatever is there.
        exits: Numbers of layers after which an embedding is given too, after that of the whole model.
        tokens: Whether the vectors of all tokens are given too, ``(batch, tokens, dim)``, last; not with exits.

    Returns:
        A ``torch.export.ExportedProgram`` from ``input_ids`` and ``attention_mask``, both ``(batch, tokens)`` int64
        with at least 2 tokens, to the embedding ``(batch, dim)`` float32 of unit length, and one for each exit.

    Raises:
        ModelError: If torch.export cannot capture the model, or its pooling leaves out the prompt.
        RecipeError: If the model has no such exit, or its embedding is no mean over tokens.
    """
    import torch

    _refuse_prompt_masking(model)
    length = length_limit(model)
    # Sample sizes that no other dimension has: the exporter must not take them for a hidden size.
    ids = torch.randint(5, 50, (3, min(19, length)), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    sample = dict(zip(INPUTS, (ids, mask), strict=True))
    shape = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH), 1: torch.export.Dim("tokens", min=2, max=length)}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch's own calls
            return torch.export.export(
                _embedding_graph(model, closing, length, exits, tokens),
                (),
                kwargs=sample,
                dynamic_shapes=dict.fromkeys(sample, shape),
                strict=False,
            )
    except (RuntimeError, ValueError, TypeError, torch._dynamo.exc.UserError) as error:
        raise ModelError(f"the model cannot be exported as one graph: {first_line(error)}") from error


def _embedding_graph(
    model: SentenceTransformer, closing: Sequence[int], length: int, exits: Sequence[int], tokens: bool
) -> Any:
    """Wrap the model as a torch module of two tensors; static tables get the padded form of their bag."""
    import torch
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    from leafembed.learn.exits import Exits
    from leafembed.learn.tokens import TokenHead

    first, watch = model[0], Exits(model, exits) if exits else None
    head = TokenHead(model) if tokens else None

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            for place, token in enumerate(closing, start=length - len(closing)):
                here = torch.arange(input_ids.shape[1]) == place
                input_ids = torch.where(here & (attention_mask.sum(1, keepdim=True) == length), token, input_ids)
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            if watch is None:
                output = self.model(inputs)
                vector = torch.nn.functional.normalize(output["sentence_embedding"], dim=-1)
                return vector if head is None else (vector, head(output["token_embeddings"]))
            with watch.watching() as caught:
                features = self.model(inputs)
            vectors = [features["sentence_embedding"], *watch.vectors(caught, features)]
            return tuple(torch.nn.functional.normalize(vector, dim=-1) for vector in vectors)

    class Bag(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = first.embedding.weight

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            rows = torch.nn.functional.embedding(input_ids, self.weight)
            weights = attention_mask.unsqueeze(-1).to(rows.dtype)
            return torch.nn.functional.normalize((rows * weights).sum(1), dim=-1)

    return (Bag() if isinstance(first, StaticEmbedding) else Whole()).eval()


@contextmanager
def eager_attention(model: SentenceTransformer) -> Iterator[None]:
    """Let the model compute attention in plain steps within this block.

    Its mask is then a large negative number instead of minus infinity. A padded position farther from the text than a
    sliding window has no key left, and a softmax over nothing but minus infinity is NaN in an engine that has no
    exception for it.
    """
    body = getattr(model[0], "auto_model", None)
    if body is None:
        yield
        return
    before = body.config._attn_implementation
    body.set_attn_implementation("eager")
    try:
        yield
    finally:
        body.set_attn_implementation(before)


@contextmanager
def factored_table(model: SentenceTransformer, factors: Factors | None) -> Iterator[None]:
    """Let the model look up a row of one factor and multiply it with the other, within this block."""
    if factors is None:
        yield
        return
    import torch

    body = model[0].auto_model
    table = body.get_input_embeddings()
    _require_product(table.weight, factors)
    scale = float(getattr(table, "embed_scale", 1.0))  # Gemma's own rows are multiplied by it

    class Factored(torch.nn.Module):
        def __init__(self, factors: Factors) -> None:
            super().__init__()
            self.rows = torch.nn.Parameter(torch.from_numpy(factors.rows))
            self.matrix = torch.nn.Parameter(torch.from_numpy(factors.matrix.T * np.float32(scale)).contiguous())

        def forward(self, input_ids: Any) -> Any:
            rows = torch.nn.functional.embedding(input_ids, self.rows)
            return torch.nn.functional.linear(rows, self.matrix)

    body.set_input_embeddings(Factored(factors))
    try:
        yield
    finally:
        body.set_input_embeddings(table)


def _require_product(table: Any, factors: Factors) -> None:
    expected = (factors.rows.shape[0], factors.matrix.shape[1])
    if tuple(table.shape) != expected:
        raise ModelError(f"factors of the token table: got a product of {expected}, the table is {tuple(table.shape)}")
    stored = table.detach().numpy()
    apart = max(
        float(np.abs(stored[i : i + 16_384] - factors.rows[i : i + 16_384] @ factors.matrix).max())
        for i in range(0, len(stored), 16_384)
    )
    if apart > 1e-3 * float(np.abs(stored).max()):
        raise ModelError(
            f"factors of the token table: their product differs from the table by up to {apart:.3g}, so it was trained "
            "after it was factorised; set train.freeze_token_table, or remove the file with the factors"
        )


def length_limit(model: SentenceTransformer) -> int:
    """Tokens that the model reads: as it states, and no more than its position table has room for.

    RoBERTa and its kin count positions from after the padding id.
    """
    import torch

    body = getattr(model[0], "auto_model", None)
    stated = model.max_seq_length  # of a table: infinity
    positions = getattr(getattr(body, "config", None), "max_position_embeddings", None)
    limit = min(stated if isinstance(stated, int) else NO_LIMIT, int(positions or NO_LIMIT))
    for module in body.modules() if body is not None else ():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), torch.nn.Embedding):
            return min(limit, int(module.position_embeddings.num_embeddings) - padding - 1)
    return limit


def _refuse_prompt_masking(model: SentenceTransformer) -> None:
    """Pooling that leaves the prompt out needs its length at run time, which the graph does not have."""
    for module in model:
        if getattr(module, "include_prompt", True) is False and any(model.prompts.values()):
            raise ModelError("got a pooling that leaves out the prompt, expected include_prompt = true: not exportable")
