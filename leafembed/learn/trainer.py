"""sentence-transformers' trainer on a planned run: its batches, its unweighted log, its refusal of NaN."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from leafembed.errors import StoppedError
from leafembed.learn.batches import Plan
from leafembed.learn.checkpoints import writing
from leafembed.learn.feed import Collator, PlannedBatches, Texts
from leafembed.learn.history import less_is_better, metric_key
from leafembed.learn.models import has_bf16
from leafembed.learn.nonfinite import refuse_batch
from leafembed.learn.objectives import Objectives
from leafembed.learn.trackers import require_trackers
from leafembed.recipe_learn import OBJECTIVES, TrainConfig

__all__ = ["StudentTrainer", "training_arguments"]

_MOST_WORKERS = 12
"""Processes that tokenise for a GPU."""


class StudentTrainer(SentenceTransformerTrainer):
    """The stock trainer with our plan for its batches; one pass over the plan is the whole run.

    Args:
        plan: Every forward pass.
        texts: Where the plan's rows are read.
        objectives: What is minimised.
        options: What the stock trainer takes.
    """

    def __init__(self, *, plan: Plan, texts: Texts, objectives: Objectives, **options: Any) -> None:
        self.loss: Any = objectives
        self.plan = plan
        self.texts = texts
        self.sums = torch.zeros(len(OBJECTIVES), 2, dtype=torch.float64)
        self.seen: list[tuple[Tensor, Tensor]] = []
        collator = Collator(options["model"], ends=objectives.tokens is not None)
        super().__init__(loss=objectives, data_collator=collator, **options)
        self.add_callback(_Gradients(self))

    def add_model_card_callback(self, default_args_dict: Any) -> None:
        """Leave the model card out: ours is rendered from measurements."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The plan from its first batch; the trainer skips what a resumed run has seen."""
        self.accelerator.even_batches = False
        loader: DataLoader[Any] = DataLoader(
            self.texts,
            batch_sampler=PlannedBatches(self.plan, self.args.train_batch_size),
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # or each pass would draw from the generator that dropout uses
            **_workers(self.args.device.type),
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum; the unweighted objectives are kept for the log.

        Raises:
            NonFiniteError: If an objective is NaN or infinite.
        """
        if model is self.model_wrapped and self.loss.model is not model:  # wrapped for several processes
            self.loss = self.override_model_in_loss(self.loss, model)
        features, labels = self.collect_features(inputs)
        self.seen.append((labels, features[0]["input_ids"]))
        total, parts = self.loss(features, labels)
        values = torch.stack([value.detach().double() for value in parts.values()]).cpu() if parts else torch.zeros(0)
        for name, value in zip(parts, values.tolist(), strict=True):
            if not np.isfinite(value):
                self.refuse(f"the {name} loss is {value}", self.seen[-1:])
            self.sums[OBJECTIVES.index(name)] += torch.tensor([value, 1.0], dtype=torch.float64)
        return (total, {}) if return_outputs else total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with each objective's mean since the last training log."""
        if "loss" in logs:
            sums = self.accelerator.reduce(self.sums.to(self.args.device), "sum").cpu()
            self.sums.zero_()
            means = {name: float(s / n) for name, (s, n) in zip(OBJECTIVES, sums.tolist(), strict=True) if n}
            logs = {**logs, **means}
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; trackers get the number of alarms so far when one has rung."""
        rung = self._alarms()
        try:
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        except StoppedError:
            with suppress(Exception):  # a tracker that fails must not hide why the run stopped
                self._log_alarms()
            raise
        if self._alarms() > rung or (rung and not self.state.global_step):
            self._log_alarms()
        return metrics

    def _log_alarms(self) -> None:
        self.log({"eval_alarms": float(self._alarms())})

    def _alarms(self) -> int:
        return sum("alarm" in entry for entry in self.state.log_history)

    def refuse(self, what: str, batches: list[tuple[Tensor, Tensor]]) -> NoReturn:
        """Keep the offending batches and raise.

        Raises:
            NonFiniteError: Always; names step, rows and where the batches lie.
        """
        rows = np.concatenate([labels.cpu().numpy() for labels, _ in batches])
        ids = {f"input_ids_{i}": ids.cpu().numpy() for i, (_, ids) in enumerate(batches)}
        refuse_batch(
            what,
            rows,
            step=int(self.state.global_step) + 1,
            work_dir=Path(self.args.output_dir),
            texts=[self.texts.text(int(row)) for row in rows],
            held_out=False,
            arrays={**ids, "teacher": self.loss.targets(rows)},
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Weights and tokenizer, without the pickled arguments that the stock trainer adds."""
        self.model.save_pretrained(str(output_dir or self.args.output_dir), create_model_card=False)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with writing(Path(self.args.output_dir), f"the checkpoint of step {self.state.global_step}", anything=True):
            super()._save_checkpoint(model, trial)


def _workers(device: str) -> dict[str, Any]:
    """Options of a loader that keeps up with the device: one tokenising thread cannot feed a GPU.

    Texts are tokenised in processes of their own, a text at a time in each; the order of batches stays the plan's.
    """
    count = min(_MOST_WORKERS, (os.cpu_count() or 1) - 1)
    if device == "cpu" or count < 1:
        return {}
    return {"num_workers": count, "prefetch_factor": 8, "worker_init_fn": _quiet_tokenizer}


def _quiet_tokenizer(worker: int) -> None:
    os.putenv("TOKENIZERS_PARALLELISM", "false")  # read outside Python; threads do not survive the fork


class _Gradients(TrainerCallback):
    """Raises before a step whose gradient is NaN or infinite; clipping has made NaN of either."""

    def __init__(self, trainer: StudentTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not np.isfinite(norm):
            self.trainer.refuse(f"the gradient norm is {norm}", self.trainer.seen)
        self.trainer.seen.clear()


def training_arguments(config: TrainConfig, *, seed: int, work_dir: Path, device: str) -> Any:
    """What the stock trainer takes from the recipe's ``[train]``; of several GPUs one is used.

    The stock trainer would copy the student to each (``nn.DataParallel``), and hooks on its layers stay with the first.
    """
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work_dir),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        warmup_steps=config.warmup_steps,
        optim="adamw_torch_fused",
        num_train_epochs=1,  # the plan is one pass
        bf16=has_bf16(config.precision, device),
        use_cpu=device == "cpu",
        seed=seed,
        data_seed=seed,
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        eval_on_start=True,
        save_strategy="steps",
        save_steps=config.eval_steps,
        metric_for_best_model=metric_key(config.best_metric),
        greater_is_better=not less_is_better(config.best_metric),
        logging_steps=max(1, min(50, config.eval_steps // 5)),
        logging_nan_inf_filter=False,
        dataloader_pin_memory=False,
        report_to=require_trackers(config.report_to) or "none",
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
