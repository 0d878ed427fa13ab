"""What ``leaf export`` does: finds a student and its verdict, writes a format, compares vectors, adds a page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from leafembed.errors import DataError, GateFailedError, ModelError
from leafembed.progress import say
from leafembed.ship.bundle import NOTICE, read_manifest
from leafembed.ship.card import CARD, MANIFEST, gemma_notice
from leafembed.ship.export_page import Exported, render_page
from leafembed.ship.plots import PLOTS
from leafembed.ship.verdict import read_verdict
from leafembed.steps import RESOLVED
from leafembed.types import Factors, FloatArray, check_vectors

if TYPE_CHECKING:
    from leafembed.ship.companions import Reading

__all__ = ["CHECKED_TEXTS", "FORMATS", "LONGEST", "MIN_COSINE", "Source", "export", "find_source"]

MIN_COSINE = 0.999
"""Least cosine to the student's own vectors: of every text in fp32, of the mean in INT8."""

CHECKED_TEXTS = 64
"""Texts that vectors are compared on, and one more that is long."""

LONGEST = 2_048
"""Tokens of the long text where the model reads more; its attention takes memory by the square of them."""

_Batches = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Source:
    """A student to export, and what is known of it.

    Attributes:
        student: Its sentence-transformers folder.
        judged: Folder with the manifest and card of its run; ``None``: no gate has judged it.
        manifest: What that manifest says.
    """

    student: Path
    judged: Path | None = None
    manifest: Mapping[str, Any] | None = None


def find_source(path: Path) -> Source:
    """Return the student of a sentence-transformers folder or of a run's folder.

    A run's verdict counts for the student that its manifest names by fingerprint, so not for one trained since.

    Raises:
        ModelError: If there is no student; of a bundle it says why none can be had from it.
        BundleError: If the run's manifest is damaged or was edited.
    """
    from leafembed.learn.models import fingerprint_folder

    if (path / "model.xml").is_file():
        beside = path.resolve().parent / "student"
        where = beside if (beside / "modules.json").is_file() else "the run's student folder"
        raise ModelError(
            f"{path}: got a bundle, expected a student or a run; a bundle holds OpenVINO INT8 and nothing else, from "
            f"which no other format can be made: give {where}"
        )
    student = path if (path / "modules.json").is_file() else path / "student"
    if not (student / "modules.json").is_file():
        raise ModelError(f"{path}: got no modules.json in it or in its student folder, expected a student or a run")
    run = student.resolve().parent
    if not (run / RESOLVED).is_file():
        return Source(student)
    own = fingerprint_folder(student)
    for folder in (run / "refused", run / "bundle"):
        if not (folder / MANIFEST).is_file():
            continue
        manifest = read_manifest(folder, refused=True)
        if manifest["student"].get("fingerprint") == own:
            return Source(student, folder, manifest)
    return Source(student)


def export(
    path: Path, target: Path, *, format: Literal["onnx", "pt"], texts: Sequence[str], allow_failed: bool = False
) -> dict[str, Any]:
    """Write a student in another format, compare its vectors with the student's own, and return what was measured.

    Args:
        path: A student or a run.
        target: Folder to create; it appears when all is written and checked.
        format: ``onnx``, or ``pt`` for the first attempt's files.
        texts: Texts to compare vectors on, the first ``CHECKED_TEXTS`` of them.
        allow_failed: Export a student that the gate refused.

    Raises:
        ModelError: If ``target`` exists, there is no student, or a file's vectors are not the student's.
        GateFailedError: If the gate refused the student and ``allow_failed`` is not set.
        DataError: If no text holds anything.
    """
    if target.exists():
        raise ModelError(f"{target}: exists already; give a folder that does not, nothing is overwritten")
    checked = [text for text in texts if text.strip()][:CHECKED_TEXTS]
    if not checked:
        raise DataError("--texts: got no text that is not blank, expected at least one to compare vectors on")
    source = find_source(path)
    verdict, stage = (
        read_verdict(source.manifest, str(source.judged), outdated=allow_failed) if source.manifest else (None, "")
    )
    if verdict is not None and not (verdict.passed or allow_failed):
        raise GateFailedError(verdict, stage=stage)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted call
    partial.mkdir(parents=True)
    try:
        exported = replace(_written(source, partial, format, checked), verdict=verdict, stage=stage)
        _explain(source, partial, exported)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if format == "pt":
        say(f"{target}: .pt files are pickles, which run code when they are opened; legacy, and unsafe to share")
    if verdict is None:
        say(f"{target}: no gate has judged this student")
    return {
        "folder": str(target),
        "format": format,
        "texts": exported.texts,
        "files": list(exported.files),
        "passed": verdict.passed if verdict else None,
    }


def _written(source: Source, folder: Path, format: Literal["onnx", "pt"], texts: Sequence[str]) -> Exported:
    """Write companions and models, and measure them."""
    from leafembed.learn.factors import read_factors
    from leafembed.learn.models import describe, load_sentence_transformer
    from leafembed.learn.teacher import TorchEncoder
    from leafembed.ship.companions import write_companions

    model = load_sentence_transformer(source.student)
    known = (source.manifest or {}).get("student", {})
    name = known.get("name") or source.student.resolve().name
    ref = describe(model, source.student, name=name, licence=known.get("licence"))
    reading = write_companions(model, folder)
    long, cut = _long_text(folder, texts, limit=reading.max_seq_length)
    batches = _batches([long, *texts])
    exact = TorchEncoder(model, ref, precision="fp32").encode([long, *texts])
    files = [
        _compared(folder, file, exact)
        for file in FORMATS[format](model, folder, reading, read_factors(source.student), batches)
    ]
    return Exported(format, ref, reading.max_seq_length, files, len(exact), cut)


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    """A file that was written, and the vectors that it gives."""

    name: str
    int8: bool
    vectors: FloatArray


def _onnx(model: Any, folder: Path, reading: Reading, factors: Factors | None, batches: _Batches) -> Iterator[_File]:
    from leafembed.ship.onnx_format import FP32, INT8, encode_onnx, write_onnx

    write_onnx(model, folder, closing=reading.closing, factors=factors)
    for name, int8 in ((FP32, False), (INT8, True)):
        yield _File(name, int8, encode_onnx(folder, name, batches))


def _pt(model: Any, folder: Path, reading: Reading, factors: Factors | None, batches: _Batches) -> Iterator[_File]:
    from transformers import AutoTokenizer

    from leafembed.ship.seed_format import SEED_FILES, build_seed, save_seed

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for name, int8 in SEED_FILES.items():
        seed = build_seed(model, max_seq_length=reading.max_seq_length, factors=factors, int8=int8)
        seed.set_tokenizer(tokenizer)
        vectors = np.concatenate([seed.encode(texts).numpy() for texts in batches])
        save_seed(seed, folder / name)
        yield _File(name, int8, vectors)


FORMATS: Mapping[str, Callable[..., Iterator[_File]]] = {"onnx": _onnx, "pt": _pt}
"""Writers: each writes its files into a folder that has config and tokenizer, and yields what each file gives."""


def _compared(folder: Path, file: _File, exact: FloatArray) -> dict[str, Any]:
    """Size and cosines of a file.

    Raises:
        ModelError: If its vectors are not those of the student.
    """
    cosines = np.sum(check_vectors(file.vectors, n=len(exact), what=file.name) * exact, axis=1)
    mean, least = float(cosines.mean()), float(cosines.min())
    what, held = ("mean", mean) if file.int8 else ("least", least)
    if held < MIN_COSINE:
        raise ModelError(
            f"{file.name}: the {what} cosine to the student's own vectors is {held:.5f}, expected at least "
            f"{MIN_COSINE}; nothing was exported"
        )
    size = sum(part.stat().st_size for part in (folder / file.name).parent.glob(f"{Path(file.name).name}*"))
    return {"file": file.name, "mb": size / 1e6, "cosine_mean": mean, "cosine_min": least}


def _long_text(folder: Path, texts: Sequence[str], *, limit: int) -> tuple[str, bool]:
    """Texts joined and repeated, longer than ``limit`` tokens or of ``LONGEST``; and whether it is cut.

    Raises:
        DataError: If the texts have no token but special ones.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    once = " ".join(texts)
    found = len(tokenizer.encode(once, add_special_tokens=False).ids)
    if not found:
        raise DataError("--texts: got texts that the student's tokenizer makes no token of; give others")
    long = " ".join([once] * (min(limit, LONGEST) // found + 1))
    encoding = tokenizer.encode(long)
    if limit > LONGEST and len(encoding.ids) > LONGEST:  # and the place in the text where that many tokens end
        return long[: encoding.offsets[LONGEST - 1][1]], False
    return long, len(encoding.ids) > limit


def _batches(texts: Sequence[str]) -> list[Sequence[str]]:
    """The first two texts, of which the first is long, then the others; unsorted, so that there is padding."""
    return [texts[:2], *(texts[i : i + 16] for i in range(2, len(texts), 16))]


def _explain(source: Source, folder: Path, exported: Exported) -> None:
    """Write the page, and bring card and licence notice along."""
    licences = {"student": {"licence": exported.ref.licence}, "teacher": {"licence": None}}
    notice = gemma_notice(source.manifest or licences)
    if notice:
        (folder / NOTICE).write_text(notice + "\n", encoding="utf-8")
    if source.judged:
        shutil.copyfile(source.judged / CARD, folder / "CARD.md")
        for name in PLOTS:  # the card shows them
            if (source.judged / name).is_file():
                shutil.copyfile(source.judged / name, folder / name)
    (folder / CARD).write_text(render_page(replace(exported, notice=notice)), encoding="utf-8")
