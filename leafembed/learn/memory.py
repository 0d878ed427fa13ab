"""Predicts the memory that training takes, before it starts: weights, gradients, optimiser, activations, loss.

Activations are what autograd keeps for the backward pass. For a layer of Gemma 3 in fp32, in values a token, with
hidden size H, intermediate size I, queries of A = heads x head size, keys of K:

* four norms keep their input and the normalised input, 8 H; the two that read the stream also their output, which
  the matrices keep: 10 H;
* queries before their norm, normalised, rotated, and what attention gives, which the output matrix keeps: 4 A;
* keys before their norm and normalised, 2 K; rotated keys, and values, as attention reads them: 2 K, or 2 A where
  they are copied to every head;
* the gate, its GELU, the other half and the product: 4 I;
* one row of the attention mask, which each layer turns into numbers: as many as the text has tokens. The attention
  probabilities themselves are not kept, unless they have dropout.

Counted in bytes for each family in ``_SAVED``. Under bf16 autocast norms still keep fp32, every matrix keeps a bf16
copy of its input, and of its weight until the pass ends.

Fused layers (``halves.py``), which CPUs run, keep less of all this, but the attention probabilities as well, heads x
tokens values a token, and a copy of the matrices that they merge. From a few hundred tokens on that is more in all.
Where ``train.fused`` is ``auto`` and may apply, the greater of the two counts: ``_FUSED``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leafembed.learn.models import has_bf16
from leafembed.recipe_learn import Phase, TrainConfig

__all__ = ["Memory", "Weights", "activation_bytes", "training_memory"]

_LOSS_VECTORS, _LOSS_SIMILARITIES = 8, 8
"""Copies that the loss keeps of a batch's vectors (both models', raw and of unit length, with their gradients), and of
its similarities (both models', softmax, logarithm, gradients)."""

_TOKEN_VECTORS = 4
"""Copies of a token's vector where tokens are compared: both models' means, the difference, a gradient."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """Bytes that a layer keeps for each token, by what they are proportional to.

    Attributes:
        hidden: Of the hidden size.
        inner: Of the intermediate size.
        queries: Of heads x head size.
        keys: Of key heads x head size.
        spread: Of keys and values as attention reads them.
        mask: Of the tokens of the text.
        scores: Of heads x tokens, where attention keeps its probabilities: it has dropout, or is fused.
        copied: Whether keys are copied to every head even if there is one key head only.
        merged: Of the weights of query, key, value, gate and up, once a layer: copies that no other sum counts.
    """

    hidden: int
    inner: int
    queries: int
    keys: int
    spread: int
    mask: int
    scores: int = 0
    copied: bool = False
    merged: int = 0


_SAVED: dict[tuple[str, bool], _Saved] = {
    ("gemma3_text", False): _Saved(hidden=40, inner=16, queries=16, keys=8, spread=8, mask=4),
    ("gemma3_text", True): _Saved(hidden=42, inner=8, queries=12, keys=8, spread=4, mask=2, copied=True),
    ("qwen3", False): _Saved(hidden=24, inner=16, queries=16, keys=8, spread=8, mask=4),
    ("qwen3", True): _Saved(hidden=26, inner=8, queries=10, keys=6, spread=4, mask=2, copied=True),
    ("modernbert", False): _Saved(hidden=16, inner=16, queries=24, keys=0, spread=0, mask=4),
    ("modernbert", True): _Saved(hidden=12, inner=8, queries=12, keys=0, spread=0, mask=2),
    ("bert", False): _Saved(hidden=24, inner=8, queries=16, keys=0, spread=0, mask=0, scores=12),
    ("bert", True): _Saved(hidden=20, inner=4, queries=14, keys=0, spread=0, mask=0, scores=12),
}
"""By family and whether under bf16 autocast. A family that is not here counts as Gemma, which keeps the most."""

_FUSED = {
    False: _Saved(hidden=24, inner=12, queries=12, keys=16, spread=0, mask=1, scores=4, merged=4),
    True: _Saved(hidden=16, inner=6, queries=6, keys=8, spread=0, mask=1, scores=2),
}
"""Of fused layers, by whether in bf16, where all copies of weights count as those of autocast do."""

_CAN_FUSE = {"gemma3_text", "qwen3"}

_FUSED_WORK = 8
"""Bytes of heads x tokens that a fused layer takes for each token while it works: gradients of probabilities and
scores, in fp32."""

_ALIKE = {"xlm-roberta": "bert", "roberta": "bert"}


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of what training holds.

    Attributes:
        student: All of the student.
        table: Its token table.
        trainable: Those that learn.
        teacher: All of the teacher, which stays loaded; 0 for one that is elsewhere.
    """

    student: int
    table: int
    trainable: int
    teacher: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that training takes in one phase of the length curriculum, in a batch of the longest texts.

    Attributes:
        tokens: Longest text.
        texts: Texts of that length in one forward pass.
        weights: Student and teacher, fp32.
        gradients: 4 bytes for each trainable weight.
        optimizer: Two states of AdamW, 8 bytes for each trainable weight.
        activations: What is kept for the backward pass.
        loss: Vectors and similarities.
    """

    tokens: int
    texts: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int

    @property
    def peak(self) -> int:
        """All of them at once: an upper bound, since activations are freed while gradients grow."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.loss


def training_memory(
    config: Any,
    weights: Weights,
    train: TrainConfig,
    *,
    limit: int,
    dims: Sequence[int],
    device: str,
    exits: int = 0,
    head: int = 0,
) -> list[Memory]:
    """The memory of each phase, in order.

    Args:
        config: The student's transformer config; ``None`` for a token table alone, whose activations are its vectors.
        weights: What is held.
        train: The recipe's ``[train]``.
        limit: Tokens that the student can read.
        dims: Length of an embedding, then the leading dimensions that are trained to stand alone.
        device: ``cpu`` or ``cuda``, which tells with ``train.precision`` and ``train.fused`` how layers run.
        exits: Early exits that are trained.
        head: Values that the head makes of one token, where tokens are compared.
    """
    phases: Sequence[Phase] = train.curriculum or (Phase(tokens=train.max_seq_length),)
    result, bf16 = [], has_bf16(train.precision, device)
    for phase in phases:
        tokens = min(phase.tokens, limit)
        texts = train.batch_size
        if train.batch_tokens is not None:
            texts = max(1, min(texts, train.batch_tokens // tokens))
        kept = 8 * texts * dims[0]
        if config is not None:
            kept = activation_bytes(config, texts=texts, tokens=tokens, bf16=bf16, train=train, device=device)
            if True in _routes(config, train, device):
                kept += _FUSED_WORK * texts * tokens * tokens * int(config.num_attention_heads)
            kept += exits * 16 * texts * tokens * int(config.hidden_size)  # its norm and pooling
            kept += 2 * (weights.student - weights.table) if bf16 else 0  # autocast's copies of the matrices
        loss = sum(_LOSS_VECTORS * texts * one + _LOSS_SIMILARITIES * texts * texts for one in dims)
        loss *= 4 * (1 + exits)
        if train.token_distillation and config is not None:  # states, what the head makes of them, both models' means
            loss += 4 * texts * tokens * (int(config.hidden_size) + head + _TOKEN_VECTORS * dims[0])
        held = 4 * (weights.student + weights.teacher)
        result.append(Memory(tokens, texts, held, 4 * weights.trainable, 8 * weights.trainable, kept, loss))
    return result


def activation_bytes(
    config: Any, *, texts: int, tokens: int, bf16: bool, train: TrainConfig, device: str = "cuda"
) -> int:
    """Bytes that autograd keeps of a transformer and its pooling for a batch of ``texts`` with ``tokens`` each.

    With ``train.gradient_checkpointing`` each layer keeps its input alone, and one layer at a time is computed again.
    Where layers may run fused or not on ``device``, the greater of the two.
    """
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    found = []
    for fused in _routes(config, train, device):
        each, once = _layer_bytes(config, tokens, bf16=bf16, fused=fused)
        kept = layers * 4 * hidden + each if train.gradient_checkpointing else layers * each
        copies = once if train.gradient_checkpointing else layers * once
        # The last norm: input, normalised and output; the pooling's product.
        found.append(texts * tokens * (kept + 16 * hidden) + copies)
    return max(found)


def _routes(config: Any, train: TrainConfig, device: str) -> set[bool]:
    """Whether layers run fused: the one way that it can be, or both."""
    if train.fused == "off" or str(config.model_type) not in _CAN_FUSE:
        return {False}
    if train.fused == "on":
        return {True}
    return {False, True} if device == "cpu" else {False}


def _layer_bytes(config: Any, tokens: int, *, bf16: bool, fused: bool) -> tuple[int, int]:
    """Bytes that one layer keeps for each token, and once."""
    kind = _ALIKE.get(str(config.model_type), str(config.model_type))
    saved = _FUSED[bf16] if fused else _SAVED.get((kind, bf16), _SAVED["gemma3_text", bf16])
    hidden, inner = int(config.hidden_size), int(config.intermediate_size)
    heads = int(config.num_attention_heads)
    size = int(getattr(config, "head_dim", None) or hidden // heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    shared = groups == heads or (groups == 1 and not saved.copied)  # one key head is read by all without a copy
    keeps = fused or getattr(config, "attention_probs_dropout_prob", 0) > 0
    scores = saved.scores if keeps else 0
    each = (
        saved.hidden * hidden
        + saved.inner * inner
        + saved.queries * heads * size
        + saved.keys * groups * size
        + saved.spread * (groups if shared else heads) * size
        + (saved.mask + scores * heads) * tokens
        + (4 * size if fused else 0)  # its cosines and sines
    )
    return each, saved.merged * hidden * ((heads + 2 * groups) * size + 2 * inner)
