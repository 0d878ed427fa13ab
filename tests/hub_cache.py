"""Data sets as ``datasets`` leaves them in its cache, so that mteb's own tasks run without a hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa


def write_cache(cache: Path, hub_id: str, splits: Mapping[str, Sequence[Mapping[str, Any]]], revision: str) -> None:
    """A data set as ``datasets`` leaves it in its cache after it was fetched."""
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo, Value

    namespace, name = hub_id.split("/")
    folder = cache / f"{namespace}___{name}" / "default" / "0.0.0" / revision
    folder.mkdir(parents=True)
    features = None
    for split, rows in splits.items():
        table = pa.Table.from_pylist([dict(row) for row in rows])
        with (
            pa.OSFile(str(folder / f"{name}-{split}.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table)
        features = Features({column: Value(str(table.schema.field(column).type)) for column in table.column_names})
    sizes = {split: SplitInfo(split, num_examples=len(rows), dataset_name=name) for split, rows in splits.items()}
    info = DatasetInfo(
        features=features, splits=SplitDict(sizes), config_name="default", dataset_name=name, version="0.0.0"
    )
    info.write_to_directory(str(folder))
