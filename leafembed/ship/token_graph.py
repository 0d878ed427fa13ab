"""A teacher in OpenVINO that gives the vectors of its tokens besides that of the text, for students to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from leafembed.ship.graph import INPUTS
from leafembed.ship.quantize import export_openvino, int8_weights
from leafembed.types import FloatArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["TokenProgram", "write_token_graph"]

_GRAPH = "model.xml"


def write_token_graph(model: SentenceTransformer, target: Path) -> None:
    """Write the graph of a model with weights in INT8 into a folder, which is made.

    Raises:
        ModelError: If the model cannot be exported.
        RecipeError: If its vector is no mean over tokens.
    """
    import openvino

    graph = int8_weights(export_openvino(model, tokens=True))
    target.mkdir(parents=True)
    openvino.save_model(graph, target / _GRAPH, compress_to_fp16=False)


class TokenProgram:
    """The compiled graph.

    Args:
        folder: What :func:`write_token_graph` wrote.
        precision: Of activations.
        group_size: Activations that share a scale where they are computed in INT8; 0: they are not.
        threads: CPU threads; 0: as many as the engine likes.
    """

    def __init__(self, folder: Path, *, precision: Literal["bf16", "f32"], group_size: int, threads: int = 0) -> None:
        import openvino

        properties = {
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group_size),
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled = openvino.Core().compile_model(str(folder / _GRAPH), "CPU", properties)

    def __call__(self, features: Mapping[str, Any]) -> tuple[FloatArray, FloatArray]:
        """Vectors of texts ``(B, dim)`` and of their tokens ``(B, tokens, dim)``, from what a tokenizer gave."""
        outputs = self._compiled({name: features[name].numpy() for name in INPUTS})
        return np.array(outputs["embedding"], dtype=np.float32), np.array(outputs["tokens"], dtype=np.float32)
