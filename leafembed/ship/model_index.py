"""Results as the ``model-index`` of a model card, which model hubs show beside a model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leafembed.errors import BundleError, MissingExtraError, ModelError, first_line
from leafembed.reports import TaskResult

__all__ = ["model_index", "write_model_index"]


def model_index(
    name: str, results: Sequence[TaskResult], *, datasets: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return the ``model-index`` of one model: an entry for each result, values from 0 to 1.

    Args:
        name: The model's name.
        results: What was measured.
        datasets: Hub id of a task's data; a task that is not in it is named by itself, as it comes from local files.
            What follows ``@`` is left to ``split`` and ``config``, since no id of a hub has that sign.
    """
    entries = [
        {
            "task": {"type": result.type},
            "dataset": {
                "type": (datasets or {}).get(result.task) or result.task.partition("@")[0],
                "name": f"{result.task} ({result.lang})",
                "config": result.lang,
                "split": result.split,
                "revision": result.data,
            },
            "metrics": [{"type": result.metric, "value": result.main_score}],
        }
        for result in results
    ]
    return [{"name": name, "results": entries}]


def write_model_index(card: Path, index: Sequence[Mapping[str, Any]]) -> None:
    """Put a ``model-index`` into the front matter of a model card, which is made if it is not there.

    Entries of the card that name another task, dataset, configuration, split or metric stay, as does its text.

    Raises:
        BundleError: If the card is a bundle's, which the manifest holds the hash of.
        ModelError: If the card's front matter cannot be read.
        MissingExtraError: If huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import metadata_load, metadata_save
        from yaml import YAMLError
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "mteb") from error
    if (card.parent / "manifest.json").exists():
        raise BundleError(f"{card}: is the card of a bundle, which already lists its results; expected another file")
    card.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=card.parent, prefix=".partial-") as folder:
        partial = Path(folder) / card.name
        if card.exists():
            partial.write_bytes(card.read_bytes())
        try:
            metadata = (metadata_load(partial) if card.exists() else None) or {}
            metadata["model-index"] = _merged(metadata.get("model-index") or [], index)
            metadata_save(partial, metadata)
        except (YAMLError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{card}: its front matter is no model card's ({first_line(error)}); mend it or name "
                             "another") from error  # fmt: skip
        partial.replace(card)


def _merged(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The new entries, and of each model's old ones those that measure something else."""
    kept = {model["name"]: list(model["results"]) for model in old}
    for model in new:
        measured = {_key(entry) for entry in model["results"]}
        others = [entry for entry in kept.get(model["name"], []) if _key(entry) not in measured]
        kept[model["name"]] = [*others, *model["results"]]
    return [{"name": name, "results": results} for name, results in kept.items()]


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    dataset = entry["dataset"]
    metrics = tuple(metric["type"] for metric in entry["metrics"])
    return (entry["task"]["type"], dataset["type"], dataset.get("config"), dataset.get("split"), metrics)
