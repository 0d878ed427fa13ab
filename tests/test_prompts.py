from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import PROMPTS, bert, gemma, toy_recipe, toy_texts

from leafembed.errors import RecipeError
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.prompts import reserved_tokens, student_prompts
from leafembed.learn.student import Sample, init_student
from leafembed.pipeline import run
from leafembed.recipe_io import recipe_from_dict
from leafembed.recipe_learn import StudentConfig

TOKENS = StudentConfig(layers=(0, 5), prompts="tokens")
FREE = ["<unused0>", "<unused1>", "<unused2>"]


def reserving(folder):
    """A teacher whose tokenizer reserves tokens as Gemma's does, with rows of their own in the table."""
    gemma(folder)
    model = load_sentence_transformer(folder)
    model.tokenizer.add_tokens([*FREE, "ordinary"], special_tokens=False)
    model[0].auto_model.resize_token_embeddings(len(model.tokenizer))
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return load_sentence_transformer(reserving(tmp_path_factory.mktemp("prompts") / "gemma"))


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    texts = toy_texts(100)
    sample = Sample(texts, teacher.encode(texts, show_progress_bar=False), held_out=[(text, "en") for text in texts])
    folder = tmp_path_factory.mktemp("student") / "student"
    init_student(TOKENS, teacher, sample, folder, bare="STS")
    return load_sentence_transformer(folder)


def test_the_bare_prompt_costs_nothing_and_every_other_a_token():
    assert student_prompts(TOKENS, PROMPTS, bare="STS", reserved=FREE) == {
        "query": "<unused0>",
        "document": "<unused1>",
        "STS": "",
    }


def test_names_of_one_prompt_share_its_token():
    prompts = {"query": "q: ", "Retrieval": "q: ", "PairClassification": "s: ", "STS": "s: ", "document": "d: "}
    found = student_prompts(TOKENS, prompts, bare="STS", reserved=FREE)
    assert found["query"] == found["Retrieval"] == "<unused0>"
    assert found["PairClassification"] == found["STS"] == ""
    assert found["document"] == "<unused1>"


def test_without_a_bare_prompt_each_has_a_token():
    assert len(set(student_prompts(TOKENS, PROMPTS, reserved=FREE).values())) == 3


def test_too_few_reserved_tokens_are_an_error_that_says_what_to_do():
    with pytest.raises(RecipeError, match=r"1 reserved tokens, expected one for each of 2.*'none' or 'teacher'"):
        student_prompts(TOKENS, PROMPTS, bare="STS", reserved=FREE[:1])


def test_other_choices_are_as_before():
    assert student_prompts(StudentConfig(layers=(0,), prompts="teacher"), PROMPTS) == PROMPTS
    assert set(student_prompts(StudentConfig(layers=(0,)), PROMPTS).values()) == {""}


def test_only_reserved_names_are_taken(teacher):
    assert reserved_tokens(teacher.tokenizer) == FREE


def test_a_role_starts_as_the_mean_of_its_prompt(teacher, student):
    table = teacher[0].auto_model.get_input_embeddings().weight
    ids = teacher.tokenizer(PROMPTS["query"], add_special_tokens=False)["input_ids"]
    token = student.tokenizer.convert_tokens_to_ids("<unused0>")
    own = student[0].auto_model.get_input_embeddings().weight[token]
    assert torch.allclose(own, table[ids].mean(0), atol=1e-6)


def test_a_role_is_one_token_before_the_text(student):
    text = "en1 en2 en3"
    bare = student.preprocess([text])["input_ids"].shape[1]
    assert student.prompts["STS"] == ""
    assert student.preprocess([student.prompts["query"] + text])["input_ids"].shape[1] == bare + 1


def test_roles_give_different_vectors(student):
    bare, query = (student.encode(["en1 en2"], prompt_name=name) for name in ("STS", "query"))
    assert not np.allclose(bare, query, atol=1e-3)


def test_a_pruned_vocabulary_keeps_the_tokens_of_roles(teacher, tmp_path):
    texts = toy_texts(100)
    sample = Sample(texts, teacher.encode(texts, show_progress_bar=False), held_out=[(text, "en") for text in texts])
    config = StudentConfig(layers=(0, 5), prompts="tokens", vocab_size=250)
    init_student(config, teacher, sample, tmp_path / "student", bare="STS")
    pruned = load_sentence_transformer(tmp_path / "student")
    kept = pruned.tokenizer.get_vocab()
    assert {"<unused0>", "<unused1>"} <= set(kept)
    assert "<unused2>" not in kept  # no role of this teacher's needs it


def test_a_run_learns_several_roles_of_a_text_and_its_bundle_takes_them(tmp_path, eval_data):
    sources = [{"path": "corpus.txt", "lang": "en", "roles": ["query"]}]
    plain = toy_recipe(
        tmp_path, reserving(tmp_path / "gemma"), eval_data, data={"sources": sources},
        student={"layers": [0, 5], "prompts": "tokens"},
    )  # fmt: skip
    plain["teacher"]["prompt_name"] = "STS"
    outcome = run(recipe_from_dict(plain), tmp_path / "run", allow_failed=True)
    prompts = json.loads((outcome.folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))["prompts"]
    assert prompts == {"query": "<unused0>", "document": "<unused1>", "STS": ""}


def test_roles_of_another_encoder_are_tokens_of_its_own(tmp_path, eval_data):
    teacher, encoder = gemma(tmp_path / "teacher"), tmp_path / "encoder"  # a teacher that reserves none
    model = load_sentence_transformer(bert(encoder))
    model.tokenizer.add_tokens(["[unused7]", "[unused8]"], special_tokens=False)
    model[0].auto_model.resize_token_embeddings(len(model.tokenizer))
    model.save_pretrained(str(encoder), create_model_card=False)
    sources = [{"path": "corpus.txt", "lang": "en", "roles": ["query"]}]
    student = {"init": "encoder", "model": str(encoder), "prompts": "tokens"}
    plain = toy_recipe(tmp_path, teacher, eval_data, data={"sources": sources}, student=student)
    plain["teacher"]["prompt_name"] = "STS"
    outcome = run(recipe_from_dict(plain), tmp_path / "run", allow_failed=True)
    prompts = json.loads((outcome.folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))["prompts"]
    assert prompts == {"query": "[unused7]", "document": "[unused8]", "STS": ""}


def test_roles_of_a_bare_text_are_refused_still(tmp_path, eval_data):
    sources = [{"path": "corpus.txt", "lang": "en", "roles": ["query"]}]
    plain = toy_recipe(tmp_path, tmp_path, eval_data, data={"sources": sources}, student={"layers": [0, 5]})
    with pytest.raises(RecipeError, match="'teacher' or 'tokens'"):
        recipe_from_dict(plain)
