"""One stage at a time, for the commands that judge, quantise or time a model that is already there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from leafembed.errors import DataError, ModelError
from leafembed.judge.evaluate import evaluate
from leafembed.judge.tasks import load_tasks
from leafembed.progress import say
from leafembed.recipe import BenchmarkConfig, QuantizeConfig, is_url, require_plain_url
from leafembed.reports import EvalReport
from leafembed.ship.benchmark import Contender, benchmark
from leafembed.ship.bundle import open_bundle
from leafembed.ship.card import MANIFEST
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.machine import machine_facts
from leafembed.types import Encoder

__all__ = ["open_encoder", "quantize_folder", "report_run", "score", "time_encoder"]


def open_encoder(
    name: str, *, allow_failed: bool = False, served_model: str | None = None, api_key_file: Path | None = None
) -> Encoder:
    """Open a bundle, a bare INT8 model folder, or a sentence-transformers model, by what the folder holds; or a server.

    Args:
        name: The folder, a hub id, ``package:NAME``, or a URL whose ``/embeddings`` answers as OpenAI's does.
        allow_failed: Open a bundle that the gate refused.
        served_model: Name of the model at a URL.
        api_key_file: File that holds the key for a URL; ``None``: no key is sent.

    Raises:
        ModelError: If it is none of these, no model is named at a URL, or the server gives no vectors.
        RecipeError: If the URL may hold a key, or the key cannot be read.
    """
    if is_url(name):
        return _open_server(name, served_model, api_key_file)
    folder = Path(name).expanduser()
    if (folder / "manifest.json").is_file():
        return open_bundle(folder, allow_failed=allow_failed)
    if (folder / "model.xml").is_file():
        return BundleEncoder(folder)
    from leafembed.learn.models import describe, has_bf16, load_sentence_transformer, pick_device, resolve
    from leafembed.learn.teacher import TorchEncoder

    folder, device = resolve(name, None), pick_device()
    model = load_sentence_transformer(folder, device=device)
    precision: Literal["bf16", "fp32"] = "bf16" if has_bf16("auto", device) else "fp32"
    return TorchEncoder(model, describe(model, folder, name=name), precision=precision)


def _open_server(url: str, served_model: str | None, api_key_file: Path | None) -> Encoder:
    from leafembed.learn.remote import connect
    from leafembed.recipe_learn import TeacherConfig

    require_plain_url("URL of a model", url)
    if not served_model:
        raise ModelError(f"--served-model: got none, expected the name of the model at {url}")
    return connect(TeacherConfig(model=url, served_model=served_model, api_key_file=api_key_file))


def score(
    encoder: Encoder, data: Path, tasks: Sequence[str], *, languages: Sequence[str] = (), max_rows: int | None = None
) -> EvalReport:
    """Score an encoder on local tasks; the arguments are those of ``load_tasks``."""
    loaded = load_tasks(data, tasks, languages=languages, max_rows=max_rows)
    return evaluate(encoder, loaded, on_task=lambda task: say(f"scoring {encoder.ref.name} on {task}"))


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


def report_run(run: Path, out: Path | None = None) -> Path:
    """Write the HTML page of a run, or of a bundle alone, and return its path.

    Args:
        run: Folder of the run or bundle.
        out: File to write; ``None``: ``report.html`` in the run's folder.

    Raises:
        DataError: If there is neither a bundle nor a refusal.
    """
    from leafembed.neighbours import read_neighbours
    from leafembed.ship.report import render_report

    found = [folder for folder in (run / "refused", run / "bundle", run) if (folder / MANIFEST).is_file()]
    if not found:
        raise DataError(f"{run}: got neither bundle nor refusal, expected the folder of a run that has ended")
    if found[0] == run and out is None:
        raise DataError(f"{run}: got a bundle, to which nothing may be added; name the page's place with --out")
    manifest = json.loads((found[0] / MANIFEST).read_text(encoding="utf-8"))
    stopped = "diagnosis" in manifest["training"]  # then what an earlier student was compared by lies there
    page = render_report(manifest, None if stopped else read_neighbours(run))
    target = out or run / "report.html"
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(page, encoding="utf-8")
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
