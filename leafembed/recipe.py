"""The one recipe: what to distil, how to judge it, what to refuse.

A recipe is a TOML file of two levels. Every default lives here and nowhere else; unknown keys are errors; the
resolved recipe is stored with the run and the bundle. ``recipe_io.py`` reads it; ``docs/recipe.md`` is generated
from the line under each field.

Paths in a recipe file are relative to that file, paths given with ``--set`` to the current folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from leafembed.errors import require, require_at_least

__all__ = [
    "BenchmarkConfig",
    "DataConfig",
    "EvalConfig",
    "GateConfig",
    "QuantizeConfig",
    "Recipe",
    "Source",
    "StudentConfig",
    "TeacherConfig",
    "TrainConfig",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One place that training text comes from: ``[[data.sources]]``."""

    path: str = ""
    """File or glob below ``data.root``: .txt, .jsonl or .parquet, .gz of the first two; empty with ``hub``."""
    hub: str = ""
    """Dataset id on a model hub, instead of a local path; needs ``revision`` and ``files``."""
    revision: str = ""
    """Commit of the hub dataset; a name such as ``main`` is refused, since it moves."""
    files: str = "*.parquet"
    """Glob of the files to read within the hub dataset."""
    text: str = "text"
    """Column of the text."""
    positive: str = ""
    """Column of a text with the same meaning or the answer; empty: none."""
    negative: str = ""
    """Column of a hard negative; empty: none."""
    positive_lang: str = "lang_pair"
    """Column of the positive's language; rows without it: the language of the text."""
    lang: str = ""
    """Language tag of every row, where rows carry none; empty: read the row's ``lang`` column, else ``und``."""
    prompt_name: str | None = None
    """Teacher prompt of the text; None: ``teacher.prompt_name``."""
    positive_prompt_name: str | None = None
    """Teacher prompt of positives and negatives; None: the same as of the text."""
    max_rows: int | None = None
    """Most rows to read from this source, sampled evenly over it; None: all."""
    licence: str = ""
    """Licence of the text, shown on the card."""
    origin: str = ""
    """Where the text was taken from, shown on the card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Training text."""

    root: Path = Path()
    """Folder that source paths are relative to."""
    sources: tuple[Source, ...] = ()
    """Places to read, one table each; at least one."""
    languages: tuple[str, ...] = ()
    """Language tags to keep; empty: all."""
    max_rows: int | None = None
    """Rows to draw for training, balanced over languages (a pair is one row); None: all there are, not balanced."""
    temperature: float = 2.0
    """Balance of ``max_rows``: a language with n rows weighs n^(1/temperature); 1 keeps the proportions."""
    min_chars: int = 3
    """Shorter texts are dropped."""
    max_chars: int = 20_000
    """Longer texts are cut at this many characters."""
    max_line_bytes: int = 262_144
    """A longer line is an error, since it is usually a file that is not made of lines."""
    validation_rows: int = 1_000
    """Texts held out from training."""

    def __post_init__(self) -> None:
        require_at_least("data", self, temperature=1, validation_rows=16, max_rows=32, min_chars=1, max_chars=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """The model to distil."""

    model: str = ""
    """Folder, hub id, or ``package:NAME`` for a model inside an installed Python package."""
    revision: str | None = None
    """Hub commit; None is only legal for a folder or package."""
    licence: str | None = None
    """Licence of the teacher, which its student carries; None: as the teacher's own files state it."""
    prompt_name: str | None = None
    """Prompt for texts whose source names none; None: no prompt."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the teacher pass; auto: bf16 where the CPU or GPU computes it natively. Never fp16."""
    batch_tokens: int = 2_048
    """Padded tokens in one forward pass."""
    max_seq_length: int | None = None
    """Tokens the teacher reads; None: the teacher's own limit."""
    shard_rows: int = 1_024
    """Vectors in one cache shard: what an interrupted pass repeats at most."""

    def __post_init__(self) -> None:
        require_at_least("teacher", self, batch_tokens=1, max_seq_length=8, shard_rows=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentConfig:
    """Where the student starts."""

    init: Literal["layers", "encoder", "static"] = "layers"
    """layers: kept layers of the teacher; encoder: another encoder and a Dense; static: a token table alone."""
    layers: tuple[int, ...] = ()
    """Teacher layers to keep, from 0, ascending; needed by ``layers``."""
    model: str = ""
    """Folder or hub id of the encoder; needed by ``encoder``."""
    revision: str | None = None
    """Hub commit of the encoder."""
    pooling: Literal["mean", "cls", "lasttoken"] = "mean"
    """How ``encoder`` pools its tokens."""
    max_seq_length: int | None = None
    """Tokens the student reads; None: as the teacher."""
    prompts: Literal["none", "teacher"] = "none"
    """none: the student learns the prompted vector from the bare text; teacher: it takes the same prompts."""

    def __post_init__(self) -> None:
        if self.init == "layers":
            ascending = all(a < b for a, b in zip(self.layers, self.layers[1:], strict=False))
            good = bool(self.layers) and self.layers[0] >= 0 and ascending
            require(good, "student.layers", list(self.layers), "layer numbers from 0, ascending")
        if self.init == "encoder":
            require(bool(self.model), "student.model", self.model, "a folder or hub id when student.init is encoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Optimisation."""

    distillation: float = 1.0
    """Weight of 1 - cosine between the student's and the teacher's vector."""
    alignment: float = 0.1
    """Weight of the KL divergence between the two models' in-batch similarity rows."""
    alignment_temperature: float = 0.05
    """Similarities are divided by this before the softmax of the alignment loss."""
    batch_size: int = 96
    """Texts in one step."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    warmup_steps: int = 50
    """Steps of linear warm-up; then linear decay to 0."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    epochs: float = 1.0
    """Passes over the training text, unless ``max_steps`` says otherwise."""
    max_steps: int | None = None
    """Optimiser steps; None: by ``epochs``."""
    max_seq_length: int = 512
    """Longest training text in tokens; the rest is cut."""
    freeze_token_table: bool = True
    """Whether the token table keeps the teacher's values."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of training; auto: bf16 where the CPU or GPU computes it natively."""
    eval_steps: int = 500
    """Steps between dev evaluations, each followed by a checkpoint."""

    def __post_init__(self) -> None:
        require(self.distillation + self.alignment > 0, "train.distillation", self.distillation, "a positive weight")
        require_at_least("train", self, distillation=0, alignment=0, alignment_temperature=1e-3, max_seq_length=8)
        require_at_least("train", self, batch_size=2, learning_rate=1e-9, epochs=1e-6, max_steps=1, eval_steps=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Tasks: dev chooses the checkpoint, test decides at the gate."""

    data: Path = Path()
    """Folder with ``sts/``, ``bitext/``, ``retrieval/`` and ``classification/``."""
    dev: tuple[str, ...] = ()
    """Task ids or globs, e.g. ``sts/stsb_multi_mt.dev``; ``NAME@SPLIT`` scores another split of a task.
    ``agreement`` needs no labels: it compares similarities with the teacher's on validation text."""
    test: tuple[str, ...] = ()
    """Task ids or globs that the gate judges by."""
    languages: tuple[str, ...] = ()
    """Languages to score; empty: all in the data."""
    drop_shared: bool = False
    """Whether dev items that test holds too are left out of dev; otherwise an overlap is an error."""
    max_dev_rows: int = 1_000
    """Most items of one dev task in one language, so that evaluation stays cheap beside training."""

    def __post_init__(self) -> None:
        require_at_least("eval", self, max_dev_rows=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """What must hold, for the student and again for the INT8 model, or the run is refused."""

    min_mean_retention: float = 0.9
    """Least mean of student / teacher over task types."""
    min_retention: Mapping[str, float] = field(default_factory=dict)
    """Least student / teacher by task type, e.g. { STS = 0.95 }."""
    min_score: Mapping[str, float] = field(default_factory=dict)
    """Least main score by task id, in every language or in one, e.g. { "sts/x.test" = 0.6, "sts/x.test@en" = 0.7 }."""
    beat_floors: bool = True
    """Whether the student must score above every floor in every task type and every judged language."""
    max_int8_drop: float = 0.01
    """Most that the INT8 model may lose against its own fp32 student in any task type."""
    min_int8_cosine: float = 0.999
    """Least mean cosine between INT8 and fp32 vectors on held-out text."""
    languages: tuple[str, ...] = ()
    """Languages that the test tasks must cover; empty: whatever they cover."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeConfig:
    """The INT8 model."""

    group_size: int = 128
    """Activations that share one scale at run time; 0 leaves activations in floating point."""
    check_texts: int = 1_000
    """Held-out texts on which INT8 is compared with fp32."""

    def __post_init__(self) -> None:
        require_at_least("quantize", self, check_texts=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkConfig:
    """Speed, all encoders in one run, interleaved."""

    texts: int = 512
    """Held-out texts a repeat encodes."""
    batch_size: int = 32
    """Texts in one forward pass."""
    repeats: int = 5
    """Counted repeats; the median is reported."""
    threads: int | None = None
    """CPU threads; None: all that the process may use."""

    def __post_init__(self) -> None:
        require_at_least("benchmark", self, texts=1, batch_size=1, repeats=1, threads=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything a run depends on."""

    name: str = ""
    """Name of the student; it becomes the bundle's name."""
    seed: int = 0
    """Seed of sampling, splitting, initialisation and training."""
    cache_dir: Path = Path("~/.cache/leafembed")
    """Folder for teacher vectors, shared between runs."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training text."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The model to distil."""
    student: StudentConfig = field(default_factory=lambda: StudentConfig(init="static"))
    """Where the student starts."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Tasks."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What must hold."""
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    """The INT8 model."""
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    """Speed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache_dir", self.cache_dir.expanduser())
        require(bool(self.teacher.model), "teacher.model", "", "a folder, a hub id or package:NAME")
        require(bool(self.data.sources), "data.sources", "nothing", "at least one [[data.sources]] table")
        require(bool(self.eval.test), "eval.test", "nothing", "at least one task for the gate to judge by")
        require(bool(self.eval.dev), "eval.dev", "nothing", "at least one task to choose the checkpoint by")
        shared = sorted(set(self.eval.dev) & set(self.eval.test))
        require(not shared, "eval.dev", shared, "tasks that are not in eval.test too")

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe as plain data; paths as text, ``None`` left out."""
        return dataclasses.asdict(self, dict_factory=_plain)


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = {tuple: list, type(Path()): str}
    return {name: plain.get(type(value), lambda same: same)(value) for name, value in items if value is not None}
