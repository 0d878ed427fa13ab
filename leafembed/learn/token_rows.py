"""Notes which rows of a token table ever got a gradient, overall and among those that a language uses.

A hook on the table notes the ids of each training batch: one indexed write of a few thousand flags. A row that no
batch reads has a gradient of exactly 0, and one that is read gets some, except padding. Reading the gradient itself
would cost a pass over the whole table at each step: 200 million numbers with EmbeddingGemma.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TrainedRows"]


class TrainedRows:
    """Which rows of a token table that learns ever got a gradient.

    Attributes:
        count: Rows of the table; 0 where there is none or it does not learn.
    """

    def __init__(self) -> None:
        self.count = 0
        self._flags = torch.zeros(0, dtype=torch.bool)
        self._used: dict[str, NDArray[np.int64]] = {}
        self._hook: Any = None

    @property
    def learn(self) -> bool:
        """Whether there is a table and it learns."""
        return self.count > 0

    @property
    def trained(self) -> NDArray[np.bool_]:
        """A flag for each row, ``(count,)``."""
        flags: NDArray[np.bool_] = self._flags.cpu().numpy()
        return flags

    @property
    def overall(self) -> float:
        """Share of the rows that were trained."""
        return float(self.trained.mean())

    def by_language(self) -> dict[str, float]:
        """Share of the rows that were trained among those that a language uses."""
        trained = self.trained
        return {lang: float(trained[used].mean()) for lang, used in self._used.items()}

    def attach(self, model: Any, texts: Mapping[str, Sequence[str]]) -> None:
        """Start to note what the model's token table reads in training, if the table learns."""
        self.detach()
        table = _token_table(model)
        self.count = table.num_embeddings if table is not None and table.weight.requires_grad else 0
        self._flags = torch.zeros(self.count, dtype=torch.bool, device=model.device)
        self._used = {}
        if table is None or not self.learn:
            return
        for lang, some in texts.items():
            used = _token_rows(model, some)
            if len(used):
                self._used[lang] = used
        self._hook = table.register_forward_pre_hook(self._mark)

    def detach(self) -> None:
        """Stop noting."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def packed(self) -> str:
        """The flags as text for JSON, a bit for each row."""
        return base64.b64encode(np.packbits(self.trained).tobytes()).decode("ascii")

    def restore(self, packed: str) -> None:
        """Take over what :meth:`packed` gave; of a table with another number of rows it means nothing."""
        bits = np.frombuffer(base64.b64decode(packed), dtype=np.uint8)
        if len(bits) == -(-self.count // 8):
            flags = np.unpackbits(bits, count=self.count).astype(bool)
            self._flags = torch.from_numpy(flags).to(self._flags.device)

    def _mark(self, module: Any, inputs: tuple[Any, ...]) -> None:
        if module.training:
            self._flags[inputs[0].reshape(-1)] = True


def _token_table(model: Any) -> Any:
    """The embedding module that a model looks its tokens up in; ``None`` where there is none."""
    first = model[0]
    table = (
        first.auto_model.get_input_embeddings() if hasattr(first, "auto_model") else getattr(first, "embedding", None)
    )
    kinds = (torch.nn.Embedding, torch.nn.EmbeddingBag)  # a factorised table holds one
    return None if table is None else next((part for part in table.modules() if isinstance(part, kinds)), None)


def _token_rows(model: Any, texts: Sequence[str]) -> NDArray[np.int64]:
    """The different token rows that texts use, padding left out."""
    features = model.preprocess(list(texts))
    ids = features["input_ids"]
    mask = features.get("attention_mask")
    rows: NDArray[np.int64] = torch.unique(ids if mask is None else ids[mask.bool()]).cpu().numpy()
    return rows
