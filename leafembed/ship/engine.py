"""Compiles a model folder's graph for this CPU, whole or up to one of its early exits.

One graph holds every exit as an output of its own, so that the exits share all weights on the disk. What the wanted
output does not need is cut off before it is compiled, so that it is neither kept in memory nor computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leafembed.errors import ModelError, first_line
from leafembed.ship.folder import EncoderConfig, output_names

__all__ = ["compile_graph"]


def compile_graph(path: Path, config: EncoderConfig, threads: int, streams: int, exit: int | None) -> Any:
    """Return the compiled program of a model folder, or the part of it that ends at an exit.

    Args:
        path: Its ``model.xml``.
        config: Its ``encoder.json``.
        threads: CPU threads of all forward passes together.
        streams: Forward passes side by side.
        exit: One of ``config.exits``; ``None``: the whole.

    Raises:
        ModelError: If it cannot be opened, takes other inputs, or has no such exit.
    """
    import openvino

    properties = {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(config.group_size),
        # Left alone, OpenVINO computes in bf16 where the CPU can, and the vectors would depend on the machine.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": streams,
    }
    if exit is not None and exit not in config.exits:
        known = ", ".join(map(str, config.exits)) or "none"
        raise ModelError(f"exit: got {exit}, the model's early exits are {known}")
    core = openvino.Core()
    try:
        model = core.read_model(path)
        inputs = {name for port in model.inputs for name in port.get_names()}
        if not {"input_ids", "attention_mask"} <= inputs:
            raise ModelError(f"{path}: its inputs are {sorted(inputs)}, expected input_ids and attention_mask")
        if config.exits:  # what only other outputs need is neither loaded nor computed
            wanted = output_names(() if exit is None else (exit,))[-1]
            model = openvino.Model([model.output(wanted)], model.get_parameters(), wanted)
        return core.compile_model(model, "CPU", properties)
    except RuntimeError as error:
        raise ModelError(f"{path}: OpenVINO cannot open it: {first_line(error)}") from error
