"""Training itself: what is learned, logged, written and resumed; bad numbers are in test_train_nonfinite."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from families import bert
from training_runs import TRAIN, Stop, changed, go, losses, weights

from leafembed.errors import RecipeError
from leafembed.learn.checkpoints import MARKER, newest_checkpoint
from leafembed.learn.evaluation import near_alignment
from leafembed.learn.losses import alignment
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.student import Sample, init_student
from leafembed.learn.trainer import training_arguments
from leafembed.recipe_learn import NEAR, Phase, StudentConfig, TrainConfig


def test_training_lowers_the_loss_and_raises_the_dev_score(toy_run):
    facts = toy_run[1]
    found = losses(facts)
    assert list(found)[-1] == 12
    assert found[12] < 0.8 * found[min(found)]
    dev = {entry["step"]: entry["dev"] for entry in facts["history"] if "dev" in entry}
    assert list(dev) == [0, 3, 6, 9, 12]
    assert dev[12] > dev[0]


def test_history_names_the_parts_of_the_loss_and_the_dev_tasks(toy_run):
    history = toy_run[1]["history"]
    assert history == sorted(history, key=lambda entry: entry["step"])
    first, last = history[0], history[-1]
    assert (first["step"], first["dev_tasks"]) == (0, {"STS": 0.5})
    assert {"step", "loss", "distillation", "alignment", "learning_rate", "dev", "dev_tasks"} <= last.keys()
    assert last["loss"] == pytest.approx(last["distillation"] + 0.1 * last["alignment"], rel=1e-5)
    measured = {"loss", "distillation", "alignment", "near_alignment"}
    assert measured == first["validation"].keys() == last["validation"].keys()
    assert last["validation"]["alignment"] < first["validation"]["alignment"]
    assert json.loads(json.dumps(history)) == history


def test_the_last_step_is_judged_and_kept_though_it_is_no_multiple(toy_start, tmp_path):
    config = TrainConfig(max_steps=5, batch_size=16, eval_steps=2, warmup_steps=0, learning_rate=3e-3, precision="fp32")
    facts, _ = go(toy_start, tmp_path, config=config)
    assert [entry["step"] for entry in facts["history"] if "dev" in entry] == [0, 2, 4, 5]
    assert (tmp_path / "work" / "checkpoint-5" / MARKER).is_file()


def test_the_token_table_is_frozen_unless_asked(toy_start, toy_run, tmp_path):
    name = next(key for key in weights(toy_start[0]) if key.endswith("word_embeddings.weight"))
    assert np.array_equal(weights(toy_run[0] / "student")[name], weights(toy_start[0])[name])
    free = TrainConfig(max_steps=2, batch_size=16, eval_steps=2, freeze_token_table=False, precision="fp32")
    go(toy_start, tmp_path, config=free)
    assert not np.array_equal(weights(tmp_path / "student")[name], weights(toy_start[0])[name])


def test_a_run_cut_short_goes_on_from_its_checkpoint_to_the_same_student(toy_start, toy_run, tmp_path):
    with pytest.raises(Stop):
        go(toy_start, tmp_path, stop_at=3)  # at step 9, in the second pass, after the checkpoint of step 6
    work = tmp_path / "work"
    assert newest_checkpoint(work).name == "checkpoint-6"
    # A kill while a checkpoint is written leaves one without its marker.
    shutil.copytree(work / "checkpoint-6", work / "checkpoint-9")
    (work / "checkpoint-9" / MARKER).unlink()
    facts, evaluations = go(toy_start, tmp_path)
    assert evaluations <= 3
    assert facts["steps"] == 12
    assert (facts["best_step"], losses(facts).keys()) == (toy_run[1]["best_step"], losses(toy_run[1]).keys())
    assert losses(facts)[12] == pytest.approx(losses(toy_run[1])[12], abs=1e-4)
    expected = weights(toy_run[0] / "student")
    for name, value in weights(tmp_path / "student").items():
        assert np.allclose(value, expected[name], atol=1e-4), name


def test_finished_training_is_not_repeated(toy_start, toy_run, tmp_path):
    shutil.copytree(toy_run[0] / "work", tmp_path / "work")
    facts, evaluations = go(toy_start, tmp_path)
    assert evaluations == 0
    assert facts["steps"] == 12
    assert losses(facts) == losses(toy_run[1])
    expected = weights(toy_run[0] / "student")
    assert all(np.array_equal(value, expected[name]) for name, value in weights(tmp_path / "student").items())


def test_nothing_in_a_checkpoint_is_a_pickled_object_of_ours(toy_run):
    assert not list((toy_run[0] / "work").rglob("training_args.bin"))


def test_the_student_reads_as_much_as_before_whatever_it_was_trained_on(toy_start, tmp_path):
    go(toy_start, tmp_path, config=changed(max_steps=2, max_seq_length=8))
    before, after = (
        load_sentence_transformer(folder).max_seq_length for folder in (toy_start[0], tmp_path / "student")
    )
    assert before == after


def test_gradient_checkpointing_changes_no_number(toy_start, tmp_path):
    config = changed(max_steps=3)
    plain = go(toy_start, tmp_path / "a", config=config)[0]
    saved = go(toy_start, tmp_path / "b", config=changed(max_steps=3, gradient_checkpointing=True))[0]
    assert losses(saved) == pytest.approx(losses(plain), abs=1e-6)


def test_a_token_table_has_no_activations_to_save(toy_start, tmp_path):
    teacher = load_sentence_transformer(bert(tmp_path / "teacher"))
    sample = Sample([row.text for row in toy_start[1].train], toy_start[2][:TRAIN])
    init_student(StudentConfig(init="static"), teacher, sample, tmp_path / "static")
    static = (tmp_path / "static", *toy_start[1:])
    with pytest.raises(RecipeError, match=r"train.gradient_checkpointing"):
        go(static, tmp_path, config=changed(gradient_checkpointing=True))
    assert go(static, tmp_path / "run")[0]["steps"] == 12


def test_bf16_trains(toy_start, tmp_path):
    facts, _ = go(toy_start, tmp_path, config=changed(max_steps=2, precision="bf16"))
    assert facts["precision"] == "bf16"


@pytest.mark.parametrize("key", ["contrastive", "triplet"])
def test_an_objective_that_no_row_could_teach_is_refused_before_the_first_step(toy_start, tmp_path, key):
    with pytest.raises(RecipeError, match=rf"train\.{key}: got 0\.5, expected 0, or text with positives"):
        go(toy_start, tmp_path, config=changed(**{key: 0.5}), stop_at=0)


def measured_at_first(start, root, **options):
    """Validation losses of the untrained student."""
    (root / "work").mkdir(parents=True)
    return go(start, root, **options)[0]["history"][0]["validation"]


def test_near_alignment_compares_recipes_of_other_batches_dims_and_temperatures(toy_start, tmp_path):
    initial, corpus, targets = toy_start
    model = load_sentence_transformer(initial)
    student = model.encode([row.text for row in corpus.validation], normalize_embeddings=True)
    by_hand = alignment(torch.from_numpy(student), torch.from_numpy(targets[TRAIN:]), temperature=0.05).item()
    one = measured_at_first(toy_start, tmp_path / "a", config=changed(max_steps=1))
    other = measured_at_first(toy_start, tmp_path / "b", dims=(8,),
                              config=changed(max_steps=1, batch_size=4, alignment_temperature=0.5))  # fmt: skip
    assert one[NEAR] == pytest.approx(by_hand, rel=1e-3)
    assert other[NEAR] == pytest.approx(one[NEAR], rel=1e-4)
    assert other["alignment"] != pytest.approx(one["alignment"], rel=0.1)


def test_near_alignment_is_over_64_texts_at_a_time():
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(150, 8)).astype(np.float32) for _ in range(2))
    student, teacher = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (student, teacher))
    parts = [(0, 64), (64, 128)]  # the last 22 are no 64
    by_hand = [alignment(torch.from_numpy(student[a:b]), torch.from_numpy(teacher[a:b]), temperature=0.05).item()
               for a, b in parts]  # fmt: skip
    assert near_alignment(student, teacher) == pytest.approx(np.mean(by_hand))
    assert near_alignment(student[:10], teacher[:10]) > 0


def test_the_recipe_says_how_long_a_gradient_may_be(tmp_path):
    def of(**settings):
        config = TrainConfig(**settings)
        return training_arguments(config, seed=0, work_dir=tmp_path, device="cpu").max_grad_norm

    assert (of(), of(max_grad_norm=0.25), of(max_grad_norm=0)) == (1.0, 0.25, 0)
    with pytest.raises(RecipeError, match=r"train\.max_grad_norm: got -1, expected at least 0"):
        of(max_grad_norm=-1)


def test_a_gradient_that_is_cut_to_nothing_moves_nothing(toy_start, tmp_path):
    """AdamW does not see the scale of a gradient but for its epsilon, 1e-8."""
    moved = []
    for length in (1e-12, 0.0):
        go(toy_start, tmp_path / f"{length}", config=changed(max_steps=3, max_grad_norm=length, weight_decay=0.0))
        before, after = weights(toy_start[0]), weights(tmp_path / f"{length}" / "student")
        moved.append(max(float(np.abs(after[name] - value).max()) for name, value in before.items()))
    assert moved[0] < 1e-5 < 1e-3 < moved[1]


def test_batches_of_few_texts_are_said(toy_start, tmp_path, capsys):
    with pytest.raises(Stop):
        go(toy_start, tmp_path / "a", stop_at=0)
    assert "of the batches hold" not in capsys.readouterr().err
    with pytest.raises(Stop):
        go(toy_start, tmp_path / "b", stop_at=0, config=changed(batch_tokens=40))
    said = capsys.readouterr().err
    assert "of the batches hold fewer than 4 texts" in said
    assert "raise train.batch_tokens, which is 40" in said


def test_what_of_the_schedule_cannot_work_is_said(toy_start, tmp_path, capsys):
    phases = (Phase(tokens=8, share=0.5), Phase(tokens=4096, share=0.5))
    with pytest.raises(Stop):
        go(toy_start, tmp_path, stop_at=0, config=changed(curriculum=phases, warmup_steps=12))
    said = capsys.readouterr().err
    reads = load_sentence_transformer(toy_start[0]).max_seq_length
    assert f"50% up to 8 tokens, 50% up to {reads} tokens" in said
    assert f"the student reads {reads} tokens: longer phases of train.curriculum end there too" in said
    assert "the learning rate only rises: train.warmup_steps is 12, of 12 steps" in said
