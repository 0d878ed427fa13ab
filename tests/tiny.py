"""Small real things for the tests of the ship floor: a model folder built in memory, and a manifest like a run's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.reports import Check, EvalReport, GateResult, TaskResult
from leafembed.ship.bundle import SEAL, seal
from leafembed.ship.verdict import judge_again
from leafembed.types import FloatArray, ModelRef

WORDS = ("[PAD]", "[UNK]", "[CLS]", "red", "green", "blue", "one", "two", "three", "query", ":", "grün", "赤")


def make_model_folder(
    path: Path,
    *,
    vocab: Sequence[str] = WORDS,
    dim: int = 8,
    prompts: Mapping[str, str] | None = None,
    first_token_only: bool = False,
    **changes: Any,
) -> Path:
    """The masked mean over rows of a random token table, L2-normalised; ``changes`` go to ``encoder.json``.

    With ``first_token_only`` the row of the first position counts alone, masked or not.
    """
    path.mkdir(parents=True)
    _save_graph(path / "model.xml", table=token_table(len(vocab), dim), first_token_only=first_token_only)
    save_tokenizer(path / "tokenizer.json", vocab)
    settings = {
        "name": "tiny",
        "dim": dim,
        "max_seq_length": 8,
        "pad_token_id": 0,
        "padding_side": "right",
        "add_special_tokens": True,
        "group_size": 0,
        "licence": "MIT",
        "fingerprint": "c" * 16,
    }
    _dump(path / "encoder.json", settings | changes)
    _dump(path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    _dump(path / "config.json", {"model_type": "static", "hidden_size": dim})
    _dump(path / "config_sentence_transformers.json", {"prompts": dict(prompts or {})})
    return path


def token_table(rows: int, dim: int) -> FloatArray:
    return np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)


def _save_graph(path: Path, *, table: FloatArray, first_token_only: bool) -> None:
    import openvino
    from openvino import opset13 as ops

    ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    mask = ops.parameter([-1, -1], np.int64, name="attention_mask")
    vectors = ops.gather(ops.constant(table), ids, ops.constant(0))
    weights = ops.convert(ops.unsqueeze(mask, ops.constant(2)), "f32")
    total = ops.reduce_sum(ops.multiply(vectors, weights), ops.constant(1))
    mean = ops.divide(total, ops.reduce_sum(weights, ops.constant(1)))
    if first_token_only:
        mean = ops.gather(vectors, ops.constant(0), ops.constant(1))
    length = ops.sqrt(ops.reduce_sum(ops.multiply(mean, mean), ops.constant(1), keep_dims=True))
    graph = openvino.Model([ops.divide(mean, length)], [ids, mask], "tiny")
    for port, name in zip(graph.inputs, ("input_ids", "attention_mask"), strict=True):
        port.get_tensor().set_names({name})
    openvino.save_model(graph, path, compress_to_fp16=False)


def save_tokenizer(path: Path, vocab: Sequence[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocab)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    tokenizer.enable_padding(length=64)  # as many published tokenizers do; an encoder must not inherit it
    tokenizer.save(str(path))


def _dump(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


TASKS = (
    ("sts/stsb_multi_mt.test", "STS", "en", "cosine_spearman", 0.8213),
    ("sts/stsb_multi_mt.test", "STS", "de", "cosine_spearman", 0.7921),
    ("bitext/tatoeba", "BitextMining", "deu-eng", "accuracy", 0.9441),
    ("retrieval/miracl", "Retrieval", "en", "ndcg_at_10", 0.5127),
)

UNTOUCHED = {"items": 500, "exact": 0, "ngram": 0, "rows_exact": 0, "rows_ngram": 0, "share": 0.0}


def report(ref: ModelRef, factor: float) -> EvalReport:
    """Every task's score times ``factor``."""
    return EvalReport(
        ref,
        tuple(
            TaskResult(task, kind, lang, metric, score * factor, {metric: score * factor}, 500, "d" * 16, 1.5)
            for task, kind, lang, metric, score in TASKS
        ),
    )


def verdict(*, stage: str = "INT8 model", retention: float = 0.953) -> dict[str, Any]:
    """Two checks; the first fails below 0.9."""
    checks = (Check("mean retention", retention, 0.9), Check("INT8 drop of STS", 0.0009, 0.01, at_least=False))
    return {**GateResult(checks).to_dict(), "stage": stage}


def sample_manifest(*, drop: Sequence[str] = (), kept: float = 0.953, **changes: Any) -> dict[str, Any]:
    """What a run records, before the bundle adds files and total size; through JSON, as a reader would get it.

    ``kept`` is the share of the teacher's scores that the INT8 model has; below 0.95 the gate refuses it.
    """
    teacher = ModelRef(
        "google/embeddinggemma-300m", 768, "a" * 16, "b" * 40, "gemma", 2048, {"query": "task: search | query: "}
    )
    student = ModelRef("leaf-small", 768, "c" * 16, None, "gemma", 512, {})
    refs = {
        "floor: random": 0.02,
        "floor: bag of words": 0.3,
        "floor: untrained student": 0.41,
        "floor: static table": 0.7,
    }
    floors = {name: report(ModelRef(name, 768), factor).to_dict() for name, factor in refs.items()}
    manifest = {
        "format": 2,
        "name": "leaf-small",
        "created": "2026-11-23T22:00:00+00:00",
        "leafembed": "0.1.0",
        "verdict": {"stage": "INT8 model"},
        "teacher": _plain(teacher),
        "student": _plain(student),
        "recipe": {
            "name": "leaf-small",
            "seed": 7,
            "data": {"root": "data", "sources": [{"path": "train/wiki.jsonl.gz", "lang": ""}], "temperature": 2.0},
            "teacher": {"model": "google/embeddinggemma-300m", "revision": "b" * 40},
            "train": {"learning_rate": 3e-4, "freeze_token_table": True},
            "gate": {"min_retention": {"STS": 0.95}, "min_score": {"sts/stsb_multi_mt.test": 0.6}, "languages": ["de"]},
        },
        "corpus": {
            "fingerprint": "e" * 16,
            "counts": {"read": 52000, "kept": 48213, "duplicate": 3120, "too short": 667},
            "languages": {"de": 21000, "en": 20213, "no": 4000, "und": 2000},
            "train_rows": 47213,
            "validation_rows": 1000,
            "sources": [{"path": "train/wiki.jsonl.gz", "licence": "CC BY-SA 4.0", "origin": "Wikipedia | dumps"}],
        },
        "training": {
            "steps": 4000,
            "planned_steps": 4000,
            "best_step": 3500,
            "best_metric": "dev",
            "texts": 384000,
            "tokens": 6912000,
            "averaged": {"steps": [3500, 4000], "value": 0.7981, "best": 0.8012, "kept": False},
            "targets": [{"name": "validation_alignment", "limit": 1.0, "value": 0.3417, "reached": True}],
            "seconds": 5123.4,
            "precision": "bf16",
            "history": _history(4000),
        },
        "reports": {
            "teacher": report(teacher, 1.0).to_dict(),
            **floors,
            "student": report(student, kept + 0.001).to_dict(),
            "int8": report(student, kept).to_dict(),
        },
        "contamination": [
            {"task": "sts/stsb_multi_mt.dev", "items": 1500, "exact": 2, "ngram": 1, "rows_exact": 5, "rows_ngram": 1}
            | {"share": 0.002},
            *({**UNTOUCHED, "task": task} for task in dict.fromkeys(task for task, *_ in TASKS)),
        ],
        "teacher_data": {
            "source": "a paper",
            "sets": ["MIRACL"],
            "shared": [
                {"task": "retrieval/miracl", "set": "MIRACL", "what": "the same data set", "source": "its name"}
            ],
        },
        "behaviour": {
            "student": {"texts": 32, "batch_cosine": 0.99998, "tail": 0.06, "teacher_tail": 0.1},
            "int8": {"texts": 32, "batch_cosine": 0.9997, "tail": 0.061, "teacher_tail": 0.1},
        },
        "int8": {"cosine_mean": 0.99971, "cosine_min": 0.99412, "texts": 1000},
        "sizes": {
            "parts": [
                {"part": "token table", "parameters": 201326592, "fp32_mb": 805.31, "int8_mb": 201.85},
                {"part": "body", "parameters": 23592960, "fp32_mb": 94.37, "int8_mb": 23.67},
                {"part": "head", "parameters": 589824, "fp32_mb": 2.36, "int8_mb": 0.59},
            ]
        },
        "speed": [
            _speed("teacher, torch fp32", 8.4, 1211.4),
            _speed("teacher, INT8", 21.7, 310.2),
            _speed("student, INT8", 96.3, 228.1),
        ],
        "machine": {"cpu": "AMD EPYC", "cores": 2, "memory_gb": 8.2, "os": "Linux x86_64", "isa": ["avx2", "avx512f"]},
        "versions": {"openvino": "2026.4.1", "tokenizers": "0.23.3"},
        **changes,
    }
    if "verdict" not in changes:
        judge(manifest)
    result: dict[str, Any] = json.loads(
        json.dumps({name: value for name, value in manifest.items() if name not in drop})
    )
    return result


def as_if_of(manifest: dict[str, Any], fingerprint: str) -> None:
    """Let the student, and what was scored of it, be the model with a fingerprint."""
    scored = [report["model"] for name, report in manifest["reports"].items() if name in ("student", "int8")]
    for model in (manifest["student"], *scored):
        model["fingerprint"] = fingerprint


def judge(manifest: dict[str, Any]) -> None:
    """Give a manifest the verdict that follows from its scores."""
    stage = manifest["verdict"]["stage"]
    manifest["verdict"] = {**judge_again(manifest, "sample").to_dict(), "stage": stage}


def reseal(manifest: dict[str, Any]) -> None:
    """Give a manifest the seal of its content, as someone would who edits it with care."""
    manifest[SEAL] = seal(manifest)


def write_sealed(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest as a run does."""
    reseal(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def refused_before_int8() -> dict[str, Any]:
    """A run that the gate stopped at the trained student."""
    manifest = sample_manifest(drop=("int8", "speed", "files"), kept=0.8123 - 0.001)
    del manifest["reports"]["int8"], manifest["behaviour"]["int8"]
    manifest["verdict"]["stage"] = "student"
    judge(manifest)
    return manifest


def _history(steps: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    history: list[dict[str, Any]] = []
    for step in range(50, steps + 1, 50):
        distillation = 0.08 + 0.5 * float(np.exp(-step / 600)) + 0.01 * float(rng.random())
        alignment = 0.3 + 1.5 * float(np.exp(-step / 500)) + 0.03 * float(rng.random())
        entry = {"step": step, "loss": distillation + 0.1 * alignment, "distillation": distillation}
        history.append(entry | {"alignment": alignment, "learning_rate": 3e-4 * (1 - step / steps)})
        if step % 500 == 0:
            score = 0.8 - 0.4 * float(np.exp(-step / 900)) - (0.006 if step == steps else 0)
            tasks = {"sts/stsb_multi_mt.dev": score + 0.03, "agreement": score - 0.03}
            validation = {"loss": distillation + 0.11 * alignment, "distillation": distillation, "alignment": alignment}
            history.append({"step": step, "dev": score, "dev_tasks": tasks, "validation": validation})
    return history


def _speed(name: str, rate: float, size_mb: float) -> dict[str, Any]:
    measured = {"name": name, "texts_per_second": rate, "spread": (rate * 0.97, rate * 1.02)}
    return measured | {"tokens_per_text": 31.4, "batch_size": 32, "threads": 2, "size_mb": size_mb}


def _plain(ref: ModelRef) -> dict[str, Any]:
    data: dict[str, Any] = report(ref, 1.0).to_dict()["model"]
    return data
