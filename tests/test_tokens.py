from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import bert, gemma, gemma_headless, toy_recipe, toy_texts
from training_runs import go

from leafembed.errors import ModelError, NonFiniteError, RecipeError
from leafembed.learn import token_pass
from leafembed.learn.losses import token_distillation
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.stretches import stretches
from leafembed.learn.student import Sample, init_student
from leafembed.learn.teacher import load_teacher
from leafembed.learn.token_objective import TokenObjective
from leafembed.learn.token_pass import embed_tokens, in_torch
from leafembed.learn.token_store import TokenStore, TokenTargets
from leafembed.learn.tokens import TokenHead, token_ends
from leafembed.pipeline import run
from leafembed.prepare import embed
from leafembed.recipe_io import recipe_from_dict
from leafembed.recipe_learn import StudentConfig, TeacherConfig, TrainConfig
from leafembed.teaching import _compared_tokens
from leafembed.types import Corpus, Row


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
        ends = token_ends(model, ids, [prompt + text], [len(prompt)])[0]
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


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_a_token_that_fp16_does_not_hold_names_its_text(teacher, tmp_path, value):
    own = in_torch(teacher.torch)

    def broken(features):
        vectors, tokens = own(features)
        return vectors, np.where(np.arange(len(tokens))[:, None, None] == 1, value, tokens).astype(np.float32)

    rows = [Row(text, "en", prompt_name="STS") for text in ("de1 de2 de3", "en1 en2")]
    with pytest.raises(NonFiniteError, match=r"token vectors of 'en1 en2': .*65,504"):
        embed_tokens(teacher, tmp_path / "tokens", rows, forward=broken)


def test_another_engine_is_compared_by_texts_and_by_tokens(teacher):
    encoder, texts = teacher.torch, toy_texts(6)
    own = in_torch(encoder)
    facts = _compared_tokens(encoder, own, texts, "STS")
    assert facts == {"mean": pytest.approx(1), "least": pytest.approx(1), "of_texts": pytest.approx(1), "texts": 6}
    for other in (lambda f: (-own(f)[0], own(f)[1]), lambda f: (own(f)[0], np.roll(own(f)[1], 1, axis=1))):
        with pytest.raises(ModelError, match="expected at least"):
            _compared_tokens(encoder, other, texts, "STS")


def test_a_killed_pass_goes_on_and_a_shard_holds_no_more_tokens_than_it_may(teacher, tmp_path, monkeypatch):
    rows = [Row(text, "en", prompt_name=name) for text in toy_texts(24) for name in ("STS", "query")]
    monkeypatch.setattr(token_pass, "_SHARD_TOKENS", 20)
    monkeypatch.setattr(teacher.torch, "batch_tokens", 32)
    own, batches = in_torch(teacher.torch), []

    def killed(features):
        batches.append(len(features["input_ids"]))
        if len(batches) == 12:
            raise KeyboardInterrupt
        return own(features)

    with pytest.raises(KeyboardInterrupt):
        embed_tokens(teacher, tmp_path / "tokens", rows[:40], rows[40:], forward=killed)
    before = len(TokenStore(tmp_path / "tokens", teacher.ref.dim))
    assert 0 < before < 48
    store, places = embed_tokens(teacher, tmp_path / "tokens", rows[:40], rows[40:])
    assert sorted(places.tolist()) == list(range(48))  # a prompt makes another text
    sizes = [np.load(path).sum() for path in (tmp_path / "tokens").glob("*.counts.npy")]
    assert max(sizes) <= 20 + 32
    one, two = store.take(places[[0]]), store.take(places[[1]])
    assert one.ends.tolist() == two.ends.tolist()
    assert not np.allclose(one.vectors, two.vectors)


def test_a_model_that_reads_other_tokens_than_its_tokenizer_gives_is_refused(tmp_path):
    model = load_sentence_transformer(gemma(tmp_path / "teacher"))
    ids = model.preprocess(["en1 de2", "en3"])["input_ids"]
    assert token_ends(model, ids, ["en1 de2", "en3"], [0, 0])[0].max() == 7
    with pytest.raises(ModelError, match="expected the same"):
        token_ends(model, ids, ["en1 de3", "en3"], [0, 0])


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


def test_a_model_that_leaves_its_prompt_out_is_refused(tmp_path):
    model = load_sentence_transformer(bert(tmp_path / "bert"))
    model[1].include_prompt = False
    with pytest.raises(RecipeError, match="leaves its prompt out"):
        TokenHead(model)


def items(texts, prompt=""):
    """As a student reads them."""
    return [(i, 0, prompt + text, len(prompt)) for i, text in enumerate(texts)]


def compared(model, targets, some, *, scale=1.0):
    """The objective of a batch of items, the student's states times a number, and the objective's facts."""
    objective = TokenObjective(model, targets, some)
    texts = [text for _, _, text, _ in some]
    features = model.preprocess(texts)
    ends = token_ends(model, features["input_ids"], texts, [prompt for *_, prompt in some])
    with torch.no_grad():
        states = model(features)["token_embeddings"]
    return objective(states * scale, ends, np.arange(len(texts))).item(), objective


@pytest.mark.parametrize("build", [gemma, gemma_headless, bert])
@pytest.mark.parametrize("prompted", [True, False])
def test_the_teacher_as_its_student_is_perfect_and_one_of_any_scale_is_compared(tmp_path, build, prompted):
    config = TeacherConfig(model=str(build(tmp_path / "teacher")), precision="fp32")
    teacher, _ = load_teacher(config, tmp_path / "cache")
    texts, prompts = toy_texts(12), teacher.ref.prompts
    name = next(iter(prompts)) if prompted and prompts else None
    targets = TokenTargets(*embed_tokens(teacher, tmp_path / "tokens", [Row(t, "en", prompt_name=name) for t in texts]))
    model, some = teacher.torch.model, items(texts, prompts.get(name or "", ""))
    assert compared(model, targets, some)[0] < 1e-4
    assert compared(model, targets, some, scale=0.0)[0] > 0.5
    last = [module for module in model if hasattr(module, "linear")]
    if last:
        last[-1].linear.weight.data *= 1e3
        assert compared(model, targets, some)[0] < 1e-4


def test_a_student_that_gives_every_stretch_the_teachers_mean_scores_1(tmp_path):
    config = TeacherConfig(model=str(gemma(tmp_path / "teacher")), precision="fp32")
    teacher, _ = load_teacher(config, tmp_path / "cache")
    texts = toy_texts(40)
    targets = TokenTargets(*embed_tokens(teacher, tmp_path / "tokens", [Row(text, "en") for text in texts]))
    _, objective = compared(teacher.torch.model, targets, items(texts))
    found = targets(np.arange(len(texts)))
    every = torch.from_numpy(found.vectors)  # each token is a stretch: both have the same
    assert objective.variance == pytest.approx(((every - every.mean(0)) ** 2).sum(1).mean().item(), rel=1e-4)
    assert token_distillation(every.mean(0).expand_as(every), every, variance=objective.variance) == pytest.approx(1)


def test_texts_without_a_stretch_in_common_are_refused(tmp_path):
    config = TeacherConfig(model=str(gemma(tmp_path / "teacher")), precision="fp32")
    teacher, _ = load_teacher(config, tmp_path / "cache")
    targets = TokenTargets(
        *embed_tokens(teacher, tmp_path / "tokens", [Row("en1 de2", "en"), Row("x", "en", target=0)])
    )
    with pytest.raises(RecipeError, match="no two stretches"):
        TokenObjective(teacher.torch.model, targets, [(1, 0, "en1", 0)])


def test_a_student_of_another_kind_than_its_teacher_is_compared(tmp_path):
    """Padding on the left, other tokens, no head: what it is compared over are still the same characters."""
    config = TeacherConfig(model=str(gemma(tmp_path / "teacher")), precision="fp32")
    teacher, _ = load_teacher(config, tmp_path / "cache")
    texts = ["en1 de2 en3", "de1"]
    targets = TokenTargets(*embed_tokens(teacher, tmp_path / "tokens", [Row(text, "en") for text in texts]))
    model = load_sentence_transformer(gemma_headless(tmp_path / "student"))
    losses = []
    for side in ("right", "left"):
        model.tokenizer.padding_side = side
        ends = token_ends(model, model.preprocess(texts)["input_ids"], texts, [0, 0])
        assert (ends[1] > 0).tolist() != (ends[0] > 0).tolist()
        found = stretches(ends, targets(np.arange(2)))
        assert {int(place) // ends.shape[1] for place in found.places} == {0, 1}
        losses.append(compared(model, targets, items(texts))[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert 0 < losses[0] < 100


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
