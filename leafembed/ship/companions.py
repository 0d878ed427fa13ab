"""Config, tokenizer and prompts beside an exported model, in the form that transformers and transformers.js both read.

The tokenizer keeps its own file. ``tokenizer_config.json`` is written from a few facts and not copied, since what a
version of transformers puts there another cannot read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leafembed.ship.folder import PROMPTS
from leafembed.ship.graph import INPUTS, length_limit

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Reading", "write_companions"]

_PROBE = "a"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model reads a text.

    Attributes:
        max_seq_length: Tokens it reads, special tokens included; the rest of a text is cut.
        closing: Ids of the special tokens at the end of a text, in order; empty where it ends with none.
    """

    max_seq_length: int
    closing: tuple[int, ...]


def write_companions(model: SentenceTransformer, folder: Path) -> Reading:
    """Write config, tokenizer, its settings and, where there are any, prompts into a folder that exists.

    ``tokenizer.json`` cuts and pads by itself, so that a program that reads nothing else gives a batch that fits.
    """
    from tokenizers import Tokenizer

    first, limit = model[0], length_limit(model)
    body = getattr(first, "auto_model", None)
    if body is None:  # a static table: its tokenizer is one of the tokenizers library, used without special tokens
        tokenizer, side, cut = Tokenizer.from_str(first.tokenizer.to_str()), "right", "right"
        tokenizer.post_processor = None
        config: dict[str, Any] = {"model_type": "static", "hidden_size": first.embedding_dim}
        names: dict[str, str] = {}
        closing: tuple[int, ...] = ()
    else:
        tokenizer = Tokenizer.from_str(first.tokenizer.backend_tokenizer.to_str())
        side, cut = first.tokenizer.padding_side, first.tokenizer.truncation_side
        config = body.config.to_diff_dict()
        names = {name: token for name, token in first.tokenizer.special_tokens_map.items() if isinstance(token, str)}
        closing = _closing(first.tokenizer)
    padding = names.get("pad_token") or str(tokenizer.id_to_token(0))
    tokenizer.enable_truncation(limit, direction=cut)
    tokenizer.enable_padding(direction=side, pad_id=tokenizer.token_to_id(padding), pad_token=padding)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": limit,
        "padding_side": side,
        "truncation_side": cut,
        "clean_up_tokenization_spaces": False,
        "model_input_names": list(INPUTS),
        **names,
        "pad_token": padding,
    }
    first_step = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
    if "add_prefix_space" in first_step:  # transformers 4 takes it from here, and would put False into the tokenizer
        settings["add_prefix_space"] = first_step["add_prefix_space"]
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "config.json", config)
    if any(model.prompts.values()):
        _write_json(folder / PROMPTS, {"prompts": dict(model.prompts)})
    return Reading(limit, closing if cut == "right" else ())


def _closing(tokenizer: Any) -> tuple[int, ...]:
    whole, bare = (tokenizer(_PROBE, add_special_tokens=special)["input_ids"] for special in (True, False))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[start + len(bare) :])
    return ()


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
