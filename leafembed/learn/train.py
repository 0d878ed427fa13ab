"""Trains the student on sentence-transformers' trainer, judged by a scoring function while it learns.

``train`` is given the score to choose checkpoints by and knows nothing of how it is computed. The run is planned before
it starts (``batches.py``), so that one that was killed goes on from its newest checkpoint as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from leafembed.errors import CheckpointError, RecipeError, StoppedError
from leafembed.learn.batches import Plan, plan_batches, say_plan
from leafembed.learn.callbacks import Checkpoints, EarlyStop, History, OnHistory, Termination, Trim
from leafembed.learn.checkpoints import average, newest_checkpoint, read_seal, step_of, verified, writing
from leafembed.learn.evaluation import Evaluation, Score
from leafembed.learn.feed import Texts, count_tokens
from leafembed.learn.fused import fused
from leafembed.learn.history import best_evaluation, evaluated_steps, history, less_is_better, metric_key
from leafembed.learn.links import Links
from leafembed.learn.live import LiveView
from leafembed.learn.models import load_sentence_transformer, pick_device
from leafembed.learn.objectives import Objectives, Targets
from leafembed.learn.resume import train_from
from leafembed.learn.rounding import NO_BITS, Bits, bake_matrices, bake_rounding, round_reads
from leafembed.learn.smooth import SMOOTH_TEXTS, smooth
from leafembed.learn.teachable import require_teachable
from leafembed.learn.token_objective import UNIT_TEXTS, TokenObjective
from leafembed.learn.token_store import TokenTargets
from leafembed.learn.trainer import StudentTrainer, training_arguments
from leafembed.progress import say
from leafembed.recipe_learn import TrainConfig
from leafembed.types import Corpus

__all__ = ["TERMINATED", "reached", "train"]

TERMINATED = 143
"""Exit status of a run that was told to terminate: 128 + SIGTERM."""

_ROUNDED_TEXTS = 512
"""Held-out texts whose vectors are compared before and after the matrices are rounded."""


@dataclass(frozen=True, slots=True)
class _Setup:
    """What a run is made of, before the trainer."""

    model: SentenceTransformer
    texts: Texts
    plan: Plan
    objectives: Objectives
    evaluation: Evaluation
    arguments: Any


def train(  # noqa: PLR0913 - the one door into training
    initial: Path,
    corpus: Corpus,
    targets: Targets,
    score: Score,
    *,
    config: TrainConfig,
    seed: int,
    work_dir: Path,
    target: Path,
    exits: Sequence[int] = (),
    dims: Sequence[int] = (),
    bits: Bits = NO_BITS,
    tokens: TokenTargets | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    on_history: OnHistory | None = None,
) -> dict[str, Any]:
    """Train the student and save its best checkpoint as a sentence-transformers folder.

    Args:
        initial: Folder of the untrained student.
        corpus: Training and validation text; row numbers run over training rows, then validation rows.
        targets: Teacher vectors ``(n, dim)`` of row numbers ``(n,)``.
        score: Dev scores of a student by name; ``mean`` among them.
        config: The recipe's ``[train]``.
        seed: Seed of batch order and dropout.
        work_dir: Checkpoints, token counts and the log ``history.jsonl``.
        target: Folder to write.
        exits: Numbers of layers after which a vector is trained too.
        dims: Leading dimensions that are trained to stand alone.
        bits: What the student is rounded to.
        tokens: Teacher vectors of the rows' tokens; ``None``: only whole texts are compared.
        callbacks: Told of every event; ``on_evaluate`` gets all metrics. One that appends
            ``{"step": ..., "alarm": ...}`` to ``state.log_history`` has it logged, shown and reported.
        on_history: Called after each evaluation with the history so far and its best step.

    Returns:
        Facts for the manifest; :func:`_facts` names them.

    Raises:
        NonFiniteError: If an objective, gradient or score is NaN or infinite.
        CheckpointError: If a checkpoint cannot be written; the ones before stay good.
        SystemExit: With status 143 after SIGTERM, once a checkpoint is written.
    """
    learns = {"exits": tuple(exits), "dims": tuple(dims), "tokens": tokens}
    setup = _prepare(initial, corpus, targets, score, config=config, seed=seed, work_dir=work_dir, learns=learns)
    round_reads(setup.model, bits.table)
    checkpoint = newest_checkpoint(work_dir)
    before = read_seal(checkpoint)["seconds"] if checkpoint else 0.0
    termination, early = Termination(), EarlyStop(config)
    checkpoints = Checkpoints(before, config, termination, early)
    view = LiveView(setup.plan)
    log = History(work_dir / "history.jsonl", config.best_metric, on_history)
    # Termination before the others: they see in the same step that a checkpoint follows.
    trainer = _trainer(setup, [termination, early, *callbacks, log, checkpoints, Trim(), view])
    if trainer.args.world_size == 1:  # of several processes, the others would wait for one that left
        trainer.evaluator = termination.leaving(setup.evaluation)
    try:
        with termination.installed(), fused(setup.model, config.fused, tokens=int(setup.plan.tokens[-1])) as route:
            state = train_from(checkpoint, trainer, callbacks)
    except StoppedError:
        log.flush(trainer.state)  # the alarm that ended it came before the log had its turn
        raise
    finally:
        view.close()
    if termination.received:
        say(f"stopped by SIGTERM after step {state.global_step}, checkpoint written: the same command goes on from it")
        raise SystemExit(TERMINATED)
    chosen, choice = _choose(setup, state, work_dir, config)
    held_out = [setup.texts.text(len(corpus.train) + i) for i in range(len(corpus.validation))]
    smooth(chosen, held_out[:SMOOTH_TEXTS])
    bake_rounding(chosen, bits.table)
    rounded = bake_matrices(chosen, bits.matrices, held_out[-_ROUNDED_TEXTS:])
    with writing(work_dir, "the student", anything=True):
        chosen.save_pretrained(str(target), create_model_card=False, safe_serialization=True)
    facts = {"seconds": checkpoints.seconds, "fused": route} | ({} if rounded is None else {"rounded": rounded})
    return _facts(setup, state, config) | choice | facts


def _prepare(
    initial: Path,
    corpus: Corpus,
    targets: Targets,
    score: Score,
    *,
    config: TrainConfig,
    seed: int,
    work_dir: Path,
    learns: Mapping[str, Any],
) -> _Setup:
    require_teachable(config, corpus, exits=learns["exits"])
    device = pick_device()
    model = load_sentence_transformer(initial, device=device)
    _freeze(model, config)
    if config.gradient_checkpointing:
        _checkpoint_gradients(model)
    texts = Texts(corpus, dict(model.prompts))
    lengths = count_tokens(texts, model, work_dir / "tokens.npy")
    linked = config.contrastive > 0 or config.triplet > 0
    links = Links.of(corpus.train) if linked else None
    arguments = training_arguments(config, seed=seed, work_dir=work_dir, device=device)
    reads = model.max_seq_length if isinstance(model.max_seq_length, int) else None
    plan = plan_batches(lengths[: len(corpus.train)], links, config=config, limit=reads, seed=seed,
                        processes=int(arguments.world_size))  # fmt: skip
    arguments.max_steps = plan.steps
    say_plan(plan, config, reads)
    learns = {**learns, "tokens": _compares_tokens(model, learns["tokens"], texts)}
    objectives = Objectives(model, targets, config, links=links, **learns)
    held_out = Links.of(corpus.validation)
    watched = Objectives(model, targets, config, links=held_out.after(len(corpus.train)), every=True, **learns)
    longest = int(plan.limits.max())
    evaluation = Evaluation(score, watched, texts, links=held_out, lengths=lengths, limit=longest, work_dir=work_dir)
    return _Setup(model, texts, plan, objectives, evaluation, arguments)


def _compares_tokens(model: Any, tokens: TokenTargets | None, texts: Texts) -> TokenObjective | None:
    if tokens is None:
        return None
    first = len(texts.corpus.train)
    evenly = np.unique(np.linspace(0, first - 1, UNIT_TEXTS).astype(np.int64))
    return TokenObjective(model, tokens, texts.__getitems__([(i, 0) for i in evenly.tolist()]))


def _trainer(setup: _Setup, callbacks: Sequence[TrainerCallback]) -> StudentTrainer:
    trainer = StudentTrainer(
        plan=setup.plan,
        texts=setup.texts,
        objectives=setup.objectives,
        model=setup.model,
        args=setup.arguments,
        evaluator=setup.evaluation,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _choose(
    setup: _Setup, state: TrainerState, work_dir: Path, config: TrainConfig
) -> tuple[SentenceTransformer, dict[str, Any]]:
    """The best checkpoint, or the mean of the last ones if that is better, and what the choice rests on."""
    kept = {step_of(path): path for path in verified(work_dir)}
    best = best_evaluation([entry for entry in state.log_history if entry["step"] in kept], config.best_metric)
    if best is None:
        raise CheckpointError(f"{work_dir}: no checkpoint was kept; expected one every {config.eval_steps} steps")
    final: Mapping[str, Any] = best
    chosen = load_sentence_transformer(kept[int(best["step"])])
    averaged: dict[str, Any] | None = None
    if config.average_checkpoints > 1:
        key, sign = metric_key(config.best_metric), -1 if less_is_better(config.best_metric) else 1
        evaluated = [step for step in evaluated_steps(state.log_history) if step in kept]
        steps = evaluated[-config.average_checkpoints :]
        average(setup.model, [kept[step] for step in steps])
        metrics = {f"eval_{name}": value for name, value in setup.evaluation(setup.model, steps=steps[-1]).items()}
        better = sign * metrics[key] > sign * best[key]
        averaged = {"steps": steps, "value": metrics[key], "best": best[key], "kept": better}
        say(f"mean of the checkpoints of steps {steps}: {config.best_metric} {metrics[key]:.4f}, "
            f"{'kept' if better else 'not kept'} (best step {best['step']}: {best[key]:.4f})")  # fmt: skip
        if better:
            chosen, final = setup.model.cpu(), metrics
    losses = {name.removeprefix("eval_"): value for name, value in final.items()
              if name.startswith("eval_validation_")}  # fmt: skip
    return chosen.eval(), {
        "best_step": int(best["step"]),
        "best_metric": config.best_metric,
        "averaged": averaged,
        "final": losses,
        "targets": reached(config.targets, losses),
    }


def reached(limits: Mapping[str, float], losses: Mapping[str, float]) -> list[dict[str, Any]]:
    """How validation losses stand to ``train.targets``: ``name``, ``limit``, ``value`` and ``reached`` of each.

    Args:
        limits: Largest value of a loss, by its name, ``validation_...``.
        losses: Every loss that was measured, by the same names.
    """
    return [
        {"name": name, "limit": limit, "value": losses[name], "reached": losses[name] <= limit}
        for name, limit in limits.items()
    ]


def _facts(setup: _Setup, state: TrainerState, config: TrainConfig) -> dict[str, Any]:
    """What was done.

    ``steps``; ``planned_steps``, more where it ended early; ``texts`` and ``tokens`` seen; ``precision``; ``history``
    (``history.py``). :func:`_choose` adds ``best_step``, ``best_metric``, ``averaged``, ``final`` (validation
    losses of what was chosen) and ``targets``.
    """
    steps = int(state.global_step)
    return {
        "steps": steps,
        "planned_steps": setup.plan.steps,
        "texts": setup.plan.texts_until(steps),
        "tokens": setup.plan.tokens_until(steps),
        "precision": "bf16" if setup.arguments.bf16 else "fp32",
        "history": history(state.log_history),
    }


def _freeze(model: Any, config: TrainConfig) -> None:
    if config.freeze_token_table is not False and hasattr(model[0], "auto_model"):
        model[0].auto_model.get_input_embeddings().weight.requires_grad_(False)


def _checkpoint_gradients(model: Any) -> None:
    """Let each layer compute its activations again in the backward pass."""
    body = getattr(model[0], "auto_model", None)
    if body is None or not body.supports_gradient_checkpointing:
        raise RecipeError(f"train.gradient_checkpointing: {type(body).__name__} cannot; set it to false")
    options = {"use_reentrant": False}
    if hasattr(body, "activation_checkpointing_enable"):  # transformers 5.23 and later
        body.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        body.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
