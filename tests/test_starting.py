"""Training that goes on from the student of an earlier run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_rows
from families import FAMILIES, gemma, toy_recipe
from safetensors import safe_open
from safetensors.numpy import save_file

from leafembed.errors import BundleError, RecipeError
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.teacher import CachedTeacher
from leafembed.lineage import LINEAGE_FILES, _unlisted, hashes_of, read_lineage
from leafembed.pipeline import run, train
from leafembed.prepare import embed
from leafembed.recipe_io import recipe_from_dict
from leafembed.ship import weights
from leafembed.ship.bundle import seal
from leafembed.ship.markdown import to_toml
from leafembed.ship.quantize import quantize
from leafembed.ship.weights import REST, unpack_student, write_rest
from leafembed.text import read_rows
from leafembed.types import ModelRef
from leafembed.unpacking import earlier_student


@pytest.fixture(scope="module")
def first(tmp_path_factory, eval_data):
    """A recipe and the folder of its finished training."""
    root = tmp_path_factory.mktemp("first")
    plain = toy_recipe(root, gemma(root / "gemma"), eval_data, student={"layers": [0, 5], "vocab_size": 120})
    train(recipe_from_dict(plain), root / "run")
    return plain, root / "run"


def after(plain, folder, **sections):
    """The same recipe with another seed, going on from ``folder``."""
    changed = {name: plain.get(name, {}) | section for name, section in sections.items()}
    return recipe_from_dict(plain | {"seed": 1} | changed | {"train": plain["train"] | {"start": str(folder)}})


def test_it_starts_with_the_earlier_weights_and_the_card_counts_both_parts(first, tmp_path):
    plain, folder = first
    outcome = run(after(plain, folder), tmp_path / "run", allow_failed=True)
    training = outcome.manifest["training"]
    (earlier,) = training["earlier"]
    assert (earlier["steps"], earlier["texts"]) == (12, 12 * 16)
    history = training["history"]
    before = load_sentence_transformer(folder / "student")
    untrained = load_sentence_transformer(tmp_path / "run" / "untrained-student")
    assert not np.allclose(before.encode(["red river"]), untrained.encode(["red river"]), atol=1e-4)
    assert history[0]["step"] == 0
    card = (outcome.folder / "README.md").read_text(encoding="utf-8")
    assert "training before it, part 1: 192 texts in 12 steps" in card.replace("**", "")
    assert not Path(outcome.manifest["recipe"]["train"]["start"]).is_absolute()
    assert "Trained in 2 parts." in card
    assert "start" not in earlier["recipe"]["train"]
    assert f"```toml\n{to_toml(earlier['recipe'])}\n```" in card


def test_a_third_part_lists_both_before_it(first, tmp_path):
    plain, folder = first
    facts = train(after(plain, folder), tmp_path / "second")
    assert len(facts["earlier"]) == 1
    facts = train(after(plain, tmp_path / "second"), tmp_path / "third")
    assert len(facts["earlier"]) == 2


def test_where_the_earlier_run_lies_does_not_matter(first, tmp_path):
    plain, folder = first
    train(after(plain, folder), tmp_path / "run")
    moved = shutil.copytree(folder, tmp_path / "moved")
    marker = (tmp_path / "run" / "student" / "model.safetensors").stat().st_mtime_ns
    train(after(plain, moved, teacher={"name": "org/tiny"}), tmp_path / "run")  # nor what its teacher is called
    assert (tmp_path / "run" / "student" / "model.safetensors").stat().st_mtime_ns == marker  # not trained again


@pytest.fixture
def no_teacher(monkeypatch):
    """What is refused with this was refused before the teacher worked for hours."""
    monkeypatch.setattr("leafembed.prepare.load_teacher", lambda *args: pytest.fail("the teacher was loaded"))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"student": {"layers": [0, 1, 5]}},
            r"student\.layers of train\.start: got \[0, 5\], expected \[0, 1, 5\].*set student\.layers to what it was",
        ),
        ({"teacher": {"licence": "mit"}}, r"teacher\.licence of train\.start: got None, expected 'mit'"),
        (
            {"student": {"table_bits": 4, "layers": [0, 5]}},
            r"student\.table_bits of train\.start: got None, expected 4",
        ),
        (
            {"eval": {"test": ["retrieval/toy_en", "sts/toy.test"]}},
            r"eval\.test: got \['sts/toy\.test'\].*train\.start kept out.*leave sts/toy\.test out of eval\.test",
        ),
    ],
)
@pytest.mark.usefixtures("no_teacher")
def test_what_the_card_could_not_account_for_is_refused(first, tmp_path, sections, message):
    plain, folder = first
    with pytest.raises(RecipeError, match=rf"{message}.*, or leave train\.start out, to train afresh"):
        train(after(plain, folder, **sections), tmp_path / "run")


def test_another_teacher_is_refused_before_it_works(first, tmp_path, monkeypatch):
    plain, folder = first
    other = shutil.copytree(plain["teacher"]["model"], tmp_path / "other")
    with (other / "config.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    monkeypatch.setattr(CachedTeacher, "embed_rows", lambda *args: pytest.fail("the teacher worked"))
    with pytest.raises(RecipeError, match=r"teacher of train\.start: got .*, expected .*name the same files"):
        train(after(plain, folder, teacher={"model": str(other)}), tmp_path / "run")


def test_two_sources_of_one_name_are_two():
    one, other = ({"path": f"{lang}/train.jsonl", "licence": "CC0", "origin": "x"} for lang in ("en", "de"))
    assert _unlisted([one, other], [other, one]) == []
    assert _unlisted([one, other], [one]) == ["train.jsonl"]
    assert _unlisted([one], [{**one, "path": "/elsewhere/train.jsonl"}]) == []
    assert _unlisted([one], [{**one, "origin": "y"}]) == ["train.jsonl"]
    assert _unlisted([one], [{**one, "licence": "MIT"}]) == []  # what the first part's card said of it was corrected


@pytest.mark.usefixtures("no_teacher")
def test_a_source_that_the_recipe_does_not_list_is_refused(first, tmp_path):
    plain, folder = first
    (tmp_path / "other.txt").write_text((folder.parent / "corpus.txt").read_text(encoding="utf-8"), encoding="utf-8")
    data = {"root": str(tmp_path), "sources": [{"path": "other.txt", "lang": "en"}]}
    with pytest.raises(
        RecipeError, match=r"data\.sources: got 'nothing of corpus\.txt', expected every source of train"
    ):
        train(after(plain, folder, data=data), tmp_path / "run")


@pytest.mark.parametrize("data", [{}, {"validation_rows": 16}, {"max_rows": 60, "validation_rows": 16}])
def test_no_text_that_it_learned_before_is_held_out(first, data):
    """120 texts, of which the first part held out 24, with another seed and other numbers."""
    plain, folder = first
    before = hashes_of(row.text for row in embed(recipe_from_dict(plain)).corpus.train)
    assert np.array_equal(read_lineage(folder / "student").texts, before)
    corpus = embed(after(plain, folder, data=data)).corpus
    assert len(corpus.validation) >= 10
    assert not np.isin(hashes_of(row.text for row in corpus.validation), before).any()
    assert corpus.counts["known from earlier training"] > 0


def test_what_an_unfinished_run_wrote_into_the_folder_does_not_count(first, tmp_path):
    plain, folder = first
    moved = shutil.copytree(folder, tmp_path / "moved")
    begun = recipe_from_dict(plain | {"eval": plain["eval"] | {"decontaminate": ["sts/toy.test"]}})
    (moved / "resolved.toml").write_text(to_toml(begun.to_dict()), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"eval\.test: got \['sts/toy\.test'\].*train\.start kept out"):
        train(after(plain, moved, eval={"test": ["sts/toy.test"]}), tmp_path / "run")


def test_what_only_this_part_keeps_out_is_not_claimed_of_all_text(first):
    plain, folder = first
    sets = {"decontaminate": ["sts/toy.test"]}
    afresh, later = (
        embed(recipe_from_dict(plain | {"eval": plain["eval"] | sets})),
        embed(after(plain, folder, eval=sets)),
    )
    assert set(afresh.kept_out) == {"retrieval/toy_en", "sts/toy.test"}
    assert {one.task for one in afresh.corpus.contamination} == set(afresh.kept_out)
    assert set(later.kept_out) == {"retrieval/toy_en"}
    assert {one.task for one in later.corpus.contamination} == {"retrieval/toy_en"}


def test_a_set_to_choose_by_shares_no_text_with_what_was_learned(first, eval_data, tmp_path):
    plain, folder = first
    choosing = ["agreement", "sts/toy.dev"]
    assert "sts/toy.dev" in {task.id for task in embed(after(plain, folder, eval={"dev": choosing})).dev}
    data = shutil.copytree(eval_data, tmp_path / "eval")
    rows = read_rows(data / "sts/toy.dev.jsonl", texts=("sentence1", "sentence2"), names=("lang",), numbers=("score",))
    learned = next(iter(embed(recipe_from_dict(plain)).corpus.train)).text
    write_rows(data / "sts/toy.dev.jsonl", [{**row, "sentence1": learned.upper()} for row in rows])
    with pytest.raises(RecipeError, match=r"eval\.dev: got \['sts/toy\.dev'\], expected only tasks of whose texts"):
        embed(after(plain, folder, eval={"dev": choosing, "data": str(data)}))


def test_another_set_of_the_same_name_was_not_kept_out(first, tmp_path):
    plain, folder = first
    data = shutil.copytree(plain["eval"]["data"], tmp_path / "eval")
    queries = next((data / "retrieval" / "toy_en").glob("queries*"))
    rows = read_rows(queries, texts=("text",), names=("id", "lang"))
    write_rows(queries, [{**row, "text": row["text"] + " en1"} for row in rows])
    with pytest.raises(
        RecipeError, match=r"eval\.test: got \['retrieval/toy_en'\], expected only tasks, with the same content"
    ):
        train(after(plain, folder, eval={"data": str(data)}), tmp_path / "run")


def test_a_table_has_no_layers_to_go_on_with(first):
    plain, folder = first
    with pytest.raises(RecipeError, match=r"train\.start: got .* expected nothing with student\.init = 'static'"):
        after(plain | {"student": {"init": "static"}}, folder)


def test_a_folder_that_is_no_run_is_refused(first, tmp_path):
    plain, _ = first
    with pytest.raises(RecipeError, match=r"train\.start: got .*expected the folder of a run that trained a student"):
        train(after(plain, tmp_path), tmp_path / "run")


@pytest.fixture(scope="module")
def bundle(first, tmp_path_factory):
    """The bundle of a whole run of that recipe, and the run's folder."""
    plain, folder = first
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(folder, root / "run")
    return run(recipe_from_dict(plain), root / "run", allow_failed=True).folder, root / "run"


def test_training_goes_on_from_a_bundle_as_from_its_run(first, bundle, tmp_path):
    plain, _ = first
    folder, origin = bundle
    facts = train(after(plain, folder), tmp_path / "from-bundle")
    (earlier,) = facts["earlier"]
    assert (earlier["steps"], earlier["texts"]) == (12, 12 * 16)
    texts = [row.text for row in embed(recipe_from_dict(plain)).corpus.validation]
    (unpacked,) = Path(plain["cache_dir"]).glob("unpacked/*/student")
    vectors = [load_sentence_transformer(path).encode(texts) for path in (unpacked, origin / "student")]
    cosines = np.sum(vectors[0] * vectors[1], axis=1)
    assert cosines.min() > 0.999  # weights as INT8 holds them
    assert '= "/' not in (folder / "learned_by.toml").read_text(encoding="utf-8")  # no path of this machine
    assert ': "/' not in (folder / "learned_from.json").read_text(encoding="utf-8")
    report = (origin / "student" / "vocabulary.json").read_text(encoding="utf-8")
    assert json.loads((unpacked / "vocabulary.json").read_text(encoding="utf-8")) == json.loads(report)
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1  # another user reads all or none
    np.testing.assert_array_equal(read_lineage(unpacked).texts, read_lineage(origin / "student").texts)


def test_matrices_come_back_as_near_as_int8_holds_them_and_vectors_as_they_were(bundle, tmp_path):
    folder, origin = bundle
    unpack_student(folder, tmp_path / "student")
    before, after = (
        load_sentence_transformer(path).state_dict() for path in (origin / "student", tmp_path / "student")
    )
    assert before.keys() == after.keys()
    for name, value in before.items():
        if value.dim() < 2:
            assert torch.equal(value, after[name]), name
        else:
            step = value.abs().amax(dim=1, keepdim=True) / 127
            assert ((value - after[name]).abs() <= 1.01 * step + 1e-9).all(), name


def test_a_bundle_that_is_altered_or_holds_too_little_is_no_start(first, bundle, tmp_path):
    plain, _ = first
    folder = shutil.copytree(bundle[0], tmp_path / "bundle")
    (folder / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"train\.start: got .*config\.json was altered"):
        train(after(plain, folder), tmp_path / "run")
    (tmp_path / "less").mkdir()
    with pytest.raises(BundleError, match=r"no student can be made of it"):
        unpack_student(tmp_path / "less", tmp_path / "student")


def test_a_file_outside_the_folder_is_refused(bundle, tmp_path):
    folder = shutil.copytree(bundle[0], tmp_path / "bundle")
    with safe_open(folder / REST, "np") as rest:
        files, tensors = dict(rest.metadata()), {name: rest.get_tensor(name) for name in rest.keys()}
    save_file(tensors, folder / REST, metadata={**files, "../../evil.json": "{}"})
    with pytest.raises(BundleError, match=r"evil\.json"):
        unpack_student(folder, tmp_path / "student")
    assert not list(tmp_path.rglob("evil.json"))


def rewritten(bundle, target, change, tensors=None):
    """A copy of a bundle with other small files in its rest, and tensors besides."""
    folder = shutil.copytree(bundle, target)
    with safe_open(folder / REST, "np") as rest:
        files, kept = dict(rest.metadata()), {name: rest.get_tensor(name) for name in rest.keys()}
    save_file({**kept, **(tensors or {})}, folder / REST, metadata=change(files))
    return folder


@pytest.mark.parametrize("name", ["../evil/weight", "/evil/weight"])
def test_a_tensor_outside_the_folder_is_refused(bundle, tmp_path, name):
    folder = rewritten(bundle[0], tmp_path / "bundle", dict, {name: np.zeros(1, np.float32)})
    with pytest.raises(BundleError, match="evil"):
        unpack_student(folder, tmp_path / "new" / "student")
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("lost", ["matrices", "modules.json"])
def test_a_rest_that_says_too_little_is_refused(bundle, tmp_path, lost):
    folder = rewritten(bundle[0], tmp_path / "bundle", lambda files: {k: v for k, v in files.items() if k != lost})
    with pytest.raises(BundleError, match=f"made of.*{lost}"):
        unpack_student(folder, tmp_path / "student")


@pytest.mark.parametrize("content", [b"", b"garbage" * 9])
def test_a_rest_that_cannot_be_read_is_refused(bundle, tmp_path, content):
    folder = shutil.copytree(bundle[0], tmp_path / "bundle")
    (folder / REST).write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read"):
        unpack_student(folder, tmp_path / "student")


@pytest.mark.parametrize("name", [REST, *LINEAGE_FILES])
def test_a_file_that_the_manifest_does_not_vouch_for_is_no_start(first, bundle, tmp_path, name):
    plain, _ = first
    folder = shutil.copytree(bundle[0], tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["files"][name]
    manifest["seal"] = seal(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(RecipeError, match=rf"train\.start: got .*lists no {name}"):
        earlier_student(after(plain, folder))


@pytest.mark.parametrize("family", ["bert", "xlm_roberta", "qwen", "modernbert", "gemma_headless"])
def test_a_student_of_each_family_comes_back(tmp_path, family):
    model = load_sentence_transformer(FAMILIES[family].build(tmp_path / "student"))
    ref = ModelRef("toy", dim=model.get_embedding_dimension(), max_seq_length=64, fingerprint="f")
    quantize(model, tmp_path / "bundle", ref=ref, group_size=32)
    assert write_rest(tmp_path / "student", tmp_path / "bundle")
    unpack_student(tmp_path / "bundle", tmp_path / "again")
    texts = ["en1 de2", "en3"]
    again = load_sentence_transformer(tmp_path / "again")
    assert np.sum(model.encode(texts) * again.encode(texts), axis=1).min() > 0.999
    before, after_ = model.state_dict(), again.state_dict()
    assert before.keys() == after_.keys()


def test_a_graph_that_lacks_much_makes_no_student(bundle, tmp_path, monkeypatch):
    folder, origin = bundle
    monkeypatch.setattr(weights, "_marked", lambda graph: [])
    monkeypatch.setattr(weights, "_MOST_BYTES", 1000)
    (tmp_path / "bundle").mkdir()
    for name in ("model.xml", "model.bin"):
        shutil.copy(folder / name, tmp_path / "bundle")
    assert not write_rest(origin / "student", tmp_path / "bundle")
    assert not (tmp_path / "bundle" / REST).exists()
