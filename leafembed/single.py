"""One stage at a time, for the commands that quantise or time a model that is already there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leafembed.errors import DataError, ModelError
from leafembed.recipe import BenchmarkConfig, QuantizeConfig
from leafembed.recipe_io import load_gate
from leafembed.reports import GateResult
from leafembed.ship.benchmark import Contender, benchmark
from leafembed.ship.bundle import open_bundle, read_manifest, verify
from leafembed.ship.machine import machine_facts
from leafembed.ship.verdict import judge_again, read_verdict

__all__ = ["judge_stored", "quantize_folder", "time_encoder"]


def judge_stored(folder: Path, recipe: Path | None, overrides: Sequence[str]) -> tuple[GateResult, str]:
    """Return the verdict on a bundle, or on a student refused before INT8, from its stored scores, and what it is on.

    Args:
        folder: The bundle, or what a refused run left.
        recipe: File with other rules in ``[gate]``; ``None``: its own.
        overrides: ``gate.KEY=VALUE``, on top of them.

    Raises:
        BundleError: If a file is altered, or its own rules do not give the verdict that it states.
        RecipeError: If the rules name what was not scored.
        ModelError: If training stopped itself, so that there is no model.
    """
    manifest = read_manifest(folder, refused=True)
    if "files" in manifest:
        manifest = verify(folder)
    if "diagnosis" in manifest["training"]:
        raise ModelError(
            f"{folder}: training stopped itself, so there is no model to judge; expected one that was scored"
        )
    verdict, stage = read_verdict(manifest, str(folder))
    if recipe is None and not overrides:
        return verdict, stage
    rules = load_gate(manifest["recipe"].get("gate", {}), recipe, overrides)
    return judge_again(manifest, str(folder), rules), stage


def quantize_folder(student: Path, target: Path, *, group_size: int | None) -> Path:
    """Write the INT8 model folder of a sentence-transformers folder.

    Raises:
        ModelError: If ``target`` exists.
    """
    from leafembed.learn.factors import read_factors
    from leafembed.learn.models import describe, load_sentence_transformer
    from leafembed.ship.quantize import quantize

    if target.exists():
        raise ModelError(f"{target}: exists already; give a folder that does not, nothing is overwritten")
    model = load_sentence_transformer(student)
    ref = describe(model, student, name=student.resolve().name)
    partial = target.with_name(f".{target.name}.partial")
    size = QuantizeConfig().group_size if group_size is None else group_size
    shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted call
    quantize(model, partial, ref=ref, group_size=size, factors=read_factors(student))
    partial.replace(target)
    return target


def time_encoder(bundle: Path, texts: Sequence[str], *, threads: int | None, allow_failed: bool) -> dict[str, Any]:
    """Measure a bundle's texts per second on this machine.

    Raises:
        DataError: If there is no text.
    """
    if not texts:
        raise DataError("there is no text to time: expected at least one line")
    encoder = open_bundle(bundle, allow_failed=allow_failed, threads=threads)
    config = dataclasses.replace(BenchmarkConfig(), threads=encoder.threads, batch_size=encoder.batch_size)
    counts = encoder.count_tokens(texts[: config.texts])
    size = sum(path.stat().st_size for path in Path(bundle).iterdir()) / 1e6
    contender = Contender(encoder.ref.name, encoder.encode, size, sum(counts) / max(1, len(counts)))
    (speed,) = benchmark([contender], texts, config=config)
    return {"speed": json.loads(json.dumps(dataclasses.asdict(speed))), "machine": machine_facts()}
