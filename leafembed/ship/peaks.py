"""What matrix products this machine can do at most, measured: the yardstick for how well an engine uses it."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

__all__ = ["matmul_peaks"]

_ROWS, _INNER, _COLUMNS = 1_024, 2_048, 2_048
"""Sizes of a product that is large enough to fill the CPU and small enough for its caches."""


def matmul_peaks(threads: int, *, repeats: int = 7) -> dict[str, float]:
    """Return operations a second, in 10^9, of one large product of matrices: ``fp32`` and ``int8``.

    A multiplication and an addition are two operations. INT8 inputs are rounded from fp32 with one scale, which is part
    of the time. The median of the repeats is taken.

    Args:
        threads: CPU threads.
        repeats: How often each is measured, in turn.
    """
    requests = {name: _compiled(threads, int8=name == "int8") for name in ("fp32", "int8")}
    data = np.random.default_rng(0).standard_normal((_ROWS, _INNER)).astype(np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in requests}
    for round_ in range(repeats + 1):
        for name, request in requests.items():
            start = time.perf_counter()
            request.infer([data], share_inputs=True)
            if round_:  # the first is warm-up
                seconds[name].append(time.perf_counter() - start)
    return {name: 2 * _ROWS * _INNER * _COLUMNS / median(times) / 1e9 for name, times in seconds.items()}


def _compiled(threads: int, *, int8: bool) -> Any:
    import openvino
    from openvino import opset13 as ops

    weights = np.random.default_rng(1).standard_normal((_COLUMNS, _INNER)).astype(np.float32)
    left: Any = ops.parameter([_ROWS, _INNER], np.float32)
    right: Any = ops.constant(weights)
    inputs = [left]
    if int8:
        left, right = _rounded(left, 256), _rounded(right, 255)
    product = ops.matmul(left, right, transpose_a=False, transpose_b=True)
    model = openvino.Model([product], inputs, "product")
    how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    return openvino.Core().compile_model(model, "CPU", how).create_infer_request()


def _rounded(values: Any, levels: int) -> Any:
    from openvino import opset13 as ops

    low, high = (ops.constant(np.float32(end)) for end in (-4.0 if levels == 255 else -4.0 * 128 / 127, 4.0))
    return ops.fake_quantize(values, low, high, low, high, levels)
