"""Rewrites a ``tokenizer.json`` to fewer tokens.

What is kept, in this order, until ``size`` is reached:

1. special and other added tokens but for reserved names that no text holds (EmbeddingGemma has 6,242 ``<unusedN>``);
   tokens that the model, its frame around a text or its padding needs; all byte tokens; every single-character token
   whose character occurs in a counted text. If these alone are too many, that is an error.
2. The other single-character tokens, lowest id first, in up to an eighth of the places left: a lost word falls apart
   into pieces that the model knows, a lost character into bytes that it hardly does.
3. All others by frequency, each with what merges pass through on the way to it; unseen ones last, lowest id first.

Kept tokens stay in the order of their old ids, without gaps, so that low ids (padding, start, end) mostly stay as they
are and an added token beyond the token table stays beyond it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import ModelError, RecipeError
from leafembed.learn.prompts import RESERVED
from leafembed.learn.vocabulary_bpe import derivation, merge_pairs, merge_ranks

__all__ = ["Pruned", "fallback_tokens", "prune_tokenizer", "tokens_of"]

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPARE = 0.125  # most of the places left that go to characters which no counted text holds
_KINDS = ("BPE", "Unigram", "WordPiece")

_Content = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pruned:
    """A rewritten tokenizer.

    Attributes:
        content: Of its ``tokenizer.json``.
        kept: Old id of each new id, ``(n_tokens,)`` int64, ascending.
    """

    content: dict[str, Any]
    kept: NDArray[np.int64]


def prune_tokenizer(
    content: _Content, counts: NDArray[np.int64], size: int | None, *, keep: Collection[int] = ()
) -> Pruned:
    """Keep at most ``size`` tokens, chosen as the module says; or all that occur.

    Args:
        content: Of a ``tokenizer.json`` with a BPE, Unigram or WordPiece model.
        counts: How often each id occurs in the corpus, ``(at least n_tokens,)``.
        size: Most tokens to keep; one that is no smaller than the vocabulary changes nothing. ``None``: every token
            that occurs, whatever needs it, and every character of the tokenizer.
        keep: Ids to keep whatever their frequency.

    Raises:
        ModelError: If the tokenizer is of another kind.
        RecipeError: If what must be kept does not fit into ``size``.
        ValueError: If ``counts`` is too short.
    """
    _require_supported(content["model"])
    tokens = tokens_of(content)
    if len(counts) <= max(tokens.values()):
        raise ValueError(f"got counts of {len(counts)} ids, expected one for each id up to {max(tokens.values())}")
    if size is not None and size >= len(tokens):
        return Pruned(dict(content), np.array(sorted(tokens.values()), dtype=np.int64))
    kept = np.array(sorted(_choose(content, tokens, counts, size, set(keep))), dtype=np.int64)
    place = {int(old): new for new, old in enumerate(kept)}
    added = [{**entry, "id": place[entry["id"]]} for entry in content["added_tokens"] if entry["id"] in place]
    result = {**content, "added_tokens": added, "model": _pruned_model(content["model"], place)}
    result["post_processor"] = _renumbered(content.get("post_processor"), place)
    if padding := content.get("padding"):
        result["padding"] = {**padding, "pad_id": place[padding["pad_id"]]}
    return Pruned(result, kept)


def tokens_of(content: _Content) -> dict[str, int]:
    """Id of every token of a ``tokenizer.json``, added ones included."""
    vocab = content["model"]["vocab"]
    tokens = dict(vocab) if isinstance(vocab, Mapping) else {piece: i for i, (piece, _) in enumerate(vocab)}
    return tokens | {entry["content"]: entry["id"] for entry in content["added_tokens"]}


def fallback_tokens(content: _Content) -> set[int]:
    """Ids that stand for text without a token of its own: unknown, and bytes; of byte-level models not ASCII's."""
    tokens, model = tokens_of(content), content["model"]
    names = {name for name in tokens if _BYTE.fullmatch(name)} if model.get("byte_fallback") else set()
    if _is_byte_level(content):
        # ASCII's control bytes are written as the 34 characters from U+0100 on, other bytes above U+00A0.
        names |= {c for c in _byte_characters() if ord(c) > 0xA0 and not 0x100 <= ord(c) < 0x122}
    ids = {tokens[name] for name in (*names, model.get("unk_token")) if name in tokens}
    return ids | {i for i in (model.get("unk_id"),) if i is not None}


def _require_supported(model: _Content) -> None:
    if model["type"] not in _KINDS:
        raise ModelError(
            f"got a {model['type']} tokenizer, expected one of {', '.join(_KINDS)} to prune its vocabulary"
        )
    affixes = [name for name in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if model["type"] == "BPE" and affixes:
        raise ModelError(f"got a BPE tokenizer with {affixes[0]}, expected none: its merges are not plain joins")


def _choose(
    content: _Content, tokens: Mapping[str, int], counts: NDArray[np.int64], size: int | None, keep: set[int]
) -> set[int]:
    """Old ids to keep."""
    names = {i: token for token, i in tokens.items()}
    way = _ways(content["model"], tokens)
    characters = _single_characters(content, tokens)
    added = {entry["content"] for entry in content["added_tokens"]}
    seen = {c for token, i in tokens.items() if counts[i] and token not in added for c in token}
    needed = _needed(content, tokens, counts) | keep | {i for i, c in characters.items() if c in seen}
    if size is None:
        needed |= {i for i in names if counts[i]} | set(characters)
    chosen = {j for i in needed for j in way(names[i])}
    if size is None:
        return chosen
    if len(chosen) > size:
        raise RecipeError(
            f"student.vocab_size: got {size}, this tokenizer needs at least {len(chosen)} for special tokens, bytes "
            "and the characters of the corpus; raise it, or leave out languages with many characters"
        )
    unseen = sorted(set(characters) - chosen)
    chosen.update(unseen[: int(_SPARE * (size - len(chosen)))])
    reserved = {i for i in set(names) - chosen if names[i] in added}
    for i in map(int, np.argsort(-counts[: max(names) + 1], kind="stable")):
        if i in names and i not in reserved:
            more = way(names[i]) - chosen
            if len(chosen) + len(more) > size:
                break
            chosen |= more
    return chosen


def _ways(model: _Content, tokens: Mapping[str, int]) -> Callable[[str], set[int]]:
    """A function from a token to the ids that must be kept with it, its own included."""
    if model["type"] != "BPE":
        return lambda token: {tokens[token]}
    ranks = merge_ranks(merge_pairs(model["merges"]))
    return lambda token: {tokens[part] for part in derivation(token, ranks) if part in tokens} | {tokens[token]}


def _needed(content: _Content, tokens: Mapping[str, int], counts: NDArray[np.int64]) -> set[int]:
    """Ids that have a role, and the bytes."""
    model = content["model"]
    added = content["added_tokens"]
    ids = {e["id"] for e in added if counts[e["id"]] or not RESERVED.search(e["content"])}
    ids |= set(_framing_ids(content.get("post_processor")))
    if padding := content.get("padding"):
        ids.add(padding["pad_id"])
    ids |= fallback_tokens(content)
    if _is_byte_level(content):
        ids |= {tokens[c] for c in _byte_characters() if c in tokens}
    if model["type"] == "Unigram":
        # The score of an unknown character is set below the worst of all scores, so that one must stay the worst.
        ids.add(min(range(len(model["vocab"])), key=lambda i: model["vocab"][i][1]))
    return ids


def _single_characters(content: _Content, tokens: Mapping[str, int]) -> dict[int, str]:
    """Character of each token that is one; pieces inside a word (``##a``) count as well."""
    prefix = content["model"].get("continuing_subword_prefix") or ""
    bare = ((i, token.removeprefix(prefix) if len(token) > 1 else token) for token, i in tokens.items())
    return {i: token for i, token in bare if len(token) == 1}


def _is_byte_level(content: _Content) -> bool:
    parts = (content.get("pre_tokenizer"), content.get("decoder"))
    steps = [step for part in parts if part for step in (part, *part.get("pretokenizers", ()))]
    return any(step.get("type") == "ByteLevel" for step in steps)


def _byte_characters() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return list(ByteLevel.alphabet())


def _framing_ids(processor: _Content | None) -> Iterator[int]:
    """Ids that a post-processor writes around a text."""
    if processor is None:
        return
    for inner in processor.get("processors", ()):
        yield from _framing_ids(inner)
    if processor["type"] == "TemplateProcessing":
        for special in processor["special_tokens"].values():
            yield from special["ids"]
    yield from (processor[name][1] for name in ("cls", "sep") if name in processor)


def _renumbered(processor: _Content | None, place: Mapping[int, int]) -> dict[str, Any] | None:
    """A post-processor with new ids."""
    if processor is None:
        return None
    result = dict(processor)
    if "processors" in processor:
        result["processors"] = [_renumbered(inner, place) for inner in processor["processors"]]
    if processor["type"] == "TemplateProcessing":
        result["special_tokens"] = {
            name: {**special, "ids": [place[i] for i in special["ids"]]}
            for name, special in processor["special_tokens"].items()
        }
    return result | {name: [processor[name][0], place[processor[name][1]]] for name in ("cls", "sep") if name in result}


def _pruned_model(model: _Content, place: Mapping[int, int]) -> dict[str, Any]:
    """The model with kept tokens only; a merge stays if both parts and the result are kept."""
    if model["type"] == "Unigram":
        vocab = [entry for i, entry in enumerate(model["vocab"]) if i in place]
        unk = model["unk_id"]
        return {**model, "vocab": vocab, "unk_id": None if unk is None else place[unk]}
    kept = {token: place[i] for token, i in model["vocab"].items() if i in place}
    result = {**model, "vocab": kept}
    if model["type"] == "BPE":
        pairs = merge_pairs(model["merges"])
        result["merges"] = [[a, b] for a, b in pairs if a in kept and b in kept and a + b in kept]
    return result
