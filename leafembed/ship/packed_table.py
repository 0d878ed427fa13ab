"""Stores the token table of an OpenVINO graph in 4 bits, without a loss for a student that was trained for it.

The rows become whole numbers from -7 to 7, two in a byte, with an fp16 scale for every 64 of them. The engine unpacks
the rows that a text reads and no others. ``learn/rounding.py`` has the same arithmetic in torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from leafembed.errors import ModelError
from leafembed.types import TABLE_GROUP as GROUP
from leafembed.types import TABLE_LARGEST as LARGEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leafembed.types import FloatArray

__all__ = ["pack_rows", "pack_table"]

_TOLERANCE = 1e-6
"""Largest difference, as a share of the table's largest value, between the table and what 4 bits hold."""


def pack_rows(table: FloatArray) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Whole numbers ``(V, H)`` from -7 to 7, and their scales ``(V, H / 64)``."""
    grouped = table.reshape(len(table), -1, GROUP)
    scales = (np.abs(grouped).max(-1) / LARGEST).astype(np.float16)
    scales[scales == 0] = 1
    values = np.rint(grouped / scales[..., None].astype(np.float32)).clip(-LARGEST, LARGEST)
    return values.astype(np.int8).reshape(table.shape), scales


def pack_table(graph: Any) -> tuple[str, ...]:
    """Put the token table of a graph into 4 bits, in place; return the names of the nodes that hold it now.

    Raises:
        ModelError: If the graph has no token table, or 4 bits do not hold it as it is.
    """
    import openvino
    from openvino import opset13 as ops

    gather, table = _find(graph)
    values, scales = pack_rows(table)
    kept = values.reshape(len(table), -1, GROUP) * scales[..., None].astype(np.float32)
    apart = float(np.abs(kept.reshape(table.shape) - table).max() / np.abs(table).max())
    if apart > _TOLERANCE:
        raise ModelError(
            f"the token table is not what 4 bits hold: got values off by up to {apart:.2g} of the largest, expected "
            "none; train it so, with student.table_bits = 4"
        )
    nibbles = (values & 0xF).astype(np.uint8)
    packed = openvino.Tensor(openvino.Type.i4, openvino.Shape([len(table), scales.shape[1], GROUP]))
    packed.data.reshape(-1)[:] = (nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)).reshape(-1)  # the tensor owns its memory
    rows = ops.convert(ops.constant(packed), "f16")
    rows = ops.multiply(rows, ops.constant(scales[..., None]))
    rows = ops.convert(ops.reshape(rows, ops.constant(np.array(table.shape, dtype=np.int64)), False), "f32")
    gather.input(0).replace_source_output(rows.output(0))
    graph.validate_nodes_and_infer_types()
    return (gather.get_friendly_name(),)


def _find(graph: Any) -> tuple[Any, FloatArray]:
    """The node that looks tokens up, and the fp32 table that it reads: the largest constant that is looked up."""
    found: list[tuple[Any, FloatArray]] = []
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Gather":
            source = node.input_value(0).get_node()
            if source.get_type_name() == "Constant" and len(source.get_output_shape(0)) == 2:
                found.append((node, np.asarray(source.data, dtype=np.float32)))
    if not found:
        raise ModelError("the graph looks nothing up in a table, expected a token table to store in 4 bits")
    return max(found, key=lambda item: item[1].size)
