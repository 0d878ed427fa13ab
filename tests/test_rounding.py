from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from families import bert, gemma, toy_recipe, toy_texts

from leafembed.errors import ModelError, RecipeError
from leafembed.learn.models import describe, load_sentence_transformer
from leafembed.learn.plan import TABLE, plan
from leafembed.learn.rounding import (
    bake_matrices,
    bake_rounding,
    bits_of,
    round_matrix,
    round_reads,
    round_rows,
    scales_of,
)
from leafembed.learn.teacher import TorchEncoder
from leafembed.pipeline import run
from leafembed.recipe_io import recipe_from_dict
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.packed_table import pack_rows
from leafembed.ship.quantize import quantize
from leafembed.single import quantize_folder
from leafembed.types import TABLE_GROUP

WIDE = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}


def table_of(model):
    return model[0].auto_model.get_input_embeddings().weight


@pytest.fixture
def wide(tmp_path):
    return load_sentence_transformer(bert(tmp_path / "bert", **WIDE))


def test_values_are_whole_multiples_of_their_scale():
    row = torch.zeros(1, TABLE_GROUP)
    row[0, :4] = torch.tensor([7.0, -7.0, 2.4, 2.6])
    assert round_rows(row)[0, :4].tolist() == [7.0, -7.0, 2.0, 3.0]  # the scale is 7 / 7


def test_each_group_has_its_own_scale():
    row = torch.cat([torch.full((1, TABLE_GROUP), 0.7), torch.full((1, TABLE_GROUP), 700.0)], dim=1)
    assert scales_of(row).flatten().tolist() == pytest.approx([0.1, 100.0], rel=1e-3)
    assert torch.allclose(round_rows(row), row, rtol=1e-3)


def test_rounding_twice_changes_nothing():
    rows = torch.randn(200, 3 * TABLE_GROUP, generator=torch.Generator().manual_seed(0))
    once = round_rows(rows)
    assert torch.equal(round_rows(once), once)
    assert 0.01 < float((once - rows).norm() / rows.norm()) < 0.2  # it is a rounding, and a coarse one


def test_a_matrix_has_a_scale_for_each_row_and_its_farthest_value_is_kept():
    weight = torch.tensor([[1.0, -0.25, 0.004], [-2.0, 1.0, 0.02], [0.0, 0.0, 0.0]])
    rounded = round_matrix(weight)
    assert rounded[:, 0].tolist() == [1.0, -2.0, 0.0]
    assert rounded[0].tolist() == [1.0, -0.25, 1 / 128]  # 0.004 is nearer to one step of 1/128 than to none
    assert rounded[1].tolist() == [-2.0, 1.0, 2 / 128]
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(round_matrix(round_matrix(weight)), round_matrix(weight))
    assert 1e-3 < float((round_matrix(weight) - weight).norm() / weight.norm()) < 2e-2


def test_export_loses_nothing_of_rounded_matrices(tmp_path):
    """Activations stay in fp32 here and the table is rounded before, so that only the matrices could differ."""
    student, texts, gaps = load_sentence_transformer(gemma(tmp_path / "gemma")), toy_texts(24), {}
    table_of(student).data.copy_(round_matrix(table_of(student).data))
    for name in ("before", "after"):
        ref = describe(student, tmp_path / "gemma", name=name, licence="MIT")
        folder = quantize(student, tmp_path / name, ref=ref, group_size=0)
        gaps[name] = float(np.abs(BundleEncoder(folder, threads=1).encode(texts) - student.encode(texts)).max())
        if name == "before":
            told = bake_matrices(student, 8, texts)
    assert gaps["before"] > 1e-4
    assert gaps["after"] < 1e-5
    assert 0.99 < told["cosine_min"] <= told["cosine_mean"] < 1
    assert told["texts"] == 24
    assert bake_matrices(student, None, texts) is None


def test_a_row_of_zeros_stays_so():
    assert torch.equal(round_rows(torch.zeros(2, TABLE_GROUP)), torch.zeros(2, TABLE_GROUP))


def test_the_model_reads_the_rounded_table_and_its_gradient_passes(wide):
    features = wide.preprocess(["en1 en2"])
    weight = table_of(wide)
    handle = round_reads(wide, 4)
    table = wide[0].auto_model.get_input_embeddings()
    read = table(features["input_ids"])
    read.sum().backward()
    handle.remove()
    assert torch.allclose(read, round_rows(weight)[features["input_ids"]], atol=1e-6)
    ids = features["input_ids"][0]
    assert torch.equal(weight.grad[ids].unique(), torch.ones(1))  # as if nothing had been rounded
    assert torch.equal(table(features["input_ids"]), weight[features["input_ids"]])  # and no longer, outside


def test_a_baked_model_is_the_one_that_was_trained(wide):
    texts = toy_texts(20)
    handle = round_reads(wide, 4)
    trained = wide.encode(texts)
    handle.remove()
    bake_rounding(wide, 4)
    assert np.allclose(wide.encode(texts), trained, atol=1e-6)


def test_without_bits_nothing_is_rounded(wide):
    before = table_of(wide).detach().clone()
    assert round_reads(wide, None) is None
    bake_rounding(wide, None)
    assert torch.equal(table_of(wide), before)


def test_a_width_that_groups_do_not_divide_is_an_error(tmp_path):
    model = load_sentence_transformer(gemma(tmp_path / "gemma"))  # 32 wide
    with pytest.raises(RecipeError, match="32 wide, expected a multiple of 64"):
        round_reads(model, 4)


def test_both_sides_round_alike():
    rows = torch.randn(50, 2 * TABLE_GROUP, generator=torch.Generator().manual_seed(1))
    values, scales = pack_rows(rows.numpy())
    kept = (values.reshape(50, -1, TABLE_GROUP) * scales[..., None].astype(np.float32)).reshape(50, -1)
    assert np.array_equal(kept, round_rows(rows).numpy())


def export(model, target, bits):
    ref = dataclasses.replace(describe(model, target.parent / "bert", name="tiny"), licence="MIT")
    quantize(model, target, ref=ref, group_size=32, table_bits=bits)
    return BundleEncoder(target, threads=1)


def test_a_table_of_4_bits_is_exported_without_a_loss_in_half_the_bytes(wide, tmp_path):
    bake_rounding(wide, 4)
    texts = toy_texts(40)
    exact = TorchEncoder(wide, describe(wide, tmp_path / "bert", name="tiny"), precision="fp32").encode(texts)
    packed, plain = (export(wide, tmp_path / f"bits-{bits}", bits) for bits in (4, None))
    losses = [1 - float((encoder.encode(texts) * exact).sum(1).mean()) for encoder in (packed, plain)]
    assert losses[0] < 1e-3
    assert losses[0] < losses[1] + 1e-4  # INT8 has to round the same table once more
    sizes = [(tmp_path / f"bits-{bits}" / "model.bin").stat().st_size for bits in (4, None)]
    rows, width = table_of(wide).shape
    assert sizes[1] - sizes[0] > 0.4 * rows * width


def test_a_table_that_was_not_trained_for_4_bits_is_refused(wide, tmp_path):
    with pytest.raises(ModelError, match=r"not what 4 bits hold.*student\.table_bits = 4"):
        export(wide, tmp_path / "int8", 4)


def test_a_table_on_the_grid_is_known_again(wide, tmp_path):
    assert bits_of(wide) is None
    bake_rounding(wide, 4)
    assert bits_of(wide) == 4
    wide.save_pretrained(str(tmp_path / "student"), create_model_card=False)
    folder = quantize_folder(tmp_path / "student", tmp_path / "int8", group_size=32)
    plain = export(wide, tmp_path / "plain", None)
    assert (folder / "model.bin").stat().st_size < (tmp_path / "plain" / "model.bin").stat().st_size
    texts = toy_texts(20)
    assert float((BundleEncoder(folder, threads=1).encode(texts) * plain.encode(texts)).sum(1).min()) > 0.999


def test_a_run_trains_what_it_ships(tmp_path, eval_data):
    teacher = bert(tmp_path / "teacher", **WIDE)
    plain = toy_recipe(tmp_path, teacher, eval_data, student={"layers": [0, 1], "table_bits": 4, "matrix_bits": 8},
                       train={"freeze_token_table": False})  # fmt: skip
    outcome = run(recipe_from_dict(plain), tmp_path / "run", allow_failed=True)
    table = table_of(load_sentence_transformer(tmp_path / "run" / "student"))
    start = table_of(load_sentence_transformer(tmp_path / "run" / "untrained-student"))
    assert torch.equal(round_rows(table), table)
    assert not torch.allclose(table, round_rows(start), atol=1e-4)  # it learned
    assert outcome.manifest["int8"]["cosine_mean"] > 0.999


@pytest.mark.parametrize(
    ("key", "value", "said"), [("table_bits", 3, "4, or nothing"), ("table_rank", 8, "table_rank")]
)
def test_what_cannot_be_is_an_error(tmp_path, eval_data, key, value, said):
    student = {"layers": [0], "table_bits": 4, key: value}
    with pytest.raises(RecipeError, match=said):
        recipe_from_dict(toy_recipe(tmp_path, tmp_path, eval_data, student=student))


def test_a_plan_prices_the_bytes_that_are_shipped(tmp_path, eval_data):
    teacher = bert(tmp_path / "teacher", **WIDE)
    student = {"layers": [0], "table_bits": 4}
    found = plan(recipe_from_dict(toy_recipe(tmp_path, teacher, eval_data, student=student)))
    rows, width = table_of(load_sentence_transformer(teacher)).shape
    table = next(part for part in found.parts if part.part == TABLE)
    assert table.int8_mb * 1e6 == rows * (width / 2 + 2 * width / TABLE_GROUP)
