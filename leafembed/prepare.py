"""Everything that training and judging wait for: tasks, corpus, and the teacher's vectors of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leafembed.errors import require
from leafembed.judge.tasks import AGREEMENT, Task, agreement_task, check_disjoint, load_tasks, scored_items
from leafembed.learn.data import prepare_corpus
from leafembed.learn.teacher import CachedTeacher, load_teacher
from leafembed.progress import say
from leafembed.recipe import Recipe
from leafembed.stages import fingerprint
from leafembed.types import Corpus, FloatArray, ModelRef

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Material", "embed"]


@dataclass(frozen=True, slots=True)
class Material:
    """Everything known before the student is judged.

    Attributes:
        teacher: The teacher behind its cache.
        teacher_dir: Its folder; ``None``: it is at a URL.
        corpus: Training and validation text.
        positions: Where the vector of each row lies in the teacher's store.
        dev: Tasks that choose the checkpoint.
        test: Tasks that the gate judges by.
    """

    teacher: CachedTeacher
    teacher_dir: Path | None
    corpus: Corpus
    positions: NDArray[np.int64]
    dev: tuple[Task, ...]
    test: tuple[Task, ...]

    def targets(self, rows: NDArray[np.int64]) -> FloatArray:
        """Teacher vectors ``(n, dim)`` of row numbers ``(n,)``; validation rows follow the training rows."""
        return self.teacher.store.take(self.positions[rows])

    @property
    def targets_id(self) -> str:
        """What the vectors depend on besides the texts: the teacher, its precision, length limit and prompts."""
        return fingerprint(self.teacher.store.folder.name, dict(self.teacher.ref.prompts))

    def validation(self, limit: int) -> list[str]:
        """At most ``limit`` distinct texts that no student was trained on."""
        return list(dict.fromkeys(row.text for row in self.corpus.validation))[:limit]


def embed(recipe: Recipe) -> Material:
    """Read the tasks and the corpus and fill the teacher's cache: everything that training waits for."""
    load = partial(load_tasks, recipe.eval.data, languages=recipe.eval.languages, seed=recipe.seed)
    test = load(recipe.eval.test)
    excluded = scored_items(test) if recipe.eval.drop_shared else frozenset()
    dev = load(recipe.eval.dev, max_rows=recipe.eval.max_dev_rows, excluded=excluded)
    check_disjoint(dev, test)
    corpus = prepare_corpus(
        recipe.data,
        seed=recipe.seed,
        prompt_name=recipe.teacher.prompt_name,
        forbidden=frozenset[str]().union(*(task.texts for task in (*dev, *test))),
    )
    say(
        f"corpus {corpus.fingerprint}: {len(corpus.train):,} training and {len(corpus.validation):,} validation texts "
        f"in {len(corpus.languages)} languages"
    )
    teacher, folder = load_teacher(recipe.teacher, recipe.cache_dir)
    _require_prompts(recipe, teacher.ref)
    positions = teacher.embed_rows([*corpus.train, *corpus.validation])
    if AGREEMENT in recipe.eval.dev:
        rows = list({row.text: i for i, row in enumerate(corpus.validation)}.values())[: recipe.eval.max_dev_rows]
        chosen = [corpus.validation[i] for i in rows]
        vectors = teacher.store.take(positions[len(corpus.train) + np.array(rows)])
        task = agreement_task(
            [r.text for r in chosen],
            [r.lang for r in chosen],
            vectors,
            prompt_name=recipe.teacher.prompt_name,
            seed=recipe.seed,
        )
        dev = (*dev, task)
    return Material(teacher, folder, corpus, positions, dev, test)


def _require_prompts(recipe: Recipe, teacher: ModelRef) -> None:
    """A mistyped prompt name would quietly mean no prompt for the whole corpus."""
    names = {"teacher.prompt_name": recipe.teacher.prompt_name}
    for i, source in enumerate(recipe.data.sources):
        names[f"data.sources[{i}].prompt_name"] = source.prompt_name
        names[f"data.sources[{i}].positive_prompt_name"] = source.positive_prompt_name
    for key, name in names.items():
        known = f"one of the prompts of {teacher.name}: {', '.join(teacher.prompts) or 'none'}"
        require(name is None or name in teacher.prompts, key, name, known)
