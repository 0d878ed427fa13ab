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
from leafembed.ship.benchmark import Contender, benchmark
from leafembed.ship.bundle import open_bundle
from leafembed.ship.machine import machine_facts

__all__ = ["quantize_folder", "time_encoder"]


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
