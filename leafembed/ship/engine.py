"""Compiles a model folder's graph for this CPU, whole or up to one of its early exits.

One graph holds every exit as an output of its own, so that the exits share all weights on the disk. What the wanted
output does not need is cut off before it is compiled, so that it is neither kept in memory nor computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leafembed.errors import ModelError, first_line
from leafembed.ship.folder import EncoderConfig, output_names

__all__ = ["compile_graph", "weight_megabytes"]


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
    core = openvino.Core()
    try:
        return core.compile_model(_read(core, path, config, exit), "CPU", properties)
    except RuntimeError as error:
        raise ModelError(f"{path}: OpenVINO cannot open it: {first_line(error)}") from error


def weight_megabytes(path: Path, config: EncoderConfig, exit: int | None) -> float:
    """Megabytes (10^6 bytes) of weights that an encoder holds which was opened at an exit.

    Raises:
        ModelError: As :func:`compile_graph`.
    """
    import openvino

    model = _read(openvino.Core(), path, config, exit)
    weights = (node for node in model.get_ordered_ops() if node.get_type_name() == "Constant")
    return float(sum(node.get_byte_size() for node in weights)) / 1e6


def _read(core: Any, path: Path, config: EncoderConfig, exit: int | None) -> Any:
    """The graph up to an exit."""
    import openvino

    if exit is not None and exit not in config.exits:
        known = ", ".join(map(str, config.exits)) or "none"
        raise ModelError(f"exit: got {exit}, the model's early exits are {known}")
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise ModelError(f"{path}: OpenVINO cannot open it: {first_line(error)}") from error
    inputs = {name for port in model.inputs for name in port.get_names()}
    if not {"input_ids", "attention_mask"} <= inputs:
        raise ModelError(f"{path}: its inputs are {sorted(inputs)}, expected input_ids and attention_mask")
    if not config.exits:
        return model
    wanted = output_names(() if exit is None else (exit,))[-1]
    return openvino.Model([model.output(wanted)], model.get_parameters(), wanted)
