"""The tokens of a text as a client sees them."""

from __future__ import annotations

from typing import Any

__all__ = ["token_rows"]


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
