from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from conftest import write_rows
from families import gemma_headless, toy_recipe, toy_texts

from leafembed import progress
from leafembed.errors import ModelError, RecipeError
from leafembed.learn.data import prepare_corpus
from leafembed.prepare import embed
from leafembed.recipe_io import recipe_from_dict
from leafembed.recipe_text import DataConfig, Source


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    return gemma_headless(tmp_path_factory.mktemp("teacher") / "gemma")


@pytest.fixture
def recipe(tmp_path, teacher_dir, eval_data):
    """120 pairs of an English text, embedded as a query, and what stands for its German translation."""
    pairs = [{"text": a, "other": f"{b} x{i}", "lang": "en", "lang_pair": "de"}
             for i, (a, b) in enumerate(zip(toy_texts(120), toy_texts(120, seed=1), strict=True))]  # fmt: skip
    write_rows(tmp_path / "pairs.jsonl", pairs)

    def recipe(source=(), **data):
        source = {"path": "pairs.jsonl", "positive": "other", "prompt_name": "query", **dict(source)}
        plain = toy_recipe(tmp_path, teacher_dir, eval_data, data={"sources": [source], **data})
        if source.get("roles"):  # a bare text could not have several targets
            plain["student"] = {"init": "static", "prompts": "teacher"}
        return recipe_from_dict(plain)

    return recipe


def test_targets_are_the_vectors_of_a_rows_own_text_under_its_own_prompt(recipe):
    material = embed(recipe({"positive_prompt_name": "document"}))
    rows = [*material.corpus.train, *material.corpus.validation]
    assert len(material.teacher.store) == 240
    found = material.targets(np.arange(len(rows)))
    for prompt_name in ("query", "document"):
        index = [i for i, row in enumerate(rows) if row.prompt_name == prompt_name]
        assert len(index) == 120
        direct = material.teacher.encoder.encode([rows[i].text for i in index], prompt_name=prompt_name)
        assert np.allclose(found[index], direct, atol=1e-5)


def test_a_translation_learns_its_texts_vector_and_the_teacher_is_not_asked_for_it(recipe):
    material = embed(recipe({"positive_target": "text"}))
    assert len(material.teacher.store) == 120
    start = 0
    for side in (material.corpus.train, material.corpus.validation):
        found = material.targets(start + np.arange(len(side)))
        direct = material.teacher.encoder.encode([row.text for row in side[::2]], prompt_name="query")
        assert np.allclose(found[::2], direct, atol=1e-5)
        assert np.array_equal(found[1::2], found[::2])
        start += len(side)
    (agreement,) = material.dev
    assert {row.text for row in side if row.lang == "de"} & agreement.texts
    for row in range(0, len(side), 2):  # of a text and its translation, one vector, one is enough
        assert not {side[row].text, side[row + 1].text} <= agreement.texts


def test_each_role_of_a_text_has_its_own_vector(recipe):
    material = embed(recipe({"positive": "", "roles": ["document", "STS"]}))
    rows = [*material.corpus.train, *material.corpus.validation]
    assert len(rows) == len(material.teacher.store) == 360
    index = [i for i, row in enumerate(rows) if row.prompt_name == "STS"]
    direct = material.teacher.encoder.encode([rows[i].text for i in index], prompt_name="STS")
    assert np.allclose(material.targets(np.array(index)), direct, atol=1e-5)


@pytest.mark.parametrize("roles", [["query"], ["STS", "STS"]])
def test_a_role_that_a_text_has_already_is_refused(recipe, roles):
    with pytest.raises(RecipeError, match=r"data\.sources\[0\]\.roles: got .*expected prompts other than 'query'"):
        embed(recipe({"roles": roles}))


def test_an_unknown_role_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"data\.sources\[0\]\.roles\[1\]: got 'stz', expected one of the prompts"):
        embed(recipe({"roles": ["STS", "stz"]}))


def test_mined_negatives_are_the_hardest_below_the_margin_and_part_of_what_training_depends_on(recipe):
    plain = embed(recipe())
    mined = embed(recipe(mine_negatives=1, negative_margin=0.05))
    start = 0
    for side, before in ((mined.corpus.train, plain.corpus.train), (mined.corpus.validation, plain.corpus.validation)):
        vectors = mined.targets(start + np.arange(len(side)))
        german = [i for i, row in enumerate(side) if row.lang == "de"]
        for i in range(0, len(side), 2):
            cosines = vectors[german] @ vectors[i]
            limit = vectors[i] @ vectors[i + 1]
            allowed = cosines[cosines <= limit - 0.05 * abs(limit)]
            assert (side[i].negative is None) == (not len(allowed))
            if side[i].negative is not None:
                assert side[side[i].negative].lang == "de"
                assert np.isclose(vectors[side[i].negative] @ vectors[i], allowed.max(), atol=1e-6)
        assert [dataclasses.replace(row, negative=None) for row in side] == list(before)
        start += len(side)
    assert mined.corpus.counts["negatives mined"] > 0
    assert mined.corpus.fingerprint != plain.corpus.fingerprint
    assert embed(recipe(mine_negatives=1, negative_margin=0.05)).corpus == mined.corpus
    assert embed(recipe(mine_negatives=1, negative_margin=0.3)).corpus.fingerprint != mined.corpus.fingerprint


def test_roles_need_a_student_that_is_told_them(recipe, tmp_path, teacher_dir, eval_data):
    source = {"path": "pairs.jsonl", "prompt_name": "query", "roles": ["document"]}
    with pytest.raises(RecipeError, match=r"data\.sources\.roles: .*student\.prompts = 'teacher'"):
        recipe_from_dict(toy_recipe(tmp_path, teacher_dir, eval_data, data={"sources": [source]}))


def test_text_of_sets_that_are_judged_by_later_is_kept_out(tmp_path, teacher_dir, eval_data):
    plain = toy_recipe(tmp_path, teacher_dir, eval_data)
    later = json.loads((eval_data / "clustering/toy.jsonl").read_text(encoding="utf-8").splitlines()[0])["text"]
    with (tmp_path / "corpus.txt").open("a", encoding="utf-8") as file:
        file.write(f"\n{later}\n")
    loose = embed(recipe_from_dict(plain)).corpus
    kept = embed(recipe_from_dict(plain | {"eval": plain["eval"] | {"decontaminate": ["clustering/*"]}})).corpus
    assert later in {row.text for row in (*loose.train, *loose.validation)}
    assert later not in {row.text for row in (*kept.train, *kept.validation)}
    assert {entry.task: entry.rows_exact for entry in kept.contamination}["clustering/toy"] == 1


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"teacher": {"model": "some/model"}},
            r"teacher\.model: some/model: got revision None, .* set teacher\.model to a folder, or "
            r"teacher\.revision to a commit.*its licence may have to be accepted at .*huggingface\.co/some/model first",
        ),
        ({"teacher": {"model": "./nowhere"}}, r"teacher\.model: \./nowhere: no such folder"),
        ({"teacher": {"model": "package:no_such_package"}}, r"teacher\.model: package:no_such_package: no such Python"),
        (
            {"student": {"init": "encoder", "model": "some/model"}},
            r"student\.model: some/model: got revision None, .*set student\.model to a folder, or student\.rev",
        ),
    ],
)
def test_a_model_that_is_not_there_is_said_before_text_is_read(
    tmp_path, teacher_dir, eval_data, monkeypatch, sections, message
):
    monkeypatch.setattr("leafembed.prepare.load_tasks", lambda *args, **options: pytest.fail("text was read"))
    plain = toy_recipe(tmp_path, teacher_dir, eval_data)
    plain |= {name: plain.get(name, {}) | section for name, section in sections.items()}
    with pytest.raises(ModelError, match=message):
        embed(recipe_from_dict(plain))


def test_a_folder_that_is_no_model_is_said_before_text_is_read(tmp_path, eval_data, monkeypatch):
    monkeypatch.setattr("leafembed.prepare.load_tasks", lambda *args, **options: pytest.fail("text was read"))
    with pytest.raises(ModelError, match=r"no modules\.json; expected a sentence-transformers folder"):
        embed(recipe_from_dict(toy_recipe(tmp_path, tmp_path, eval_data)))


def test_reading_says_that_it_began(recipe, capsys):
    embed(recipe())
    assert capsys.readouterr().err.splitlines()[0] == "reading tasks and corpus"


def test_reading_much_text_says_how_fast(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    (tmp_path / "lines.txt").write_text("\n".join(f"sentence number {i}" for i in range(2500)), encoding="utf-8")
    config = DataConfig(root=tmp_path, sources=(Source(path="lines.txt", lang="en"),), validation_rows=16)
    prepare_corpus(config, tmp_path / "corpora", seed=0, prompt_name=None)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", ")[0] for line in lines] == [
        "reading the corpus: 1,000 records",
        "reading the corpus: 2,000 records",
    ]
    assert all(line.endswith("/s") for line in lines)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"layers": [0, 6]}, r"student\.layers: got \[0, 6\], the teacher has layers 0 to 1"),
        ({"layers": [0, 1], "exits": [2]}, r"student\.exits: got \[2\], expected fewer than the student's 2 layers"),
        ({"layers": [0], "dims": [4096]}, r"student\.dims: got \[4096\], expected fewer than"),
    ],
)
def test_a_student_that_the_teacher_cannot_give_is_refused_before_it_works(
    tmp_path, teacher_dir, eval_data, student, message
):
    plain = toy_recipe(tmp_path, teacher_dir, eval_data)
    with pytest.raises(RecipeError, match=message):
        embed(recipe_from_dict({**plain, "student": {"init": "layers", **student}}))
    assert not list((tmp_path / "cache" / "vectors").rglob("*.npy"))


@pytest.mark.parametrize("key", ["best_metric", "stop_metric"])
def test_a_type_that_no_dev_task_has_is_refused_before_text_is_read(tmp_path, teacher_dir, eval_data, key):
    plain = toy_recipe(tmp_path, teacher_dir, eval_data, train={key: "STS", "stop_patience": 1})
    with pytest.raises(RecipeError, match=rf"train\.{key}: got 'STS', expected dev, a validation loss, .*: Agreement"):
        embed(recipe_from_dict(plain))
    assert not (tmp_path / "cache" / "corpora").exists()


def test_weights_that_weigh_nothing_are_said(recipe, capsys):
    embed(recipe(max_rows=40, language_weights={"deu": 2.0, "el": 2.0}))
    assert "data.language_weights: there is no text in el" in capsys.readouterr().err
