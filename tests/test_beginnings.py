"""Beginnings of long texts: the tokens of one are the first of the whole text's, and no more is read than is needed."""

import random

import numpy as np
import pytest
from tiny import make_model_folder
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from leafembed.ship.beginnings import Beginnings, slices
from leafembed.ship.folder import EncoderConfig
from leafembed.ship.reader import READ_CHARACTERS, Reader
from leafembed.ship.shipped import SHIPPED
from leafembed.ship.stream import WINDOW_CHARACTERS
from leafembed.ship.texts import open_tokenizer

MERGES = [("a", "b"), ("ab", "ab"), ("▁", "a"), ("▁", "▁"), ("b", "c"), ("c", "c"), ("b", "▁")]


def pairs_over_the_text(**options):
    """Merges bytes over the whole text, as Gemma's does."""
    names = [*(f"<0x{byte:02X}>" for byte in range(256)), *"abc▁<", *("".join(merge) for merge in MERGES)]
    vocab = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab, MERGES, byte_fallback=True, **options))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_tokens(["\n\n", "<x y>"])
    return tokenizer


def words(pre_tokenizer, normalizer=None):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "ab": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizer, normalizer
    return tokenizer


READ_IN_PART = {
    "pairs": pairs_over_the_text(),
    "bert": words(pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()),
    "gpt2": words(pre_tokenizers.ByteLevel(), normalizers.NFC()),
    "words": words(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])),
}
READ_WHOLE = {
    "byte pairs at random": pairs_over_the_text(dropout=0.1),
    "words known whole": pairs_over_the_text(ignore_merges=True),
    "unknown step": words(pre_tokenizers.Metaspace()),
    "spaces that are changed": words(pre_tokenizers.Whitespace(), normalizers.Replace(" ", "")),
}


@pytest.mark.parametrize("name", READ_IN_PART)
def test_the_tokens_of_a_beginning_are_the_first_of_the_whole_text(name):
    tokenizer, draw, shorter = READ_IN_PART[name], random.Random(0), 0
    beginnings = Beginnings(tokenizer)
    for _ in range(400):
        text = "".join(draw.choices([*"abc▁ \n<xy>é\u0301\ue000\x01😀", "<x y>"], k=draw.randint(1, 120)))
        part = beginnings.of(text, draw.randint(1, 60))
        whole = tokenizer.encode(text).ids
        assert text.startswith(part)
        assert whole[: len(ids := tokenizer.encode(part).ids)] == ids
        shorter += len(part) < len(text)
    assert shorter > 100


@pytest.mark.skipif(not (SHIPPED / "tokenizer.json").is_file(), reason="the shipped model is not here")
def test_the_shipped_tokenizer_reads_the_same():
    whole, draw = open_tokenizer(SHIPPED / "tokenizer.json", 128), random.Random(0)
    reader = Reader(whole, EncoderConfig.read(SHIPPED))
    tokens, words = sorted(whole.get_vocab()), ["the ", "card", "Überweisung ", "銀行", "\n\n", " " * 900, "a" * 900]
    for draw_from in (tokens, words, [token[:2] for token in tokens], [chr(number) for number in range(32, 0xD000, 5)]):
        texts = ["".join(draw.choices(draw_from, k=2_000)) for _ in range(2)]
        ids, cut = reader.tokenize(texts, "query: ")
        encodings = whole.encode_batch_fast(["query: " + text for text in texts])
        assert [list(found) for found in ids] == [encoding.ids for encoding in encodings]
        assert cut == [bool(encoding.overflowing) for encoding in encodings]
        assert len(Beginnings(whole).of(texts[0], 1_024)) < len(texts[0])


@pytest.mark.parametrize("name", READ_WHOLE)
def test_a_text_is_read_whole_where_nothing_is_known(name):
    text = "a b ab \ue000" * 10
    assert Beginnings(READ_WHOLE[name]).of(text, 5) == text


def test_no_cut_where_a_token_could_reach():
    beginnings = Beginnings(pairs_over_the_text())
    assert beginnings.of("acabab", 3) == "ac"  # "ab" is a token
    assert beginnings.of("ababab", 2) == "ababab"  # "abab" is one
    assert beginnings.of("c" * 50, 10) == "c" * 50
    assert beginnings.of("aabb aa", 4) == "aab"  # "b " is a token


class Spy:
    """A tokenizer that notes what it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.truncation, self.given = tokenizer, tokenizer.truncation, []

    def encode_batch_fast(self, texts, **options):
        self.given.append(texts)
        return self.tokenizer.encode_batch_fast(texts, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.fixture(params=["pairs", "words"])
def reader(request, tmp_path):
    folder = make_model_folder(tmp_path / "model")
    if request.param == "pairs":
        tokenizer = pairs_over_the_text()
        tokenizer.post_processor = processors.TemplateProcessing(single="c $A c", special_tokens=[("c", 258)])
        tokenizer.save(str(folder / "tokenizer.json"))
    return Reader(Spy(open_tokenizer(folder / "tokenizer.json", 8)), EncoderConfig.read(folder))


def test_of_a_long_text_the_beginning_is_read(reader):
    texts = ["red green " * 10_000, "abc" * 30_000, " " * 200, "red" + " " * 1_000 + "two " * 900, "red", ""]
    ids, cut = reader.tokenize(texts, "a ")
    whole = reader.tokenizer.tokenizer.encode_batch_fast(["a " + text for text in texts])
    assert [list(found) for found in ids] == [encoding.ids for encoding in whole]
    assert cut == [bool(encoding.overflowing) for encoding in whole]
    if len(reader.tokenizer.tokenizer.get_vocab()) > 200:  # the other one knows no place in a text without spaces
        assert max(len(text) for given in reader.tokenizer.given for text in given) < 20 * READ_CHARACTERS * 8


@pytest.mark.parametrize("reader", ["words"], indirect=True)
def test_a_text_is_read_on_where_its_beginning_gave_too_few_tokens(reader):
    (ids,), (cut,) = reader.tokenize([(" " * 100 + "red ") * 9 + "two " * 5_000], "")
    assert (list(ids), cut) == ([2, *[3] * 7], True)
    assert [len(text) for (text,) in reader.tokenizer.given] == [103, 311, 519, 1035]


def test_much_text_goes_through_the_tokenizer_in_slices(reader):
    texts = ["red " * 30] * 5_000 + ["green " * 5_000] * 3
    ids, _ = reader.tokenize(texts, "")
    sizes = [sum(map(len, given)) for given in reader.tokenizer.given]
    assert len(ids) == 5_003 and len(sizes) > 1
    assert max(sizes) <= WINDOW_CHARACTERS
    assert np.array_equal(ids[0], ids[4_999])


def test_slices_are_all_texts_in_order():
    texts = ["x" * 40_000, "x" * 500_000, "", "x" * 30_000, *["x"] * 9_000]
    parts = list(slices(texts, 65_536))
    assert [text for part in parts for text in texts[part]] == texts
    assert [part.stop - part.start for part in parts] == [1, 2, 4_096, 4_096, 809]
    assert list(slices([], 10)) == []
