"""Trains a tiny student in processes that can be killed: ``python killable.py ROOT STEPS [SECONDS ...]``.

Everything is imported once; each sitting is a fork, so that a kill costs no import. For each number there is a sitting
that is killed so many seconds after it sealed its first checkpoint, so that each gets somewhere however slow the
machine is; the last one runs to the end. Each dev evaluation takes ``PAUSE`` seconds more, so that no machine is
fast enough to end before it is killed. Prints a JSON line a sitting: the newest sealed checkpoint when it began and
when it ended, and the last step that it had logged.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from families import bert, toy_texts

from leafembed.learn.checkpoints import complete, step_of
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.student import Sample, init_student
from leafembed.learn.teacher import load_teacher
from leafembed.learn.token_pass import embed_tokens
from leafembed.learn.token_store import TokenStore, TokenTargets
from leafembed.learn.train import train
from leafembed.recipe_learn import Phase, StudentConfig, TeacherConfig, TrainConfig
from leafembed.types import Corpus, Row

TRAIN, VALIDATION = 96, 16
PAUSE = 0.3
PREPARED = ("untrained", "vectors.npy", "places.npy", "tokens")
CONFIG = TrainConfig(
    max_steps=24,
    batch_size=8,
    gradient_accumulation=2,
    curriculum=(Phase(tokens=8, share=0.5), Phase(tokens=64, share=0.5)),
    eval_steps=3,
    warmup_steps=2,
    learning_rate=3e-3,
    contrastive=0.1,
    token_distillation=0.3,
    precision="fp32",
)


def prepare(root: Path) -> None:
    """Write the untrained student and the teacher's vectors, of texts and of their tokens."""
    folder = bert(root / "teacher", hidden_dropout_prob=0.1)
    teacher = load_sentence_transformer(folder)
    texts = toy_texts(TRAIN + VALIDATION, words=(2, 14))
    cached, _ = load_teacher(TeacherConfig(model=str(folder), precision="fp32"), root / "cache")
    _, places = embed_tokens(cached, root / "tokens", _rows(texts))
    np.save(root / "places.npy", places)
    vectors = teacher.encode(texts)
    np.save(root / "vectors.npy", vectors)
    init_student(StudentConfig(layers=(0, 1)), teacher, Sample(texts, vectors), root / "untrained")


def _rows(texts: list[str]) -> tuple[Row, ...]:
    return tuple(Row(text, text[:2], pair=i - 1 if i % 4 == 1 else None) for i, text in enumerate(texts))


def sit(root: Path, work: Path, config: TrainConfig = CONFIG, *, pause: float = 0, **options):
    """One sitting; returns the facts when it comes to its end."""
    texts = toy_texts(TRAIN + VALIDATION, words=(2, 14))
    train_rows, held_out = _rows(texts[:TRAIN]), _rows(texts[TRAIN:])
    vectors, places = np.load(root / "vectors.npy"), np.load(root / "places.npy")

    def score(model):
        time.sleep(pause)
        found = model.encode(texts[TRAIN:])
        return {"mean": float(np.sum(found * vectors[TRAIN:], axis=1).mean())}

    work.mkdir(parents=True, exist_ok=True)
    return train(root / "untrained", Corpus(train_rows, held_out, {}, "f"), lambda index: vectors[index], score,
                 config=config, seed=3, work_dir=work, target=work.parent / "student", exits=(1,), dims=(16,),
                 tokens=TokenTargets(TokenStore(root / "tokens", vectors.shape[1]), places), **options)  # fmt: skip


def newest(work: Path) -> int:
    return max(map(step_of, complete(work)), default=0)


def _logged(work: Path) -> int:
    """The last step in the log, whose last line a kill may have cut."""
    try:
        lines = (work / "history.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines), default=0)


def _await_checkpoint(work: Path, child: int, began: int) -> None:
    """Wait until there is a newer checkpoint than when the sitting began, or it is over."""
    while newest(work) == began:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.005)


def main() -> None:
    root, steps, waits = Path(sys.argv[1]), int(sys.argv[2]), [float(value) for value in sys.argv[3:]]
    work = root / "killed" / "work"
    for wait in [*waits, None]:
        began = newest(work)
        child = os.fork()
        if child == 0:
            facts = sit(root, work, dataclasses.replace(CONFIG, max_steps=steps), pause=PAUSE)
            (root / "killed" / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
            os._exit(0)
        if wait is not None:
            _await_checkpoint(work, child, began)
            time.sleep(wait)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        sitting = {"began": began, "left": newest(work), "at": _logged(work), "killed": os.WIFSIGNALED(status)}
        sys.stdout.write(json.dumps(sitting) + "\n")
        sys.stdout.flush()
        if not os.WIFSIGNALED(status):
            assert status == 0
            break


if __name__ == "__main__":
    main()
