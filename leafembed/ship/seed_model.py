"""The model inside a ``.pt`` file of the first attempt's kind.

This file is not only imported: its text goes into every ``.pt`` file, and whoever opens one runs it there. So it needs
nothing but torch, and nothing of this package.
"""

from __future__ import annotations

from typing import Any

__all__ = ["SeedModel"]

_REBUILD = "(names := {'__name__': 'seed_model'}, exec(source, names), object.__new__(names['SeedModel']))[-1]"
"""Makes an empty object of the class that ``source`` defines; pickle then fills in its attributes."""


class SeedModel:
    """Texts in, unit vectors out, by the calls that the first attempt's card shows.

    Attributes:
        graph: From token ids and mask, both ``(batch, tokens)`` int64 with at least 2 tokens, to ``(batch, dim)``.
        max_seq_length: Tokens read of one text, special tokens included.
        source: Text of this file.
        tokenizer: What ``set_tokenizer`` was given.
    """

    def __init__(self, graph: Any, max_seq_length: int, source: str) -> None:
        self.graph = graph
        self.max_seq_length = max_seq_length
        self.source = source
        self.tokenizer: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (_REBUILD, {"source": self.source}), {**vars(self), "tokenizer": None}

    def eval(self) -> SeedModel:
        """Return the model; it knows no other mode."""
        return self

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Take the tokenizer that lies beside the file, opened with ``AutoTokenizer``."""
        self.tokenizer = tokenizer

    def encode(self, texts: Any, device: str = "cpu", normalize: bool = True, batch_size: int = 32) -> Any:
        """Return a tensor ``(n_texts, dim)`` float32, unit length, in the order of the texts.

        Args:
            texts: A list of texts, or one text, which counts as a list of one.
            device: ``cpu``; the graph is made for it.
            normalize: ``True``; the model itself gives unit vectors.
            batch_size: Texts in one forward pass.

        Raises:
            RuntimeError: If there is no tokenizer yet.
            ValueError: If ``device`` or ``normalize`` is another.
        """
        import torch

        if self.tokenizer is None:
            raise RuntimeError("got no tokenizer, expected set_tokenizer(AutoTokenizer.from_pretrained(...)) first")
        if str(device) != "cpu" or not normalize:
            raise ValueError(f"got device={device!r}, normalize={normalize!r}; expected 'cpu' and True")
        texts = [texts] if isinstance(texts, str) else list(texts)
        with torch.no_grad():
            parts = [self._forward(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
        if not parts:
            raise ValueError("got no text, expected at least one")
        return torch.cat(parts)

    def _forward(self, texts: list[str]) -> Any:
        import torch

        rows = self.tokenizer(texts, truncation=True, max_length=self.max_seq_length)["input_ids"]
        padding = self.tokenizer.pad_token_id
        rows = [row or [padding] for row in rows]  # a text without any token is read as one padding token
        longest = max(2, *map(len, rows))
        ids = torch.full((len(rows), longest), padding)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(longest - len(row), None) if self.tokenizer.padding_side == "left" else slice(len(row))
            ids[i, place] = torch.tensor(row)
            mask[i, place] = 1
        return self.graph(ids, mask)
