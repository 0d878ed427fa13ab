"""Compiles a model folder's graph for this CPU, whole or up to one of its early exits.

One graph holds every exit as an output of its own, so that the exits share all weights on the disk. What the wanted
output does not need is cut off before it is compiled, so that it is neither kept in memory nor computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.errors import ModelError
from leafembed.ship.folder import EncoderConfig, output_names
from leafembed.ship.machine import cpu_flags
from leafembed.ship.openvino_errors import engine_error

__all__ = [
    "Arithmetic",
    "ProductWeights",
    "arithmetic_here",
    "compile_graph",
    "compile_here",
    "group_size_of",
    "product_weights",
    "weight_megabytes",
]

_INT8_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Instruction sets with a product of INT8 numbers."""

_UNPACKING = frozenset({"Convert", "FakeQuantize", "Multiply", "Reshape", "Subtract", "Transpose"})
"""What may stand between stored weights and their product."""

_SHAPE = (2, 7)
"""Texts and tokens that shapes are worked out for; what has as many rows as there are texts comes after pooling."""

_IN_FLOAT = "activations stay in floating point, so it is slower; vectors differ a little from those of other CPUs"


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a CPU computes a model.

    Attributes:
        group_size: Activations that share one scale at run time; 0: they stay in floating point.
        lost: What the model loses on it, for people to read; empty: nothing.
    """

    group_size: int
    lost: str = ""


@dataclass(frozen=True, slots=True)
class ProductWeights:
    """Number of weights in matrix products of a model.

    Attributes:
        token: Those that every token is multiplied with.
        text: Those of what is computed once a text: a head after pooling, a pooler.
    """

    token: int
    text: int


def arithmetic_here(group_size: int, flags: frozenset[str]) -> Arithmetic:
    """How a CPU with these instruction sets computes a model that was made for groups of ``group_size`` activations.

    Without AVX-512 and without VNNI the engine has no product of INT8 activations, so that they stay in floating point.
    What a CPU that does not name its instruction sets has is left to the engine.
    """
    if not group_size or "sse2" not in flags or flags & _INT8_PRODUCTS:
        return Arithmetic(group_size)
    if "avx512f" in flags:
        return Arithmetic(group_size, "this CPU has no VNNI: INT8 products take several instructions, so it is slower")
    return Arithmetic(0, f"this CPU has neither AVX-512 nor VNNI: {_IN_FLOAT}")


def compile_here(
    path: Path, stored: EncoderConfig, threads: int, streams: int, exit: int | None
) -> tuple[Any, EncoderConfig, str]:
    """Compile as :func:`compile_graph`, in arithmetic that works here; return the config used, and what is lost, too.

    What the CPU says is tried first. The engine may be capped (``ONEDNN_MAX_CPU_ISA``), or the CPU say nothing: where
    the program then gives no vector, activations stay in floating point.

    Raises:
        ModelError: As :func:`compile_graph`, or if the engine has no program at all for this CPU.
    """
    here = arithmetic_here(stored.group_size, cpu_flags())
    capped = Arithmetic(0, f"the engine has no product of INT8 activations here: {_IN_FLOAT}")
    failure = None
    for how in (here, capped) if here.group_size else (here,):
        config = replace(stored, group_size=how.group_size)
        program = compile_graph(path, config, threads, streams, exit)
        failure = _failure(program)
        if failure is None:
            return program, config, how.lost
    raise ModelError(f"{path}: OpenVINO cannot run it on this CPU, expected one with AVX2 at least: {failure}")


def _failure(program: Any) -> str | None:
    """Why a program gives no vector: without a product that it needs the engine raises, or gives none."""
    request, shape = program.create_infer_request(), (1, 2)
    try:
        request.infer({"input_ids": np.zeros(shape, np.int64), "attention_mask": np.ones(shape, np.int64)})
    except RuntimeError as error:
        return engine_error(error)
    found = request.get_output_tensor(0).shape
    return None if found[0] == 1 else f"of one text it gave {found[0]} vectors"


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
        "INFERENCE_PRECISION_HINT": config.precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": streams,
    }
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # a mapped file that is overwritten where it lies ends the process
    try:
        return core.compile_model(_read(core, path, config, exit), "CPU", properties)
    except RuntimeError as error:
        raise ModelError(f"{path}: OpenVINO cannot open it: {engine_error(error)}") from error


def weight_megabytes(path: Path, config: EncoderConfig, exit: int | None) -> float:
    """Megabytes (10^6 bytes) of weights that an encoder holds which was opened at an exit.

    Raises:
        ModelError: As :func:`compile_graph`.
    """
    import openvino

    model = _read(openvino.Core(), path, config, exit)
    weights = (node for node in model.get_ordered_ops() if node.get_type_name() == "Constant")
    return float(sum(node.get_byte_size() for node in weights)) / 1e6


def group_size_of(folder: Path, *, otherwise: int) -> int:
    """Activations that share a scale at run time in a model folder, for a model that is to run in the same engine.

    Args:
        folder: The model folder.
        otherwise: What is given where its activations have scales of their own from the start: another model has none.

    Raises:
        ModelError: If its ``encoder.json`` cannot be read.
    """
    if b'type="FakeQuantize"' in (folder / "model.xml").read_bytes():
        return otherwise
    return EncoderConfig.read(folder).group_size


def product_weights(path: Path, config: EncoderConfig, exit: int | None) -> ProductWeights:
    """Count the weights that tokens and texts are multiplied with on their way to an exit; rows looked up are not.

    Raises:
        ModelError: As :func:`compile_graph`.
    """
    import openvino

    model = _read(openvino.Core(), path, config, exit)
    model.reshape({port.get_any_name(): list(_SHAPE) for port in model.inputs})
    of_token = of_text = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        source = node.input_value(1).get_node()
        while source.get_type_name() in _UNPACKING:
            source = source.input_value(0).get_node()
        if source.get_type_name() == "Constant":
            weights, rows = math.prod(source.get_output_shape(0)), list(node.input_value(0).get_partial_shape())[:-1]
            if all(one.is_static for one in rows) and math.prod(one.get_length() for one in rows) == _SHAPE[0]:
                of_text += weights
            else:
                of_token += weights
    return ProductWeights(of_token, of_text)


def _read(core: Any, path: Path, config: EncoderConfig, exit: int | None) -> Any:
    """The graph up to an exit."""
    import openvino

    if exit is not None and exit not in config.exits:
        known = ", ".join(map(str, config.exits)) or "none"
        raise ModelError(f"exit: got {exit}, the model's early exits are {known}")
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise ModelError(f"{path}: OpenVINO cannot open it: {engine_error(error)}") from error
    inputs = {name for port in model.inputs for name in port.get_names()}
    if not {"input_ids", "attention_mask"} <= inputs:
        raise ModelError(f"{path}: its inputs are {sorted(inputs)}, expected input_ids and attention_mask")
    if not config.exits:
        return model
    wanted = output_names(() if exit is None else (exit,))[-1]
    return openvino.Model([model.output(wanted)], model.get_parameters(), wanted)
