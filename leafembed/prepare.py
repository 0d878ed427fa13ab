"""Everything that training and judging wait for: tasks, corpus, and the teacher's vectors of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leafembed.errors import require
from leafembed.evidence import Contamination
from leafembed.judge.agreement import AGREEMENT_TYPE, agreement_task
from leafembed.judge.gate import require_known
from leafembed.judge.tasks import AGREEMENT, Task, check_disjoint, load_tasks, scored_items
from leafembed.learn.alarms import MIXED, Alarm, check_languages
from leafembed.learn.data import prepare_corpus
from leafembed.learn.draw import idle_weights
from leafembed.learn.exposure import teacher_overlap
from leafembed.learn.models import find_models, resolve
from leafembed.learn.overlap import JudgedSet, sets_fingerprint
from leafembed.learn.prompts import reserved_tokens, student_prompts
from leafembed.learn.shapes import require_shape
from leafembed.learn.teachable import require_teachable
from leafembed.learn.teacher import CachedTeacher, load_teacher
from leafembed.learn.token_pass import embed_tokens
from leafembed.learn.token_store import TokenTargets
from leafembed.lineage import (
    Lineage,
    kept_out_of_all,
    require_goes_on,
    require_listed,
    require_same_teacher,
)
from leafembed.mining import with_negatives
from leafembed.progress import say
from leafembed.recipe import Recipe
from leafembed.recipe_learn import StudentConfig
from leafembed.stages import fingerprint
from leafembed.teaching import CHECK_TEXTS, in_openvino, tokens_in_openvino
from leafembed.text import normalise_lang
from leafembed.types import Corpus, FloatArray, ModelRef
from leafembed.unpacking import earlier_lineage

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Material", "embed", "language_alarms"]


@dataclass(frozen=True, slots=True)
class Material:
    """Everything known before the student is judged.

    Attributes:
        teacher: The teacher behind its cache.
        teacher_dir: Its folder; ``None``: it is at a URL.
        corpus: Training and validation text.
        positions: Where the vector that each row learns lies in the teacher's store: its own, or its target's; -1
            where it was not wanted.
        dev: Tasks that choose the checkpoint.
        test: Tasks that the gate judges by.
        kept_out: Hash of each evaluation set that was kept out of all text that the student learns from, by task id.
        exposure: What of the tasks the teacher's own training text touches; empty: it is not to be had.
        tokens: Teacher vectors of the rows' tokens; ``None``: the recipe wants none.
    """

    teacher: CachedTeacher
    teacher_dir: Path | None
    corpus: Corpus
    positions: NDArray[np.int64]
    dev: tuple[Task, ...]
    test: tuple[Task, ...]
    kept_out: Mapping[str, str]
    exposure: tuple[Contamination, ...]
    tokens: TokenTargets | None = None

    def targets(self, rows: NDArray[np.int64]) -> FloatArray:
        """Teacher vectors ``(n, dim)`` that row numbers ``(n,)`` learn; validation rows follow the training rows."""
        return self.teacher.targets.store.take(self.positions[rows])

    @property
    def targets_id(self) -> str:
        """What the vectors depend on besides the texts: teacher, engine, precision, length limit and prompts."""
        return _targets_id(self.teacher)

    def student_prompts(self, config: StudentConfig, bare: str | None) -> dict[str, str]:
        """What a student puts before a text, by prompt name; it needs nothing for the prompt named ``bare``."""
        reserved = reserved_tokens(self._tokenizer(config)) if config.prompts == "tokens" else None
        return student_prompts(config, self.teacher.ref.prompts, bare=bare, reserved=reserved)

    def _tokenizer(self, config: StudentConfig) -> Any:
        """The tokenizer that a student begins with: that of its own encoder, where it has one, or the teacher's."""
        if config.init != "encoder" and self.teacher.torch is not None:
            return self.teacher.torch.model.tokenizer
        from transformers import AutoTokenizer

        folder = resolve(config.model, config.revision, section="student")
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)

    def held_out(self, limit: int) -> tuple[list[str], list[str], FloatArray]:
        """At most ``limit`` validation texts of different vectors, their languages, and the teacher's vectors."""
        first = len(self.corpus.train)
        rows = _distinct(self.corpus, self.positions[first:])[:limit]
        chosen = [self.corpus.validation[i] for i in rows]
        vectors = self.targets(first + np.array(rows))
        return [row.text for row in chosen], [row.lang for row in chosen], vectors

    def validation(self, limit: int) -> list[str]:
        """At most ``limit`` distinct texts that no student was trained on."""
        return list(dict.fromkeys(row.text for row in self.corpus.validation))[:limit]


def _targets_id(teacher: CachedTeacher) -> str:
    return fingerprint(teacher.targets.store.folder.name, dict(teacher.ref.prompts))


def embed(recipe: Recipe, *, fit_rows: int | None = None) -> Material:
    """Read the tasks and the corpus and fill the teacher's cache: everything that training waits for.

    Args:
        recipe: What to do.
        fit_rows: Training rows, from the first, whose vectors are wanted, where the student was trained elsewhere;
            ``None``: all.

    Raises:
        RecipeError: If negatives are to be mined, which takes the vectors of all rows, and not all are wanted.
    """
    whole = fit_rows is None
    require(whole or not recipe.data.mine_negatives, "data.mine_negatives", recipe.data.mine_negatives,
            "0 with a student that was trained elsewhere")  # fmt: skip
    find_models(recipe.teacher, recipe.student)  # before text is read for minutes
    before = earlier_lineage(recipe)
    text = _read_text(recipe, before)
    corpus, dev = text.corpus, text.dev
    _require_counted(recipe.student, corpus)
    teacher, folder = load_teacher(recipe.teacher, recipe.cache_dir)
    _require_prompts(recipe, teacher.ref)
    require_shape(recipe.student, teacher.torch.model if teacher.torch else None, teacher.ref.dim)
    require_same_teacher(teacher.ref.fingerprint, before)
    check = [row.text for row in corpus.validation[:CHECK_TEXTS]]
    if recipe.teacher.engine != "torch":
        teacher.targets = in_openvino(recipe.teacher, teacher, recipe.cache_dir, check)
    first = corpus.train if whole else corpus.train[:fit_rows]
    tokens = None
    if whole and recipe.train.token_distillation:
        name, forward = tokens_in_openvino(recipe.teacher, teacher, recipe.cache_dir, check)
        place = recipe.cache_dir / "tokens" / name
        tokens = TokenTargets(*embed_tokens(teacher, place, corpus.train, corpus.validation, forward=forward))
    positions = teacher.embed_rows(first, corpus.validation)
    unknown = np.full(len(corpus.train) - len(first), -1, dtype=np.int64)
    positions = np.insert(positions, len(first), unknown)
    parts = np.split(positions, [len(corpus.train)])
    if AGREEMENT in recipe.eval.dev:
        dev = (*dev, _agreement(recipe, corpus, teacher, parts[1]))
    if recipe.data.mine_negatives:
        corpus = with_negatives(recipe, corpus, teacher.targets.store, parts, targets_id=_targets_id(teacher))
    return Material(teacher, folder, corpus, positions, dev, text.test, text.kept_out, text.exposure, tokens)


@dataclass(frozen=True, slots=True)
class _Text:
    """Tasks and corpus before the teacher works; fields as in :class:`Material`, ``dev`` without agreement."""

    dev: tuple[Task, ...]
    test: tuple[Task, ...]
    kept_out: Mapping[str, str]
    exposure: tuple[Contamination, ...]
    corpus: Corpus


def _read_text(recipe: Recipe, before: Lineage | None) -> _Text:
    """Read tasks and corpus; what is wrong with them is said here, before the teacher works for hours."""
    say("reading tasks and corpus")
    dev, test, judged = _read_tasks(recipe)
    sets = {task: sets_fingerprint({task: judged[task]}) for task in judged}
    to_judge, to_choose = {task.id: sets[task.id] for task in test}, {task.id: judged[task.id].texts for task in dev}
    require_goes_on(recipe, before, test=to_judge, dev=to_choose)
    kept_out = kept_out_of_all(before, sets)
    exposure = teacher_overlap(recipe.eval.teacher_sources, recipe.data, recipe.cache_dir / "exposure", judged=judged)
    corpus = prepare_corpus(
        recipe.data,
        recipe.cache_dir / "corpora",
        seed=recipe.seed,
        prompt_name=recipe.teacher.prompt_name,
        judged=judged,
        learned=before.texts if before else None,
    )
    require_listed(corpus.sources, before)
    say(
        f"corpus {corpus.fingerprint}: {len(corpus.train):,} training and {len(corpus.validation):,} validation texts "
        f"in {len(corpus.languages)} languages"
    )
    alarms = [f"ALARM: {alarm}" for alarm in language_alarms(recipe, corpus, dev, test)]
    for line in [*idle_weights(recipe.data, corpus.languages), *alarms]:
        say(line)
    require_teachable(recipe.train, corpus, exits=recipe.student.exits, mined=recipe.data.mine_negatives > 0)
    shared = tuple(one for one in corpus.contamination if one.task in kept_out)
    return _Text(dev, test, kept_out, exposure, replace(corpus, contamination=shared))


def _read_tasks(recipe: Recipe) -> tuple[tuple[Task, ...], tuple[Task, ...], dict[str, JudgedSet]]:
    """Dev tasks but agreement, test tasks, and every set that training text must not overlap with, by task id."""
    load = partial(load_tasks, recipe.eval.data, languages=recipe.eval.languages, seed=recipe.seed)
    test = load(recipe.eval.test, min_rows=recipe.eval.min_rows)
    require_known(recipe.gate, test)
    excluded = scored_items(test) if recipe.eval.drop_shared else frozenset()
    most = recipe.eval.max_dev_rows
    dev = load(recipe.eval.dev, dev=True, max_rows=most, min_rows=min(recipe.eval.min_rows, most), excluded=excluded)
    check_disjoint(dev, test)
    _require_watched(recipe, dev)
    known = {task.id for task in (*dev, *test)}
    later = load_tasks(recipe.eval.data, recipe.eval.decontaminate, dev=True) if recipe.eval.decontaminate else ()
    kept_out = (*dev, *test, *(task for task in later if task.id not in known))
    judged = {task.id: JudgedSet(task.scored, task.texts) for task in kept_out}
    return dev, test, judged


def _require_watched(recipe: Recipe, dev: Sequence[Task]) -> None:
    """A mistyped task type would be found out at the first evaluation, after the teacher's hours."""
    agreement = {AGREEMENT_TYPE} if AGREEMENT in recipe.eval.dev else set()
    kinds = [task.type for task in dev]
    types = sorted({*kinds, *agreement, *(task.id for task in dev if kinds.count(task.type) > 1)})
    watched = {"best_metric": recipe.train.best_metric}
    if recipe.train.stop_patience is not None:
        watched["stop_metric"] = recipe.train.stop_metric
    for key, name in watched.items():
        known = name in ("dev", *types) or name.startswith("validation_")
        require(known, f"train.{key}", name, f"dev, a validation loss, or a type of eval.dev: {', '.join(types)}")


def language_alarms(recipe: Recipe, corpus: Corpus, dev: Sequence[Task], test: Sequence[Task]) -> list[Alarm]:
    """What is wrong with the languages of the text and of the tasks, known before the teacher has done anything."""
    dev_parts = [part.lang for task in dev for part in task.parts]
    named = {normalise_lang(lang) for lang in (*recipe.gate.languages, *recipe.eval.languages)}
    declared = {*named, *dev_parts, *(part.lang for task in test for part in task.parts)}
    if AGREEMENT in recipe.eval.dev:
        dev_parts.append(MIXED)
    return check_languages(corpus.languages, declared=declared, dev=set(dev_parts))


def _agreement(recipe: Recipe, corpus: Corpus, teacher: CachedTeacher, positions: NDArray[np.int64]) -> Task:
    """The dev task without labels, over validation texts of different vectors."""
    rows = _distinct(corpus, positions)[: recipe.eval.max_dev_rows]
    chosen = [corpus.validation[i] for i in rows]
    return agreement_task(
        [row.text for row in chosen],
        [row.lang for row in chosen],
        teacher.targets.store.take(positions[rows]),
        prompt_name=recipe.teacher.prompt_name,
        seed=recipe.seed,
    )


def _distinct(corpus: Corpus, positions: NDArray[np.int64]) -> list[int]:
    """Validation rows of different texts and vectors: a translation or its text, not both."""
    first: dict[str, int] = {}
    for i, row in enumerate(corpus.validation):
        first.setdefault(row.text, i)
    return list({int(positions[i]): i for i in first.values()}.values())


def _require_counted(config: StudentConfig, corpus: Corpus) -> None:
    """What the tokens are chosen by has to be there, before a teacher works for hours."""
    if config.vocab_text is not None:
        require(config.vocab_text.is_file(), "student.vocab_text", str(config.vocab_text), "a file of texts")
    absent = [lang for lang in config.vocab_languages if normalise_lang(lang) not in corpus.languages]
    require(not absent, "student.vocab_languages", absent, "languages of the corpus")


def _require_prompts(recipe: Recipe, teacher: ModelRef) -> None:
    """A mistyped prompt name would quietly mean no prompt for the whole corpus."""
    names = {"teacher.prompt_name": recipe.teacher.prompt_name}
    for i, source in enumerate(recipe.data.sources):
        key = f"data.sources[{i}]"
        names[f"{key}.prompt_name"] = source.prompt_name
        names[f"{key}.positive_prompt_name"] = source.positive_prompt_name
        names |= {f"{key}.roles[{j}]": role for j, role in enumerate(source.roles)}
        own = source.prompt_name or recipe.teacher.prompt_name
        good = own not in source.roles and len(set(source.roles)) == len(source.roles)
        require(good, f"{key}.roles", list(source.roles), f"prompts other than {own!r}, each once")
    for key, name in names.items():
        known = f"one of the prompts of {teacher.name}: {', '.join(teacher.prompts) or 'none'}"
        require(name is None or name in teacher.prompts, key, name, known)
