"""The tokens of a text as a client sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leafembed.serve.refusals import Refusal

__all__ = ["all_rows", "token_rows"]


def all_rows(tokenizer: Any, texts: Sequence[str], *, special: bool, most: int) -> list[list[dict[str, Any]]]:
    """Return :func:`token_rows` of each text; takes seconds for a long list, so not for the event loop.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``.
        texts: The texts.
        special: Whether a model's special tokens are among them.
        most: Tokens of all texts together, special ones not counted.

    Raises:
        Refusal: If there are more.
    """
    found = tokenizer.encode_batch(list(texts), add_special_tokens=special)
    pieces = (piece for encoding in found for piece in (encoding, *encoding.overflowing))
    count = sum(piece.special_tokens_mask.count(0) for piece in pieces)
    if count > most:
        raise Refusal("too_large", f"the request has {count} tokens, at most {most} are taken at once", param="inputs")
    return [token_rows(encoding) for encoding in found]


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
