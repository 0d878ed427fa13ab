"""The one recipe: what to distil, how to judge it, what to refuse.

A recipe is a TOML file of two levels. Every default lives here or in ``recipe_learn.py`` (the sections of the learning
side) and nowhere else; unknown keys are errors; the resolved recipe is stored with the run and the bundle.
``recipe_io.py`` reads it; ``docs/recipe.md`` is generated from the line under each field.

Paths in a recipe file are relative to that file, paths given with ``--set`` to the current folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from leafembed.errors import require, require_at_least
from leafembed.recipe_learn import AlarmConfig, StudentConfig, TeacherConfig, TrainConfig
from leafembed.recipe_text import DataConfig, Source

__all__ = [
    "ENGINES",
    "BenchmarkConfig",
    "EvalConfig",
    "GateConfig",
    "QuantizeConfig",
    "Recipe",
    "is_url",
    "require_served",
]

ENGINES = ("static", "bf16", "onnx-dynamic")
"""Names that ``quantize.engines`` knows besides ``group-N``."""

_SAYS_WHAT_TO_READ = ("named", "path", "hub", "revision", "files", "text", "positive", "negative", "licence", "origin")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Tasks: dev chooses the checkpoint, test decides at the gate."""

    data: Path = Path()
    """Folder with ``sts/``, ``bitext/``, ``classification/``, ``clustering/``, ``pair/``, ``reranking/`` and
    ``retrieval/``, whichever there are."""
    dev: tuple[str, ...] = ()
    """Task ids or globs, e.g. ``sts/stsb_multi_mt.dev``; ``NAME@SPLIT`` scores another split of a task, and
    ``sts/NAME@cross`` an English sentence with its counterpart in each other language.
    ``agreement`` needs no labels: it compares similarities with the teacher's on validation text."""
    test: tuple[str, ...] = ()
    """Task ids or globs that the gate judges by."""
    decontaminate: tuple[str, ...] = ()
    """Further task ids or globs whose text is kept out of training: those that are judged by later."""
    languages: tuple[str, ...] = ()
    """Languages to score; empty: all in the data."""
    drop_shared: bool = False
    """Whether dev items that test holds too are left out of dev; otherwise an overlap is an error."""
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    """Targets of a plan that cannot be measured here, each with the reason; the card lists them."""
    max_dev_rows: int = 1_000
    """Most items of one dev task in one language, so that evaluation stays cheap beside training."""
    min_rows: int = 50
    """Fewest items of one task in one language that give a score; with fewer the card says "too few rows", and they
    take no part in means, retention or gate. Of dev tasks at most max_dev_rows are asked for."""
    teacher_sources: tuple[Source, ...] = ()
    """Text that the teacher was trained on, where it is to be had; tables as ``[[data.sources]]``, of which only what
    says what to read is legal. The card counts what it shares with the tasks; nothing is learned from it."""

    def __post_init__(self) -> None:
        require_at_least("eval", self, max_dev_rows=8, min_rows=1)
        for source in self.teacher_sources:
            plain = Source(**{name: getattr(source, name) for name in _SAYS_WHAT_TO_READ})
            names = (item.name for item in dataclasses.fields(Source))
            idle = [name for name in names if getattr(source, name) != getattr(plain, name)]
            require(not idle, "eval.teacher_sources", idle, f"only {', '.join(_SAYS_WHAT_TO_READ)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """What must hold, for the student and again for the INT8 model, or the run is refused."""

    min_mean_retention: float = 0.9
    """Least mean of student / teacher over task types, each counted as 1 at most."""
    min_retention: Mapping[str, float] = field(default_factory=dict)
    """Least student / teacher by task type, e.g. { STS = 0.95 }."""
    min_score: Mapping[str, float] = field(default_factory=dict)
    """Least main score by task id, in every language or in one, e.g. { "sts/x.test" = 0.6, "sts/x.test@en" = 0.7 }."""
    beat_floors: bool = True
    """Whether the student must score above every floor in every task type and every judged language; above the bag of
    words in the mean over types, each type and each language, wherever the teacher itself is above it."""
    max_int8_drop: float = 0.01
    """Most that the INT8 model may lose against its own fp32 student in any task type."""
    max_int8_drop_in_language: float = 0.02
    """The same in any one language of a type; more, since a language has fewer items than its type. What three items of
    its smallest task move its mean over tasks by is allowed in any case."""
    min_int8_cosine: float = 0.999
    """Least mean cosine between INT8 and fp32 vectors on held-out text."""
    languages: tuple[str, ...] = ()
    """Languages that the test tasks must cover; empty: whatever they cover."""
    max_contamination: float = 0.05
    """Largest share of a test task's scored items that overlap with text of the sources. Such text is dropped, but
    where there is much of it, more may hide in other words."""
    min_batch_cosine: float = 0.999
    """Least cosine between the vector of a held-out text alone and in a batch with longer ones."""
    min_tail_response: float = 0.1
    """Least change of vectors, of the teacher's, when the last third of a held-out text is replaced."""

    def softer(self) -> list[str]:
        """The rules that ask for less than the defaults, as ``min_mean_retention = 0.8, by default 0.9``."""
        usual, found = GateConfig(), []
        for item in dataclasses.fields(self):
            mine, theirs = getattr(self, item.name), getattr(usual, item.name)
            if isinstance(theirs, bool | float) and (mine > theirs if item.name.startswith("max_") else mine < theirs):
                found.append(f"{item.name} = {str(mine).lower()}, by default {str(theirs).lower()}")
        return found

    def __post_init__(self) -> None:
        drops = ("max_int8_drop", "max_int8_drop_in_language")
        shares = ("min_mean_retention", *drops, "max_contamination", "min_tail_response")
        for name in (*shares, "min_int8_cosine", "min_batch_cosine"):
            require(0 <= getattr(self, name) <= 1, f"gate.{name}", getattr(self, name), "a number from 0 to 1")
        for name, least in (("min_retention", 0), ("min_score", -1)):
            for what, value in getattr(self, name).items():
                require(least <= value <= 1, f"gate.{name}.{what}", value, f"a number from {least} to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeConfig:
    """The INT8 model."""

    group_size: int = 128
    """Activations that share one scale at run time; 0 leaves activations in floating point."""
    check_texts: int = 1_000
    """Held-out texts on which INT8 is compared with fp32."""
    engines: tuple[str, ...] = ()
    """Engines to measure on this machine, of which the fastest within the bounds ships: ``group-N`` (INT8 weights,
    groups of N activations; 0: in floating point), ``static`` (calibrated scales, SmoothQuant); and beside them, never
    chosen, ``bf16`` and ``onnx-dynamic``. Empty: group_size, unmeasured."""
    min_cosine: float = 0.999
    """Least mean cosine of an engine's vectors to fp32 on held-out texts."""
    max_drop: float = 0.002
    """Most that the dev score may fall in an engine: that of STS, or the mean where dev has no STS."""

    def __post_init__(self) -> None:
        require_at_least("quantize", self, check_texts=1, group_size=0)
        require(0 <= self.min_cosine <= 1, "quantize.min_cosine", self.min_cosine, "a number from 0 to 1")
        require(0 <= self.max_drop <= 1, "quantize.max_drop", self.max_drop, "a number from 0 to 1")
        for name in self.engines:
            known = name in ENGINES or (name.startswith("group-") and name.removeprefix("group-").isdecimal())
            require(known, "quantize.engines", name, f"group-N, {', '.join(ENGINES)}")


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
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    """What a run must shout about."""
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
        require(bool(self.teacher.model), "teacher.model", "", "a folder, a hub id, package:NAME or a URL")
        _require_teacher(self.teacher, self.student)
        sources = bool(self.data.sources) or self.data.mixture is not None
        require(sources, "data.sources", "nothing", "at least one [[data.sources]] table, or data.mixture")
        require(bool(self.eval.test), "eval.test", "nothing", "at least one task for the gate to judge by")
        require(bool(self.eval.dev), "eval.dev", "nothing", "at least one task to choose the checkpoint by")
        free = "agreement" not in self.eval.test
        require(free, "eval.test", "agreement", "tasks with labels: agreement is for eval.dev alone")
        shared = sorted(set(self.eval.dev) & set(self.eval.test))
        require(not shared, "eval.dev", shared, "tasks that are not in eval.test too")
        roles = [source.roles for source in self.data.sources if source.roles]
        same = self.student.prompts == "none"
        require(not (roles and same), "data.sources.roles", roles, "none, or student.prompts = 'teacher' or 'tokens': "
                "a bare text cannot have several targets")  # fmt: skip
        if self.train.freeze_token_table is None:
            settled = dataclasses.replace(self.train, freeze_token_table=self.student.init != "random")
            object.__setattr__(self, "train", settled)
        goes_on = self.train.start is None or self.student.init != "static"
        require(goes_on, "train.start", str(self.train.start), "nothing with student.init = 'static'")
        has_tokens = not is_url(self.teacher.model) and self.student.init != "static"
        require(has_tokens or not self.train.token_distillation, "train.token_distillation",
                self.train.token_distillation, "0 with a teacher at a URL or a static student: neither gives vectors "
                "of single tokens")  # fmt: skip
        _require_shape(self.student, frozen=bool(self.train.freeze_token_table))

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe as plain data; paths as text, ``None`` left out."""
        return dataclasses.asdict(self, dict_factory=_plain)


def is_url(model: str) -> bool:
    """Whether a teacher is named by the URL of its server, and not as a folder, hub id or package."""
    return model.startswith(("http://", "https://"))


def _require_teacher(teacher: TeacherConfig, student: StudentConfig) -> None:
    """What a teacher at a URL needs and cannot give, and what no other teacher takes."""
    if not is_url(teacher.model):
        for key in ("served_model", "api_key_file", "prompts"):
            value = getattr(teacher, key)
            require(not value, f"teacher.{key}", value, "nothing, since teacher.model is no URL")
        return
    require_served(teacher)
    need = "encoder, with student.model, since teacher.model is a URL: it gives vectors, but no layers and no tokens"
    require(student.init == "encoder", "student.init", student.init, need)


def require_served(model: TeacherConfig, section: str = "teacher.") -> None:
    """Raise :class:`RecipeError` unless a model at a URL is named as such a model must be."""
    require(
        _is_plain(model.model),
        f"{section}model",
        "a URL that is not shown, since it may hold a key",
        f"http(s)://HOST[:PORT]/PATH without user, query or fragment; a key goes into {section}api_key_file",
    )
    require(bool(model.served_model), f"{section}served_model", "", f"the model's name at the URL of {section}model")
    require(model.revision is None, f"{section}revision", model.revision, f"nothing, since {section}model is a URL")


def _is_plain(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return False
    return bool(parts.hostname) and not {"@", "?", "#"} & set(url) and url.isprintable() and " " not in url


def _require_shape(student: StudentConfig, *, frozen: bool) -> None:
    """Shapes that a start cannot have. Keys that only another start reads, as ``layers``, wait for that start."""
    random, layers = student.init == "random", student.init == "layers"
    require(student.width == 1 or layers or random, "student.width", student.width, f"1 for init = {student.init!r}")
    rank = student.table_rank
    require(rank is None or layers, "student.table_rank", rank, "nothing unless student.init is 'layers'")
    bits = student.table_bits
    whole = layers or random or student.init == "encoder"
    require(bits is None or (whole and rank is None), "student.table_bits", bits, "nothing with init = 'static' or a "
            "table_rank: the factors are INT8")  # fmt: skip
    require(rank is None or frozen, "student.table_rank", rank, "train.freeze_token_table, so that the factors hold")
    needs_body = student.prompts != "tokens" or student.init != "static"
    require(needs_body, "student.prompts", "tokens", "'none' or 'teacher' with student.init = 'static'")
    learns = not (random and frozen)
    require(learns, "train.freeze_token_table", frozen, "false with student.init = 'random': no row would ever learn")


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = {tuple: list, type(Path()): str}
    return {name: plain.get(type(value), lambda same: same)(value) for name, value in items if value is not None}
