"""The steps of a run, each done once: what it made lies in the run's folder and is found there the next time.

``pipeline.py`` knows their order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.errors import Error
from leafembed.judge.evaluate import Candidate, evaluate
from leafembed.judge.floors import BagOfWords, RandomEncoder
from leafembed.judge.intervals import DRAWN
from leafembed.judge.tasks import contents_of
from leafembed.learn.factors import read_factors
from leafembed.learn.models import describe, fingerprint_folder, load_sentence_transformer, resolve, stated_licence
from leafembed.learn.plan import parts_of
from leafembed.learn.student import Sample, init_student, stand_in
from leafembed.learn.teacher import TorchEncoder
from leafembed.learn.trackers import require_trackers
from leafembed.prepare import Material, embed
from leafembed.progress import say
from leafembed.race import Entry, race
from leafembed.recipe import Recipe
from leafembed.recipe_learn import StudentConfig
from leafembed.record import PACKAGES, run_facts, teacher_facts
from leafembed.reports import FLOOR, STATIC_TABLE, UNTRAINED, EvalReport
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.engine import group_size_of
from leafembed.ship.machine import versions
from leafembed.ship.markdown import to_toml
from leafembed.ship.quantize import quantize
from leafembed.stages import file_sha256, fingerprint, once
from leafembed.text import normalise_lang, stream_texts
from leafembed.types import Corpus, Factors, Speed

__all__ = [
    "RESOLVED",
    "Line",
    "begin",
    "build_floors",
    "facts_of",
    "open_student",
    "scored",
    "student_folder",
    "timed",
    "write_int8",
]

RESOLVED = "resolved.toml"
"""File in a run's folder with the recipe as it was understood, every default filled in."""

_FIT_TEXTS = 20_000
"""Most texts that a linear start is fitted on."""


@dataclass(frozen=True, slots=True)
class Line:
    """What every step of a run needs.

    Attributes:
        recipe: What to do.
        folder: Folder of the run.
        learned: Tasks, corpus, and the teacher behind its vectors.
    """

    recipe: Recipe
    folder: Path
    learned: Material


def begin(recipe: Recipe, folder: Path, *, trained: Path | None = None) -> Line:
    """Read tasks and corpus, fill the teacher's cache, and note the recipe as it was understood.

    With a student that was ``trained`` elsewhere the cache is filled with what floors are fitted on, and no more.

    Raises:
        Error: If a launcher started several processes, which would write the same files.
        MissingExtraError: If a tracker that the recipe names is not installed.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        raise Error("got a start by torchrun or accelerate launch, expected leaf itself: a run is one process")
    if trained is None:
        require_trackers(recipe.train.report_to)  # before the teacher works for hours
    folder.mkdir(parents=True, exist_ok=True)
    learned = embed(recipe, fit_rows=_FIT_TEXTS if trained else None)
    (folder / RESOLVED).write_text(to_toml(recipe.to_dict()), encoding="utf-8")
    return Line(recipe, folder, learned)


def build_floors(line: Line) -> dict[str, Candidate]:
    """What a student must beat: random vectors, a bag of words, itself untrained, and a static table."""
    recipe, learned = line.recipe, line.learned
    static = StudentConfig(init="static")
    if learned.teacher.torch is None:  # there is no table of the teacher's: that of the student's encoder
        static = dataclasses.replace(static, model=recipe.student.model, revision=recipe.student.revision)
    configs = {UNTRAINED: recipe.student, STATIC_TABLE: static}
    rows = learned.corpus.train[:_FIT_TEXTS]
    vectors = learned.targets(np.arange(len(rows)))
    held_out = [(row.text, row.lang) for row in learned.corpus.validation]
    floors = RandomEncoder(learned.teacher.ref.dim, recipe.seed), BagOfWords()
    encoders: dict[str, Candidate] = {floor.ref.name: floor for floor in floors}
    made = versions(PACKAGES)
    for name, config in configs.items():
        folder = line.folder / name.replace(" ", "-")
        body = (
            fingerprint_folder(resolve(config.model, config.revision, section="student"))
            if _has_encoder(config, learned)
            else ""
        )
        seed = recipe.seed if config.init == "random" else 0
        about = {**dataclasses.asdict(config), "vocab_text": config.vocab_text and file_sha256(config.vocab_text)}
        del about["matrix_bits"]  # what is done when training has ended
        key = fingerprint(about, body, learned.corpus.fingerprint, learned.targets_id, seed, made)

        def build(target: Path, config: StudentConfig = config) -> None:
            teacher = learned.teacher.torch
            source = teacher.model if teacher else stand_in(config, learned.teacher.ref)
            prompts = line.learned.student_prompts(config, recipe.teacher.prompt_name)
            texts = [prompts.get(row.prompt_name or "", "") + row.text for row in rows]
            sample = Sample(texts, vectors, _counted(config, learned.corpus), held_out)
            init_student(config, source, sample, target, seed=recipe.seed, bare=recipe.teacher.prompt_name)

        once(folder, key, build)
        encoders[f"{FLOOR}{name}"] = _torch_encoder(line, folder, f"{FLOOR}{name}", config)
    return encoders


def _counted(config: StudentConfig, corpus: Corpus) -> Iterator[str]:
    """Texts that choose the tokens that are kept; read once at most, and never held."""
    if config.vocab_text is not None:
        return (text for text in stream_texts(config.vocab_text) if text.strip())
    languages = {normalise_lang(lang) for lang in config.vocab_languages}
    return (row.text for row in corpus.train if not languages or row.lang in languages)


def _has_encoder(config: StudentConfig, learned: Material) -> bool:
    """Whether a student takes weights from the encoder at ``config.model``, and not from its teacher."""
    return config.init == "encoder" or learned.teacher.torch is None


def open_student(line: Line, *, trained: bool = True) -> TorchEncoder:
    """The student after training, or as it starts."""
    return _torch_encoder(line, student_folder(line, trained), line.recipe.name, line.recipe.student)


def student_folder(line: Line, trained: bool) -> Path:
    """Where the student lies after training, or as it starts."""
    return line.folder / ("student" if trained else UNTRAINED.replace(" ", "-"))


def _torch_encoder(line: Line, folder: Path, name: str, config: StudentConfig) -> TorchEncoder:
    """A student in torch, in the teacher's precision, so that both are judged alike.

    It carries the licence of everything that its weights come from.
    """
    learned = line.learned
    how = learned.teacher.arithmetic
    licences = [learned.teacher.ref.licence or "not stated"]
    if _has_encoder(config, learned):
        licences.append(stated_licence(resolve(config.model, config.revision, section="student")) or "not stated")
    model = load_sentence_transformer(folder, device=how.device)
    ref = describe(model, folder, name=name, licence=" and ".join(dict.fromkeys(licences)))
    return TorchEncoder(model, ref, precision=how.precision, batch_tokens=how.batch_tokens)


def scored(line: Line, name: str, encoder: Candidate, *, dev: bool = False, how: Sequence[object] = ()) -> EvalReport:
    """Score an encoder, or read what an interrupted run scored of the same encoder on the same data.

    Args:
        line: The run.
        name: Name of the report.
        encoder: What to score.
        dev: Whether to score it on the dev tasks, and not on those that the gate judges by.
        how: What its vectors depend on besides the teacher's arithmetic: batch size, the bytes of a quantised model.
    """
    learned = line.learned
    tasks = learned.dev if dev else learned.test
    data = contents_of(tasks)
    few = [dict(task.too_few) for task in tasks]
    base = (learned.targets_id, learned.teacher.arithmetic.precision, line.recipe.seed, few, DRAWN)
    about = dataclasses.asdict(encoder.ref)
    key = fingerprint(about, data, *base, how, versions((*PACKAGES, "scikit-learn", "scipy")))

    def build(_: Path) -> dict[str, Any]:
        return evaluate(encoder, tasks, on_task=lambda task: say(f"scoring {encoder.ref.name} on {task}")).to_dict()

    folder = f"{name} on dev" if dev else name
    return EvalReport.from_dict(once(line.folder / "reports" / folder.replace(" ", "-").replace(":", ""), key, build))


def facts_of(
    line: Line,
    student: TorchEncoder,
    training: Mapping[str, Any],
    *,
    vocabulary: Mapping[str, Any] | None,
    trained: bool = True,
) -> dict[str, Any]:
    """What the manifest says of a run before its models are judged, of the student after training or as it starts."""
    folder, learned, arithmetic = student_folder(line, trained), line.learned, line.learned.teacher.arithmetic
    parts = parts_of(student.model, read_factors(folder), line.recipe.student.table_bits)
    facts = run_facts(
        line.recipe,
        learned.corpus,
        teacher=learned.teacher.ref,
        student=student.ref,
        parts=[dataclasses.asdict(part) for part in parts],
        training=training,
        vocabulary=vocabulary,
        scored_in={"precision": arithmetic.precision, "device": arithmetic.device},
    )
    return facts | teacher_facts(line.recipe, learned.corpus, learned.teacher.ref, learned.exposure)


def write_int8(
    encoder: TorchEncoder,
    target: Path,
    *,
    group_size: int,
    factors: Factors | None = None,
    table_bits: int | None = None,
    exits: Sequence[int] = (),
) -> Path:
    """Write the INT8 model folder of a student or teacher, or keep the one that is there; arguments of ``quantize``."""
    about = encoder.ref
    key = fingerprint(about.fingerprint, about.max_seq_length, group_size, table_bits, exits, versions(PACKAGES))

    def build(folder: Path) -> None:
        say(f"exporting {encoder.ref.name} to INT8")
        quantize(encoder.model, folder, ref=encoder.ref, group_size=group_size, factors=factors,
                 table_bits=table_bits, exits=exits)  # fmt: skip

    once(target, key, build)
    return target


def timed(line: Line, student: TorchEncoder, int8: BundleEncoder) -> tuple[Speed, ...]:
    """Time teacher and student, in torch and as INT8, in turn; both as INT8 in the engine that the student ships in."""
    recipe, learned = line.recipe, line.learned
    prompt_name = recipe.teacher.prompt_name
    entries = [Entry("student", student, line.folder / "student", int8, line.folder / "int8", prompt_name)]
    teacher = learned.teacher.torch
    if teacher is not None and learned.teacher_dir is not None:  # one at a URL does not run on this machine
        limit = teacher.ref.max_seq_length or "unlimited"
        group_size = group_size_of(line.folder / "int8", otherwise=recipe.quantize.group_size)  # a race may have chosen
        folder = recipe.cache_dir / "int8" / f"{teacher.ref.fingerprint}-{limit}-group{group_size}"
        write_int8(teacher, folder, group_size=group_size)
        teacher_int8 = BundleEncoder(folder, threads=int8.threads, batch_size=int8.batch_size)
        entries.insert(0, Entry("teacher", teacher, learned.teacher_dir, teacher_int8, folder, prompt_name))
    return race(entries, learned.validation(recipe.benchmark.texts), config=recipe.benchmark)
