"""A server's vectors are those of the encoder, for a model whose vectors move a little with who else is in a batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from families import bert, toy_texts
from served import serving
from tiny import WORDS, as_if_of, make_model_folder, sample_manifest, token_table
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import leafembed
from leafembed.learn.models import describe, load_sentence_transformer
from leafembed.serve.settings import Settings
from leafembed.serve.specs import ModelSpec
from leafembed.ship.bundle import write_bundle
from leafembed.ship.quantize import quantize

CLIENTS = 16
TEXTS = toy_texts(12 * CLIENTS, words=(1, 40))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("agreement")
    student = load_sentence_transformer(bert(root / "bert", hidden_size=256, intermediate_size=512))
    ref = describe(student, root / "bert", name="tiny")
    folder = quantize(student, root / "int8", ref=ref, group_size=32, exits=(1,))
    manifest = sample_manifest()
    as_if_of(manifest, ref.fingerprint)
    return write_bundle(root / "bundle", folder, manifest)


def test_many_clients_at_once_get_what_the_encoder_gives(bundle):
    want = leafembed.load(bundle, threads=1).encode(TEXTS)
    got = np.zeros_like(want)
    batches = []

    def ask(served, number):
        """Requests of one to four texts, one after the other, as a client sends them."""
        place = number * 12
        for size in (1, 4, 2, 3, 2):
            body = {"model": "leaf", "input": TEXTS[place : place + size]}
            got[place : place + size] = served.ask("/api/embed", body)[1]["embeddings"]
            place += size

    on_batch = {"on_batch": lambda name, batch: batches.append(batch)}
    with serving({"leaf": bundle}, Settings(watch_s=0), streams=2, **on_batch) as served:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda number: ask(served, number), range(CLIENTS)))
    assert sum(batch.texts for batch in batches) == len(TEXTS)
    assert any(batch.texts > 4 for batch in batches)  # of more than one client
    assert any(batch.padded > batch.tokens for batch in batches)  # and of more than one length
    assert np.sum(got * want, axis=1).min() > 0.999


def test_an_early_exit_is_served_as_the_encoder_gives_it(bundle):
    specs = [ModelSpec("leaf", bundle), ModelSpec.parse(f"early={bundle}@exit=1@dim=64")]
    with serving(specs, Settings(watch_s=0), allow_failed=True) as served:  # its floors were not asked for here
        _, data, _ = served.ask("/v1/embeddings", {"model": "early", "input": TEXTS[:5]})
    got = np.array([one["embedding"] for one in data["data"]])
    assert np.sum(got * leafembed.load(bundle, threads=1, allow_failed=True, exit=1, dim=64).encode(TEXTS[:5]),
                  axis=1).min() > 0.999  # fmt: skip
    assert np.sum(got * leafembed.load(bundle, threads=1).encode(TEXTS[:5], dim=64), axis=1).max() < 0.999


def test_a_special_token_that_a_text_spells_out_is_that_token_and_changes_no_other_text(tmp_path):
    vocab = (*WORDS, "<eos>", "<pad>")
    numbers = {word: number for number, word in enumerate(vocab)}
    folder = make_model_folder(tmp_path / "model", vocab=vocab, pad_token_id=numbers["<pad>"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[CLS]", "<eos>", "<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = {
        "red<eos>blue": ("red", "<eos>", "blue"),
        "<pad><pad>": ("<pad>", "<pad>"),
        "one [CLS] two": ("one", "[CLS]", "two"),
        "green": ("green",),
        "red two red two": ("red", "two", "red", "two"),
    }
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))  # as sentence-transformers has it
    for text, tokens in texts.items():
        assert theirs(text).input_ids == [numbers[token] for token in ("[CLS]", *tokens)]
    with serving({"leaf": write_bundle(tmp_path / "bundle", folder, sample_manifest())}) as served:
        together = served.ask("/api/embed", {"model": "leaf", "input": list(texts)})[1]["embeddings"]
        for vector, (text, tokens) in zip(together, texts.items(), strict=True):
            want = token_table(len(vocab), 8)[[numbers[token] for token in ("[CLS]", *tokens)]].mean(axis=0)
            assert vector == pytest.approx(want / np.linalg.norm(want), abs=1e-5)
            alone = served.ask("/api/embed", {"model": "leaf", "input": text})[1]["embeddings"][0]
            assert alone == pytest.approx(vector, abs=1e-6)
