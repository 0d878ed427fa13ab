"""Trains the student on sentence-transformers' trainer, judged by a scoring function while it learns.

``train`` is given the score to choose checkpoints by and knows nothing of how it is computed. Checkpoints count only
when their marker is there, which is written last; a killed run goes on from the newest that has one.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from leafembed.errors import ModelError, NonFiniteError
from leafembed.learn.batches import LengthSortedBatches
from leafembed.learn.losses import DistillationLoss
from leafembed.learn.models import has_bf16, load_sentence_transformer, pick_device
from leafembed.progress import progress, say
from leafembed.recipe_learn import TrainConfig
from leafembed.types import Corpus, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MARKER", "newest_checkpoint", "train"]

MARKER = "complete.json"
"""File that makes a checkpoint count; written after all others."""


def train(  # noqa: PLR0913 - one keyword for each thing that a caller decides
    initial: Path,
    corpus: Corpus,
    targets: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    score: Callable[[SentenceTransformer], Mapping[str, float]],
    *,
    config: TrainConfig,
    seed: int,
    work_dir: Path,
    target: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train the student and save its best checkpoint as a sentence-transformers folder.

    Args:
        initial: Folder of the untrained student.
        corpus: Training and validation rows; row numbers run over training rows, then validation rows.
        targets: Teacher vectors ``(n, dim)`` of row numbers ``(n,)``.
        score: Dev scores of a student by name; ``mean`` among them chooses the checkpoint.
        config: The recipe's ``[train]``.
        seed: Seed of batch order and dropout.
        work_dir: Checkpoints and the log ``history.jsonl``.
        target: Folder to write.
        callbacks: Further callbacks of the trainer.

    Returns:
        ``steps``, ``best_step``, ``seconds``, ``precision`` and ``history``, a list of what was measured by step.

    Raises:
        NonFiniteError: If a loss, gradient or score is NaN or infinite.
    """
    device = pick_device()
    model = load_sentence_transformer(initial, device=device)
    full_length = model.max_seq_length
    if isinstance(full_length, int):
        model.max_seq_length = min(config.max_seq_length, full_length)
    _freeze(model, config)
    bf16 = has_bf16(config.precision, device)
    checkpoint = newest_checkpoint(work_dir)
    before = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["seconds"] if checkpoint else 0.0
    marker = _Marker(before)
    trainer = _Trainer(
        model=model,
        args=_arguments(config, seed=seed, bf16=bf16, work_dir=work_dir, device=device),
        train_dataset=_dataset(corpus.train, 0, model.prompts),
        eval_dataset=_dataset(corpus.validation, len(corpus.train), model.prompts),
        loss=DistillationLoss(model, targets, config),
        evaluator=_Score(score),
        callbacks=[_Finite(), _Log(work_dir / "history.jsonl"), marker, _Bar(config.batch_size), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    state = _train_from(checkpoint, trainer)
    best = work_dir / Path(str(state.best_model_checkpoint or "none")).name  # work_dir may have moved since
    if not (best / MARKER).is_file():
        raise ModelError(f"{work_dir}: no checkpoint was kept; expected one every {config.eval_steps} steps")
    chosen = load_sentence_transformer(best)
    if isinstance(full_length, int):
        chosen.max_seq_length = full_length
    chosen.save_pretrained(str(target), create_model_card=False, safe_serialization=True)
    return {
        "steps": int(state.global_step),
        "best_step": int(best.name.rpartition("-")[2]),
        "seconds": marker.seconds,
        "precision": "bf16" if bf16 else "fp32",
        "history": _history(state.log_history),
    }


def newest_checkpoint(work_dir: Path) -> Path | None:
    """The newest complete checkpoint; unfinished ones are removed."""
    found = set(work_dir.glob("checkpoint-*"))
    complete = {path for path in found if (path / MARKER).is_file()}
    for path in found - complete:
        shutil.rmtree(path)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _train_from(checkpoint: Path | None, trainer: Any) -> Any:
    """Train to the end and return the trainer's record: steps, log and best checkpoint."""
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= state.max_steps:  # the trainer would take one step more
            return state
        say(f"training goes on from {checkpoint.name}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer.state


class _Trainer(SentenceTransformerTrainer):
    """The stock trainer without its model card: ours is rendered from measurements."""

    def add_model_card_callback(self, default_args_dict: Any) -> None:
        pass


class _Score(BaseEvaluator):
    """Lets the trainer call our scoring function."""

    def __init__(self, score: Callable[[SentenceTransformer], Mapping[str, float]]) -> None:
        super().__init__()
        self.score = score

    def __call__(self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1) -> Any:
        training = model.training
        scores = dict(self.score(model.eval()))
        model.train(training)
        return {f"dev_{name}": value for name, value in scores.items()}


class _Finite(TrainerCallback):
    """Raises where a logged loss, gradient norm or score is not a number."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for name, value in (logs or {}).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise NonFiniteError(f"{name} is {value} at step {state.global_step}; lower train.learning_rate")


class _Log(TrainerCallback):
    """Appends every log line to ``history.jsonl``, from the state's own record, so that a resume repeats nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        lines = [json.dumps(entry) + "\n" for entry in state.log_history]
        self.path.write_text("".join(lines), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        entry = state.log_history[-1]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if "eval_dev_mean" in entry:
            say(f"step {state.global_step}: dev {entry['eval_dev_mean']:.4f}, validation loss {entry['eval_loss']:.4f}")


class _Marker(TrainerCallback):
    """Marks a checkpoint as complete once the trainer has written all of it, with the training time so far."""

    def __init__(self, before: float) -> None:
        self.start = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        """Seconds of training over all sittings that led here."""
        return time.perf_counter() - self.start

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The rate has decayed to 0 here, so the last step is usually the best: it is judged and kept like the others.
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the new checkpoint; only then drop those that are neither the newest nor the best."""
        folder = Path(args.output_dir)
        newest = folder / f"checkpoint-{state.global_step}"
        (newest / MARKER).write_text(json.dumps({"seconds": self.seconds}), encoding="utf-8")
        kept = {newest.name, Path(str(state.best_model_checkpoint)).name}
        for path in folder.glob("checkpoint-*"):
            if path.name not in kept:
                (path / MARKER).unlink(missing_ok=True)  # first: half a checkpoint must not pass for a whole one
                shutil.rmtree(path)


class _Bar(TrainerCallback):
    """Shows training on the terminal, from the first step on: the evaluation before it is not training."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.bar: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is None:
            done = state.global_step * self.batch_size
            self.bar = progress("training", state.max_steps * self.batch_size, "texts", done=done)
            self.advance = self.bar.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(self.batch_size)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.__exit__(None, None, None)


def _arguments(config: TrainConfig, *, seed: int, bf16: bool, work_dir: Path, device: str) -> Any:
    return SentenceTransformerTrainingArguments(
        output_dir=str(work_dir),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        bf16=bf16,
        use_cpu=device == "cpu",
        seed=seed,
        data_seed=seed,
        batch_sampler=LengthSortedBatches,
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        eval_on_start=True,
        save_strategy="steps",
        save_steps=config.eval_steps,
        load_best_model_at_end=True,
        metric_for_best_model="eval_dev_mean",
        greater_is_better=True,
        logging_steps=max(1, min(50, config.eval_steps // 5)),
        logging_nan_inf_filter=False,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )


def _dataset(rows: Sequence[Row], start: int, prompts: Mapping[str, str]) -> Any:
    """Texts with the student's own prompts, and row numbers as labels."""
    from datasets import Dataset

    texts = [prompts.get(row.prompt_name or "", "") + row.text for row in rows]
    return Dataset.from_dict({"sentence": texts, "label": list(range(start, start + len(rows)))})


def _freeze(model: Any, config: TrainConfig) -> None:
    if config.freeze_token_table and hasattr(model[0], "auto_model"):
        model[0].auto_model.get_input_embeddings().weight.requires_grad_(False)


def _history(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The trainer's log as one entry a step: losses of training, losses and scores of evaluation."""
    steps: dict[int, dict[str, Any]] = {}
    for entry in log:
        item = steps.setdefault(int(entry["step"]), {"step": int(entry["step"])})
        for name in ("loss", "distillation", "alignment", "learning_rate", "grad_norm", "eval_loss"):
            if name in entry:
                item[name] = float(entry[name])
        scores = {name.removeprefix("eval_dev_"): v for name, v in entry.items() if name.startswith("eval_dev_")}
        if scores:
            item["dev"] = float(scores.pop("mean"))
            item["dev_tasks"] = scores
    return [item for _, item in sorted(steps.items()) if len(item) > 1]
