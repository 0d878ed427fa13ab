"""Assembles the manifest: everything a run measured, from which the card is rendered."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from leafembed import __version__
from leafembed.evidence import Behaviour, Contamination
from leafembed.judge.known import known_data
from leafembed.recipe import Recipe
from leafembed.reports import EvalReport, GateResult
from leafembed.ship.machine import machine_facts, versions
from leafembed.types import Corpus, ModelRef, Speed

__all__ = ["PACKAGES", "manifest", "portable", "portable_path", "run_facts", "teacher_facts"]

PACKAGES = ("leafembed", "torch", "transformers", "sentence-transformers", "openvino", "nncf", "tokenizers", "numpy")
"""What the manifest records the versions of."""


def run_facts(
    recipe: Recipe,
    corpus: Corpus,
    *,
    teacher: ModelRef,
    student: ModelRef,
    parts: Sequence[Mapping[str, Any]],
    training: Mapping[str, Any],
    vocabulary: Mapping[str, Any] | None,
    scored_in: Mapping[str, str],
) -> dict[str, Any]:
    """What a manifest says of a run before its models are judged.

    ``vocabulary`` is what pruning it changed, ``None`` if it is whole. ``scored_in`` is the precision and device in
    which everything in torch was scored: all but a teacher at a URL.
    """
    facts = {
        "name": recipe.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "leafembed": __version__,
        "teacher": dataclasses.asdict(teacher),
        "student": dataclasses.asdict(student),
        "recipe": portable(recipe),
        "corpus": {
            "fingerprint": corpus.fingerprint,
            "counts": dict(corpus.counts),
            "languages": corpus.languages,
            "train_rows": len(corpus.train),
            "validation_rows": len(corpus.validation),
            "sources": [{**source, "path": portable_path(source["path"])} for source in corpus.sources],
        },
        "contamination": [entry.to_dict() for entry in corpus.contamination],
        "training": dict(training),
        "sizes": {"parts": [dict(part) for part in parts]},
        "machine": {**machine_facts(), "scored_in": dict(scored_in)},
        "versions": versions(PACKAGES),
    }
    return facts if vocabulary is None else facts | {"vocabulary": dict(vocabulary)}


def teacher_facts(
    recipe: Recipe, corpus: Corpus, teacher: ModelRef, exposure: Sequence[Contamination]
) -> dict[str, Any]:
    """What a manifest says of what the teacher was trained on.

    ``exposure`` is what of the tasks its own training text touches, empty if that text is not to be had.
    """
    facts = {"teacher_data": known_data(teacher.name, [entry.task for entry in corpus.contamination])}
    if exposure:
        places = [source.path or source.hub or source.named for source in recipe.eval.teacher_sources]
        facts["teacher_overlap"] = {"sources": places, "sets": [entry.to_dict() for entry in exposure]}
    return facts


def manifest(
    facts: Mapping[str, Any],
    reports: Mapping[str, EvalReport],
    verdict: GateResult,
    stage: str,
    *,
    behaviour: Mapping[str, Behaviour] = MappingProxyType({}),
    int8: Mapping[str, Any] | None = None,
    speed: Sequence[Speed] = (),
    points: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The manifest's content; ``write_bundle`` adds the format version, the files and their hashes.

    Args:
        facts: From :func:`run_facts`.
        reports: Scores by what was scored: ``teacher``, ``student``, ``int8`` and floors.
        verdict: The gate's last word.
        stage: What that word was on: ``student`` or ``INT8 model``.
        behaviour: How ``student`` and ``int8`` behave where no task looks; empty when none was observed.
        int8: Fidelity of INT8 to fp32; ``None`` when the student was refused before.
        speed: Speed of each encoder.
        points: Scores of the INT8 model at each early exit and dimension; empty where it has one of each.
    """
    content = {
        **facts,
        "verdict": {**verdict.to_dict(), "stage": stage},
        "reports": {name: report.to_dict() for name, report in reports.items()},
        "behaviour": {name: dataclasses.asdict(seen) for name, seen in behaviour.items()},
    }
    if int8 is not None:
        content |= {"int8": dict(int8), "speed": [dataclasses.asdict(entry) for entry in speed]}
    return content | ({"points": [dict(point) for point in points]} if points else {})


def portable(recipe: Recipe) -> dict[str, Any]:
    """The recipe with paths as one would type them in the current folder, so that a card names no one's machine."""
    plain = recipe.to_dict()
    places = [(plain, "cache_dir"), (plain["data"], "root"), (plain["data"], "mixture"), (plain["eval"], "data")]
    places += [
        (plain["student"], "model"),
        (plain["student"], "vocab_text"),
        (plain["teacher"], "model"),
        (plain["teacher"], "api_key_file"),
    ]
    places += [(plain["train"], "start")]
    places += [(source, "path") for source in (*plain["data"]["sources"], *plain["eval"]["teacher_sources"])]
    for section, key in places:
        if section.get(key):
            section[key] = portable_path(section[key])
    return plain


def portable_path(name: str) -> str:
    """A path as one would type it in the current folder; one that is relative already stays so."""
    path, home, here = Path(name), Path.home(), Path.cwd()
    if not path.is_absolute():
        return name
    below_home = path.is_relative_to(home) and not path.is_relative_to(here)
    return f"~/{path.relative_to(home)}" if below_home else os.path.relpath(path, here)
