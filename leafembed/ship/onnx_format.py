"""Writes a student as ONNX, in fp32 and INT8, and runs what was written with ONNX Runtime.

One graph from token ids to the unit vector, in the layout that transformers.js expects. INT8 is on the weights:
matrices as ``MatMulNBits`` in blocks of 128 (ONNX Runtime's own operator), the token table with a scale for each row.
ONNX Runtime's dynamic INT8 is not used, since one scale for each activation tensor breaks on the outliers of gated
MLPs (mean cosine 0.975 on a 6-layer Gemma, where this gives 0.9997).
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import MissingExtraError, ModelError, first_line
from leafembed.ship.graph import INPUTS, capture, eager_attention, factored_table
from leafembed.types import FloatArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from leafembed.types import Factors

__all__ = ["BLOCK", "FP32", "INT8", "LARGEST", "OUTPUT", "encode_onnx", "to_onnx", "write_onnx"]

FP32, INT8 = "onnx/model.onnx", "onnx/model_quantized.onnx"
"""Where transformers.js looks for the model, and for its quantised form."""

OUTPUT = "sentence_embedding"
"""Name of the graph's output, as other embedding models in ONNX have it."""

BLOCK = 128
"""Weights of a matrix that share a scale."""

LARGEST = 2**31 - 2**20
"""Bytes of weights in one file; a protobuf cannot hold 2 GiB. Beyond it they go into a file of their own."""

_ROWS = 16_384


def write_onnx(
    model: SentenceTransformer, folder: Path, *, closing: Sequence[int] = (), factors: Factors | None = None
) -> None:
    """Write ``FP32`` and ``INT8`` below ``folder``, which holds what ``write_companions`` wrote.

    Args:
        model: A sentence-transformers model in fp32, on the CPU; left as it is.
        folder: Folder of the export.
        closing: Ids that a text of the full length ends with. transformers.js cuts a text that is too long without
            keeping them, so the graph puts them back.
        factors: Stored instead of the token table; ``None``: the table itself.

    Raises:
        MissingExtraError: If a package of the extra ``onnx`` is not installed.
        ModelError: If the model cannot be exported.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401 - the quantizer is a part of it
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "onnx") from error

    (folder / FP32).parent.mkdir()
    with factored_table(model, factors):
        graph = to_onnx(model, closing)
    large = [_save(graph, folder / FP32)]
    del graph  # before its INT8 form is made, since a token table can be most of the memory there is
    large.append(_save(_to_int8(onnx.load(folder / FP32)), folder / INT8))
    _declare_data(
        folder / "config.json",
        [Path(name).name for name, is_large in zip((FP32, INT8), large, strict=True) if is_large],
    )


def encode_onnx(folder: Path, name: str, batches: Iterable[Sequence[str]]) -> FloatArray:
    """Return the embeddings ``(n_texts, dim)`` float32 that an exported folder gives with ONNX Runtime.

    Args:
        folder: What :func:`write_onnx` and ``write_companions`` wrote.
        name: ``FP32`` or ``INT8``.
        batches: Texts of one forward pass each, at least one; short texts are padded to their batch's longest.
    """
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
    parts = []
    for texts in batches:
        encodings = tokenizer.encode_batch(list(texts))
        rows = ([encoding.ids for encoding in encodings], [encoding.attention_mask for encoding in encodings])
        feeds = {key: np.array(values, dtype=np.int64) for key, values in zip(INPUTS, rows, strict=True)}
        parts.append(session.run([OUTPUT], feeds)[0])
    return np.concatenate(parts)


def to_onnx(model: SentenceTransformer, closing: Sequence[int]) -> Any:
    """The model as an ``onnx.ModelProto``."""
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of every package that it could use and lacks
    with eager_attention(model):
        program = capture(model, closing=closing)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch's own calls
            result = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=list(INPUTS), output_names=[OUTPUT]
            )
    except (RuntimeError, ValueError, TypeError) as error:  # torch.onnx.OnnxExporterError is a RuntimeError
        raise ModelError(f"the model cannot be exported to ONNX: {first_line(error)}") from error
    return result.model_proto  # type: ignore[union-attr]


def _save(graph: Any, file: Path) -> bool:
    """Write a graph and return whether its weights went beside it, as they do beyond ``LARGEST`` bytes.

    That file has the name that transformers.js expects.
    """
    import onnx

    large = bool(sum(tensor.ByteSize() for tensor in graph.graph.initializer) > LARGEST)
    beside = {"save_as_external_data": True, "location": f"{file.name}_data"} if large else {}
    onnx.save_model(graph, file, **beside)
    return large


def _declare_data(config: Path, files: Sequence[str]) -> None:
    """Tell transformers.js, in ``config.json``, which models have their weights in a file of their own."""
    if files:
        content = json.loads(config.read_text(encoding="utf-8"))
        content["transformers.js_config"] = {"use_external_data_format": dict.fromkeys(files, 1)}
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _to_int8(graph: Any) -> Any:
    """The graph with INT8 weights; norms, biases and a head that became ``Gemm`` stay. The argument is used up."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.WARNING)  # it tells of every node
    _tables_to_int8(graph.graph)
    # 4: activations are rounded to INT8 as well, each block of them with a scale of its own.
    quantizer = MatMulNBitsQuantizer(graph, bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    return quantizer.model.model


def _tables_to_int8(graph: Any) -> None:
    """Store each table of rows as INT8 with a scale for each row, in standard operators.

    ONNX Runtime's quantizer makes tables of 4 bits only.
    """
    from onnx import TensorProto, helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Any] = []
    rounded: dict[str, list[Any]] = {}
    for node in graph.node:
        table = weights.get(node.input[0]) if node.op_type == "Gather" else None
        other_axis = any(attribute.name == "axis" and attribute.i for attribute in node.attribute)
        if table is None or len(table.dims) != 2 or table.data_type != TensorProto.FLOAT or other_axis:
            nodes.append(node)
            continue
        whole, scale = (f"{table.name}_{part}" for part in ("int8", "scale"))
        if table.name not in rounded:
            named = zip(_rounded(numpy_helper.to_array(table)), (whole, scale), strict=True)
            rounded[table.name] = [numpy_helper.from_array(part, name) for part, name in named]
        (made,), ids = node.output, node.input[1]
        rows, floats, scales = (f"{made}_{part}" for part in ("rows", "floats", "scales"))
        nodes += [
            helper.make_node("Gather", [whole, ids], [rows]),
            helper.make_node("Cast", [rows], [floats], to=TensorProto.FLOAT),
            helper.make_node("Gather", [scale, ids], [scales]),
            helper.make_node("Mul", [floats, scales], [made]),
        ]
    graph.ClearField("node")
    graph.node.extend(nodes)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in rounded:
            del graph.initializer[index]
    graph.initializer.extend(part for parts in rounded.values() for part in parts)


def _rounded(table: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """A table as INT8 and a scale for each row, ``(rows, 1)``; some rows at a time, since it may be most of a model."""
    whole, scale = np.empty(table.shape, dtype=np.int8), np.empty((len(table), 1), dtype=np.float32)
    for start in range(0, len(table), _ROWS):
        part = slice(start, start + _ROWS)
        scale[part] = np.maximum(np.abs(table[part]).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / 127
        whole[part] = np.rint(table[part] / scale[part])
    return whole, scale
