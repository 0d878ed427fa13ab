"""The whole line on every architecture, with tiny teachers: what comes out is a bundle that keeps its promises."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES, Family, toy_recipe, toy_texts

import leafembed
from leafembed.learn.factors import read_factors
from leafembed.learn.models import describe, load_sentence_transformer
from leafembed.learn.teacher import TorchEncoder
from leafembed.pipeline import Outcome, run
from leafembed.recipe_io import recipe_from_dict
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.plots import PLOTS

BUNDLE = {
    *("model.xml", "model.bin", "tokenizer.json", "encoder.json"),
    *("tokenizer_config.json", "config.json", "config_sentence_transformers.json"),
    *("README.md", *PLOTS, "manifest.json"),
    *("student.safetensors", "learned_by.toml", "learned_from.json", "learned_texts.npy"),  # to go on from
}
FLOORS = {"floor: random", "floor: bag of words", "floor: untrained student", "floor: static table"}


@dataclass(frozen=True)
class Line:
    """A finished run."""

    family: Family
    teacher: Path
    run_dir: Path
    outcome: Outcome

    @property
    def student(self) -> Path:
        return self.run_dir / "student"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One cache for all runs: a teacher that comes again is neither asked nor exported again."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", params=FAMILIES)
def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, eval_data: Path, cache: str) -> Line:
    family = FAMILIES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    teacher = family.build(root / "teacher")
    prompt = {"prompt_name": family.prompt_name} if family.prompt_name else {}
    exits = [1] if len(family.layers) > 1 else []
    student = {"layers": list(family.layers), "exits": exits, "dims": [16]}
    plain = toy_recipe(root, teacher, eval_data, teacher=prompt, student=student, cache_dir=cache)
    recipe = recipe_from_dict(plain)
    return Line(family, teacher, root / "run", run(recipe, root / "run"))


def test_the_bundle_holds_exactly_these_files_and_loads(line):
    assert {path.name for path in line.outcome.folder.iterdir()} == BUNDLE
    encoder = leafembed.load(line.outcome.folder, threads=1)
    vectors = encoder.encode(["en1 en2", "de3"])
    assert vectors.shape == (2, 32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert line.outcome.manifest["reports"].keys() == {"teacher", "student", "int8", *FLOORS}
    assert line.outcome.manifest["speed"][0]["name"].startswith("teacher")


def test_int8_is_near_the_fp32_student(line):
    measured = line.outcome.manifest["int8"]
    assert measured["texts"] == 24
    assert measured["cosine_mean"] > line.family.min_cosine
    assert measured["cosine_min"] > 0.97


def test_the_student_folder_is_a_plain_sentence_transformer(line):
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(line.student), device="cpu", local_files_only=True)
    model = load_sentence_transformer(line.student)
    ours = TorchEncoder(model, describe(model, line.student, name="student"), precision="fp32")
    texts = toy_texts(12, seed=7)
    assert np.allclose(plain.encode(texts, normalize_embeddings=True), ours.encode(texts), atol=1e-5)


def test_kept_layers_keep_their_own_weights_and_attention(line):
    teacher = load_sentence_transformer(line.teacher)[0].auto_model
    start = load_sentence_transformer(line.run_dir / "untrained-student")[0].auto_model
    assert start.config.num_hidden_layers == len(line.family.layers)
    assert tuple(getattr(start.config, "layer_types", None) or ()) == line.family.layer_types
    stacks = [getattr(getattr(model, "encoder", model), "layer", None) or model.layers for model in (start, teacher)]
    for new_layer, i in zip(stacks[0], line.family.layers, strict=True):
        theirs = stacks[1][i].state_dict()
        assert new_layer.state_dict().keys() == theirs.keys()
        assert all(np.array_equal(value, theirs[key]) for key, value in new_layer.state_dict().items())


def test_linear_heads_become_one(line):
    teacher, start = (
        load_sentence_transformer(line.teacher),
        load_sentence_transformer(line.run_dir / "untrained-student"),
    )
    heads = [[module for module in model if type(module).__name__ == "Dense"] for model in (teacher, start)]
    assert [len(found) for found in heads] == [line.family.heads, min(1, line.family.heads)]


def test_training_was_scored_from_its_first_step(line):
    training = line.outcome.manifest["training"]
    scored = [entry["step"] for entry in training["history"] if "dev" in entry]
    assert scored == [0, 6, 12]
    assert training["steps"] == 12
    assert training["best_step"] in (6, 12)
    trained = {"distillation", "alignment", "near_alignment"} | (
        {"exit_alignment"} if len(line.family.layers) > 1 else set()
    )
    assert training["history"][-1]["validation"].keys() == {"loss", *trained}
    assert (line.run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_text_keeps_its_vector_beside_a_much_longer_one(line):
    """Padding beyond a sliding window has no key to attend to; a NaN there must not reach real tokens."""
    model = load_sentence_transformer(line.student)
    exact = TorchEncoder(model, describe(model, line.student, name="student"), precision="fp32")
    int8 = BundleEncoder(line.outcome.folder, threads=1)
    short, long = "en1 en2", " ".join(f"en{i}" for i in range(60))
    for encode in (exact.encode, int8.encode):
        alone, beside = encode([short])[0], encode([short, long])[0]
        assert np.isfinite(beside).all()
        assert float(alone @ beside) > 0.999
    assert float(int8.encode([short, long])[0] @ exact.encode([short])[0]) > 0.97


def test_nothing_is_pickled(line):
    kept = [line.outcome.folder, line.student, line.run_dir / "int8"]
    names = [path.name for folder in kept for path in folder.rglob("*") if path.is_file()]
    assert not [name for name in names if Path(name).suffix in {".pt", ".pth", ".pkl", ".ckpt"}]
    # OpenVINO names its raw weights .bin; a pickled state dict would be a zip file.
    assert [name for name in names if name.endswith(".bin")] == ["model.bin", "model.bin"]
    assert (line.outcome.folder / "model.bin").read_bytes()[:2] != b"PK"


@pytest.mark.parametrize("init", ["static", "encoder"])
def test_the_other_starts_go_down_the_same_line(tmp_path, eval_data, cache, init):
    teacher = FAMILIES["bert"].build(tmp_path / "teacher")
    other = FAMILIES["bert"].build(tmp_path / "other")
    plain = toy_recipe(
        tmp_path, teacher, eval_data, student={"init": init, "model": str(other), "vocab_size": 300}, cache_dir=cache
    )
    outcome = run(recipe_from_dict(plain), tmp_path / "run")
    assert {path.name for path in outcome.folder.iterdir()} == BUNDLE
    assert outcome.manifest["int8"]["cosine_mean"] > 0.99
    assert outcome.manifest["training"]["steps"] == 12
    pruned = outcome.manifest["vocabulary"]
    assert pruned["size_after"] <= 300 < pruned["size_before"]
    assert (pruned["counted_texts"], sum(entry["texts"] for entry in pruned["languages"])) == (96, 24)
    assert "### Vocabulary" in (outcome.folder / "README.md").read_text(encoding="utf-8")
    assert leafembed.load(outcome.folder, threads=1).encode(["en1", ""]).shape == (2, 32)


def test_a_narrow_student_with_a_factorised_table_goes_down_the_line(tmp_path, eval_data, cache):
    teacher = FAMILIES["gemma"].build(tmp_path / "teacher")
    student = {"layers": [0, 5], "width": 0.75, "table_rank": 8}
    outcome = run(recipe_from_dict(toy_recipe(tmp_path, teacher, eval_data, student=student, cache_dir=cache)),
                  tmp_path / "run")  # fmt: skip
    untrained, trained = (read_factors(tmp_path / "run" / name) for name in ("untrained-student", "student"))
    assert np.array_equal(untrained.rows, trained.rows)
    parts = {part["part"]: part["parameters"] for part in outcome.manifest["sizes"]["parts"]}
    assert parts["token table"] == len(trained.rows) * 8
    assert outcome.manifest["int8"]["cosine_mean"] > 0.99
