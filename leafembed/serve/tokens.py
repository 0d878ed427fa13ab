"""Texts to tokens, in slices between which others get their turn; and the tokens of a text as a client sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import orjson

from leafembed.errors import first_line
from leafembed.serve.refusals import Refusal
from leafembed.ship.beginnings import SLICE_CHARACTERS, Beginnings, slices
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.reader import READ_CHARACTERS
from leafembed.ship.texts import Ids

__all__ = ["about_tokens", "in_slices", "json_rows", "token_rows"]

_AT_ONCE = 2_000
"""Characters that are tokenised on the event loop: well under a millisecond."""

_Tokens = tuple[list[Ids], list[bool]]
_Read = Callable[[], _Tokens]


def about_tokens(texts: Sequence[str], limit: int | None) -> int:
    """About how many tokens texts have before they are counted; ``limit``: most that are read of one, ``None``: all."""
    counts = (2 + len(text) // 4 for text in texts)
    return sum(counts if limit is None else (min(limit, count) for count in counts))


async def in_slices(
    encoder: BundleEncoder, texts: Sequence[str], prompt: str | None, in_turn: Callable[[_Read], Awaitable[_Tokens]]
) -> AsyncIterator[_Tokens]:
    """Yield the ids of texts slice by slice, and whether each text was cut.

    Args:
        encoder: Tokenises.
        texts: Any number.
        prompt: Put before each, by its name.
        in_turn: Runs what takes longer where it does not keep others waiting.

    Raises:
        Refusal: If a text is none.
    """
    for part in slices(texts, READ_CHARACTERS * encoder.max_seq_length):
        read = partial(encoder.tokenize, texts[part], prompt)
        try:
            yield read() if sum(map(len, texts[part])) <= _AT_ONCE else await in_turn(read)
        except ValueError as error:
            raise Refusal("invalid", first_line(error), param="input") from error


def json_rows(
    tokenizer: Any, texts: Sequence[str], *, special: bool, before: int, most: int
) -> tuple[list[bytes], int]:
    """Return :func:`token_rows` of each text as JSON, and how many tokens there are now; not for the event loop.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``.
        texts: Texts that may be tokenised at once, or a long one.
        special: Whether a model's special tokens are among them.
        before: Tokens of the request's texts before these.
        most: Tokens of all texts together, special ones not counted.

    Raises:
        Refusal: If there are more; of a long text this is seen at its beginning, where that is possible.
    """
    for text in texts:
        if len(text) > SLICE_CHARACTERS:
            _check_beginnings(tokenizer, text, before, most)
    found = tokenizer.encode_batch(list(texts), add_special_tokens=special)
    count = before + sum(map(_count, found))
    _check(count, most)
    return [orjson.dumps(token_rows(encoding)) for encoding in found], count


def _check_beginnings(tokenizer: Any, text: str, before: int, most: int) -> None:
    beginnings, size = Beginnings(tokenizer), SLICE_CHARACTERS
    while size < len(text):
        part = beginnings.of(text, size)
        if len(part) == len(text):
            return
        (found,) = tokenizer.encode_batch_fast([part], add_special_tokens=False)
        _check(before + _count(found), most)
        size = 2 * len(part)


def _check(count: int, most: int) -> None:
    if count > most:
        raise Refusal(
            "too_large", f"the request has at least {count} tokens, at most {most} are taken at once", param="inputs"
        )


def _count(encoding: Any) -> int:
    return sum(piece.special_tokens_mask.count(0) for piece in (encoding, *encoding.overflowing))


def token_rows(encoding: Any) -> list[dict[str, Any]]:
    """Id, text, whether it is special, and place of each token of a text, of what the model cuts off too.

    Args:
        encoding: As a ``tokenizers.Tokenizer`` gives it; the pieces of a text that was cut have special tokens each, of
            which those at the ends of the whole are kept.
    """
    pieces = [
        [
            {"id": number, "text": text, "special": bool(special), "start": start, "stop": stop}
            for number, text, special, (start, stop) in zip(
                piece.ids, piece.tokens, piece.special_tokens_mask, piece.offsets, strict=True
            )
        ]
        for piece in (encoding, *encoding.overflowing)
    ]
    first = pieces[0]
    inner = [place for place, token in enumerate(first) if not token["special"]]
    end = inner[-1] + 1 if inner else len(first)
    rest = [token for piece in pieces[1:] for token in piece if not token["special"]]
    return [*first[:end], *rest, *first[end:]]
