"""One stage at a time, for the commands that quantise, time or report on what is already there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from leafembed.errors import DataError, ModelError
from leafembed.recipe import BenchmarkConfig, QuantizeConfig
from leafembed.recipe_io import load_gate
from leafembed.reports import GateResult
from leafembed.ship.benchmark import Contender, benchmark, prompt_of_card
from leafembed.ship.bundle import open_bundle, read_manifest, verify
from leafembed.ship.card import MANIFEST
from leafembed.ship.machine import machine_facts
from leafembed.ship.verdict import judge_again, read_verdict

__all__ = ["judge_stored", "quantize_folder", "report_run", "time_encoder"]


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
    verdict, stage = read_verdict(manifest, str(folder))
    if "diagnosis" in manifest["training"]:
        raise ModelError(
            f"{folder}: training stopped itself, so there is no model to judge; expected one that was scored"
        )
    if recipe is None and not overrides:
        return verdict, stage
    rules = load_gate(manifest["recipe"].get("gate", {}), recipe, overrides)
    return judge_again(manifest, str(folder), rules), stage


def quantize_folder(student: Path, target: Path, *, group_size: int | None, exits: Sequence[int] = ()) -> Path:
    """Write the INT8 model folder of a sentence-transformers folder.

    A token table that was trained for 4 bits is stored so. ``exits`` are numbers of layers after which the folder gives
    vectors too.

    Raises:
        ModelError: If ``target`` exists.
    """
    from leafembed.learn.factors import read_factors
    from leafembed.learn.models import describe, load_sentence_transformer
    from leafembed.learn.rounding import bits_of
    from leafembed.ship.quantize import quantize

    if target.exists():
        raise ModelError(f"{target}: exists already; give a folder that does not, nothing is overwritten")
    model = load_sentence_transformer(student)
    ref = describe(model, student, name=student.resolve().name)
    partial = target.with_name(f".{target.name}.partial")
    size = QuantizeConfig().group_size if group_size is None else group_size
    shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted call
    quantize(model, partial, ref=ref, group_size=size, factors=read_factors(student), table_bits=bits_of(model),
             exits=sorted(exits))  # fmt: skip
    partial.replace(target)
    return target


def report_run(run: Path, out: Path | None = None) -> Path:
    """Write the HTML page of a run, or of a bundle alone, and return its path.

    Args:
        run: Folder of the run or bundle.
        out: File to write; ``None``: ``report.html`` in the run's folder.

    Raises:
        DataError: If there is neither a bundle nor a refusal.
        BundleError: If its manifest is damaged or was edited.
    """
    from leafembed.neighbours import read_neighbours
    from leafembed.ship.report import render_report

    found = [folder for folder in (run / "refused", run / "bundle", run) if (folder / MANIFEST).is_file()]
    if not found:
        raise DataError(f"{run}: got neither bundle nor refusal, expected the folder of a run that has ended")
    if found[0] == run and out is None:
        raise DataError(f"{run}: got a bundle, to which nothing may be added; name the page's place with --out")
    manifest = read_manifest(found[0], refused=True)
    read_verdict(manifest, str(found[0] / MANIFEST))  # the page shows one that follows from its scores, or none
    stopped = "diagnosis" in manifest["training"]  # then what an earlier student was compared by lies there
    page = render_report(manifest, None if stopped else read_neighbours(run))
    target = out or run / "report.html"
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(target)
    return target


def time_encoder(bundle: Path, texts: Sequence[str], *, threads: int | None, allow_failed: bool) -> dict[str, Any]:
    """Measure a bundle's texts per second on this machine, with the prompt of its recipe where it has it.

    Returns:
        ``speed``, ``prompt_name`` (``None``: bare text) and ``machine``.

    Raises:
        DataError: If there is no text.
    """
    if not texts:
        raise DataError("there is no text to time: expected at least one line")
    encoder = open_bundle(bundle, allow_failed=allow_failed, threads=threads)
    config = dataclasses.replace(BenchmarkConfig(), threads=encoder.threads, batch_size=encoder.batch_size)
    prompt_name = prompt_of_card(encoder.manifest or {}, encoder.prompts)
    counts = encoder.count_tokens(texts[: config.texts], prompt_name)
    size = sum(path.stat().st_size for path in Path(bundle).iterdir()) / 1e6
    encode = partial(encoder.encode, prompt_name=prompt_name)
    contender = Contender(encoder.ref.name, encode, size, sum(counts) / max(1, len(counts)))
    (speed,) = benchmark([contender], texts, config=config)
    measured = json.loads(json.dumps(dataclasses.asdict(speed)))
    return {"speed": measured, "prompt_name": prompt_name, "machine": machine_facts()}
