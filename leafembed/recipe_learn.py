"""The sections of a recipe that say who learns and how: teacher, student, optimisation, alarms.

``recipe_text.py`` holds the text, ``recipe.py`` the others and the recipe itself. A default lives here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from leafembed.errors import require, require_at_least

__all__ = ["NEAR", "OBJECTIVES", "AlarmConfig", "Phase", "StudentConfig", "TeacherConfig", "TrainConfig"]

OBJECTIVES = ("distillation", "alignment", "token_distillation", "exit_alignment", "contrastive", "triplet")
"""Every objective, by the key of its weight in ``[train]``."""

NEAR = "near_alignment"
"""Alignment at one temperature, over as many texts at a time and the full vector, for validation only: it compares
recipes, whatever each learns with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """The model to distil."""

    model: str = ""
    """Folder, hub id, ``package:NAME`` for a model inside an installed Python package, or the URL of a server that
    answers as OpenAI's ``/embeddings`` (``http(s)://.../v1``) or Ollama (``http(s)://.../api/embed``)."""
    revision: str | None = None
    """Hub commit; None is only legal for a folder, package or URL."""
    name: str = ""
    """What cards call the teacher, best its hub id: hubs link to it, and its training data are known by it; empty: as
    in model, of a folder its name."""
    served_model: str = ""
    """Name of the model at the URL; needed with one."""
    api_key_file: Path | None = None
    """File that holds the key for the URL; None: no key."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Prompts of a teacher at a URL, by name; other teachers bring their own."""
    licence: str | None = None
    """Licence of the teacher, which its student carries; None: as the teacher's own files state it."""
    prompt_name: str | None = None
    """Prompt for texts whose source names none; None: no prompt."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the teacher pass and of scoring; auto: bf16 where the hardware computes it natively. Never fp16."""
    engine: Literal["torch", "openvino", "either"] = "torch"
    """What computes the vectors that texts are learned by. openvino: weights in INT8, on a CPU; faster, nearly the same
    vectors. either: openvino too, but for what torch computed before; with ``train.token_distillation`` all by openvino
    just the same. The teacher's own scores are torch's always."""
    batch_tokens: int = 2_048
    """Padded tokens in one forward pass."""
    max_seq_length: int | None = None
    """Tokens the teacher reads; None: its own limit. A server cuts as it likes: with a URL this limits the student."""
    shard_rows: int = 1_024
    """Vectors in one cache shard: what an interrupted pass repeats at most."""

    def __post_init__(self) -> None:
        require_at_least("teacher", self, batch_tokens=1, max_seq_length=8, shard_rows=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentConfig:
    """Where the student starts."""

    init: Literal["layers", "encoder", "static", "random"] = "layers"
    """layers: kept layers of the teacher; encoder: another encoder and a Dense; static: a token table alone; random:
    the teacher's architecture with random weights, which is what made the first attempt fail."""
    layers: tuple[int, ...] = ()
    """Teacher layers to keep, from 0, ascending; needed by ``layers``."""
    model: str = ""
    """Folder or hub id of the encoder; needed by ``encoder``."""
    revision: str | None = None
    """Hub commit of the encoder."""
    pooling: Literal["mean", "cls", "lasttoken"] = "mean"
    """How ``encoder`` pools its tokens."""
    width: float = 1.0
    """Hidden size as a share of the teacher's, above 0 and at most 1; ``layers`` cuts along principal directions."""
    num_layers: int | None = None
    """Layers of a ``random`` student; None: as many as the teacher."""
    num_heads: int | None = None
    """Attention heads of a ``random`` student; None: as many as the teacher."""
    vocab_size: int | None = None
    """Tokens to keep, the most frequent in the corpus besides special, byte and single-character ones; None: all, or
    every token that occurs where ``vocab_languages`` or ``vocab_text`` says what is counted."""
    vocab_languages: tuple[str, ...] = ()
    """Languages of the corpus whose text is counted to choose the tokens; empty: all."""
    vocab_text: Path | None = None
    """A file of texts, one a line or .jsonl with ``text``, counted to choose the tokens; None: the corpus."""
    table_rank: int | None = None
    """Rank of the token table as a product of two matrices, for ``layers``; None: not factorised."""
    exits: tuple[int, ...] = ()
    """Numbers of layers, ascending, after which a vector is trained too (layer-wise early exits); empty: none."""
    dims: tuple[int, ...] = ()
    """Leading dimensions, descending, that are trained to stand alone (Matryoshka, arXiv 2205.13147); empty: none."""
    max_seq_length: int | None = None
    """Tokens the student reads; None: as the teacher."""
    table_bits: int | None = None
    """4: the token table is trained rounded to 4 bits, a scale for every 64 values, and stored so, in half the bytes of
    INT8 and without a loss at export; None: INT8."""
    matrix_bits: int | None = None
    """8: when training has ended, the matrices of layers and head are rounded as INT8 stores them, so that export does
    not round them again; None: they are rounded at export."""
    prompts: Literal["none", "teacher", "tokens"] = "none"
    """none: the student learns the prompted vector from the bare text; teacher: it takes the same prompts; tokens: a
    reserved token stands for each, but for that of ``teacher.prompt_name``, which stays bare."""

    def __post_init__(self) -> None:
        if self.init == "layers":
            ascending = all(a < b for a, b in zip(self.layers, self.layers[1:], strict=False))
            good = bool(self.layers) and self.layers[0] >= 0 and ascending
            require(good, "student.layers", list(self.layers), "layer numbers from 0, ascending")
        require(0 < self.width <= 1, "student.width", self.width, "a share above 0 and at most 1")
        require_at_least("student", self, num_layers=1, num_heads=1, vocab_size=16, table_rank=1)
        require(not (self.vocab_languages and self.vocab_text), "student.vocab_text", self.vocab_text,
                "nothing beside student.vocab_languages")  # fmt: skip
        require(self.table_bits in (None, 4), "student.table_bits", self.table_bits, "4, or nothing for INT8")
        require(self.matrix_bits in (None, 8), "student.matrix_bits", self.matrix_bits, "8, or nothing")
        ascending = list(self.exits) == sorted(set(self.exits)) and (not self.exits or self.exits[0] >= 1)
        require(ascending, "student.exits", list(self.exits), "numbers of layers from 1, ascending")
        descending = list(self.dims) == sorted(set(self.dims), reverse=True) and (not self.dims or self.dims[-1] >= 1)
        require(descending, "student.dims", list(self.dims), "numbers of dimensions, descending")
        if self.init == "encoder":
            require(bool(self.model), "student.model", self.model, "a folder or hub id when student.init is encoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase of the length curriculum: ``{ tokens = 512, share = 0.6 }``."""

    tokens: int = 512
    """Longest training text in tokens; the rest is cut."""
    share: float = 1.0
    """Share of the steps, above 0; the shares of all phases add up to 1."""

    def __post_init__(self) -> None:
        require_at_least("train.curriculum", self, tokens=8)
        require(0 < self.share <= 1, "train.curriculum", self.share, "a share above 0 and at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Optimisation."""

    distillation: float = 1.0
    """Weight of the distance between the student's and the teacher's vector."""
    distillation_kind: Literal["cosine", "l2"] = "cosine"
    """cosine: 1 - cosine; l2: the distance of the unit vectors."""
    alignment: float = 0.1
    """Weight of the KL divergence between the two models' in-batch similarity rows."""
    alignment_temperature: float = 0.05
    """Similarities are divided by this before the softmax of the alignment loss."""
    token_distillation: float = 0.0
    """Weight of the distance between the two models' vectors of stretches of a text. The teacher's vector of every
    token is kept on disk for it, 22 kB for a sentence of EmbeddingGemma's."""
    exit_alignment: float = 1.0
    """Weight of the distillation of the vectors at ``student.exits``, their mean."""
    contrastive: float = 0.0
    """Weight of InfoNCE over the pairs of a batch, the other pairs being negatives."""
    contrastive_temperature: float = 0.05
    """Cosines are divided by this before the softmax of the contrastive loss."""
    triplet: float = 0.0
    """Weight of the triplet loss over rows that have a positive and a hard negative."""
    triplet_margin: float = 0.2
    """Least difference of cosine distances that the triplet loss asks for."""
    batch_size: int = 96
    """Most texts in one forward pass."""
    batch_tokens: int | None = None
    """Most padded tokens in one forward pass; None: ``batch_size`` alone decides."""
    start: Path | None = None
    """Folder of an earlier run, or its bundle, whose student is gone on from in place of the first one; None: none. It
    must have the recipe's shape, teacher and prompts, and the recipe must list its sources and keep its tasks out."""
    gradient_accumulation: int = 1
    """Forward passes that make one step."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass: less memory, about a third more time."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    warmup_steps: int = 50
    """Steps of linear warm-up; then linear decay to 0."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    max_grad_norm: float = 1.0
    """Longest gradient of a step, over all weights that learn: a longer one is scaled down to it; 0: none is."""
    epochs: float = 1.0
    """Passes over the training text, unless ``max_steps`` says otherwise."""
    max_steps: int | None = None
    """Optimiser steps; None: by ``epochs``."""
    max_seq_length: int = 512
    """Longest training text in tokens, where there is no ``curriculum``; the rest is cut."""
    curriculum: tuple[Phase, ...] = ()
    """Phases of growing text length, in order; empty: ``max_seq_length`` throughout."""
    freeze_token_table: bool | None = None
    """Whether the token table keeps its first values; None: yes, unless ``student.init`` is random."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of training; auto: bf16 where the CPU or GPU computes it natively."""
    fused: Literal["auto", "on", "off"] = "auto"
    """Whether norms, rotary embedding and gated MLP run as fused kernels; auto: where they exist for the model."""
    eval_steps: int = 500
    """Steps between evaluations on dev tasks and validation text, each followed by a checkpoint."""
    best_metric: str = "dev"
    """What chooses the checkpoint: ``dev`` (mean over dev tasks), a dev task type, or a validation loss such as
    ``validation_alignment``, where less is better; ``validation_near_alignment`` is alignment at temperature 0.05
    of the full vector, over 64 texts at a time."""
    stop_metric: str = "validation_near_alignment"
    """What early stopping watches; named as in ``best_metric``."""
    stop_patience: int | None = None
    """Evaluations without improvement of ``stop_metric`` after which training ends; None: never."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """Largest final value of a validation loss, e.g. { validation_near_alignment = 1.0 }; the card says if reached."""
    average_checkpoints: int = 0
    """Last checkpoints whose mean is tried at the end and kept if it scores best; 0: none."""
    report_to: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Trackers that get every number besides the run's own log."""

    def __post_init__(self) -> None:
        require_at_least("train", self, **dict.fromkeys(OBJECTIVES, 0))
        total = self.distillation + self.alignment + self.token_distillation + self.contrastive + self.triplet
        require(total > 0, "train.distillation", self.distillation, "a positive weight for one objective at least")
        require_at_least("train", self, alignment_temperature=1e-3, contrastive_temperature=1e-3, triplet_margin=0)
        require_at_least("train", self, batch_size=2, learning_rate=1e-9, epochs=1e-6, max_steps=1, eval_steps=1)
        require_at_least("train", self, weight_decay=0, max_grad_norm=0)
        require_at_least("train", self, max_seq_length=8, batch_tokens=8, gradient_accumulation=1, stop_patience=1)
        require(self.average_checkpoints != 1, "train.average_checkpoints", 1, "0 for none, or 2 and more")
        shares = sum(phase.share for phase in self.curriculum)
        require(not self.curriculum or abs(shares - 1) < 1e-6, "train.curriculum", shares, "shares that add up to 1")
        losses = [f"validation_{name}" for name in ("loss", NEAR, *OBJECTIVES)]
        for key, name in (("best_metric", self.best_metric), ("stop_metric", self.stop_metric)):
            known = name in losses or not name.startswith("validation_")
            require(known, f"train.{key}", name, f"dev, a task type, or one of {', '.join(losses)}")
        wrong = [name for name in self.targets if name not in losses]
        require(not wrong, "train.targets", wrong, f"losses, where less is better: {', '.join(losses)}")
        lengths = [phase.tokens for phase in self.curriculum]
        require(lengths == sorted(lengths), "train.curriculum", lengths, "phases of growing text length")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmConfig:
    """What a run must shout about, checked at each evaluation from step 0 on."""

    stop: bool = True
    """Whether a run ends itself when an alarm says that it cannot succeed."""
    grace_evaluations: int = 2
    """Evaluations after step 0 within which the dev score must reach the static floor's; else the run ends."""
    max_mean_cosine: float = 0.9
    """Highest mean cosine between validation texts, or three quarters from the teacher's to 1 where that is more."""
    min_effective_rank: float = 0.1
    """Least effective rank of the validation vectors, as a share of the teacher's on the same texts."""
    min_trained_rows: float = 0.2
    """Least share of token rows, of a language and of all, that ever got a gradient, where the table learns."""
    stall_evaluations: int = 4
    """Evaluations in which the training loss falls while the dev score does not rise."""

    def __post_init__(self) -> None:
        require_at_least("alarms", self, grace_evaluations=1, stall_evaluations=1)
        for name in ("max_mean_cosine", "min_effective_rank", "min_trained_rows"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"alarms.{name}", value, "a number from 0 to 1")
