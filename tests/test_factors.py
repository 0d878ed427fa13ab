from __future__ import annotations

import json

import numpy as np
import pytest
from families import gemma_headless, toy_texts

from leafembed.errors import ModelError, RecipeError
from leafembed.learn.factors import FACTOR_FILE, carry_factors, factorise, read_factors, write_factors
from leafembed.learn.models import describe, load_sentence_transformer
from leafembed.learn.plan import parts_of
from leafembed.learn.student import Sample, init_student
from leafembed.learn.teacher import TorchEncoder
from leafembed.recipe_learn import StudentConfig
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.quantize import quantize
from leafembed.types import Factors

TEXTS = toy_texts(60)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student with a table of 32 columns and rank 16, and the folder of its teacher."""
    root = tmp_path_factory.mktemp("factors")
    teacher = load_sentence_transformer(gemma_headless(root / "teacher"))
    sample = Sample(TEXTS, teacher.encode(TEXTS))
    init_student(StudentConfig(layers=(0, 1), table_rank=16), teacher, sample, root / "student")
    return root / "student"


def test_a_table_of_low_rank_is_found_exactly():
    rng = np.random.default_rng(0)
    table = (rng.standard_normal((40, 3)) @ rng.standard_normal((3, 8))).astype(np.float32)
    factors = factorise(table, 3)
    assert factors.rows.shape == (40, 3)
    assert np.allclose(factors.rows @ factors.matrix, table, atol=1e-5)
    assert np.allclose(factors.matrix @ factors.matrix.T, np.eye(3), atol=1e-6)


def test_without_counts_it_is_the_truncated_svd():
    table = np.random.default_rng(1).standard_normal((30, 6)).astype(np.float32)
    factors = factorise(table, 2)
    singular = np.linalg.svd(table, compute_uv=False)
    lost = np.sum((table - factors.rows @ factors.matrix) ** 2)
    assert lost == pytest.approx(np.sum(singular[2:] ** 2), rel=1e-5)


def test_frequent_tokens_lose_least():
    table = np.random.default_rng(2).standard_normal((30, 6)).astype(np.float32)
    counts = np.zeros(30, dtype=np.int64)
    counts[:3] = 1000
    lost = {
        name: np.sum((table - f.rows @ f.matrix)[:3] ** 2)
        for name, f in (("plain", factorise(table, 3)), ("weighted", factorise(table, 3, counts)))
    }
    assert lost["weighted"] < lost["plain"] / 10


def test_the_folder_holds_the_product_and_its_factors(student):
    factors = read_factors(student)
    assert (factors.rows.shape[1], factors.matrix.shape) == (16, (16, 32))
    table = load_sentence_transformer(student)[0].auto_model.get_input_embeddings().weight.detach().numpy()
    assert np.allclose(factors.rows @ factors.matrix, table, atol=1e-6)
    assert np.linalg.matrix_rank(table, tol=1e-4) == 16


def test_training_can_carry_the_factors_on(student, tmp_path):
    carry_factors(student, tmp_path)
    assert np.array_equal(read_factors(tmp_path).rows, read_factors(student).rows)
    (tmp_path / "without").mkdir()
    carry_factors(tmp_path / "without", tmp_path / "without")
    assert read_factors(tmp_path / "without") is None


def test_a_rank_that_saves_nothing_is_refused(tmp_path):
    teacher = load_sentence_transformer(gemma_headless(tmp_path / "teacher"))
    config = StudentConfig(layers=(0,), table_rank=32)
    with pytest.raises(RecipeError, match=r"student\.table_rank: got 32, expected at most \d+"):
        init_student(config, teacher, Sample(TEXTS, teacher.encode(TEXTS)), tmp_path / "student")


def test_factors_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(2, 5\)"):
        Factors(rows=np.zeros((4, 3), np.float32), matrix=np.zeros((2, 5), np.float32))


def export(folder, target, *, factors):
    model = load_sentence_transformer(folder)
    exact = TorchEncoder(model, describe(model, folder, name="tiny"), precision="fp32")
    quantize(model, target, ref=exact.ref, group_size=32, factors=factors)
    return exact, BundleEncoder(target, threads=1)


def test_the_int8_model_stores_the_factors_and_agrees_with_torch(student, tmp_path):
    factors = read_factors(student)
    exact, low = export(student, tmp_path / "low", factors=factors)
    export(student, tmp_path / "whole", factors=None)
    cosines = np.sum(exact.encode(TEXTS) * low.encode(TEXTS), axis=1)
    assert cosines.mean() > 0.999
    assert exact.model[0].auto_model.get_input_embeddings().weight.shape[1] == 32  # the model is left as it was
    bytes_of = {name: (tmp_path / name / "model.bin").stat().st_size for name in ("low", "whole")}
    vocabulary = len(factors.rows)
    # Rows of 16 instead of 32, and a matrix of 32 rows of 16 with a scale each.
    assert bytes_of["whole"] - bytes_of["low"] == pytest.approx(vocabulary * 16 - 32 * (16 + 2), rel=0.05)
    planned = {f: sum(part.int8_mb for part in parts_of(exact.model, f)) * 1e6 for f in (None, factors)}
    assert bytes_of["whole"] - bytes_of["low"] == pytest.approx(planned[None] - planned[factors], rel=0.05)
    assert json.loads((tmp_path / "low" / "encoder.json").read_text(encoding="utf-8"))["dim"] == 32


def test_factors_of_another_table_are_refused(student, tmp_path):
    factors = read_factors(student)
    changed = Factors(rows=factors.rows * np.float32(1.1), matrix=factors.matrix)
    with pytest.raises(ModelError, match="trained after it was factorised"):
        export(student, tmp_path / "changed", factors=changed)
    shorter = Factors(rows=factors.rows[:-1], matrix=factors.matrix)
    with pytest.raises(ModelError, match="got a product of"):
        export(student, tmp_path / "shorter", factors=shorter)
    assert not (tmp_path / "changed").exists()


def test_the_file_has_the_name_that_the_docs_say(student, tmp_path):
    write_factors(tmp_path, read_factors(student))
    assert [path.name for path in tmp_path.iterdir()] == [FACTOR_FILE] == ["token_table.safetensors"]
