"""What byte-pair merges pass through on the way to a token, so that a pruned vocabulary can still reach it.

A merge model applies, of all merges that are possible in a word, the one learned first, until none is left. Inside the
span of a token of the result nothing merges across its ends, so the token is built there as it would be alone.
If every token on that way is kept, with the merges between kept tokens in their old order, then each step still finds
the same merge first. So a text whose tokens are all kept is tokenised as before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from leafembed.errors import ModelError

__all__ = ["derivation", "merge_pairs", "merge_ranks"]


def merge_pairs(merges: Iterable[str | Sequence[str]]) -> list[tuple[str, str]]:
    """The merges of a ``tokenizer.json`` as pairs of tokens; older files write a pair as one text with a space.

    Raises:
        ModelError: If an entry is no pair.
    """
    pairs = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if len(parts) != 2:
            raise ModelError(f"tokenizer.json: got the merge {merge!r}, expected two tokens")
        pairs.append((parts[0], parts[1]))
    return pairs


def merge_ranks(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Place of each merge in the order they were learned in; of a repeated one the last, as the tokenizer counts."""
    return {pair: rank for rank, pair in enumerate(pairs)}


def derivation(token: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Every token that merging the characters of ``token`` passes through, its characters and itself included.

    Empty when merging ends in several tokens: then no merge makes this one, and nothing need be kept for it.
    """
    symbols = list(token)
    passed = list(symbols)
    while len(symbols) > 1:
        order = [ranks.get(pair, math.inf) for pair in pairwise(symbols)]
        first = min(order)
        if first == math.inf:
            return []
        place = order.index(first)  # the leftmost of equal ones
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        passed.append(symbols[place])
    return passed
