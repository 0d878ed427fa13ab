"""The whole line: texts and a teacher go in, a judged INT8 bundle comes out, or a refusal that says why.

Read :func:`run`. Each stage takes typed nouns and its own section of the recipe; only this module knows their order.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leafembed.errors import GateFailedError, StoppedError
from leafembed.guard import refuse_stopped, set_aside, watched
from leafembed.judge.evaluate import evaluate
from leafembed.judge.floors import RandomEncoder
from leafembed.judge.gate import check
from leafembed.judge.tasks import Task
from leafembed.learn.factors import carry_factors, read_factors
from leafembed.learn.models import describe, fingerprint_folder, load_sentence_transformer, resolve, stated_licence
from leafembed.learn.plan import parts_of
from leafembed.learn.student import Sample, init_student, stand_in
from leafembed.learn.teacher import TorchEncoder
from leafembed.learn.vocabulary import REPORT, read_report
from leafembed.prepare import Material, embed
from leafembed.progress import say
from leafembed.race import Entry, race
from leafembed.recipe import Recipe
from leafembed.recipe_learn import StudentConfig
from leafembed.record import PACKAGES, manifest, run_facts
from leafembed.reports import EvalReport, GateResult
from leafembed.ship.bundle import read_manifest, write_bundle, write_refusal
from leafembed.ship.card import PLOT
from leafembed.ship.curves import plot_curves
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.machine import versions
from leafembed.ship.markdown import to_toml
from leafembed.ship.quantize import quantize
from leafembed.stages import fingerprint, once
from leafembed.types import Encoder, Factors, Speed

if TYPE_CHECKING:
    pass

__all__ = ["FIT_TEXTS", "RESOLVED", "Outcome", "run"]

RESOLVED = "resolved.toml"
"""File in a run's folder with the recipe as it was understood, every default filled in."""

FIT_TEXTS = 20_000
"""Most texts that a linear start is fitted on."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ended with.

    Attributes:
        folder: The bundle, or the folder with the refusal.
        manifest: What the card is rendered from.
        verdict: The gate's last word.
    """

    folder: Path
    manifest: Mapping[str, Any]
    verdict: GateResult


def run(recipe: Recipe, run_dir: Path, *, allow_failed: bool = False) -> Outcome:
    """Distil, judge, quantise, judge again and bundle.

    A second call with the same recipe and folder repeats only what an interruption left undone.

    Args:
        recipe: What to do.
        run_dir: Folder of the run: checkpoints, models, reports and the bundle.
        allow_failed: Go on after a refusal; the bundle then says that it was refused.

    Raises:
        GateFailedError: If the gate refuses the student or its INT8 form and ``allow_failed`` is not set.
        StoppedError: If an alarm says that training cannot succeed and ``alarms.stop`` is set.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    learned = embed(recipe)
    (run_dir / RESOLVED).write_text(to_toml(recipe.to_dict()), encoding="utf-8")
    how = (learned.targets_id, learned.teacher.arithmetic.precision, recipe.seed)
    score = partial(_scored, run_dir / "reports", tasks=learned.test, how=how)
    reports = {"teacher": score("teacher", learned.teacher)}
    untrained, encoders = _floors(recipe, run_dir, learned)
    floors = {name: score(name, encoder) for name, encoder in encoders.items()}
    reports |= floors

    dev_floor = score("floor: static table on dev", encoders["floor: static table"], tasks=learned.dev).mean
    place = {"precision": learned.teacher.arithmetic.precision, "device": learned.teacher.arithmetic.device}
    facts_of = partial(run_facts, recipe, learned.corpus, teacher=learned.teacher.ref, scored_in=place)
    try:
        training = _trained(recipe, run_dir, learned, untrained, dev_floor)
    except StoppedError as error:
        refuse_stopped(
            error, run_dir, facts_of, _torch_encoder(untrained, recipe.name, learned, recipe.student), reports
        )
        raise
    student = _torch_encoder(run_dir / "student", recipe.name, learned, recipe.student)
    reports["student"] = score("student", student)
    judge = partial(check, reference=reports["teacher"], config=recipe.gate, floors=floors)
    verdict = judge(reports["student"])
    factors = read_factors(run_dir / "student")
    parts = [dataclasses.asdict(part) for part in parts_of(student.model, factors)]
    vocabulary = read_report(run_dir / "student")
    facts = facts_of(student=student.ref, parts=parts, training=training, vocabulary=vocabulary)
    shutil.rmtree(run_dir / "refused", ignore_errors=True)
    if not verdict.passed and not allow_failed:
        set_aside(run_dir / "bundle")
        write_refusal(run_dir / "refused", manifest(facts, reports, verdict, "student"))
        raise GateFailedError(verdict, stage="student")

    int8_dir = _quantized(student, run_dir / "int8", recipe.quantize.group_size, factors)
    int8 = BundleEncoder(int8_dir, threads=recipe.benchmark.threads, batch_size=recipe.benchmark.batch_size)
    exact = TorchEncoder(student.model, student.ref, precision="fp32")
    fidelity = _fidelity(exact, int8, learned.validation(recipe.quantize.check_texts), recipe.teacher.prompt_name)
    reports["int8"] = score("int8", int8, how=(fingerprint_folder(int8_dir), int8.threads, int8.batch_size))
    verdict = judge(reports["int8"], fp32=reports["student"], int8_cosine=fidelity["cosine_mean"])
    speed = _benchmark(recipe, run_dir, learned, student, int8)
    content = manifest(facts, reports, verdict, "INT8 model", int8=fidelity, speed=speed)
    folder = write_bundle(run_dir / "bundle", int8_dir, content)
    if not verdict.passed and not allow_failed:
        raise GateFailedError(verdict, stage="INT8 model")
    return Outcome(folder, read_manifest(folder), verdict)


def _floors(recipe: Recipe, run_dir: Path, learned: Material) -> tuple[Path, dict[str, Encoder]]:
    """What a student must beat: random vectors, itself untrained (its folder comes first), and a static table."""
    static = StudentConfig(init="static")
    if learned.teacher.torch is None:  # there is no table of the teacher's: that of the student's encoder
        static = dataclasses.replace(static, model=recipe.student.model, revision=recipe.student.revision)
    configs = {"untrained student": recipe.student, "static table": static}
    texts = [row.text for row in learned.corpus.train[:FIT_TEXTS]]
    held_out = [(row.text, row.lang) for row in learned.corpus.validation]
    sample = Sample(texts, learned.targets(np.arange(len(texts))), [row.text for row in learned.corpus.train], held_out)
    encoders: dict[str, Encoder] = {"floor: random": RandomEncoder(learned.teacher.ref.dim, recipe.seed)}
    folders = {}
    for name, config in configs.items():
        folders[name] = folder = run_dir / name.replace(" ", "-")
        body = fingerprint_folder(resolve(config.model, config.revision)) if _has_encoder(config, learned) else ""
        seed = recipe.seed if config.init == "random" else 0
        key = fingerprint(dataclasses.asdict(config), body, learned.corpus.fingerprint, learned.targets_id, seed)

        def build(target: Path, config: StudentConfig = config) -> None:
            teacher = learned.teacher.torch
            source = teacher.model if teacher else stand_in(config, learned.teacher.ref)
            init_student(config, source, sample, target, seed=recipe.seed)

        once(folder, key, build)
        encoders[f"floor: {name}"] = _torch_encoder(folder, f"floor: {name}", learned, config)
    return folders["untrained student"], encoders


def _has_encoder(config: StudentConfig, learned: Material) -> bool:
    """Whether a student takes weights from the encoder at ``config.model``, and not from its teacher."""
    return config.init == "encoder" or learned.teacher.torch is None


def _trained(recipe: Recipe, run_dir: Path, learned: Material, untrained: Path, dev_floor: float) -> dict[str, Any]:
    """Train into ``run_dir/student`` unless that was done from the same inputs; return what training reported."""

    def score(model: Any) -> dict[str, float]:
        ref = dataclasses.replace(learned.teacher.ref, name=recipe.name, prompts=dict(model.prompts))
        report = evaluate(TorchEncoder(model, ref, precision=learned.teacher.arithmetic.precision), learned.dev)
        return {"mean": report.mean, **report.by_type()}

    dev = [(task.id, part.lang, part.data) for task in learned.dev for part in task.parts]
    shape = {"exits": recipe.student.exits, "dims": recipe.student.dims}
    how = (recipe.to_dict()["train"], shape, recipe.seed, versions(PACKAGES))
    key = fingerprint(fingerprint_folder(untrained), learned.corpus.fingerprint, learned.targets_id, how, dev)
    work_dir = run_dir / f"checkpoints-{key}"

    def draw(history: Sequence[Mapping[str, Any]], best_step: int) -> None:
        plot_curves(history, best_step, run_dir / PLOT)

    def build(target: Path) -> dict[str, Any]:
        from leafembed.learn.train import train
        from leafembed.learn.watch import Watch

        work_dir.mkdir(parents=True, exist_ok=True)
        watch = Watch(recipe.alarms, watched(recipe, learned, dev_floor), work_dir)
        facts = train(
            untrained,
            learned.corpus,
            learned.targets,
            score,
            config=recipe.train,
            seed=recipe.seed,
            work_dir=work_dir,
            target=target,
            callbacks=[watch],
            on_history=draw,
            **shape,
        )
        if (untrained / REPORT).is_file():
            shutil.copy(untrained / REPORT, target)
        carry_factors(untrained, target)
        return {**facts, **watch.facts()}

    return once(run_dir / "student", key, build)


def _torch_encoder(folder: Path, name: str, learned: Material, config: StudentConfig) -> TorchEncoder:
    """A student in torch, in the teacher's precision, so that both are judged alike.

    It carries the licence of everything that its weights come from.
    """
    how = learned.teacher.arithmetic
    licences = [learned.teacher.ref.licence or "not stated"]
    if _has_encoder(config, learned):
        licences.append(stated_licence(resolve(config.model, config.revision)) or "not stated")
    model = load_sentence_transformer(folder, device=how.device)
    ref = describe(model, folder, name=name, licence=" and ".join(dict.fromkeys(licences)))
    return TorchEncoder(model, ref, precision=how.precision, batch_tokens=how.batch_tokens)


def _scored(
    reports: Path, name: str, encoder: Encoder, *, tasks: tuple[Task, ...], how: Sequence[object]
) -> EvalReport:
    """Score an encoder, or read what an interrupted run scored of the same encoder on the same data.

    Args:
        reports: Folder of the run's reports.
        name: Name of the report.
        encoder: What to score.
        tasks: What to score on.
        how: Whatever else its vectors depend on: precision, batch size, the bytes of a quantised model.
    """
    data = [(task.id, part.lang, part.data) for task in tasks for part in task.parts]
    key = fingerprint(dataclasses.asdict(encoder.ref), data, how, versions((*PACKAGES, "scikit-learn", "scipy")))

    def build(_: Path) -> dict[str, Any]:
        return evaluate(encoder, tasks, on_task=lambda task: say(f"scoring {encoder.ref.name} on {task}")).to_dict()

    return EvalReport.from_dict(once(reports / name.replace(" ", "-").replace(":", ""), key, build))


def _quantized(encoder: TorchEncoder, target: Path, group_size: int, factors: Factors | None = None) -> Path:
    key = fingerprint(encoder.ref.fingerprint, encoder.ref.max_seq_length, group_size, versions(PACKAGES))

    def build(folder: Path) -> None:
        say(f"exporting {encoder.ref.name} to INT8")
        quantize(encoder.model, folder, ref=encoder.ref, group_size=group_size, factors=factors)

    once(target, key, build)
    return target


def _fidelity(student: Encoder, int8: Encoder, texts: list[str], prompt_name: str | None) -> dict[str, Any]:
    exact, rounded = (encoder.encode(texts, prompt_name=prompt_name) for encoder in (student, int8))
    cosines = np.sum(exact * rounded, axis=1)
    return {"cosine_mean": float(cosines.mean()), "cosine_min": float(cosines.min()), "texts": len(texts)}


def _benchmark(
    recipe: Recipe, run_dir: Path, learned: Material, student: TorchEncoder, int8: BundleEncoder
) -> tuple[Speed, ...]:
    prompt_name = recipe.teacher.prompt_name
    entries = [Entry("student", student, run_dir / "student", int8, run_dir / "int8", prompt_name)]
    teacher = learned.teacher.torch
    if teacher is not None and learned.teacher_dir is not None:  # one at a URL does not run on this machine
        limit, group_size = teacher.ref.max_seq_length or "unlimited", recipe.quantize.group_size
        folder = recipe.cache_dir / "int8" / f"{teacher.ref.fingerprint}-{limit}-group{group_size}"
        _quantized(teacher, folder, group_size)
        teacher_int8 = BundleEncoder(folder, threads=int8.threads, batch_size=int8.batch_size)
        entries.insert(0, Entry("teacher", teacher, learned.teacher_dir, teacher_int8, folder, prompt_name))
    return race(entries, learned.validation(recipe.benchmark.texts), config=recipe.benchmark)
