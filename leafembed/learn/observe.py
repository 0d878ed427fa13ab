"""Runs texts through a model and shows what flows through its parts, real tokens only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["evenly", "observed"]


@contextmanager
def observed(model: SentenceTransformer, watchers: Mapping[Any, Callable[[Any, Any], None]]) -> Iterator[None]:
    """Show each watched module's input and output to its watcher, whenever the model runs within this block.

    Args:
        model: A model that starts with a transformer.
        watchers: By submodule of the transformer, a function of its input and output, each ``(n_tokens, width)``
            without padding.
    """
    mask: list[Any] = []

    def remember(module: Any, args: Any) -> None:
        mask[:] = [args[0]["attention_mask"].bool()]

    def tap(watch: Callable[[Any, Any], None]) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            watch(before[mask[0]], after[mask[0]])

        return hook

    handles = [model[0].register_forward_pre_hook(remember)]
    handles += [part.register_forward_hook(tap(watch), with_kwargs=True) for part, watch in watchers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def evenly(texts: Sequence[str], limit: int, *, max_chars: int = 400) -> list[str]:
    """At most ``limit`` texts spread evenly over all, each cut at ``max_chars``."""
    step = max(1, len(texts) // limit)
    return [text[:max_chars] for text in texts[::step][:limit]]
