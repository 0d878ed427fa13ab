"""Watches a run while it trains: measures at each evaluation, rings the alarms, and ends a run that cannot succeed.

What is noted survives a resume: it goes into the trainer's own state before each checkpoint and is saved with it. The
trainer's ``ExportableState`` would build the callback again from JSON alone, which cannot hold the teacher's vectors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from leafembed.errors import StoppedError
from leafembed.learn.alarms import Alarm, Spread, below_floor, collapse, diagnosis, spread, stall, starved_rows
from leafembed.learn.causes import Start
from leafembed.learn.checkpoints import writing
from leafembed.learn.nonfinite import refuse_batch
from leafembed.learn.token_rows import TrainedRows
from leafembed.progress import say
from leafembed.recipe_learn import AlarmConfig
from leafembed.types import FloatArray

__all__ = ["ALARMS", "Watch", "Watched"]

ALARMS = "alarms.jsonl"
"""File of the alarms in the folder of the checkpoints, one a line."""

_STATE = "leafembed.watch"


@dataclass(frozen=True, slots=True)
class Watched:
    """What a student is watched by.

    Attributes:
        texts: Different validation texts as the student reads them, its prompts included; at least two.
        rows: Their numbers in the corpus, where validation rows follow the training rows.
        vectors: The teacher's vectors of them, ``(n_texts, dim)``, unit length.
        by_language: Texts by language, which tell what token rows it uses; may hold languages that ``texts`` lack.
        floor: Dev score of the static token table; ``None``: there is none.
        start: What the student starts from.
        known: Alarms from before training, said when they rang.
    """

    texts: Sequence[str]
    rows: Sequence[int]
    vectors: FloatArray
    by_language: Mapping[str, Sequence[str]]
    floor: float | None
    start: Start
    known: Sequence[Alarm] = ()

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.rows) == len(self.vectors):
            raise ValueError(
                f"got {len(self.texts)} texts, {len(self.rows)} rows and {len(self.vectors)} vectors, expected as many"
            )


class Watch(TrainerCallback):
    """Rings alarms at each evaluation; says them, keeps them and writes them to ``alarms.jsonl``.

    An alarm rings when its condition sets in and when it becomes fatal, not again while it lasts.

    Args:
        config: The recipe's ``[alarms]``.
        watched: What to look at.
        work_dir: Folder of the checkpoints.

    Attributes:
        alarms: Every alarm that rang, in order.
        history: Measurements by step: ``dev``, ``loss``, ``mean_cosine``, ``effective_rank``, and ``trained_rows`` (a
            share) where the token table learns.

    Raises:
        StoppedError: From ``on_evaluate``, when a fatal alarm rings before the last step and ``config.stop`` is set.
        NonFiniteError: When a validation vector is NaN or infinite; names step and rows, which are kept.
    """

    def __init__(self, config: AlarmConfig, watched: Watched, work_dir: Path) -> None:
        self.config = config
        self.watched = watched
        self.path = work_dir / ALARMS
        self.alarms = _read(self.path)  # where training was finished before, nothing rings again
        self.history: list[dict[str, Any]] = []
        self.teacher = spread(watched.vectors, what="the teacher's validation vectors")
        self._ringing: set[tuple[str, bool]] = set()
        self._rows = TrainedRows()
        self._before = 0.0
        self._start = time.perf_counter()
        self._precision = "fp32"

    def facts(self) -> dict[str, Any]:
        """What the manifest says of it: ``alarms`` and ``watch``, the measurements by step."""
        return {"alarms": [alarm.to_dict() for alarm in self.alarms], "watch": list(self.history)}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up what the checkpoint kept, or start anew."""
        self._precision = "bf16" if args.bf16 else "fp32"
        self._start = time.perf_counter()
        self._rows.attach(kwargs["model"], self.watched.by_language)
        kept = state.stateful_callbacks.get(_STATE)
        self.alarms, self.history, self._ringing = [], [], set()
        if kept is not None:
            self._restore(kept["attributes"])
        with writing(self.path.parent, "the alarms"):
            self.path.write_text("".join(json.dumps(one.to_dict()) + "\n" for one in self.alarms), encoding="utf-8")
        if kept is None:
            for alarm in self.watched.known:
                self._keep(alarm, state)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Measure, ring, and stop if the run cannot succeed."""
        step, model = int(state.global_step), kwargs["model"]
        vectors = _encode(model, self.watched.texts, bf16=args.bf16)
        self._require_finite(vectors, step)
        now = spread(vectors, what=f"validation vectors at step {step}")
        self._note(step, now, state.log_history, metrics or {})
        found = self._found(step, now)
        for alarm in found:
            if (alarm.name, alarm.fatal) not in self._ringing:
                self._ring(alarm, state)
        self._ringing = {(alarm.name, alarm.fatal) for alarm in found}
        self._store(state)
        if self.config.stop and step < state.max_steps and any(alarm.fatal for alarm in found):
            # With those that rang before a resume and still hold: the card says what is so at this step.
            alarms = [*self.alarms, *(alarm for alarm in found if alarm not in self.alarms)]
            raise StoppedError(diagnosis(alarms), alarms=alarms, training=self._training(step))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Store what the checkpoint of a run that is told to terminate would lack: no evaluation comes before it."""
        if control.should_save:
            self._store(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let go of the model; of training that was over before, take up what the last checkpoint kept."""
        self._rows.detach()
        kept = state.stateful_callbacks.get(_STATE)
        if kept is not None and not self.history:
            self._restore(kept["attributes"])

    def _require_finite(self, vectors: FloatArray, step: int) -> None:
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()
        if bad:
            watched = self.watched
            refuse_batch(
                f"the student's vectors hold NaN or infinity, the first for {watched.texts[bad[0]][:60]!r},",
                [watched.rows[i] for i in bad],
                step=step,
                work_dir=self.path.parent,
                texts=[watched.texts[i] for i in bad],
                held_out=True,
                arrays={"student": vectors[bad], "teacher": watched.vectors[bad]},
            )

    def _note(self, step: int, now: Spread, log: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> None:
        """Keep an evaluation, one for a step: a resumed run goes on after the step of its checkpoint."""
        self.history = [entry for entry in self.history if entry["step"] < step]
        last = self.history[-1]["step"] if self.history else -1
        losses = [entry["loss"] for entry in log if "loss" in entry and last < entry["step"] <= step]
        entry: dict[str, Any] = {"step": step, "mean_cosine": now.mean_cosine, "effective_rank": now.effective_rank}
        if losses:
            entry["loss"] = float(np.mean(losses))
        if "eval_dev_mean" in metrics:
            entry["dev"] = float(metrics["eval_dev_mean"])
        if self._rows.learn:
            entry["trained_rows"] = self._rows.overall
        self.history.append(entry)

    def _found(self, step: int, now: Spread) -> list[Alarm]:
        config, watched, number = self.config, self.watched, len(self.history) - 1
        found: list[Alarm | None] = []
        dev = [entry["dev"] for entry in self.history if "dev" in entry]
        if dev and watched.floor is not None:
            first = next((entry.get("dev") for entry in self.history if entry["step"] == 0), None)
            found.append(
                below_floor(dev[-1], watched.floor, step=step, evaluation=number, start=watched.start, first=first,
                            grace=config.grace_evaluations)
            )  # fmt: skip
        found.append(
            collapse(now, self.teacher, step=step, max_mean_cosine=config.max_mean_cosine,
                     min_effective_rank=config.min_effective_rank)
        )  # fmt: skip
        if self._rows.learn and number >= config.grace_evaluations:  # before that, few rows had their chance
            found.append(
                starved_rows(self._rows.by_language(), self._rows.overall, self._rows.count, step=step,
                             init=watched.start.init, minimum=config.min_trained_rows)
            )  # fmt: skip
        if len(dev) == len(self.history):
            losses = [entry.get("loss") for entry in self.history]
            found.append(stall(dev, losses, step=step, evaluations=config.stall_evaluations))
        return [alarm for alarm in found if alarm is not None]

    def _ring(self, alarm: Alarm, state: Any) -> None:
        say(f"ALARM: {alarm}")
        self._keep(alarm, state)

    def _keep(self, alarm: Alarm, state: Any) -> None:
        self.alarms.append(alarm)
        state.log_history.append({"step": alarm.step, "alarm": str(alarm)})  # for the view and the log
        with writing(self.path.parent, "the alarms"), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(alarm.to_dict()) + "\n")

    def _store(self, state: Any) -> None:
        state.stateful_callbacks[_STATE] = {"args": {}, "attributes": self._kept()}

    @property
    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._start

    def _kept(self) -> dict[str, Any]:
        return {
            "alarms": [alarm.to_dict() for alarm in self.alarms],
            "history": self.history,
            "ringing": sorted(self._ringing),
            "rows": self._rows.packed(),
            "seconds": self._seconds,
        }

    def _restore(self, kept: Mapping[str, Any]) -> None:
        self.alarms = [Alarm(**alarm) for alarm in kept["alarms"]]
        self.history = list(kept["history"])
        self._ringing = {(name, fatal) for name, fatal in kept["ringing"]}
        self._before = float(kept["seconds"])
        self._rows.restore(kept["rows"])

    def _training(self, step: int) -> dict[str, Any]:
        """What the card needs of training that stopped: a part of what ``train`` returns."""
        best = max(self.history, key=lambda entry: entry.get("dev", -np.inf))
        facts = {"steps": step, "best_step": best["step"], "seconds": self._seconds, "precision": self._precision}
        return {**facts, "history": list(self.history), **self.facts()}


def _encode(model: Any, texts: Sequence[str], *, bf16: bool) -> FloatArray:
    """Unit vectors ``(n_texts, dim)`` float32 of a model that is left in the mode it was in."""
    training = model.training
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
        output = model.encode(list(texts), batch_size=32, show_progress_bar=False, convert_to_tensor=True)
    model.train(training)
    vectors: FloatArray = output.float().cpu().numpy()
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: FloatArray = vectors / np.maximum(norms, np.float32(1e-12))
    return unit


def _read(path: Path) -> list[Alarm]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    alarms = []
    for line in lines:
        try:
            alarms.append(Alarm(**json.loads(line)))
        except ValueError:  # a kill or a full disk tore the last line; the checkpoint has it whole
            break
    return alarms
