"""What ``leaf plan`` says: the price of a student, the memory of its training, a ranking of the teacher's layers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from leafembed.errors import DataError, RecipeError

if TYPE_CHECKING:
    from leafembed.learn.layers import Ranking
    from leafembed.learn.plan import Plan
    from leafembed.recipe import Recipe

__all__ = ["CAVEAT", "RANKING_TEXTS", "plan_data", "plan_lines", "rank", "ranking_lines"]

RANKING_TEXTS = 256
"""Texts that layers are ranked on."""

_LOOKED_AT = 4_096
"""Texts from the heads of all sources together that they are taken from, every n-th."""

CAVEAT = (
    "This is what stays near the teacher untrained, not what trains best: in docs/method.md the first layers unbroken "
    "and the last two did."
)


def plan_data(plan: Plan, memory_gb: float | None) -> dict[str, Any]:
    """The plan as plain data for ``--json``; sizes in MB, memory in GB (10^9 bytes)."""
    phases = []
    for phase in plan.memory:
        items = {name: value for name, value in dataclasses.asdict(phase).items() if name not in ("tokens", "texts")}
        gb = {name: value / 1e9 for name, value in items.items()}
        fits = {} if memory_gb is None else {"fits": phase.peak <= memory_gb * 1e9}
        phases.append({"tokens": phase.tokens, "texts": phase.texts, "gb": gb, "peak_gb": phase.peak / 1e9, **fits})
    return {
        "parts": [dataclasses.asdict(part) for part in plan.parts],
        "at_most": plan.at_most,
        "total": plan.total,
        "active": plan.active,
        "fp32_mb": sum(part.fp32_mb for part in plan.parts),
        "int8_mb": sum(part.int8_mb for part in plan.parts),
        "exits": [dataclasses.asdict(item) for item in plan.exits],
        "training_memory": phases,
        "token_bytes": plan.token_bytes,
    }


def plan_lines(data: dict[str, Any]) -> Iterator[str]:
    """The lines that say what :func:`plan_data` holds."""
    yield f"{'part':<14}{'parameters':>14}{'fp32 MB':>10}{'INT8 MB':>10}"
    for part in data["parts"]:
        yield f"{part['part']:<14}{part['parameters']:>14,}{part['fp32_mb']:>10.1f}{part['int8_mb']:>10.1f}"
    yield f"{'total':<14}{data['total']:>14,}{data['fp32_mb']:>10.1f}{data['int8_mb']:>10.1f}"
    if data["at_most"]:
        yield "the token table at most: it is cut to the tokens that occur"
    yield f"{'active':<14}{data['active']:>14,}   (all but the token table)"
    for item in data["exits"]:
        yield f"{'  exit after ' + str(item['layers']):<14}{item['active']:>13,}   active"
    yield ""
    yield "memory of training at most, GB (10^9 bytes)"
    names = ("weights", "gradients", "optimizer", "activations", "loss")
    yield f"{'tokens x texts':<16}" + "".join(f"{name:>13}" for name in (*names, "peak"))
    for phase in data["training_memory"]:
        cells = "".join(f"{phase['gb'][name]:>13.2f}" for name in names)
        verdict = {True: "   fits", False: "   DOES NOT FIT"}.get(phase.get("fits"), "")
        yield f"{phase['tokens']:>6} x {phase['texts']:<7}{cells}{phase['peak_gb']:>13.2f}{verdict}"
    if data["token_bytes"]:
        yield ""
        yield f"the teacher's vectors of tokens: {data['token_bytes'] / 1e3:.2f} GB on the disk for a million tokens"


def rank(recipe: Recipe, keep: int | None) -> Ranking:
    """Rank the layers of the recipe's teacher on texts of its sources and suggest ``keep`` of them.

    Args:
        recipe: Names teacher, corpus and prompt.
        keep: Layers to suggest; ``None``: as many as the recipe keeps, or 6.
    """
    from leafembed.learn.layers import rank_layers
    from leafembed.learn.observe import evenly
    from leafembed.learn.teacher import load_teacher
    from leafembed.progress import progress

    texts = evenly(_first_texts(recipe), RANKING_TEXTS)
    teacher, _ = load_teacher(recipe.teacher, recipe.cache_dir)
    encoder = teacher.torch
    if encoder is None:
        raise RecipeError(f"teacher.model: got {recipe.teacher.model}, expected a teacher with layers, not a URL")
    number = keep or len(recipe.student.layers) or 6
    total = int(encoder.model[0].auto_model.config.num_hidden_layers)
    with progress("ranking layers", max(total, 2 * total - number), "layers") as advance:
        return rank_layers(encoder, texts, keep=number, prompt_name=recipe.teacher.prompt_name, advance=advance)


def _first_texts(recipe: Recipe) -> list[str]:
    """Texts from the beginning of each source, as many of each: enough to rank by, without a corpus of its own."""
    from leafembed.learn.named import expand
    from leafembed.learn.overlap import EvaluationTexts
    from leafembed.learn.sources import read_source, source_files

    sources = [one for source in recipe.data.sources if source.weight > 0 for one in expand(source)]
    texts: list[str] = []
    for source in sources:
        records = read_source(
            source,
            source_files(source, recipe.data.root),
            recipe.data,
            prompt_name=None,
            evaluation=EvaluationTexts({}),
            counts=Counter(),
        )
        texts += (record.texts[0] for record in islice(records, max(1, _LOOKED_AT // len(sources))))
    if not texts:
        raise DataError("data.sources: got no text to rank layers on, expected some; see data.min_chars and languages")
    return texts


def ranking_lines(ranking: Ranking) -> Iterator[str]:
    """The ranking as a table, the suggestion, and what it does not tell."""
    yield f"{'layer':>5}  {'type':<18}{'influence':>10}{'damage':>10}   ({ranking.texts} texts)"
    for item in ranking.layers:
        yield f"{item.layer:>5}  {item.type:<18}{item.influence:>10.4f}{item.damage:>10.4f}"
    yield f"suggestion: student.layers = {list(ranking.suggestion)}, damage {ranking.damage:.4f}"
    yield CAVEAT
