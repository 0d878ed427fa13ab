"""A student for ONNX Runtime's dynamic INT8, the engine that most exports use; to be measured, not shipped.

Each matrix product rounds its input with one scale for the whole tensor. The down projection of gated MLPs, whose
inputs have outliers, stays in fp32: with it mean cosine was 0.975 on a 6-layer Gemma, without it 0.9992.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from leafembed.errors import MissingExtraError
from leafembed.ship.companions import write_companions
from leafembed.ship.onnx_format import to_onnx

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["write_dynamic"]


def write_dynamic(model: SentenceTransformer, folder: Path) -> None:
    """Write ``model.onnx`` in dynamic INT8 with its tokenizer into a folder, which is created.

    Raises:
        MissingExtraError: If a package of the extra ``onnx`` is not installed.
        ModelError: If the model cannot be exported.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "onnx") from error
    folder.mkdir(parents=True)
    write_companions(model, folder)
    graph = to_onnx(model, ())
    exact = folder / "fp32.onnx"
    onnx.save_model(graph, exact)
    body = getattr(model[0], "auto_model", None)
    inner = getattr(getattr(body, "config", None), "intermediate_size", 0)
    gated = any("gate_proj" in name for name, _ in model.named_modules())
    kept = _products_of(graph, inner) if gated else []
    quantize_dynamic(exact, folder / "model.onnx", weight_type=QuantType.QInt8, per_channel=True, nodes_to_exclude=kept)
    exact.unlink()


def _products_of(graph: Any, rows: int) -> list[str]:
    """Names of matrix products with a matrix of so many rows, which read the inside of an MLP."""
    weights = {tensor.name: list(tensor.dims) for tensor in graph.graph.initializer}
    found = []
    for node in graph.graph.node:
        shape = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if shape and len(shape) == 2 and shape[0] == rows:
            found.append(node.name)
    return found
