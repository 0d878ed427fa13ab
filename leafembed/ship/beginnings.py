"""Where a long text may be cut before it is tokenised, so that the model reads the same tokens as of the whole text.

A model reads the beginning of a long text; to tokenise the rest costs time and memory for nothing. The tokens before a
place are those of the whole text if no token can reach over it. That is known of two kinds of tokenizers, and of every
other one a text is read whole:

* Byte pairs that are merged over the whole text, as Gemma's. A merge makes a token of the vocabulary, so that two
  characters which stand side by side in no token are never joined, nor is anything across them.
* A first step that splits at spaces, as BERT's and GPT-2's. Words before a space do not depend on what comes after it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

__all__ = ["SLICE_CHARACTERS", "Beginnings", "slices"]

SLICE_CHARACTERS = 65_536
"""Characters that a server tokenises at once; some 20 MB and 50 milliseconds where each is three tokens."""

_SLICE_TEXTS = 4_096

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"
_SPLITTING = {"BertPreTokenizer", "ByteLevel", "Whitespace", "WhitespaceSplit"}
_KEEPING = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}
"""Normalizers that neither move a space nor look over it."""


def slices(texts: Sequence[str], longest: int, most: int = SLICE_CHARACTERS) -> Iterator[slice]:
    """Yield stretches of at most ``most`` characters, in order; a text counts as ``longest`` characters at most."""
    start = characters = 0
    for place, text in enumerate(texts):
        size = min(len(text), longest)
        if place > start and (characters + size > most or place - start == _SLICE_TEXTS):
            yield slice(start, place)
            start, characters = place, 0
        characters += size
    if start < len(texts):
        yield slice(start, len(texts))


class Beginnings:
    """Finds beginnings of texts for one tokenizer; what it must know of it is gathered when the first one is asked for.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def of(self, text: str, size: int) -> str:
        """Return a beginning of a text whose tokens are the first of the whole text's, special ones aside.

        Args:
            text: Any.
            size: Most characters, where a place to cut is known before them; else more are returned, at last all.
        """
        known: dict[tuple[str, str], bool] = {}
        while size < len(text):
            for end in range(size, size // 2, -1):
                pair = text[end - 1], text[end]
                if pair not in known:
                    known[pair] = self._parts(*pair)
                if known[pair]:
                    return text[:end]
            size *= 2
        return text

    def _parts(self, before: str, after: str) -> bool:
        """Whether no token reaches from one character to the next."""
        if self._splits:
            return after == " " and ("!" <= before <= "~" or unicodedata.category(before) in ("Lu", "Ll", "Nd"))
        pairs, pair = self._pairs, before + after
        return pairs is not None and pair not in pairs and pair.replace(" ", _SPACE) not in pairs

    @cached_property
    def _splits(self) -> bool:
        """Whether the first step splits at spaces, and nothing before it could make a space another character."""
        steps = _steps(self._tokenizer.pre_tokenizer, "pretokenizers")
        if not steps or steps[0]["type"] not in _SPLITTING or not steps[0].get("use_regex", True):
            return False
        kept = all(step["type"] in _KEEPING for step in _steps(self._tokenizer.normalizer, "normalizers"))
        return kept and all(
            not (token.rstrip or token.single_word or " " in token.content[1:]) for token in self._added
        )

    @cached_property
    def _pairs(self) -> frozenset[str] | None:
        """Characters side by side in a token; ``None``: other characters may be joined too."""
        tokenizer, model = self._tokenizer, self._tokenizer.model
        plain = (
            type(model).__name__ == "BPE"
            and model.byte_fallback  # else characters that the vocabulary lacks become one unknown token
            and not (
                model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix or model.ignore_merges
            )
            and all(map(_only_spaces, _steps(tokenizer.normalizer, "normalizers")))
            and all(map(_at_a_character, _steps(tokenizer.pre_tokenizer, "pretokenizers")))
            and not any(token.lstrip or token.rstrip or token.single_word for token in self._added)
        )
        if not plain:
            return None
        tokens = tokenizer.get_vocab()
        whole_bytes = sum(_BYTE.fullmatch(token) is not None for token in tokens)
        if whole_bytes != 256 or sum(_BYTE.search(token) is not None for token in tokens) != 256:
            return None  # bytes that are merged are not seen in characters
        return frozenset(token[at : at + 2] for token in tokens for at in range(len(token) - 1))

    @property
    def _added(self) -> list[Any]:
        return list(self._tokenizer.get_added_tokens_decoder().values())


def _steps(part: Any, inner: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, as ``tokenizer.json`` has them."""
    if part is None:
        return []
    found = json.loads(part.__getstate__())
    return list(found[inner]) if found["type"] == "Sequence" else [found]


def _only_spaces(step: dict[str, Any]) -> bool:
    """Whether a normalizer changes spaces into the sign for one, and nothing behind the first character otherwise."""
    spaces = step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == _SPACE
    return bool(spaces or step["type"] == "Prepend")


def _at_a_character(step: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer splits at one character, so that it looks at nothing around it."""
    return step["type"] == "Split" and len(step["pattern"].get("String", "")) == 1
