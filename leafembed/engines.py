"""Which engine a student ships with: candidates measured on this machine, in one interleaved run, under a bound.

A candidate is rejected when its vectors are farther from the student's in fp32 than ``quantize.min_cosine`` allows, or
its dev score falls by more than ``quantize.max_drop``. Of the others the fastest is taken. What a bundle cannot hold is
measured beside them and never chosen: bf16, since vectors would depend on the machine, and another runtime's format.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.errors import Error
from leafembed.judge.evaluate import evaluate
from leafembed.judge.tasks import contents_of
from leafembed.learn.factors import read_factors
from leafembed.learn.teacher import TorchEncoder
from leafembed.progress import say
from leafembed.recipe import QuantizeConfig
from leafembed.record import PACKAGES
from leafembed.reports import EvalReport
from leafembed.ship.benchmark import Contender, benchmark
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.machine import machine_facts, versions
from leafembed.ship.onnx_dynamic import write_dynamic
from leafembed.ship.onnx_folder import OnnxEncoder
from leafembed.ship.openvino_errors import engine_error
from leafembed.ship.quantize import quantize_static
from leafembed.ship.texts import padded
from leafembed.stages import MARKER, file_sha256, fingerprint, once
from leafembed.steps import Line, write_int8
from leafembed.types import Encoder

__all__ = ["choose", "quantized"]

_GAIN = 1.03
"""The engine that the recipe names is kept unless another is faster by this factor: less is noise."""

_CALIBRATION = 128
"""Held-out texts that static scales are taken from; fidelity is measured on others too."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An engine that was set up.

    Attributes:
        encoder: The student in it.
        folder: Its files.
        why_not: Why it cannot ship; empty: it can.
    """

    encoder: Encoder
    folder: Path
    why_not: str = ""


def quantized(line: Line, student: TorchEncoder) -> tuple[BundleEncoder, dict[str, Any]]:
    """The student in the engine it ships with, loaded back from its own files, and what was measured to choose it.

    What was measured is empty unless the recipe names candidates.
    """
    config, how = line.recipe.quantize, line.recipe.benchmark
    factors, bits = read_factors(line.folder / "student"), line.recipe.student.table_bits
    export = partial(write_int8, student, factors=factors, table_bits=bits, exits=line.recipe.student.exits)
    folder, facts = line.folder / "int8", {}
    if not config.engines:
        export(folder, group_size=config.group_size)
    else:
        plain = export(line.folder / "engines" / "groups", group_size=config.group_size)
        facts = _measured(line, student, plain)
        once(folder, fingerprint(facts), partial(_adopt, line.folder / "engines" / facts["chosen"]))
    return BundleEncoder(folder, threads=how.threads, batch_size=how.batch_size), facts


def _adopt(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(MARKER))


def _measured(line: Line, student: TorchEncoder, plain: Path) -> dict[str, Any]:
    """Figures of each candidate and the name of the chosen one, or what an interrupted run measured."""
    config, how = line.recipe.quantize, line.recipe.benchmark
    about = (student.ref.fingerprint, student.ref.max_seq_length, line.learned.targets_id)
    settings = [dataclasses.asdict(section) for section in (config, how)]
    held_out = (line.recipe.teacher.prompt_name, line.learned.corpus.fingerprint)
    key = fingerprint(about, settings, contents_of(line.learned.dev), held_out, machine_facts(), versions(PACKAGES))

    def build(_: Path) -> dict[str, Any]:
        names = dict.fromkeys([f"group-{config.group_size}", *config.engines])
        found, unmeasured = {}, {}
        for name in names:
            say(f"setting up engine {name}")
            try:
                one = _set_up(name, line, student, plain)
                one.encoder.encode(line.learned.validation(1))  # some fail at their first text
                found[name] = one
            except (Error, ImportError, RuntimeError) as error:  # a kernel may be missing, or a package
                if not found:  # what the recipe names ships where no other passes
                    raise
                unmeasured[name] = engine_error(error)
        exact = TorchEncoder(student.model, student.ref, precision="fp32")
        rates = _rates(line, found)
        score = evaluate(exact, line.learned.dev)
        figures = [
            {"name": name, "why_not": one.why_not, "mb": _megabytes(one.folder), **rates[name]}
            | _fidelity(line, exact, one.encoder, score)
            for name, one in found.items()
        ]
        return choose(figures, config) | {"unmeasured": unmeasured, "machine": machine_facts()}

    return once(line.folder / "engines" / "measured", key, build)


def choose(figures: Sequence[Mapping[str, Any]], config: QuantizeConfig) -> dict[str, Any]:
    """Return ``chosen``, a name, and ``candidates``, each with the ``outcome`` in words.

    Args:
        figures: Of each candidate ``name``, ``why_not``, ``texts_per_second``, ``cosine_mean`` and ``drop``; the first
            is what the recipe names, and is kept where no other that passes is clearly faster.
        config: The bounds.
    """
    reasons = [
        one["why_not"]
        or ("" if one["cosine_mean"] >= config.min_cosine else f"mean cosine below {config.min_cosine:g}")
        or ("" if one["drop"] <= config.max_drop else f"dev score falls by more than {config.max_drop:g}")
        for one in figures
    ]
    passing = [one for one, reason in zip(figures, reasons, strict=True) if not reason]
    chosen = max(passing, key=lambda one: one["texts_per_second"], default=figures[0])
    clear = chosen["texts_per_second"] >= _GAIN * figures[0]["texts_per_second"]
    if figures[0] in passing and not clear:
        chosen = figures[0]
    slower = "passes, slower than the chosen one" if clear else "passes, not clearly faster"
    words = [
        "chosen" + (f", although {reason}: the gate decides" if reason else "") if one is chosen else
        f"rejected: {reason}" if reason else slower
        for one, reason in zip(figures, reasons, strict=True)
    ]  # fmt: skip
    candidates = [{**one, "outcome": word} for one, word in zip(figures, words, strict=True)]
    return {"chosen": chosen["name"], "candidates": candidates}


def _set_up(name: str, line: Line, student: TorchEncoder, plain: Path) -> _Candidate:
    how, folder = line.recipe.benchmark, line.folder / "engines" / name
    key = fingerprint(student.ref.fingerprint, student.ref.max_seq_length, versions((*PACKAGES, "onnx", "onnxruntime")))
    if name == "onnx-dynamic":
        once(folder, key, partial(write_dynamic, student.model))
        return _Candidate(
            OnnxEncoder(folder, name=name, threads=how.threads), folder, "another runtime than a bundle's"
        )
    if name == "static":
        texts = line.learned.validation(_CALIBRATION)
        once(folder, fingerprint(key, texts), partial(_write_static, line, student, BundleEncoder(plain), texts))
    else:
        change = {"precision": name} if name == "bf16" else {"group_size": int(name.removeprefix("group-"))}
        once(folder, fingerprint(key, file_sha256(plain / "model.bin")), partial(_write_changed, plain, change))
    why_not = "vectors would depend on the machine" if name == "bf16" else ""
    small = line.recipe.student
    if name == "static" and (small.table_bits or small.table_rank):  # it is made anew, with the table in INT8
        why_not = "its token table would not be stored as the student's is"
    return _Candidate(BundleEncoder(folder, threads=how.threads, batch_size=how.batch_size), folder, why_not)


def _write_changed(plain: Path, change: Mapping[str, Any], folder: Path) -> None:
    """The same model, run another way; its files are not copied."""
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns(MARKER, "encoder.json"), copy_function=_link)
    settings = json.loads((plain / "encoder.json").read_text(encoding="utf-8")) | change
    (folder / "encoder.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _write_static(line: Line, student: TorchEncoder, reader: BundleEncoder, texts: Sequence[str], folder: Path) -> None:
    """Calibrated on single texts, with the prompt that the student will be used with."""
    ids, _ = reader.tokenize(texts, line.recipe.teacher.prompt_name if reader.prompts else None)
    inputs = [padded([row], 0, left=False) for row in ids]
    samples = [{"input_ids": row, "attention_mask": mask} for row, mask in inputs]
    quantize_static(student.model, folder, ref=student.ref, calibration=samples, exits=line.recipe.student.exits)


def _megabytes(folder: Path) -> float:
    """Of everything that has to be shipped to run it."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != MARKER) / 1e6


def _rates(line: Line, found: Mapping[str, _Candidate]) -> dict[str, dict[str, Any]]:
    config = line.recipe.benchmark
    texts = line.learned.validation(config.texts)
    speeds = benchmark([Contender(name, one.encoder.encode, 0, 0) for name, one in found.items()], texts, config=config)
    return {speed.name: {"texts_per_second": speed.texts_per_second, "spread": speed.spread} for speed in speeds}


def _fidelity(line: Line, exact: TorchEncoder, encoder: Encoder, score: EvalReport) -> dict[str, float]:
    """Cosines to fp32 on held-out texts, and the fall of the dev score: of STS, or of the mean where there is none."""
    texts, prompt = line.learned.validation(line.recipe.quantize.check_texts), line.recipe.teacher.prompt_name
    prompts = [prompt if prompt in one.ref.prompts else None for one in (exact, encoder)]
    vectors = [one.encode(texts, prompt_name=name) for one, name in zip((exact, encoder), prompts, strict=True)]
    cosines = np.sum(vectors[0] * vectors[1], axis=1)
    means = [report.by_type().get("STS", report.mean) for report in (score, evaluate(encoder, line.learned.dev))]
    return {"cosine_mean": float(cosines.mean()), "cosine_min": float(cosines.min()), "drop": means[0] - means[1]}
