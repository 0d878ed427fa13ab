from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from families import bert, gemma, toy_recipe, toy_texts
from test_train import go

from leafembed.errors import CacheError, ModelError, NonFiniteError, RecipeError
from leafembed.learn.losses import token_distillation
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.stretches import mean_by, stretches
from leafembed.learn.student import Sample, init_student
from leafembed.learn.teacher import load_teacher
from leafembed.learn.token_pass import embed_tokens
from leafembed.learn.token_store import TokenStore, TokenTargets, TokenVectors
from leafembed.learn.tokens import TokenHead, token_ends
from leafembed.pipeline import run
from leafembed.prepare import embed
from leafembed.recipe_io import recipe_from_dict
from leafembed.recipe_learn import StudentConfig, TeacherConfig, TrainConfig
from leafembed.types import Corpus, Row

KEYS = (b"a" * 16, b"b" * 15 + b"\0", b"c" * 16)


def tokens(ends, texts, dim=2):
    return TokenVectors(np.zeros((len(ends), dim), np.float32), np.array(ends), np.array(texts))


def test_a_word_that_one_side_cuts_is_one_stretch():
    # "harps go": the student reads har|ps| go, the teacher harps| g|o, and both have padding or special tokens.
    found = stretches(np.array([[0, 3, 5, 8, 0]]), tokens([5, 7, 8], [0, 0, 0]))
    assert found.n == 2
    assert found.places.tolist() == [1, 2, 3]
    assert found.student.tolist() == [0, 0, 1]
    assert found.teacher.tolist() == [0, 1, 1]


def test_texts_do_not_mix_and_what_follows_the_last_common_cut_belongs_to_none():
    # The first text is cut shorter for the student, the second is not compared, the third ends alike.
    found = stretches(np.array([[2, 4], [3, 6], [1, 9]]), tokens([2, 4, 7, 1, 5, 9], [0, 0, 0, 2, 2, 2]))
    assert found.n == 4
    assert found.places.tolist() == [0, 1, 4, 5]
    assert found.teacher.tolist() == [0, 1, -1, 2, 3, 3]
    assert stretches(np.array([[0, 3]]), tokens([4], [0])).n == 0
    assert stretches(np.array([[0, 3]]), tokens([], [])).n == 0


def test_means_and_distance_by_hand():
    means = mean_by(torch.tensor([[1.0, 0.0], [3.0, 2.0], [0.0, 5.0]]), np.array([0, 0, 1]), 2)
    assert means.tolist() == [[2.0, 1.0], [0.0, 5.0]]
    teacher = torch.tensor([[2.0, 3.0], [0.0, 5.0]])
    assert token_distillation(means, teacher, variance=4.0).item() == pytest.approx((4 + 0) / 2 / 4)
    assert token_distillation(teacher, teacher, variance=4.0).item() == 0


def filled(folder: Path) -> TokenStore:
    store = TokenStore(folder, 2)
    store.append(
        KEYS[:2], [np.array([[3.0, 4.0]]), np.array([[0.0, 20.0], [0.0, 10.0]])], [np.array([4]), np.array([2, 6])]
    )
    return store


def test_the_store_keeps_tokens_across_processes_in_units_of_a_texts_vector(tmp_path):
    filled(tmp_path)
    store = TokenStore(tmp_path, 2)
    assert store.find(KEYS).tolist() == [0, 1, -1]
    found = store.take(np.array([1, 0]))
    scale = (5 + 15) / 2  # lengths of the two texts' means
    np.testing.assert_allclose(found.vectors, np.array([[0, 20], [0, 10], [3, 4]]) / scale)
    assert found.ends.tolist() == [2, 6, 4]
    assert found.texts.tolist() == [0, 0, 1]
    every = np.array([[3.0, 4.0], [0.0, 20.0], [0.0, 10.0]])
    assert store.variance == pytest.approx(((every - every.mean(0)) ** 2).sum(1).mean() / scale**2)
    rows = TokenTargets(store, np.array([-1, 1, 0]))(np.array([0, 2, 0, 1]))
    assert rows.texts.tolist() == [1, 3, 3]


def test_a_shard_without_its_marker_never_happened(tmp_path):
    filled(tmp_path)
    next(tmp_path.glob("*.json")).unlink()
    assert len(TokenStore(tmp_path, 2)) == 0


@pytest.mark.parametrize("suffix", [".npy", ".ends.npy", ".keys"])
def test_altered_bytes_are_refused(tmp_path, suffix):
    filled(tmp_path)
    path = next(path for path in tmp_path.iterdir() if path.name.split(".", 1)[1] == suffix.removeprefix("."))
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CacheError, match="changed since they were written; delete"):
        TokenStore(tmp_path, 2).take(np.array([0]))


def test_shards_of_another_size_are_refused(tmp_path):
    filled(tmp_path)
    with pytest.raises(CacheError, match="expected"):
        TokenStore(tmp_path, 3)
    marker = next(tmp_path.glob("*.json"))
    marker.write_text(json.dumps({"texts": 2}))
    with pytest.raises(CacheError, match="damaged"):
        TokenStore(tmp_path, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_fp16_does_not_hold_is_refused(tmp_path, value):
    with pytest.raises(NonFiniteError, match="expected finite"):
        TokenStore(tmp_path, 1).append(KEYS[:1], [np.array([[value]])], [np.array([1])])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def teacher(tmp_path):
    found, _ = load_teacher(TeacherConfig(model=str(gemma(tmp_path / "teacher")), precision="fp32"), tmp_path / "cache")
    return found


def test_the_pass_gives_each_token_its_vector_and_end_and_fills_the_teachers_own_store(teacher, tmp_path):
    texts = toy_texts(5)
    rows = [*(Row(text, "en", prompt_name="STS") for text in texts), Row("en1 de1", "de", target=0)]
    store, places = embed_tokens(teacher, tmp_path / "tokens", rows[:4], rows[4:])
    assert places[5] == -1
    assert len(store) == 5
    model, prompt = teacher.torch.model, teacher.ref.prompts["STS"]
    for i, text in enumerate(texts):
        found = store.take(places[[i]])
        assert found.ends[-1] == len(text)
        assert (np.diff(found.ends) > 0).all()
        with torch.no_grad():
            ids = model.preprocess([prompt + text])["input_ids"]
            output = model(model.preprocess([prompt + text]))
            states = TokenHead(model)(output["token_embeddings"][0]).numpy()
        # The tokens of the text are the last ones but for what closes it, and their directions are the model's own.
        ends = token_ends(model, ids, [prompt + text], [prompt])[0]
        expected = states[ends > 0]
        cosine = np.sum(found.vectors * expected, 1) / np.linalg.norm(found.vectors, axis=1)
        np.testing.assert_allclose(cosine / np.linalg.norm(expected, axis=1), 1, atol=1e-3)
    before = teacher.computed
    np.testing.assert_allclose(teacher.encode(texts, prompt_name="STS"), teacher.torch.encode(texts, prompt_name="STS"),
                               atol=1e-5)  # fmt: skip
    assert teacher.computed == before  # nothing was left to compute
    again, same = embed_tokens(teacher, tmp_path / "tokens", rows)
    assert len(again) == 5
    assert same.tolist() == places.tolist()


def test_a_model_that_reads_other_tokens_than_its_tokenizer_gives_is_refused(tmp_path):
    model = load_sentence_transformer(gemma(tmp_path / "teacher"))
    ids = model.preprocess(["en1 de2", "en3"])["input_ids"]
    assert token_ends(model, ids, ["en1 de2", "en3"], ["", ""])[0].max() == 7
    with pytest.raises(ModelError, match="expected the same"):
        token_ends(model, ids, ["en1 de3", "en3"], ["", ""])


def test_the_tokens_of_a_text_add_up_to_its_vector(tmp_path):
    model = load_sentence_transformer(gemma(tmp_path / "teacher"))
    with torch.no_grad():
        output = model(model.preprocess(["en1 de2 en3"]))
        mean = TokenHead(model)(output["token_embeddings"][0]).mean(0)
    np.testing.assert_allclose(mean / mean.norm(), output["sentence_embedding"][0], atol=1e-5)


def test_a_model_whose_vector_is_no_mean_over_tokens_is_refused(tmp_path):
    model = load_sentence_transformer(bert(tmp_path / "bert"))
    model[1].pooling_mode = "cls"
    with pytest.raises(RecipeError, match=r"train\.token_distillation: .* expected a transformer, a mean over tokens"):
        TokenHead(model)
    static = StudentConfig(init="static")
    texts = toy_texts(8)
    source = load_sentence_transformer(tmp_path / "bert")
    init_student(static, source, Sample(texts, source.encode(texts)), tmp_path / "static")
    with pytest.raises(RecipeError, match=r"train\.token_distillation"):
        TokenHead(load_sentence_transformer(tmp_path / "static"))


def test_a_student_learns_the_tokens_and_its_log_says_so(teacher, tmp_path):
    texts = toy_texts(88)
    rows = tuple(Row(text, "en", prompt_name="STS") for text in texts)
    found = TokenTargets(*embed_tokens(teacher, tmp_path / "tokens", rows))
    vectors = teacher.encode(texts, prompt_name="STS")
    init_student(
        StudentConfig(layers=(0,), vocab_size=120),
        teacher.torch.model,
        Sample(texts, vectors, held_out=[(texts[-1], "en")]),
        tmp_path / "start",
    )
    config = TrainConfig(max_steps=30, batch_size=16, eval_steps=15, learning_rate=1e-2, warmup_steps=2,
                         precision="fp32", distillation=0.0, alignment=0.0, token_distillation=1.0)  # fmt: skip
    start = tmp_path / "start", Corpus(rows[:72], rows[72:], {}, "f" * 16), vectors
    facts, _ = go(start, tmp_path, config=config, tokens=found)
    losses = [entry["validation"]["token_distillation"] for entry in facts["history"] if "validation" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert any("token_distillation" in entry for entry in facts["history"] if "loss" in entry)


def test_a_recipe_with_tokens_runs_and_one_without_weights_is_refused(tmp_path, eval_data):
    folder = gemma(tmp_path / "teacher")
    recipe = toy_recipe(tmp_path, folder, eval_data, train={"token_distillation": 0.5}, student={"layers": [0, 5]})
    run(recipe_from_dict(recipe), tmp_path / "run")
    history = json.loads((tmp_path / "run" / "bundle" / "manifest.json").read_text())["training"]["history"]
    assert any("token_distillation" in entry.get("validation", {}) for entry in history)
    # In the other engine: the same tokens, nearly the same vectors, in a store of their own.
    recipe["teacher"] |= {"engine": "openvino"}
    other = embed(recipe_from_dict(recipe)).tokens
    folders = sorted((tmp_path / "cache" / "tokens").iterdir())
    assert len(folders) == 2
    rows = np.arange(20)
    one = TokenTargets(TokenStore(folders[0], 32), other.places)(rows)
    two = TokenTargets(TokenStore(folders[1], 32), other.places)(rows)
    assert one.ends.tolist() == two.ends.tolist()
    cosine = (
        np.sum(one.vectors * two.vectors, 1) / np.linalg.norm(one.vectors, axis=1) / np.linalg.norm(two.vectors, axis=1)
    )
    assert cosine.mean() > 0.99
    url = {"model": "http://127.0.0.1:1/v1", "served_model": "x", "licence": "mit"}
    recipe |= {"teacher": url, "student": {"init": "encoder", "model": str(folder)}}
    with pytest.raises(RecipeError, match=r"train\.token_distillation: got 0\.5, expected 0 with a teacher at a URL"):
        recipe_from_dict(recipe)
