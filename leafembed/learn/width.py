"""Narrows a transformer along the principal directions of its residual stream instead of cutting off coordinates.

After SliceGPT (arXiv 2401.15024): a model whose norms do not care about rotation computes the same when the stream is
rotated and every matrix that reads or writes it is rotated with it. Rotated onto the principal directions of the
stream, the last coordinates hold the least and are dropped. Unlike there, one rotation ``Q`` serves the whole stream,
because a stock model has no place for another at each layer. RMSNorm subtracts no mean, so the directions come from
the second moment that is not centred; each token counts with length 1, as the norms see it.

With ``D`` the old and ``d`` the new width, ``x`` the stream, ``s`` the scale of a norm:

* The token table and every matrix that writes to the stream: exact on the kept directions (``Q' W``).
* A norm that reads the stream becomes one without a scale; ``s`` moves into the matrices ``W`` that follow, which
  become ``W M`` with ``M = c diag(s) Q + R``. The number ``c`` stands for the root of D/d and for the mean share of
  length that was cut; ``R`` predicts from the kept directions what the dropped ones held (ridge regression). Exact
  where nothing was cut (``c = 1``, ``R = 0``).
* A norm on the output ``a`` of a sublayer, as Gemma has, with scale ``s``: a scale in the old basis is no scale in the
  new one, so it moves into the matrix before the norm, ``Q' diag(s) W``, which gives the output's direction exactly.
  The norm then divides by another length than before; the new scale makes that right on average (:class:`_Write`).
  Exact where ``s`` is constant and nothing was cut.
* Norms within attention heads are left alone: heads are not cut.

LayerNorm subtracts the mean over the old coordinates, and BERT's scales lie on the stream itself: such models are
refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leafembed.errors import ModelError
from leafembed.learn.observe import evenly, observed

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["FIT_TEXTS", "cut_width", "layout_of"]

FIT_TEXTS = 1_000
"""Texts on which directions and scales are measured."""

_RIDGE = 1e-2
"""Ridge of the regression as a share of the mean energy of a coordinate."""

_LINEAR_POOLING = {"mean", "cls", "lasttoken"}


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the layers of a family read and write the residual stream.

    Attributes:
        reads: By norm, the matrices that read its output.
        writes: By matrix that writes to the stream, the norm on its output; ``None``: there is none.
        offset: What the model adds to a stored norm weight to get the scale.
    """

    reads: Mapping[str, tuple[str, ...]]
    writes: Mapping[str, str | None]
    offset: float


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj")
_LAYOUTS = {
    "gemma3_text": _Layout(
        reads={"input_layernorm": _QKV, "pre_feedforward_layernorm": _GATED},
        writes={"self_attn.o_proj": "post_attention_layernorm", "mlp.down_proj": "post_feedforward_layernorm"},
        offset=1.0,
    ),
    "qwen3": _Layout(
        reads={"input_layernorm": _QKV, "post_attention_layernorm": _GATED},
        writes={"self_attn.o_proj": None, "mlp.down_proj": None},
        offset=0.0,
    ),
}


def cut_width(student: SentenceTransformer, hidden_size: int, texts: Sequence[str]) -> SentenceTransformer:
    """A student of the given hidden size that computes as nearly as it can what ``student`` does.

    Its dim stays: the first Dense takes the change of basis, or a new one is put after the pooling where there is none.

    Args:
        student: The student at full width; left as it is.
        hidden_size: New width, at most the old one.
        texts: Any texts; at most ``FIT_TEXTS`` are read.

    Raises:
        ModelError: If the family or its pooling cannot be narrowed.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    model = student[0].auto_model
    layout = layout_of(student)
    sample = evenly(texts, FIT_TEXTS)
    with torch.no_grad():
        readers, writers = _norms(model, layout)
        basis = _principal(student, readers, sample, hidden_size)
        reads = {norm: _Read(_scale(module, layout), basis) for norm, module in readers.items()}
        writes = {norm: _Write(_scale(module, layout), basis) for norm, module in writers.items()}
        watchers = {readers[norm]: fit.watch for norm, fit in reads.items()}
        watchers |= {writers[norm]: fit.watch for norm, fit in writes.items()}
        with observed(student, watchers):
            _run(student, sample)
        narrow = _narrowed(model, layout, basis, reads, writes)
        modules = _with_head(student, narrow, reads["norm"].matrix())
    return SentenceTransformer(modules=modules, device="cpu", prompts=dict(student.prompts))


def layout_of(student: SentenceTransformer) -> _Layout:
    """Where a student, or the teacher that it is made of, reads and writes its stream.

    Raises:
        ModelError: If the family or its pooling cannot be narrowed.
    """
    kind = str(student[0].auto_model.config.model_type)
    if kind not in _LAYOUTS:
        raise ModelError(
            f"student.width: got a model of type {kind}, expected one with RMSNorm before each sublayer "
            f"({', '.join(_LAYOUTS)}); set student.width = 1"
        )
    mode = student[1].pooling_mode
    if mode not in _LINEAR_POOLING:
        raise ModelError(f"student.width: got pooling {mode!r}, expected one of {', '.join(sorted(_LINEAR_POOLING))}")
    return _LAYOUTS[kind]


def _norms(model: Any, layout: _Layout) -> tuple[dict[str, Any], dict[str, Any]]:
    """Modules, by name, of the norms that read the stream and of those on the output of a sublayer."""
    names = [f"layers.{i}." for i in range(len(model.layers))]
    readers = {layer + norm: model.get_submodule(layer + norm) for layer in names for norm in layout.reads}
    after = [norm for norm in layout.writes.values() if norm is not None]
    writers = {layer + norm: model.get_submodule(layer + norm) for layer in names for norm in after}
    return {**readers, "norm": model.norm}, writers


def _scale(norm: Any, layout: _Layout) -> Any:
    return norm.weight.detach().float() + layout.offset


def _run(student: SentenceTransformer, texts: Sequence[str]) -> None:
    student.encode(list(texts), batch_size=32, show_progress_bar=False, convert_to_tensor=True)


def _unit(rows: Any) -> Any:
    """Rows of RMS 1, which is what a norm makes of them before its scale."""
    return rows * rows.pow(2).mean(-1, keepdim=True).clamp_min(1e-30).rsqrt()


def _principal(student: SentenceTransformer, readers: Mapping[str, Any], texts: Sequence[str], size: int) -> Any:
    """The ``size`` principal directions ``(D, size)`` of the stream at every norm that reads it."""
    import torch

    width = student[0].auto_model.config.hidden_size
    moment = torch.zeros(width, width, dtype=torch.float64)

    def watch(before: Any, after: Any) -> None:
        rows = _unit(before.float())
        moment.add_((rows.T @ rows).double())

    with observed(student, dict.fromkeys(readers.values(), watch)):
        _run(student, texts)
    _, vectors = torch.linalg.eigh(moment)
    return vectors.flip(1)[:, :size].float().contiguous()


class _Read:
    """Fits the matrix ``M (D, d)`` from a narrow norm's output to what the wide norm gave."""

    def __init__(self, scale: Any, basis: Any) -> None:
        self.basis, self.scale = basis, scale
        self.gram: Any = 0.0
        self.cross: Any = 0.0

    def watch(self, before: Any, after: Any) -> None:
        narrow = _unit(before.float() @ self.basis)
        self.gram = self.gram + narrow.T @ narrow
        self.cross = self.cross + (_unit(before.float()) * self.scale).T @ narrow

    def matrix(self) -> Any:
        import torch

        first = self.scale[:, None] * self.basis
        factor = (self.cross * first).sum() / ((first @ self.gram) * first).sum()
        first = factor * first
        ridge = _RIDGE * self.gram.trace() / len(self.gram) * torch.eye(len(self.gram))
        rest = torch.linalg.solve((self.gram + ridge).double(), (self.cross - first @ self.gram).T.double())
        return first + rest.T.float()


class _Write:
    """Fits matrix and scale of a narrow norm on a sublayer's output.

    The output is ``t * norm(Q' diag(s) a / t)``. Its direction is exact for any ``t``; its length is exact where
    ``|Q' diag(s) a / t|`` is proportional to ``|a|``, as it is for each coordinate on average over tokens with
    ``t_j^2 = E(q_j' diag(s) a)^2 / E(q_j' a)^2``, and for all tokens where ``s`` is constant or ``Q`` turns no axis.
    """

    def __init__(self, scale: Any, basis: Any) -> None:
        self.basis = basis
        self.scaled = scale[:, None] * basis
        self.before: Any = 0.0
        self.after: Any = 0.0
        self.tokens = 0

    def watch(self, before: Any, after: Any) -> None:
        rows = _unit(before.float())
        self.before = self.before + (rows @ self.basis).pow(2).sum(0)
        self.after = self.after + (rows @ self.scaled).pow(2).sum(0)
        self.tokens += len(rows)

    def scale(self) -> Any:
        """The narrow norm's scale ``(d,)``."""
        ratio = self.after / self.before.clamp_min(1e-30)
        kept = self.before.sum() / self.tokens  # of the output's energy, which is D for each token
        return (ratio.clamp_min(1e-8 * ratio.max()) * kept / self.basis.shape[1]).sqrt()

    def matrix(self) -> Any:
        """What the sublayer's output is multiplied by, transposed: ``(D, d)``."""
        return self.scaled / self.scale()


def _narrowed(model: Any, layout: _Layout, basis: Any, reads: Mapping[str, _Read], writes: Mapping[str, _Write]) -> Any:
    """The narrow transformer, filled weight by weight."""
    import torch

    config = copy.deepcopy(model.config)
    config.hidden_size = basis.shape[1]
    config._attn_implementation = model.config._attn_implementation
    narrow = type(model)(config).eval()
    state = model.state_dict()
    plain = torch.full((basis.shape[1],), 1.0 - layout.offset)
    old, new = (float(getattr(m.get_input_embeddings(), "embed_scale", 1.0)) for m in (model, narrow))
    # Gemma multiplies the rows by the root of the hidden size, which has changed.
    state["embed_tokens.weight"] = state["embed_tokens.weight"] @ basis * (old / new)
    state["norm.weight"] = plain
    for layer in (f"layers.{i}." for i in range(len(model.layers))):
        for norm, matrices in layout.reads.items():
            state[f"{layer}{norm}.weight"] = plain
            change = reads[layer + norm].matrix()
            for name in matrices:
                state[f"{layer}{name}.weight"] = state[f"{layer}{name}.weight"] @ change
        for name, norm_after in layout.writes.items():
            project = basis if norm_after is None else writes[layer + norm_after].matrix()
            for key in (f"{layer}{name}.weight", f"{layer}{name}.bias"):
                if key in state:
                    state[key] = project.T @ state[key]
            if norm_after is not None:
                state[f"{layer}{norm_after}.weight"] = writes[layer + norm_after].scale() - layout.offset
    narrow.load_state_dict(state)
    return narrow


def _with_head(student: SentenceTransformer, narrow: Any, change: Any) -> list[Any]:
    """The student's modules around the narrow transformer; its pooled vectors are mapped back by ``change (D, d)``."""
    import torch
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Pooling

    body = copy.copy(student[0])
    body._modules = dict(student[0]._modules)
    body.model = narrow
    width = change.shape[1]
    pooling = Pooling(width, pooling_mode=student[1].pooling_mode, include_prompt=student[1].include_prompt)
    rest = [copy.deepcopy(module) for module in list(student)[2:]]
    first = rest[0] if rest and isinstance(rest[0], Dense) and not rest[0].use_residual else None
    activation = torch.nn.Identity() if first is None else first.activation_function
    matrix = change if first is None else first.linear.weight.data @ change
    head = Dense(width, len(matrix), bias=first is not None and first.bias, activation_function=activation)
    head.linear.weight.data = matrix.contiguous()
    if first is not None and first.bias:
        head.linear.bias.data = first.linear.bias.data
    return [body, pooling, head, *(rest if first is None else rest[1:])]
