"""Times teacher and student in torch and as INT8 on the same texts, so that the ratios between them mean something."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.learn.teacher import TorchEncoder
from leafembed.progress import say
from leafembed.recipe import BenchmarkConfig
from leafembed.ship.benchmark import Contender, benchmark
from leafembed.ship.encoder import BundleEncoder
from leafembed.types import Speed

__all__ = ["Entry", "race"]


_TORCH_FILES = frozenset({".safetensors", ".json", ".txt", ".model"})
_INT8_FILES = frozenset({".xml", ".bin", ".json"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One model in both of its forms.

    Attributes:
        name: ``teacher`` or ``student``.
        model: The model in torch.
        folder: Its sentence-transformers folder.
        int8: Its INT8 form.
        int8_folder: The model folder of that form.
        prompt_name: Prompt it is used with; ``None``: no prompt.
    """

    name: str
    model: TorchEncoder
    folder: Path
    int8: BundleEncoder
    int8_folder: Path
    prompt_name: str | None = None


def race(entries: Sequence[Entry], texts: Sequence[str], *, config: BenchmarkConfig) -> tuple[Speed, ...]:
    """Return the speed of each entry in fp32 torch and in INT8, in that order, measured in turn.

    Torch gets as many threads as the INT8 engine, and the batch size of ``config``.
    """
    import torch

    torch.set_num_threads(entries[0].int8.threads)
    contenders = [contender for entry in entries for contender in _contenders(entry, texts, config.batch_size)]
    say(f"timing {len(contenders)} encoders on {len(texts)} held-out texts, {config.repeats} rounds")
    return benchmark(contenders, texts, config=config)


def _contenders(entry: Entry, texts: Sequence[str], batch_size: int) -> list[Contender]:
    prompt = entry.model.ref.prompts.get(entry.prompt_name or "", "")
    tokens = float(np.mean(entry.int8.count_tokens(texts, entry.prompt_name)))

    model = _on_cpu(entry.model.model)  # the race is about CPUs, wherever training took place

    def in_torch(batch: list[str]) -> Any:
        return model.encode(batch, prompt=prompt, batch_size=batch_size, show_progress_bar=False)

    size = _megabytes(entry.int8_folder, _INT8_FILES)
    found = [Contender(f"{entry.name}, torch fp32", in_torch, _megabytes(entry.folder, _TORCH_FILES), tokens)]
    for exit in (None, *sorted(entry.int8.exits, reverse=True)):
        in_int8 = partial(entry.int8.encode, prompt_name=entry.prompt_name, exit=exit)
        name = f"{entry.name}, INT8" if exit is None else f"{entry.name}, INT8, exit {exit}"
        found.append(Contender(name, in_int8, size, tokens))
    return found


def _megabytes(folder: Path, suffixes: frozenset[str]) -> float:
    """Megabytes of the files of a model; a clone of a hub repository holds other formats and history besides."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in suffixes) / 1e6


def _on_cpu(model: Any) -> Any:
    return model if model.device.type == "cpu" else copy.deepcopy(model).cpu()
