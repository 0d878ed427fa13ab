"""Plans a whole run before it starts: which texts share a batch, in which order, cut to how many tokens.

The plan depends on the corpus, the recipe and the seed alone, so that a resumed run skips the batches it has seen and
lands in the right phase of the curriculum. A pass over the text is shuffled and taken in windows of 50 batches. Within
a window texts are sorted by length, so that little is padded, and the batches are shuffled. Where contrastive or
triplet losses are trained, a text and its positives move together, with the hard negatives of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from leafembed.errors import require
from leafembed.learn.links import Links
from leafembed.progress import say
from leafembed.recipe_learn import Phase, TrainConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Plan", "plan_batches", "plan_pass", "say_plan"]

_WINDOW = 50
"""Batches that are sorted by length together: enough to pad little, few enough that a batch is a random draw."""

_FEW_TEXTS, _MANY_BATCHES = 4, 0.05
"""Texts in a batch below which there is little to compare, and the share of such batches that is worth a word."""

_Piece = list[int]
_Batch = list[_Piece]


@dataclass(frozen=True, slots=True)
class Plan:
    """Every forward pass of a run, in order.

    Attributes:
        rows: Row numbers of all batches, one after the other.
        ends: Where each batch ends in ``rows``, ``(n_batches,)``.
        limits: Tokens that the texts of each batch are cut to, ``(n_batches,)``.
        tokens: Tokens up to the end of each batch, padding not counted, ``(n_batches,)``.
        batches_per_step: Forward passes that make a step, over all processes.
    """

    rows: NDArray[np.int32]
    ends: NDArray[np.int64]
    limits: NDArray[np.int32]
    tokens: NDArray[np.int64]
    batches_per_step: int

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], int]:
        """Row numbers of a batch and its token limit."""
        start = int(self.ends[index - 1]) if index else 0
        return self.rows[start : int(self.ends[index])], int(self.limits[index])

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return len(self) // self.batches_per_step

    def texts_until(self, step: int) -> int:
        """Texts seen in the first ``step`` steps."""
        return int(self.ends[step * self.batches_per_step - 1]) if step else 0

    def tokens_until(self, step: int) -> int:
        """Tokens seen in the first ``step`` steps, padding not counted."""
        return int(self.tokens[step * self.batches_per_step - 1]) if step else 0


def plan_batches(
    lengths: NDArray[np.int32],
    links: Links | None,
    *,
    config: TrainConfig,
    limit: int | None,
    seed: int,
    processes: int = 1,
) -> Plan:
    """Plan a run.

    Args:
        lengths: Tokens of each training row with special tokens and prompt, not cut, ``(n,)``.
        links: Rows that must share a batch; ``None``: every row is for itself.
        config: The recipe's ``[train]``.
        limit: Tokens the student reads; ``None``: no limit.
        seed: Seed of the order.
        processes: Processes that share the batches of a step.

    Raises:
        RecipeError: If a text alone has more tokens than ``train.batch_tokens``.
    """
    phases = config.curriculum or (Phase(tokens=config.max_seq_length),)
    limits = [min(phase.tokens, limit or phase.tokens) for phase in phases]
    longest = min(int(lengths.max()), max(limits))
    fits = config.batch_tokens is None or longest <= config.batch_tokens
    require(fits, "train.batch_tokens", config.batch_tokens, f"at least the {longest} tokens of the longest text")
    pieces, sizes = _pieces(len(lengths), links), lengths.tolist()
    per_step = config.gradient_accumulation * processes
    steps = config.max_steps or _steps(pieces, sizes, list(zip(limits, phases, strict=True)), config, seed, per_step)
    ends = np.round(np.cumsum([phase.share for phase in phases]) * steps).astype(int) * per_step
    counts = np.diff(ends, prepend=0).tolist()
    drawn = list(_draw(pieces, sizes, list(zip(limits, counts, strict=True)), config, seed))
    rows = [_flat(batch) for batch, _ in drawn]
    return Plan(
        rows=np.concatenate([np.array(part, dtype=np.int32) for part in rows]),
        ends=np.cumsum([len(part) for part in rows]),
        limits=np.array([cut for _, cut in drawn], dtype=np.int32),
        tokens=np.cumsum([np.minimum(lengths[part], cut).sum() for part, (_, cut) in zip(rows, drawn, strict=True)]),
        batches_per_step=per_step,
    )


def plan_pass(
    lengths: NDArray[np.int32], limit: int, config: TrainConfig, links: Links | None = None
) -> list[list[int]]:
    """Batches of every row, sorted by length: what validation losses are computed on.

    Each row is there once, but for hard negatives, which go with their anchors and with their own group.
    """
    sizes = lengths.tolist()
    return [_flat(batch) for batch in _pack(_sorted(_pieces(len(sizes), links), sizes), sizes, limit, config)]


def say_plan(plan: Plan, config: TrainConfig, reads: int | None) -> None:
    """Say what is to come, and what of the recipe's ``[train]`` cannot work in it.

    Args:
        plan: The run.
        config: The recipe's ``[train]``.
        reads: Tokens the student reads; ``None``: no limit.
    """
    cuts = [(phase.share, min(phase.tokens, reads or phase.tokens)) for phase in config.curriculum]
    phases = ", ".join(f"{share:.0%} up to {tokens} tokens" for share, tokens in cuts)
    texts, tokens = plan.texts_until(plan.steps), plan.tokens_until(plan.steps)
    say(f"plan: {plan.steps:,} steps, {texts:,} texts, {tokens:,} tokens" + (f"; {phases}" if phases else ""))
    if reads and any(phase.tokens > reads for phase in config.curriculum):
        say(f"the student reads {reads} tokens: longer phases of train.curriculum end there too")
    if config.warmup_steps >= plan.steps:
        say(f"the learning rate only rises: train.warmup_steps is {config.warmup_steps}, of {plan.steps} steps")
    few = float(np.mean(np.diff(plan.ends, prepend=0) < _FEW_TEXTS))
    if config.batch_tokens and few > _MANY_BATCHES and (config.alignment or config.contrastive or config.triplet):
        say(
            f"{few:.0%} of the batches hold fewer than {_FEW_TEXTS} texts: alignment compares a text with those beside "
            f"it, and a text may not meet its positive; raise train.batch_tokens, which is {config.batch_tokens}"
        )


def _steps(
    pieces: Sequence[_Piece],
    lengths: Sequence[int],
    phases: Sequence[tuple[int, Phase]],
    config: TrainConfig,
    seed: int,
    per_step: int,
) -> int:
    """Steps that ``train.epochs`` passes take: a pass takes more batches in a phase of longer texts."""
    passes_per_batch = 0.0
    for limit, phase in phases:
        windows = _windows(pieces, config.batch_size, np.random.default_rng((seed, 0)))
        batches = sum(len(_pack(_sorted(window, lengths), lengths, limit, config)) for window in windows)
        passes_per_batch += phase.share / batches
    return max(1, math.ceil(config.epochs / passes_per_batch / per_step - 1e-9))


def _draw(
    pieces: Sequence[_Piece], lengths: Sequence[int], phases: Sequence[tuple[int, int]], config: TrainConfig, seed: int
) -> Iterator[tuple[_Batch, int]]:
    """Batches with their token limit: of each phase as many as it says, pass after pass over all pieces.

    What a phase leaves of a window is packed again by the limit of the next.
    """
    rng = np.random.default_rng((seed, 1, 0))
    windows = _endless(pieces, config.batch_size, seed)
    rest: list[_Piece] = []
    for limit, count in phases:
        left = count
        while left:
            packed = _pack(_sorted(rest or next(windows), lengths), lengths, limit, config)
            order = rng.permutation(len(packed))
            yield from ((packed[i], limit) for i in order[:left])
            rest = [piece for i in order[left:] for piece in packed[i]]
            left -= min(left, len(packed))


def _endless(pieces: Sequence[_Piece], batch_size: int, seed: int) -> Iterator[list[_Piece]]:
    epoch = 0
    while True:
        yield from _windows(pieces, batch_size, np.random.default_rng((seed, epoch)))
        epoch += 1


def _windows(pieces: Sequence[_Piece], batch_size: int, rng: np.random.Generator) -> Iterator[list[_Piece]]:
    """One pass in random order, in lists of about 50 batches."""
    window: list[_Piece] = []
    size = 0
    for i in rng.permutation(len(pieces)):
        window.append(pieces[i])
        size += len(pieces[i])
        if size >= _WINDOW * batch_size:
            yield window
            window, size = [], 0
    if window:
        yield window


def _sorted(window: Iterable[_Piece], lengths: Sequence[int]) -> list[_Piece]:
    return sorted(window, key=lambda piece: max([lengths[row] for row in piece]))


def _pack(pieces: Sequence[_Piece], lengths: Sequence[int], limit: int, config: TrainConfig) -> list[_Batch]:
    """Fill batches in the given order, by length; a piece is split only where it is too large for one of its own."""
    most = config.batch_tokens or config.batch_size * limit
    if all(len(piece) == 1 for piece in pieces):
        return _pack_rows(pieces, [min(lengths[row], limit) for (row,) in pieces], config.batch_size, most)
    batches: list[_Batch] = []
    batch: _Batch = []
    count, width = 0, 0

    def fits(new: Sequence[int]) -> bool:
        wide = max(width, *(min(lengths[row], limit) for row in new), 1)
        return count + len(new) <= config.batch_size and (count + len(new)) * wide <= most

    for piece in pieces:
        parts = [piece]
        if batch and not fits(piece):
            batches.append(batch)
            batch, count, width = [], 0, 0
        if not batch and not fits(piece):
            parts = [[row] for row in piece]
        for part in parts:
            if batch and not fits(part):
                batches.append(batch)
                batch, count, width = [], 0, 0
            batch.append(part)
            count += len(part)
            width = max(width, *(min(lengths[row], limit) for row in part))
    return [*batches, batch] if batch else batches


def _pack_rows(pieces: Sequence[_Piece], lengths: Sequence[int], size: int, most: int) -> list[_Batch]:
    """As :func:`_pack` of pieces of one row, a batch at a time: millions of rows are packed in seconds."""
    widths, counts = np.array(lengths), np.arange(1, size + 1)
    batches, start = [], 0
    while start < len(pieces):
        part = widths[start : start + size]
        fits = counts[: len(part)] * np.maximum(part, 1) <= most
        n = len(part) if fits.all() else max(1, int(fits.argmin()))
        batches.append([*pieces[start : start + n]])
        start += n
    return batches


def _flat(batch: _Batch) -> list[int]:
    """Rows of a batch, each once: a hard negative may be there for two anchors, or for itself too."""
    return list(dict.fromkeys(row for piece in batch for row in piece))


def _pieces(n: int, links: Links | None) -> list[_Piece]:
    """Rows that move together: a group, and the hard negatives of its rows.

    A row that is a hard negative and nothing else is seen with its anchors only; others also with their own group.
    """
    if links is None:
        return [[i] for i in range(n)]
    groups: dict[int, _Piece] = {}
    for row, group in enumerate(links.group.tolist()):
        groups.setdefault(group, []).append(row)
    negatives = set(links.negative[links.negative >= 0].tolist())
    pieces = []
    for rows in groups.values():
        if len(rows) == 1 and rows[0] in negatives and links.negative[rows[0]] < 0:
            continue
        borrowed = [int(row) for row in links.negative[rows] if row >= 0]
        pieces.append(list(dict.fromkeys([*rows, *borrowed])))
    return pieces
