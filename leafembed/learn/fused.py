"""A faster training step on a CPU: the layers of known architectures, computed with fewer walks over memory.

The same model: the same parameters under the same names, the same hooks and gradient checkpointing, gradients equal to
those of the stock layers up to rounding. What changes is that padding is dropped at the door of each layer, and that
the layer is two hand-written halves (:mod:`~leafembed.learn.halves`). Positions of padding come out as zeros, where
the stock layers compute something that nobody reads. Measure with ``make bench-training``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from leafembed.errors import ModelError
from leafembed.learn.halves import AttentionWeights, GatedWeights, Layout, Settings, attention_half, gated_half
from leafembed.learn.kernels import Activation, Kernels, can_compile, compiled_kernels

__all__ = ["COMPILE_FROM", "Route", "fused"]

Route = Literal["off", "plain", "compiled"]
"""How layers run: as they came, by plain tensor operations, or with compiled kernels between products."""

COMPILE_FROM = 1_000_000
"""Tokens from which compiling, a minute on two cores, pays: it then takes about a sixth off a training step."""

_ACTIVATIONS: dict[str, Activation] = {"gelu_pytorch_tanh": "tanh", "silu": "silu"}


@contextmanager
def fused(
    model: nn.Module, mode: Literal["auto", "on", "off"], *, tokens: int = 0, compiled: bool | None = None
) -> Iterator[Route]:
    """Run a model's layers fused within the block; yields how they run.

    Args:
        model: A sentence-transformers model or a transformer on its own. Its layers change their class for the time;
            parameters, hooks and modules stay.
        mode: The recipe's ``train.fused``: ``auto`` leaves alone what is unknown or not on a CPU.
        tokens: Tokens to come, as far as known.
        compiled: Whether to compile the kernels; ``None``: if it works here and pays over that many tokens.

    Raises:
        ModelError: If ``mode`` is ``on`` and a layer is of an unknown kind.
    """
    layers = _layers(model)
    reason = _obstacle(layers)
    if mode == "on" and reason:
        raise ModelError(f"train.fused = 'on': {reason}; set it to 'auto' or 'off'")
    if mode == "off" or reason or (mode == "auto" and any(p.device.type != "cpu" for p in layers[0].parameters())):
        yield "off"
        return
    compiled = tokens >= COMPILE_FROM and can_compile() if compiled is None else compiled
    kernels = compiled_kernels() if compiled else Kernels()
    before = [type(layer) for layer in layers]
    try:
        for layer in layers:
            layer.fused_kernels = kernels
            layer.__class__ = _FUSED[type(layer)]
        yield "compiled" if compiled else "plain"
    finally:
        for layer, kind in zip(layers, before, strict=True):
            layer.__class__ = kind
            del layer.fused_kernels


def _layers(model: nn.Module) -> list[Any]:
    """The items of the longest list of modules with attention in it."""
    lists = [list(part) for part in model.modules() if isinstance(part, nn.ModuleList)]
    return max((part for part in lists if part and hasattr(part[0], "mlp")), key=len, default=[])


def _obstacle(layers: list[Any]) -> str:
    """Why these layers cannot be fused; empty: they can."""
    if not layers:
        return "the model has no decoder layers"
    for layer in layers:
        if type(layer) not in _FUSED:
            return f"{type(layer).__name__} has no fused form (there is one for Gemma 3 and Qwen 3)"
        attention = layer.self_attn
        config = attention.config
        activation = getattr(config, "hidden_activation", None) or config.hidden_act
        checks = {
            f"activation {activation}": activation not in _ACTIVATIONS,
            "a bias in attention": config.attention_bias,
            "dropout in attention": attention.attention_dropout > 0,
            "weights other than fp32": any(p.dtype != torch.float32 for p in layer.parameters()),
            "softcapping": getattr(config, "attn_logit_softcapping", None) is not None,
            f"attention by {config._attn_implementation}": config._attn_implementation != "sdpa",
        }
        found = [name for name, present in checks.items() if present]
        if found:
            return f"{type(layer).__name__} with {found[0]} has no fused form"
    return ""


class _Gemma3(Gemma3DecoderLayer):
    """A norm before and one after each half; a norm's weight is its gain less 1."""

    def forward(self, hidden_states: Tensor, *args: Any, **inputs: Any) -> Tensor:
        if args or not _can_run(inputs):
            result: Tensor = super().forward(hidden_states, *args, **inputs)
            return result
        return _run(self, hidden_states, inputs)

    def gains(self) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """What the norms multiply by: before attention, of query, of key, after; before the gate, after."""
        attention = self.self_attn
        first = (self.input_layernorm, attention.q_norm, attention.k_norm, self.post_attention_layernorm)
        second = (self.pre_feedforward_layernorm, self.post_feedforward_layernorm)
        return [1 + norm.weight for norm in first], [1 + norm.weight for norm in second]


class _Qwen3(Qwen3DecoderLayer):
    """A norm before each half; a norm's weight is its gain."""

    def forward(self, hidden_states: Tensor, *args: Any, **inputs: Any) -> Tensor:
        if args or not _can_run(inputs):
            result: Tensor = super().forward(hidden_states, *args, **inputs)
            return result
        return _run(self, hidden_states, inputs)

    def gains(self) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """What the norms multiply by: before attention, of query, of key; before the gate."""
        attention = self.self_attn
        first = (self.input_layernorm.weight, attention.q_norm.weight, attention.k_norm.weight, None)
        return list(first), [self.post_attention_layernorm.weight, None]


_FUSED: dict[type[nn.Module], type[nn.Module]] = {Gemma3DecoderLayer: _Gemma3, Qwen3DecoderLayer: _Qwen3}


def _can_run(inputs: dict[str, Any]) -> bool:
    """Whether a call is of the usual kind: no cache of keys, and a mask of booleans if any."""
    mask = inputs.get("attention_mask")
    return inputs.get("past_key_values") is None and (mask is None or mask.dtype == torch.bool)


def _run(layer: Any, hidden_states: Tensor, inputs: dict[str, Any]) -> Tensor:
    """The two halves on what is not padding; ``(B, L, H)`` in and out."""
    device = hidden_states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
    attention, gated, config = layer.self_attn, layer.mlp, layer.self_attn.config
    activation = _ACTIVATIONS[getattr(config, "hidden_activation", None) or config.hidden_act]
    settings = Settings(layer.fused_kernels, config.rms_norm_eps, dtype, activation)
    layout = _layout(hidden_states, inputs, causal=attention.is_causal)
    with torch.autocast(device, enabled=False):
        (gain, query_gain, key_gain, post), (gated_gain, gated_post) = layer.gains()
        x = layout.pack(hidden_states.flatten(0, 1))
        projections = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        gains = (query_gain * attention.scaling, key_gain)
        weights = AttentionWeights(gain, *projections, *gains, attention.o_proj.weight, post)
        x = attention_half(settings, layout, x, weights)
        projections = (gated.gate_proj.weight, gated.up_proj.weight, gated.down_proj.weight)
        x = gated_half(settings, x, GatedWeights(gated_gain, *projections, gated_post))
        return layout.pad(x).view_as(hidden_states)


def _layout(hidden_states: Tensor, inputs: dict[str, Any], *, causal: bool) -> Layout:
    """Read from the stock mask which tokens are padding: those that do not see themselves."""
    texts, length = hidden_states.shape[:2]
    mask = inputs.get("attention_mask")
    rows = None
    if mask is not None:
        real = mask.diagonal(dim1=-2, dim2=-1)[:, 0].expand(texts, length)
        if not real.all():
            rows = real.flatten().nonzero().squeeze(1)
    elif causal:  # no mask at all means nothing padded, and the order left to the attention function
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=hidden_states.device).tril()
    hidden = None if mask is None or bool(mask.all()) else ~mask
    tables = []
    for table in inputs["position_embeddings"]:
        half = table[..., : table.shape[-1] // 2].expand(texts, length, -1).flatten(0, 1)
        tables.append(half if rows is None else half.index_select(0, rows))
    return Layout(texts, length, rows, hidden, *tables)
