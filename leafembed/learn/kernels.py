"""What a gated transformer layer computes between its matrix products, with gradients written out.

Each function is one walk over memory once compiled; without a compiler it runs as a few plain tensor operations.
Sums and norms are fp32 whatever the products are.

Shapes: T = tokens of a batch without padding, H = hidden size, N = heads, D = size of a head, I = intermediate size.
``scale`` is one over the root mean square, ``(..., 1)`` fp32; ``gain`` what a norm multiplies by, fp32.
"""

from __future__ import annotations

import math
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from leafembed.progress import say

__all__ = ["Activation", "Kernels", "can_compile", "compiled_kernels"]

Activation = Literal["tanh", "silu"]
"""GELU in its tanh form (Hendrycks & Gimpel, arXiv 1606.08415, section 2), or SiLU."""

_TWICE = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def _norm(x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """RMSNorm ``(T, H)`` (arXiv 1910.07467, eq. 4) in ``dtype``, and its scale."""
    wide = x.float()
    scale = _scale(wide, eps)
    return (wide * scale * gain).to(dtype), scale


def _norm_grad(grad: Tensor, x: Tensor, scale: Tensor, gain: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`_norm` in ``x``, with that of the residual stream added, and in ``gain``."""
    d_x, d_gain = _rms_grad(grad.float(), x, scale, gain)
    return skip + d_x, d_gain.sum(0)


def _add_norm(x: Tensor, h: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x`` plus the RMSNorm of ``h``, and its scale."""
    wide = h.float()
    scale = _scale(wide, eps)
    return x + wide * scale * gain, scale


def _add_norm_grad(grad: Tensor, h: Tensor, scale: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`_add_norm` in ``h`` and ``gain``."""
    d_h, d_gain = _rms_grad(grad.float(), h, scale, gain)
    return d_h.to(h.dtype), d_gain.sum(0)


def _turn(x: Tensor, gain: Tensor, eps: float, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """RMSNorm of each head of ``(T, N, D)``, then rotary embedding (arXiv 2104.09864); ``cos`` is ``(T, D / 2)``."""
    wide = x.float()
    scale = _scale(wide, eps)
    first, second = (wide * scale * gain).chunk(2, -1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return turned.to(x.dtype), scale


def _turn_grad(grad: Tensor, x: Tensor, scale: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`_turn` in ``x`` and ``gain``: turned back, then through the norm."""
    first, second = grad.float().chunk(2, -1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    back = torch.cat((first * cos + second * sin, second * cos - first * sin), -1)
    d_x, d_gain = _rms_grad(back, x, scale, gain)
    return d_x.to(x.dtype), d_gain.sum((0, 1))


def _gate(both: Tensor, activation: Activation) -> Tensor:
    """``activation(gate) * up`` ``(T, I)`` of gate and up side by side ``(T, 2 I)`` (arXiv 2002.05202)."""
    gate, up = both.float().chunk(2, -1)
    return (gate * torch.sigmoid(_slope(gate, activation)[0]) * up).to(both.dtype)


def _gate_grad(grad: Tensor, both: Tensor, activation: Activation) -> Tensor:
    """Gradient of :func:`_gate` in ``both``."""
    gate, up = both.float().chunk(2, -1)
    inner, d_inner = _slope(gate, activation)
    share = torch.sigmoid(inner)
    active = gate * share
    d_active = share + active * (1 - share) * d_inner
    return torch.cat((grad * up * d_active, grad * active), -1).to(both.dtype)


def _slope(gate: Tensor, activation: Activation) -> tuple[Tensor, Tensor | float]:
    """``z`` and ``dz / dx`` with ``activation(x) = x * sigmoid(z)``: GELU's tanh is a sigmoid of twice the argument.

    The compiler has a fast ``exp`` and a slow ``tanh``.
    """
    if activation == "silu":
        return gate, 1.0
    square = gate * gate
    return _TWICE * gate * (1 + _CUBIC * square), _TWICE * (1 + 3 * _CUBIC * square)


def _scale(wide: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)


def _rms_grad(grad: Tensor, x: Tensor, scale: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of RMSNorm in ``x``, and that in ``gain`` before its sum over tokens."""
    unit = x.float() * scale
    d_gain = grad * unit
    along = (d_gain * gain).mean(-1, keepdim=True)
    return scale * (grad * gain - unit * along), d_gain


@dataclass(frozen=True, slots=True)
class Kernels:
    """The functions above, as they are or compiled."""

    norm: Callable[..., tuple[Tensor, Tensor]] = _norm
    norm_grad: Callable[..., tuple[Tensor, Tensor]] = _norm_grad
    add_norm: Callable[..., tuple[Tensor, Tensor]] = _add_norm
    add_norm_grad: Callable[..., tuple[Tensor, Tensor]] = _add_norm_grad
    turn: Callable[..., tuple[Tensor, Tensor]] = _turn
    turn_grad: Callable[..., tuple[Tensor, Tensor]] = _turn_grad
    gate: Callable[..., Tensor] = _gate
    gate_grad: Callable[..., Tensor] = _gate_grad


def compiled_kernels() -> Kernels:
    """The kernels by torch's compiler, for any number of tokens; each is compiled when first called."""
    plain = Kernels()
    return Kernels(**{field.name: _compiled(getattr(plain, field.name)) for field in fields(Kernels)})


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    faster = torch.compile(function, fullgraph=True)

    def run(*args: Any) -> Any:
        for value in args:
            if isinstance(value, Tensor) and value.ndim > 1:  # a gain has no tokens
                torch._dynamo.maybe_mark_dynamic(value, 0)
        return faster(*args)

    return run


def can_compile() -> bool:
    """Whether torch can compile for this CPU: it needs a C++ compiler and Python's headers, and a trial must work."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not headers.is_file() or not any(shutil.which(name) for name in ("g++", "clang++")):
        return False
    try:
        return bool(torch.compile(_trial, fullgraph=True)(torch.ones(16))[0] == 2)
    except RuntimeError as error:  # whatever a compiler may lack; torch's own errors are of this class
        say(f"kernels are not compiled: {str(error).splitlines()[0]}")
        return False


def _trial(x: Tensor) -> Tensor:
    return x + 1
