from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from leafembed.errors import ModelError, RecipeError
from leafembed.learn.vocabulary import compare, count_tokens
from leafembed.learn.vocabulary_bpe import derivation, merge_pairs, merge_ranks
from leafembed.learn.vocabulary_tokenizer import fallback_tokens, prune_tokenizer, tokens_of
from leafembed.reports_vocabulary import VocabularyReport

ROOT = Path(__file__).parents[1]
SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiouäöü"]
UNKNOWN = "☃ 雪 bada"


def words(seed, n, *, first=0, last=96):
    """Texts of words of two and three syllables; frequent syllables are the first ones."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / (1 + np.arange(last - first))
    pieces = SYLLABLES[first:last]
    drawn = rng.choice(len(pieces), size=(n, 5, 3), p=weights / weights.sum())
    return [" ".join("".join(pieces[i] for i in word[: 2 + (j % 2)]) for j, word in enumerate(text)) for text in drawn]


TRAIN, HELD_OUT = words(0, 1500), words(1, 300)


def gemma_like():
    """BPE with bytes for unknown characters, spaces as ▁, and reserved names among the added tokens."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<unused{i}>" for i in range(20)), "</p>"]
    specials += [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=1100, special_tokens=specials, show_progress=False, max_token_length=9)
    tokenizer.train_from_iterator(TRAIN, trainer)
    frame = [("<bos>", 2), ("<eos>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=frame)
    content = json.loads(tokenizer.to_str())
    # The trainer makes bytes added tokens, which in real files they are not: their text must not stand for them.
    content["added_tokens"] = [e for e in content["added_tokens"] if not e["content"].startswith("<0x")]
    late = {**content["added_tokens"][0], "id": len(content["model"]["vocab"]), "content": "<image>"}
    content["added_tokens"].append(late)
    return content


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAIN, trainer)
    end = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), end])
    return json.loads(tokenizer.to_str())


def wordpiece():
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(TRAIN, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return json.loads(tokenizer.to_str())


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=700, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TRAIN, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return json.loads(tokenizer.to_str())


KINDS = {"gemma": gemma_like, "byte_level": byte_level, "wordpiece": wordpiece, "unigram": unigram}
SIZE = 450


@pytest.fixture(scope="module", params=KINDS)
def content(request):
    return KINDS[request.param]()


def loaded(content):
    return Tokenizer.from_str(json.dumps(content))


def prune(content, size=SIZE, texts=TRAIN, **options):
    counts, n = count_tokens(loaded(content), texts)
    assert n == len(texts)
    return prune_tokenizer(content, counts, size, **options)


def test_ids_are_dense_and_every_token_keeps_its_text(content):
    pruned = prune(content)
    names = {i: token for token, i in tokens_of(content).items()}
    tokenizer = loaded(pruned.content)
    assert SIZE - 12 <= len(pruned.kept) <= SIZE
    assert sorted(tokens_of(pruned.content).values()) == list(range(len(pruned.kept)))
    assert all(tokenizer.token_to_id(names[old]) == new for new, old in enumerate(pruned.kept))
    assert tokenizer.get_vocab_size() == len(pruned.kept)


def test_a_text_whose_tokens_are_all_kept_is_tokenised_as_before(content):
    pruned = prune(content)
    before, after, kept = loaded(content), loaded(pruned.content), set(map(int, pruned.kept))
    same = [text for text in [*HELD_OUT, *TRAIN] if set(before.encode(text).ids) <= kept]
    assert 20 < len(same) < len(HELD_OUT) + len(TRAIN)
    assert all(before.encode(text).tokens == after.encode(text).tokens for text in same)


def test_without_the_tokens_on_the_way_it_is_not(monkeypatch):
    """Negative control: tokens chosen by frequency alone are there, but merges no longer reach them."""
    monkeypatch.setattr("leafembed.learn.vocabulary_tokenizer.derivation", lambda token, ranks: [])
    content = gemma_like()
    pruned = prune(content)
    before, after, kept = loaded(content), loaded(pruned.content), set(map(int, pruned.kept))
    same = [text for text in [*HELD_OUT, *TRAIN] if set(before.encode(text).ids) <= kept]
    assert any(before.encode(text).tokens != after.encode(text).tokens for text in same)


def test_the_text_around_a_text_keeps_its_tokens(content):
    before, after = loaded(content), loaded(prune(content).content)
    assert before.encode("").tokens == after.encode("").tokens != []
    assert before.encode(TRAIN[0]).tokens[-1] == after.encode(TRAIN[0]).tokens[-1]


def test_characters_never_seen_still_come_back_as_bytes_or_unknown(content):
    before, after = loaded(content), loaded(prune(content).content)
    expected = before.encode(UNKNOWN, add_special_tokens=False)
    got = after.encode(UNKNOWN, add_special_tokens=False)
    if before.token_to_id("<0xE2>") is not None or before.token_to_id("Ġ") is not None:
        assert before.decode(expected.ids) == after.decode(got.ids) == UNKNOWN
    else:
        unknown = [
            next(i for t, i in tokenizer.get_vocab().items() if "unk" in t.lower()) for tokenizer in (before, after)
        ]
        assert unknown[1] in got.ids
        assert expected.ids.count(unknown[0]) == got.ids.count(unknown[1])


def test_all_characters_of_the_corpus_are_kept(content):
    after = loaded(prune(content).content)
    characters = sorted({c for text in TRAIN for c in text if c != " "})
    fallback = fallback_tokens(prune(content).content)
    if after.token_to_id("Ġ") is None:  # there the 256 bytes are the characters
        assert not fallback & {i for c in characters for i in after.encode(c, add_special_tokens=False).ids}
    assert all(after.encode(c, add_special_tokens=False).ids for c in characters)


def test_a_size_that_is_no_smaller_changes_nothing(content):
    total = len(tokens_of(content))
    pruned = prune(content, total)
    assert pruned.content == content
    assert list(pruned.kept) == list(range(total))


def test_a_size_below_what_must_be_kept_is_an_error_that_says_how_much(content):
    with pytest.raises(RecipeError, match=r"student\.vocab_size: got 16, this tokenizer needs at least (\d+)") as error:
        prune(content, 16)
    least = int(str(error.value).split("at least ")[1].split()[0])
    assert len(prune(content, least).kept) == least
    with pytest.raises(RecipeError, match=f"got {least - 1}, "):
        prune(content, least - 1)


def test_reserved_names_go_and_other_added_tokens_stay():
    pruned = prune(gemma_like())
    names = [entry["content"] for entry in pruned.content["added_tokens"]]
    assert names == ["<pad>", "<eos>", "<bos>", "<unk>", "</p>", "<image>"]
    assert pruned.content["added_tokens"][-1]["id"] == len(pruned.kept) - 1  # beyond the token table, as before
    assert "<unused3>" in [
        e["content"] for e in prune(gemma_like(), texts=[*TRAIN, "<unused3>"]).content["added_tokens"]
    ]


def test_what_must_be_kept_is_kept_whatever_its_frequency():
    content = gemma_like()
    last = max(content["model"]["vocab"].values())
    assert last not in prune(content).kept
    assert last in prune(content, keep=[last]).kept


def test_more_room_for_more_frequent_tokens():
    content = gemma_like()
    shares = []
    for size in (380, 500, 700, 900):
        pruned = prune(content, size)
        held_out = [(text, "xx") for text in HELD_OUT]
        entries = compare(loaded(content), loaded(pruned.content), pruned.kept, held_out, fallback_tokens(content))
        shares.append(entries[0].identical_share)
        assert entries[0].inflation >= 1
    assert shares == sorted(shares)
    assert shares[0] < 0.2 < 0.7 < shares[-1]


def test_padding_settings_are_renumbered():
    content = {**wordpiece(), "padding": None}
    tokenizer = loaded(content)
    tokenizer.enable_padding(pad_id=4, pad_token="[MASK]", length=9)
    tokenizer.enable_truncation(7)
    padded = json.loads(tokenizer.to_str())
    pruned = prune_tokenizer(padded, count_tokens(loaded(content), TRAIN)[0], SIZE)
    assert pruned.content["padding"]["pad_id"] == list(pruned.kept).index(4)
    assert pruned.content["truncation"] == padded["truncation"]


def test_the_worst_unigram_score_stays_so_that_unknown_characters_cost_the_same():
    content = unigram()
    lowest = min(score for _, score in content["model"]["vocab"])
    pruned = prune(content)
    assert min(score for _, score in pruned.content["model"]["vocab"]) == lowest
    assert pruned.content["model"]["vocab"][pruned.content["model"]["unk_id"]][0] == "<unk>"


def test_other_kinds_of_tokenizers_are_refused():
    counts = np.zeros(9, dtype=np.int64)
    word = {"model": {"type": "WordLevel", "vocab": {"a": 0}}, "added_tokens": []}
    with pytest.raises(ModelError, match="got a WordLevel tokenizer"):
        prune_tokenizer(word, counts, 16)
    suffixed = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}}
    with pytest.raises(ModelError, match="end_of_word_suffix"):
        prune_tokenizer(suffixed, counts, 16)
    with pytest.raises(ValueError, match="got counts of 9 ids"):
        prune_tokenizer(wordpiece(), counts, SIZE)


def test_a_derivation_takes_the_first_learned_merge_and_of_equal_ones_the_leftmost():
    ranks = merge_ranks([("b", "c"), ("a", "b"), ("a", "bc"), ("a", "a"), ("aa", "a")])
    assert derivation("abc", ranks) == ["a", "b", "c", "bc", "abc"]
    assert derivation("aaa", ranks) == ["a", "a", "a", "aa", "aaa"]
    assert derivation("ab", ranks) == ["a", "b", "ab"]
    assert derivation("ba", ranks) == []
    assert derivation("a", {}) == ["a"]


def test_derivations_agree_with_the_tokenizer():
    content = gemma_like()
    tokenizer, ranks = loaded(content), merge_ranks(merge_pairs(content["model"]["merges"]))
    added = {entry["content"] for entry in content["added_tokens"]}
    tokens = [t for t in content["model"]["vocab"] if t not in added and not t.startswith("<0x")]
    for token in tokens:
        alone = tokenizer.encode(token, add_special_tokens=False).tokens == [token]
        assert bool(derivation(token, ranks)) == alone


def test_merges_are_read_in_both_notations():
    assert merge_pairs(["a b", ["a", " c"]]) == [("a", "b"), ("a", " c")]
    with pytest.raises(ModelError, match="expected two tokens"):
        merge_pairs(["abc"])


def test_the_comparison_counts_by_hand():
    vocab = {"<unk>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "<0x64>": 5}
    merges = [["a", "b"]]
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>", "byte_fallback": True}
    whole = {"version": "1.0", "added_tokens": [], "model": model}
    less = {**whole, "model": {**model, "vocab": {"<unk>": 0, "a": 1, "b": 2, "<0x64>": 3}, "merges": []}}
    kept = np.array([0, 1, 2, 5])
    texts = [("ba", "x"), ("abd", "x"), ("c", "y"), ("", "x")]
    entries = {e.lang: e for e in compare(loaded(whole), loaded(less), kept, texts, fallback_tokens(whole))}
    assert list(entries) == ["x", "y"]
    x = entries["x"]
    assert (x.texts, x.identical, x.tokens_before, x.tokens_after) == (3, 2, 4, 5)
    assert (x.fallback_before, x.fallback_after) == (1, 1)
    assert (entries["y"].identical, entries["y"].fallback_before, entries["y"].fallback_after) == (0, 0, 1)
    report = VocabularyReport(6, 4, 10, tuple(entries.values()))
    assert (report.total.identical_share, report.total.inflation) == (0.5, 6 / 5)
    assert VocabularyReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_the_curve_of_a_vocabulary_rises_with_its_size(tmp_path):
    spec = importlib.util.spec_from_file_location("vocabulary_curve", ROOT / "tools" / "vocabulary_curve.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    rows = [{"text": text, "lang": "deu", "text_pair": "x", "lang_pair": "en"} for text in HELD_OUT]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts = tool.texts_of([path], frozenset({"de"}), 250)
    assert {name: len(some) for name, some in texts.items()} == {"de": 250}
    small, large, whole = tool.curve(loaded(byte_level()), texts, (500, 700, 10**6))
    assert small["tokens"] <= 500 < large["tokens"] <= 700
    assert small["identical"] < large["identical"] <= whole["identical"] == 1
    assert small["inflation"] > large["inflation"] >= whole["inflation"] == 1
    assert (small["counted"], small["held_out"]) == (225, 25)


def test_the_published_curve_is_the_one_that_readers_see():
    found = json.loads((ROOT / "docs/results/vocabulary/curve.json").read_text(encoding="utf-8"))
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    for one in found:
        assert "| " + " | ".join(f"{size['identical']:.0%}".replace("%", " %") for size in one["sizes"]) + " |" in shown
