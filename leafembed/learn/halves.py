"""The two halves of a gated transformer layer, each one autograd function over tokens without padding.

Left to itself, autograd keeps every intermediate of RMSNorm, rotary embedding and GELU and walks through each again.
Here a half is a few matrix products with one kernel (:mod:`~leafembed.learn.kernels`) between two of them. Query, key
and value share a product, gate and up another. Query heads that share a key are rows of one product, so that no key is
repeated. Attention scores are held whole, and their shares kept for the backward pass, ``B * N * L * L`` of them in a
layer: two to four times as fast as torch's attention on a CPU (`docs/log.md`), and for short texts less than the gated
half keeps. From ``L = 3 * (H + I) / N`` tokens on it is more, and grows with the square; ``memory.py`` counts it.

Shapes: B = texts, L = longest text, T = tokens that are not padding, H = hidden size, N = query heads, K = key heads,
G = N / K, D = size of a head, I = intermediate size. All weights are fp32; products are in ``Settings.dtype``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from leafembed.learn.kernels import Activation, Kernels

__all__ = ["AttentionWeights", "GatedWeights", "Layout", "Settings", "attention_half", "gated_half"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What both halves of a layer have in common.

    Attributes:
        kernels: What runs between products.
        eps: Added to the mean square in every norm.
        dtype: Of the matrix products.
        activation: Of the gate.
    """

    kernels: Kernels
    eps: float
    dtype: torch.dtype
    activation: Activation


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens of a batch lie and what each sees.

    Attributes:
        texts: B.
        length: L.
        rows: ``(T,)`` places of the tokens in the padded ``B * L``; ``None``: nothing is padded.
        hidden: ``(B or 1, 1, L, L)`` bool, true where a query must not see a key; ``None``: it sees them all.
        cos: ``(T, D / 2)`` cosines of the rotary embedding.
        sin: The sines.
    """

    texts: int
    length: int
    rows: Tensor | None
    hidden: Tensor | None
    cos: Tensor
    sin: Tensor

    def pack(self, padded: Tensor) -> Tensor:
        """``(B * L, ...)`` to ``(T, ...)``."""
        return padded if self.rows is None else padded.index_select(0, self.rows)

    def pad(self, packed: Tensor) -> Tensor:
        """``(T, ...)`` to ``(B * L, ...)``, zeros where there is no token."""
        if self.rows is None:
            return packed
        return packed.new_zeros(self.texts * self.length, *packed.shape[1:]).index_copy_(0, self.rows, packed)

    def group(self, packed: Tensor, key_heads: int) -> Tensor:
        """``(T, N, D)`` to ``(B * K, L * G, D)``: a matrix for each text and key head; free when K is 1."""
        padded = self.pad(packed)
        split = padded.reshape(self.texts, self.length, key_heads, -1, padded.shape[-1])
        return split.transpose(1, 2).reshape(self.texts * key_heads, -1, padded.shape[-1])

    def ungroup(self, grouped: Tensor, key_heads: int) -> Tensor:
        """The way back, to ``(T, N, D)``."""
        split = grouped.view(self.texts, key_heads, self.length, -1, grouped.shape[-1])
        return self.pack(split.transpose(1, 2).reshape(self.texts * self.length, -1, grouped.shape[-1]))

    def shares(self, scores: Tensor, key_heads: int) -> Tensor:
        """Softmax of the scores ``(B * K, L * G, L)`` over the keys that a query may see; overwrites the scores.

        A query of padding sees no key; it gets equal shares, which are finite, and is dropped afterwards.
        """
        if self.hidden is not None:
            split = scores.view(self.texts, key_heads, self.length, -1, self.length)
            split.masked_fill_(self.hidden.unsqueeze(3), torch.finfo(scores.dtype).min)
        return torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)


class GatedWeights(NamedTuple):
    """Tensors of the gated half; gains are what norms multiply by, ``post`` is ``None`` without a second norm."""

    gain: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    post: Tensor | None


class AttentionWeights(NamedTuple):
    """Tensors of the attention half; ``query_gain`` includes the factor of the scores."""

    gain: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    query_gain: Tensor
    key_gain: Tensor
    out: Tensor
    post: Tensor | None


def attention_half(settings: Settings, layout: Layout, x: Tensor, weights: AttentionWeights) -> Tensor:
    """``x + norm(out(attention(norm(x))))`` of the residual stream ``(T, H)`` fp32, heads normed and turned."""
    result: Tensor = _AttentionHalf.apply(settings, layout, x, *weights)  # type: ignore[no-untyped-call]
    return result


def gated_half(settings: Settings, x: Tensor, weights: GatedWeights) -> Tensor:
    """``x + norm(down(act(gate(norm(x))) * up(norm(x))))`` of the residual stream ``(T, H)`` fp32."""
    result: Tensor = _GatedHalf.apply(settings, x, *weights)  # type: ignore[no-untyped-call]
    return result


class _GatedHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Settings, x: Tensor, *tensors: Tensor) -> Tensor:
        """The half; keeps what its gradient needs."""
        weights, kernels = GatedWeights(*tensors), settings.kernels
        x = x.detach()
        y, scale = kernels.norm(x, weights.gain.detach(), settings.eps, settings.dtype)
        inward = _merged((weights.gate, weights.up), settings.dtype)
        outward = weights.down.to(settings.dtype)
        both = y @ inward.T
        active = kernels.gate(both, settings.activation)
        h = active @ outward.T
        out, post_scale = _join(x, h, weights.post, settings)
        ctx.settings = settings
        ctx.save_for_backward(x, weights.gain, weights.post, scale, post_scale, y, both, active, h, inward, outward)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``x`` and of each weight."""
        settings: Settings = ctx.settings
        x, gain, post, scale, post_scale, y, both, active, h, inward, outward = ctx.saved_tensors
        grad = grad.contiguous()
        d_h, d_post = _join_grad(grad, h, post_scale, post, settings)
        d_both = settings.kernels.gate_grad(d_h @ outward, both, settings.activation)
        d_x, d_gain = settings.kernels.norm_grad(d_both @ inward, x, scale, gain.detach(), grad)
        d_gate, d_up = (d_both.T @ y).float().chunk(2)
        return None, d_x, d_gain, d_gate, d_up, (d_h.T @ active).float(), d_post  # as in GatedWeights


class _AttentionHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Settings, layout: Layout, x: Tensor, *tensors: Tensor) -> Tensor:
        """The half; keeps what its gradient needs."""
        weights, kernels = AttentionWeights(*tensors), settings.kernels
        x, size = x.detach(), len(weights.key_gain)
        heads = [len(weight) // size for weight in (weights.query, weights.key, weights.value)]
        y, scale = kernels.norm(x, weights.gain.detach(), settings.eps, settings.dtype)
        inward = _merged((weights.query, weights.key, weights.value), settings.dtype)
        outward = weights.out.to(settings.dtype)
        straight = torch.split((y @ inward.T).view(len(x), -1, size), heads, 1)
        places = (settings.eps, layout.cos, layout.sin)
        turned_query, query_scale = kernels.turn(straight[0], weights.query_gain.detach(), *places)
        turned_key, key_scale = kernels.turn(straight[1], weights.key_gain.detach(), *places)
        query, key, value = (layout.group(part, heads[1]) for part in (turned_query, turned_key, straight[2]))
        shares = layout.shares(query @ key.transpose(1, 2), heads[1])
        attended = layout.ungroup(shares @ value, heads[1]).flatten(1)
        h = attended @ outward.T
        out, post_scale = _join(x, h, weights.post, settings)
        ctx.settings, ctx.layout = settings, layout
        ctx.save_for_backward(
            *(x, weights.gain, weights.post, weights.query_gain, weights.key_gain),
            *(scale, post_scale, query_scale, key_scale),
            *(y, *straight[:2], query, key, value, shares, attended, h, inward, outward),
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``x`` and of each weight."""
        settings, layout, kernels = ctx.settings, ctx.layout, ctx.settings.kernels
        x, gain, post, query_gain, key_gain, scale, post_scale, query_scale, key_scale, *rest = ctx.saved_tensors
        y, straight_query, straight_key, query, key, value, shares, attended, h, inward, outward = rest
        grad = grad.contiguous()
        d_h, d_post = _join_grad(grad, h, post_scale, post, settings)
        count = straight_key.shape[1]
        d_attended = layout.group((d_h @ outward).view(straight_query.shape), count)
        d_shares = d_attended @ value.transpose(1, 2)
        d_scores = torch._softmax_backward_data(d_shares, shares, -1, shares.dtype)
        d_query, d_key = layout.ungroup(d_scores @ key, count), layout.ungroup(d_scores.transpose(1, 2) @ query, count)
        d_value = layout.ungroup(shares.transpose(1, 2) @ d_attended, count)
        places = (layout.cos, layout.sin)
        d_query, d_query_gain = kernels.turn_grad(d_query, straight_query, query_scale, query_gain.detach(), *places)
        d_key, d_key_gain = kernels.turn_grad(d_key, straight_key, key_scale, key_gain.detach(), *places)
        d_straight = torch.cat((d_query, d_key, d_value), 1).flatten(1)
        d_x, d_gain = kernels.norm_grad(d_straight @ inward, x, scale, gain.detach(), grad)
        sizes = [part[0].numel() for part in (d_query, d_key, d_value)]
        into_query, into_key, into_value = torch.split((d_straight.T @ y).float(), sizes)
        norms = (d_query_gain, d_key_gain)
        d_out = (d_h.T @ attended).float()
        return (
            None,
            None,
            d_x,
            d_gain,
            into_query,
            into_key,
            into_value,
            *norms,
            d_out,
            d_post,
        )  # as in AttentionWeights


def _merged(weights: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """The weights one below the other, cast on the way."""
    result = weights[0].new_empty(sum(map(len, weights)), weights[0].shape[1], dtype=dtype)
    for part, weight in zip(torch.split(result, [len(weight) for weight in weights]), weights, strict=True):
        part.copy_(weight)
    return result


def _join(x: Tensor, h: Tensor, post: Tensor | None, settings: Settings) -> tuple[Tensor, Tensor | None]:
    """``x`` plus what the half computed, normed if there is a norm; and the norm's scale."""
    if post is None:
        return x + h, None
    return settings.kernels.add_norm(x, h, post.detach(), settings.eps)


def _join_grad(
    grad: Tensor, h: Tensor, scale: Tensor | None, post: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor | None]:
    if post is None:
        return grad.to(h.dtype), None
    return settings.kernels.add_norm_grad(grad, h, scale, post.detach())
