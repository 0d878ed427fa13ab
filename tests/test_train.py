from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import shutil
import time

import numpy as np
import pytest
import torch
from families import bert, toy_texts
from transformers import TrainerCallback

from leafembed.errors import MissingExtraError, NonFiniteError, RecipeError, StoppedError
from leafembed.learn.callbacks import Termination
from leafembed.learn.checkpoints import MARKER, newest_checkpoint
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.student import Sample, init_student
from leafembed.learn.train import train
from leafembed.recipe_learn import StudentConfig, TrainConfig
from leafembed.types import Corpus, Row

TRAIN, VALIDATION = 72, 16
CONFIG = TrainConfig(
    max_steps=12, batch_size=16, eval_steps=3, warmup_steps=2, learning_rate=3e-3, precision="fp32"
)  # 72 texts in batches of 16 make 5 steps a pass: 12 steps are more than two passes


class Stop(Exception):
    """Stands for a kill: whatever was written so far is what the next run finds."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Folder of an untrained student, corpus and teacher vectors."""
    root = tmp_path_factory.mktemp("train")
    # With dropout, so that a resumed run must go on with the random numbers where it stopped.
    teacher = load_sentence_transformer(bert(root / "teacher", hidden_dropout_prob=0.1))
    texts = toy_texts(TRAIN + VALIDATION)
    vectors = teacher.encode(texts)
    init_student(StudentConfig(layers=(0,)), teacher, Sample(texts, vectors), root / "student")
    rows = tuple(Row(text, text[:2]) for text in texts)
    return root / "student", Corpus(rows[:TRAIN], rows[TRAIN:], {}, "f" * 16), vectors


def go(start, root, *, stop_at=None, config=CONFIG, vectors=None, **options):
    """Train below ``root``; raise ``Stop`` at the dev evaluation of that number."""
    initial, corpus, targets = start
    targets = targets if vectors is None else vectors
    evaluations = []

    def score(model):
        assert not model.training
        evaluations.append(model)
        if len(evaluations) - 1 == stop_at:
            raise Stop
        held_out = [row.text for row in corpus.validation]
        return {"mean": float(np.sum(model.encode(held_out) * targets[TRAIN:], axis=1).mean()), "STS": 0.5}

    (root / "work").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(root / "student", ignore_errors=True)
    facts = train(initial, corpus, lambda rows: targets[rows], score, config=config, seed=1, work_dir=root / "work",
                  target=root / "student", **options)  # fmt: skip
    return facts, len(evaluations)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """An uninterrupted run: its folder and what it reported."""
    root = tmp_path_factory.mktemp("whole")
    return root, go(start, root)[0]


def weights(folder):
    return {name: value.numpy() for name, value in load_sentence_transformer(folder).state_dict().items()}


def losses(facts):
    return {entry["step"]: entry["loss"] for entry in facts["history"] if "loss" in entry}


def test_training_lowers_the_loss_and_raises_the_dev_score(whole):
    facts = whole[1]
    found = losses(facts)
    assert list(found)[-1] == 12
    assert found[12] < 0.8 * found[min(found)]
    dev = {entry["step"]: entry["dev"] for entry in facts["history"] if "dev" in entry}
    assert list(dev) == [0, 3, 6, 9, 12]
    assert dev[12] > dev[0]


def test_history_names_the_parts_of_the_loss_and_the_dev_tasks(whole):
    history = whole[1]["history"]
    assert history == sorted(history, key=lambda entry: entry["step"])
    first, last = history[0], history[-1]
    assert (first["step"], first["dev_tasks"]) == (0, {"STS": 0.5})
    assert {"step", "loss", "distillation", "alignment", "learning_rate", "dev", "dev_tasks"} <= last.keys()
    assert last["loss"] == pytest.approx(last["distillation"] + 0.1 * last["alignment"], rel=1e-5)
    measured = {"loss", "distillation", "alignment", "near_alignment"}
    assert measured == first["validation"].keys() == last["validation"].keys()
    assert last["validation"]["alignment"] < first["validation"]["alignment"]
    assert json.loads(json.dumps(history)) == history


def test_the_best_checkpoint_by_dev_score_is_what_is_kept(whole, start, tmp_path):
    root, facts = whole
    dev = {entry["step"]: entry["dev"] for entry in facts["history"] if "dev" in entry}
    assert facts["best_step"] == max((step for step in dev if step), key=dev.get)
    kept = root / "work" / f"checkpoint-{facts['best_step']}"
    ours = weights(root / "student")
    assert all(np.array_equal(value, ours[name]) for name, value in weights(kept).items())


def test_an_early_peak_beats_the_last_step(start, tmp_path):
    initial, corpus, targets = start
    scores = iter([0.1, 0.2, 0.9, 0.3, 0.4])
    (tmp_path / "work").mkdir()
    facts = train(initial, corpus, lambda rows: targets[rows], lambda _: {"mean": next(scores)}, config=CONFIG, seed=1,
                  work_dir=tmp_path / "work", target=tmp_path / "student")  # fmt: skip
    assert facts["best_step"] == 6
    ours = weights(tmp_path / "student")
    best = weights(tmp_path / "work" / "checkpoint-6")
    last = weights(tmp_path / "work" / "checkpoint-12")
    assert all(np.array_equal(value, ours[name]) for name, value in best.items())
    assert any(not np.array_equal(value, ours[name]) for name, value in last.items())


def test_the_last_step_is_judged_and_kept_though_it_is_no_multiple(start, tmp_path):
    config = TrainConfig(max_steps=5, batch_size=16, eval_steps=2, warmup_steps=0, learning_rate=3e-3, precision="fp32")
    facts, _ = go(start, tmp_path, config=config)
    assert [entry["step"] for entry in facts["history"] if "dev" in entry] == [0, 2, 4, 5]
    assert (tmp_path / "work" / "checkpoint-5" / MARKER).is_file()


def test_the_token_table_is_frozen_unless_asked(start, whole, tmp_path):
    name = next(key for key in weights(start[0]) if key.endswith("word_embeddings.weight"))
    assert np.array_equal(weights(whole[0] / "student")[name], weights(start[0])[name])
    free = TrainConfig(max_steps=2, batch_size=16, eval_steps=2, freeze_token_table=False, precision="fp32")
    go(start, tmp_path, config=free)
    assert not np.array_equal(weights(tmp_path / "student")[name], weights(start[0])[name])


def test_a_run_cut_short_goes_on_from_its_checkpoint_to_the_same_student(start, whole, tmp_path):
    with pytest.raises(Stop):
        go(start, tmp_path, stop_at=3)  # at step 9, in the second pass, after the checkpoint of step 6
    work = tmp_path / "work"
    assert newest_checkpoint(work).name == "checkpoint-6"
    # A kill while a checkpoint is written leaves one without its marker.
    shutil.copytree(work / "checkpoint-6", work / "checkpoint-9")
    (work / "checkpoint-9" / MARKER).unlink()
    facts, evaluations = go(start, tmp_path)
    assert evaluations <= 3
    assert facts["steps"] == 12
    assert (facts["best_step"], losses(facts).keys()) == (whole[1]["best_step"], losses(whole[1]).keys())
    assert losses(facts)[12] == pytest.approx(losses(whole[1])[12], abs=1e-4)
    expected = weights(whole[0] / "student")
    for name, value in weights(tmp_path / "student").items():
        assert np.allclose(value, expected[name], atol=1e-4), name


def test_finished_training_is_not_repeated(start, whole, tmp_path):
    shutil.copytree(whole[0] / "work", tmp_path / "work")
    facts, evaluations = go(start, tmp_path)
    assert evaluations == 0
    assert facts["steps"] == 12
    assert losses(facts) == losses(whole[1])
    expected = weights(whole[0] / "student")
    assert all(np.array_equal(value, expected[name]) for name, value in weights(tmp_path / "student").items())


def changed(**settings):
    return dataclasses.replace(CONFIG, **settings)


def scored(start, root, scores, *, config=CONFIG, **options):
    """Train with dev scores given one by one, each a number or a dict."""
    initial, corpus, targets = start
    values = iter(scores)

    def score(_):
        value = next(values)
        return value if isinstance(value, dict) else {"mean": value}

    (root / "work").mkdir(parents=True, exist_ok=True)
    return train(initial, corpus, lambda rows: targets[rows], score, config=config, seed=1, work_dir=root / "work",
                 target=root / "student", **options)  # fmt: skip


def test_the_offending_batch_is_kept(start, tmp_path):
    bad = start[2].copy()
    bad[17, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"distillation loss is nan at step \d+ on rows .* kept in .*non-finite"):
        go(start, tmp_path, vectors=bad)
    folder = tmp_path / "work" / "non-finite"
    facts = json.loads((folder / "batch.json").read_text(encoding="utf-8"))
    assert 17 in facts["rows"]
    assert 1 <= facts["step"] <= 5
    assert facts["texts"] == [start[1].train[row].text for row in facts["rows"]]
    with np.load(folder / "batch.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["teacher"], bad[facts["rows"]], equal_nan=True)
        assert arrays["input_ids_0"].shape[0] == len(facts["rows"])


def test_held_out_text_that_gives_nan_is_named_and_kept(start, tmp_path):
    bad = start[2].copy()
    bad[TRAIN + 5, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"validation distillation loss is nan at step 0 on validation rows \["):
        go(start, tmp_path, vectors=bad)
    facts = json.loads((tmp_path / "work" / "non-finite" / "batch.json").read_text(encoding="utf-8"))
    assert TRAIN + 5 in facts["rows"]
    assert facts["texts"][facts["rows"].index(TRAIN + 5)] == start[1].validation[5].text


def test_evidence_that_cannot_be_kept_hides_nothing(start, tmp_path):
    bad = start[2].copy()
    bad[17, 3] = np.nan
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "non-finite").write_text("in the way", encoding="utf-8")
    with pytest.raises(
        NonFiniteError, match=r"distillation loss is nan at step \d+ on rows .* which could not be kept"
    ):
        go(start, tmp_path, vectors=bad)


def test_a_second_failure_in_the_same_folder_keeps_its_own_batch(start, tmp_path):
    for row in (17, 40):
        bad = start[2].copy()
        bad[row, 3] = np.nan
        with pytest.raises(NonFiniteError):
            go(start, tmp_path, vectors=bad)
        facts = json.loads((tmp_path / "work" / "non-finite" / "batch.json").read_text(encoding="utf-8"))
        assert row in facts["rows"]


def test_an_infinite_learning_rate_is_refused_with_the_batch(start, tmp_path):
    with pytest.raises(NonFiniteError):
        go(start, tmp_path, config=changed(learning_rate=math.inf, warmup_steps=0))
    assert (tmp_path / "work" / "non-finite" / "batch.json").is_file()
    assert not (tmp_path / "student").exists()


class SpoilGradient(TrainerCallback):
    """Puts NaN into one gradient at the second step."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        layer = next(p for n, p in model.named_parameters() if p.requires_grad and n.endswith("query.weight"))
        calls = []

        def spoil(gradient):
            calls.append(1)
            return gradient if len(calls) < 2 else gradient.masked_fill(torch.ones_like(gradient, dtype=bool), math.nan)

        layer.register_hook(spoil)


def test_nan_in_a_gradient_stops_before_the_step(start, tmp_path):
    with pytest.raises(NonFiniteError, match="the gradient norm is nan at step 2 on rows"):
        go(start, tmp_path, callbacks=[SpoilGradient()])
    facts = json.loads((tmp_path / "work" / "non-finite" / "batch.json").read_text(encoding="utf-8"))
    assert facts["step"] == 2


def test_a_dev_score_of_nan_stops(start, tmp_path):
    with pytest.raises(NonFiniteError, match="dev_mean is nan at step 3"):
        scored(start, tmp_path, [0.1, math.nan])


def test_nan_vectors_in_a_dev_evaluation_stop_with_the_step(start, tmp_path):
    def score(model):
        raise NonFiniteError("the student gives NaN")

    initial, corpus, targets = start
    (tmp_path / "work").mkdir()
    with pytest.raises(NonFiniteError, match="dev evaluation at step 0: the student gives NaN"):
        train(initial, corpus, lambda rows: targets[rows], score, config=CONFIG, seed=0, work_dir=tmp_path / "work",
              target=tmp_path / "student")  # fmt: skip


def test_gradient_checkpointing_changes_no_number(start, tmp_path):
    config = changed(max_steps=3)
    plain = go(start, tmp_path / "a", config=config)[0]
    saved = go(start, tmp_path / "b", config=changed(max_steps=3, gradient_checkpointing=True))[0]
    assert losses(saved) == pytest.approx(losses(plain), abs=1e-6)


def test_a_token_table_has_no_activations_to_save(start, tmp_path):
    teacher = load_sentence_transformer(bert(tmp_path / "teacher"))
    sample = Sample([row.text for row in start[1].train], start[2][:TRAIN])
    init_student(StudentConfig(init="static"), teacher, sample, tmp_path / "static")
    static = (tmp_path / "static", *start[1:])
    with pytest.raises(RecipeError, match=r"train.gradient_checkpointing"):
        go(static, tmp_path, config=changed(gradient_checkpointing=True))
    assert go(static, tmp_path / "run")[0]["steps"] == 12


def test_bf16_trains(start, tmp_path):
    facts, _ = go(start, tmp_path, config=changed(max_steps=2, precision="bf16"))
    assert facts["precision"] == "bf16"


def test_the_metric_of_the_recipe_chooses(start, tmp_path):
    scores = [{"mean": m, "STS": s} for m, s in [(0.1, 0.1), (0.9, 0.2), (0.2, 0.8), (0.3, 0.3), (0.4, 0.4)]]
    facts = scored(start, tmp_path / "a", scores, config=changed(best_metric="STS"))
    assert (facts["best_step"], facts["best_metric"]) == (6, "STS")
    # The validation loss falls to the end, whatever the scores.
    assert scored(start, tmp_path / "b", scores, config=changed(best_metric="validation_loss"))["best_step"] == 12


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"best_metric": "Retrieval"}, "train.best_metric: got 'Retrieval'"),
        ({"stop_metric": "validation_triplet", "stop_patience": 2}, "train.stop_metric: got 'validation_triplet'"),
        ({"targets": {"validation_loos": 1.0}}, "train.targets: got 'validation_loos'"),
    ],
)
def test_a_metric_that_is_not_measured_is_refused_before_the_first_step(start, tmp_path, settings, key):
    with pytest.raises(RecipeError, match=key):
        go(start, tmp_path, config=changed(**settings))
    assert not list((tmp_path / "work").glob("checkpoint-*"))


@pytest.mark.parametrize("key", ["contrastive", "triplet"])
def test_an_objective_that_no_row_could_teach_is_refused_before_the_first_step(start, tmp_path, key):
    with pytest.raises(RecipeError, match=rf"train\.{key}: got 0\.5, expected 0, or text with positives"):
        go(start, tmp_path, config=changed(**{key: 0.5}), stop_at=0)


def test_training_ends_when_patience_does_and_stays_ended(start, tmp_path):
    config = changed(stop_metric="dev", stop_patience=2)
    facts = scored(start, tmp_path, [0.1, 0.5, 0.4, 0.5, 0.9], config=config)
    assert (facts["steps"], facts["planned_steps"], facts["best_step"]) == (9, 12, 3)
    again = scored(start, tmp_path, [], config=config)
    assert (again["steps"], again["best_step"]) == (9, 3)


def test_patience_survives_a_resume(start, tmp_path):
    config = changed(stop_metric="dev", stop_patience=2)
    with pytest.raises(StopIteration):
        scored(start, tmp_path, [0.1, 0.5, 0.4], config=config)
    facts = scored(start, tmp_path, [0.3, 0.9], config=config)
    assert facts["steps"] == 9


def test_targets_are_reported_reached_or_not(start, tmp_path):
    facts, _ = go(start, tmp_path, config=changed(targets={"validation_distillation": 2.0, "validation_alignment": 0}))
    reached, missed = facts["targets"]
    last = facts["history"][-1]["validation"]
    assert reached == {
        "name": "validation_distillation", "limit": 2.0, "value": last["distillation"], "reached": True
    }  # fmt: skip
    assert (missed["value"], missed["reached"]) == (last["alignment"], False)


@pytest.mark.parametrize(("score", "kept"), [(0.95, True), (0.6, False)])
def test_the_mean_of_the_last_checkpoints_is_kept_if_it_is_better(start, tmp_path, score, kept):
    facts = scored(start, tmp_path, [0.1, 0.2, 0.9, 0.3, 0.4, score], config=changed(average_checkpoints=3))
    assert facts["averaged"] == {"steps": [6, 9, 12], "value": score, "best": 0.9, "kept": kept}
    work, ours = tmp_path / "work", weights(tmp_path / "student")
    parts = [weights(work / f"checkpoint-{step}") for step in (6, 9, 12)]
    for name, value in ours.items():
        expected = np.mean([part[name] for part in parts], axis=0) if kept else parts[0][name]
        assert np.allclose(value, expected, atol=1e-6), name


def test_a_checkpoint_of_a_run_that_was_told_to_terminate_takes_no_part_in_the_mean(start, tmp_path, monkeypatch):
    as_it_is = Termination.on_step_end

    def told(self, args, state, control, **kwargs):
        self.received = self.received or state.global_step == 10  # which no evaluation follows
        as_it_is(self, args, state, control, **kwargs)

    config = changed(average_checkpoints=3)
    monkeypatch.setattr(Termination, "on_step_end", told)
    with pytest.raises(SystemExit):
        scored(start, tmp_path, [0.1, 0.2, 0.9, 0.3], config=config)
    assert newest_checkpoint(tmp_path / "work").name == "checkpoint-10"
    monkeypatch.setattr(Termination, "on_step_end", as_it_is)
    facts = scored(start, tmp_path, [0.4, 0.6], config=config)
    assert facts["averaged"]["steps"] == [6, 9, 12]


def test_without_averaging_two_checkpoints_and_the_best_are_kept(start, tmp_path):
    facts = scored(start, tmp_path, [0.1, 0.9, 0.2, 0.3, 0.4])
    assert facts["averaged"] is None
    assert {path.name for path in (tmp_path / "work").glob("checkpoint-*")} == {
        "checkpoint-3",
        "checkpoint-9",
        "checkpoint-12",
    }


class Watch(TrainerCallback):
    """Sees every evaluation, and sounds an alarm at step 3."""

    def __init__(self):
        self.seen = {}

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        self.seen[state.global_step] = dict(metrics)
        assert model.get_embedding_dimension() == 32
        if state.global_step == 3:
            state.log_history.append({"step": 3, "alarm": "all vectors are alike"})


def test_the_alarm_that_ends_a_run_is_in_its_log_and_drawn(start, tmp_path):
    class Enough(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            state.log_history.append({"step": state.global_step, "alarm": f"too low at {state.global_step}"})
            if state.global_step == 3:
                raise StoppedError("enough", alarms=(), training={})

    drawn = []
    with pytest.raises(StoppedError):
        go(start, tmp_path, callbacks=[Enough()], on_history=lambda history, best: drawn.append(history))
    assert "too low at 3" in (tmp_path / "work" / "history.jsonl").read_text(encoding="utf-8")
    assert drawn[-1][-1]["alarms"] == ["too low at 3"]


def test_callbacks_get_every_metric_and_their_alarms_are_kept(start, tmp_path):
    watch, drawn = Watch(), []
    facts, _ = go(start, tmp_path, callbacks=[watch], on_history=lambda history, best: drawn.append((history, best)))
    assert list(watch.seen) == [0, 3, 6, 9, 12]
    names = {"eval_dev_mean", "eval_dev_STS", "eval_validation_distillation", "eval_validation_alignment"}
    assert all(names <= metrics.keys() for metrics in watch.seen.values())
    assert [entry["alarms"] for entry in facts["history"] if "alarms" in entry] == [["all vectors are alike"]]
    assert "all vectors are alike" in (tmp_path / "work" / "history.jsonl").read_text(encoding="utf-8")
    assert len(drawn) == 5
    assert drawn[0][1] == 0
    assert drawn[-1] == (facts["history"], facts["best_step"])


def test_a_callback_can_end_training_for_good(start, tmp_path):
    class Enough(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 6

    facts, _ = go(start, tmp_path, callbacks=[Enough()])
    assert (facts["steps"], facts["planned_steps"]) == (6, 12)
    assert go(start, tmp_path)[1] == 0


def test_a_tracker_that_is_not_installed_is_an_error_before_training(start, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else found(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'leafembed\[track\]'$"):
        go(start, tmp_path, config=changed(report_to=("wandb",)))


def test_tensorboard_gets_every_number(start, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    go(start, tmp_path, config=changed(report_to=("tensorboard",)), callbacks=[Watch()])
    (events,) = (tmp_path / "work" / "runs").rglob("events.*")
    found = EventAccumulator(str(events)).Reload()
    assert {"train/loss", "train/distillation", "train/alignment", "eval/dev_mean", "eval/validation_loss"} <= set(
        found.Tags()["scalars"]
    )
    assert [event.step for event in found.Scalars("eval/dev_mean")] == [0, 3, 6, 9, 12]
    assert [(event.step, event.value) for event in found.Scalars("eval/alarms")] == [(3, 1)]


def test_weights_and_biases_gets_every_number_without_a_network(start, tmp_path, monkeypatch):
    import wandb

    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    go(start, tmp_path, config=changed(report_to=("wandb",)))
    wandb.finish()
    (log,) = tmp_path.rglob("offline-run-*/*.wandb")
    names = (b"train/distillation", b"eval/dev_mean", b"eval/validation_alignment")
    deadline = time.monotonic() + 30  # another process writes it
    while missing := [name for name in names if name not in log.read_bytes()]:
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)


def test_the_student_reads_as_much_as_before_whatever_it_was_trained_on(start, tmp_path):
    go(start, tmp_path, config=changed(max_steps=2, max_seq_length=8))
    before, after = (load_sentence_transformer(folder).max_seq_length for folder in (start[0], tmp_path / "student"))
    assert before == after


def test_nothing_in_a_checkpoint_is_a_pickled_object_of_ours(whole):
    assert not list((whole[0] / "work").rglob("training_args.bin"))


def test_a_damaged_best_checkpoint_does_not_become_the_student(start, tmp_path, capsys):
    work = tmp_path / "work"

    def score(_):
        best = work / "checkpoint-6" / "model.safetensors"
        if scores and scores[0] == 0.3 and best.is_file():  # step 9: the best one is there, sealed
            whole = bytearray(best.read_bytes())
            whole[-3] ^= 1
            best.write_bytes(whole)
        return {"mean": scores.pop(0)}

    scores = [0.1, 0.2, 0.9, 0.3, 0.4]
    work.mkdir()
    initial, corpus, targets = start
    facts = train(initial, corpus, lambda rows: targets[rows], score, config=CONFIG, seed=1, work_dir=work,
                  target=tmp_path / "student")  # fmt: skip
    assert facts["best_step"] != 6
    assert "checkpoint-6 is damaged" in capsys.readouterr().err


def test_batches_of_few_texts_are_said(start, tmp_path, capsys):
    with pytest.raises(Stop):
        go(start, tmp_path / "a", stop_at=0)
    assert "of the batches hold" not in capsys.readouterr().err
    with pytest.raises(Stop):
        go(start, tmp_path / "b", stop_at=0, config=changed(batch_tokens=40))
    said = capsys.readouterr().err
    assert "of the batches hold fewer than 4 texts" in said
    assert "raise train.batch_tokens, which is 40" in said
