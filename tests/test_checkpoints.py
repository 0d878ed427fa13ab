from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from families import bert

from leafembed.errors import CheckpointError
from leafembed.learn.checkpoints import MARKER, average, complete, newest_checkpoint, read_seal, rotate, seal, writing
from leafembed.learn.models import load_sentence_transformer


def checkpoint(root, step, *, sealed=True):
    folder = root / f"checkpoint-{step}"
    (folder / "2_Dense").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * step)
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"head")
    if sealed:
        seal(folder, {"seconds": float(step), "over": False})
    return folder


def test_only_sealed_checkpoints_count_and_the_others_go(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for step in (500, 1000):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 1500, sealed=False)
    assert newest_checkpoint(tmp_path).name == "checkpoint-1000"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-500", "checkpoint-1000"}
    assert read_seal(tmp_path / "checkpoint-500")["seconds"] == 500


def change(path):
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: change(folder / "model.safetensors"), "model.safetensors has changed"),
        (lambda folder: (folder / "2_Dense" / "model.safetensors").unlink(), "2_Dense/model.safetensors is missing"),
        (lambda folder: (folder / MARKER).write_text("{"), "complete.json cannot be read"),
        (lambda folder: (folder / MARKER).write_text("{}"), "complete.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(tmp_path, capsys, damage, reason):
    checkpoint(tmp_path, 2)
    damage(checkpoint(tmp_path, 10))
    assert newest_checkpoint(tmp_path).name == "checkpoint-2"
    assert f"checkpoint-10 is damaged ({reason}): set aside as damaged-checkpoint-10" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "damaged-checkpoint-10"}


def test_rotation_keeps_what_it_is_told(tmp_path):
    for step in (1, 2, 3, 12):
        checkpoint(tmp_path, step)
    rotate(tmp_path, {2, 12})
    assert [path.name for path in complete(tmp_path)] == ["checkpoint-2", "checkpoint-12"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-12"}


def test_a_full_disk_is_said_with_what_is_still_good(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(CheckpointError, match=r"cannot write x: .*No space left.*there is no checkpoint yet"),
        writing(tmp_path, "x"),
    ):
        raise full
    checkpoint(tmp_path, 3)
    with (
        pytest.raises(CheckpointError, match="checkpoint-3 is still good: see to it that the disk is not full"),
        writing(tmp_path, "x", anything=True),
    ):
        raise RuntimeError("unexpected pos 64 vs 0")


def test_other_errors_pass(tmp_path):
    with pytest.raises(PermissionError), writing(tmp_path, "x"):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(RuntimeError, match="mine"), writing(tmp_path, "x"):
        raise RuntimeError("mine")
    # A GPU without memory is not a full disk, whatever is being written.
    with pytest.raises(torch.OutOfMemoryError), writing(tmp_path, "x", anything=True):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_the_average_is_the_mean_of_the_weights(tmp_path):
    model = load_sentence_transformer(bert(tmp_path / "start"))
    name = next(key for key in model.state_dict() if key.endswith("word_embeddings.weight"))
    value = model.state_dict()[name].clone()
    folders = []
    for i in (1, 2, 6):
        model.state_dict()[name].copy_(value * i)
        folders.append(tmp_path / f"checkpoint-{i}")
        model.save_pretrained(str(folders[-1]), create_model_card=False)
    average(model, folders)
    assert np.allclose(model.state_dict()[name].numpy(), value.numpy() * 3, atol=1e-6)
