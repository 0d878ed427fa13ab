"""Turns a sentence-transformers folder into an INT8 OpenVINO model folder.

The graph holds everything from token ids to the unit vector: encoder, pooling, head and normalisation, so that no
runtime re-implements a part of the model. Weights, token table and head included, are stored as INT8 with one scale
per output row; activations are quantised at run time in groups, because one scale per tensor breaks on the outliers
of gated MLPs (mean cosine 0.975 instead of 0.9998 on a 6-layer Gemma).
"""

from __future__ import annotations

import copy
import gc
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import MissingExtraError, ModelError
from leafembed.ship.folder import PROMPTS, output_names
from leafembed.ship.graph import INPUTS, capture, factored_table, length_limit
from leafembed.ship.openvino_errors import engine_error
from leafembed.ship.packed_table import pack_table
from leafembed.ship.weights import mark_matrices

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from leafembed.types import Factors, ModelRef

__all__ = ["export_openvino", "int8_weights", "quantize", "quantize_static"]


def quantize(
    model: SentenceTransformer,
    target: Path,
    *,
    ref: ModelRef,
    group_size: int,
    factors: Factors | None = None,
    table_bits: int | None = None,
    exits: Sequence[int] = (),
    int8: bool = True,
) -> Path:
    """Write the INT8 model folder of a student (or teacher) and return ``target``.

    Args:
        model: A sentence-transformers model in fp32, with the length limit it is to have; left as it is.
        target: Folder to create; it must not exist.
        ref: Name, prompts, licence and fingerprint to record.
        group_size: Activations that share a scale at run time; 0 leaves them in floating point.
        factors: Stored instead of the token table, which must be their product; ``None``: the table itself.
        table_bits: 4: the token table is stored in 4 bits, which it must have been trained for; ``None``: in INT8.
        exits: Numbers of layers after which the folder gives an embedding too; they share all weights on the disk.
        int8: ``False`` keeps fp32 weights, for comparisons.

    Raises:
        ModelError: If the model cannot be exported, its token table is not the product of the factors, or 4 bits do
            not hold it.
        RecipeError: If the model has no such exit.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError(error.name or "openvino", "train") from error

    model = (copy.deepcopy(model).cpu() if model.device.type != "cpu" else model).eval()
    with factored_table(model, factors):
        graph = export_openvino(model, exits)
    mark_matrices(graph, model)
    if int8:
        ignored = pack_table(graph) if table_bits else ()
        graph = int8_weights(graph, ignored)
    target.mkdir(parents=True)
    openvino.save_model(graph, target / "model.xml", compress_to_fp16=False)
    _write_companions(model, target, ref=ref, group_size=group_size if int8 else 0, exits=exits)
    return target


def int8_weights(graph: Any, ignored: Sequence[str] = ()) -> Any:
    """Return an OpenVINO graph with its weights in INT8, one scale for each output row.

    Args:
        graph: The graph.
        ignored: Names of nodes that stay as they are.

    Raises:
        MissingExtraError: Without nncf.
    """
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError(error.name or "nncf", "train") from error

    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # its tables and bars; our stdout is for data
        return nncf.compress_weights(
            graph,
            mode=nncf.CompressWeightsMode.INT8_SYM,
            ignored_scope=nncf.IgnoredScope(names=list(ignored), validate=False),
        )


def quantize_static(
    model: SentenceTransformer,
    target: Path,
    *,
    ref: ModelRef,
    calibration: Sequence[Mapping[str, NDArray[np.int64]]],
    exits: Sequence[int] = (),
) -> None:
    """Write a model folder whose activations have scales of their own from the start, one for each tensor.

    With SmoothQuant (arXiv 2211.10438), which moves outliers of activations into the weights.

    Args:
        model: As of :func:`quantize`, and so ``target``, ``ref`` and ``exits``.
        target: Folder to create.
        ref: What to record.
        calibration: Inputs of the graph from which the scales are taken.
        exits: Early exits.

    Raises:
        ModelError: If the model cannot be exported.
    """
    import nncf
    import openvino

    graph = export_openvino(model, exits)
    nncf.set_log_level(logging.ERROR)
    kind, size = nncf.ModelType.TRANSFORMER, len(calibration)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # bars
        graph = nncf.quantize(graph, nncf.Dataset(list(calibration)), model_type=kind, subset_size=size)
    target.mkdir(parents=True)
    openvino.save_model(graph, target / "model.xml", compress_to_fp16=False)
    _write_companions(model, target, ref=ref, group_size=0, exits=exits)


def export_openvino(model: SentenceTransformer, exits: Sequence[int] = (), *, tokens: bool = False) -> Any:
    """Convert a sentence-transformers model to one OpenVINO graph.

    Args:
        model: The model, on the CPU.
        exits: Numbers of layers after which it gives an embedding too.
        tokens: Whether it gives the vectors of all tokens too, as the output ``tokens``; not with exits.

    Returns:
        An ``openvino.Model`` from ``input_ids`` and ``attention_mask``, both ``(batch, tokens)`` int64, to the
        output ``embedding``, ``(batch, dim)`` float32 of unit length, and one ``exit_N`` for each exit.

    Raises:
        ModelError: As :func:`capture`, or if OpenVINO cannot convert what it gives.
        RecipeError: If the model has no such exit.
    """
    import openvino

    try:
        with _without_collecting(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside OpenVINO's own calls
            graph = openvino.convert_model(capture(model, exits=exits, tokens=tokens))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(f"the model cannot be converted to OpenVINO: {engine_error(error)}") from error
    for port, name in zip(graph.inputs, INPUTS, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(graph.outputs, (*output_names(exits), *(("tokens",) if tokens else ())), strict=True):
        port.get_tensor().set_names({name})
    _unmask_empty_rows(graph)
    return graph


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Tracing makes millions of objects that live; looking through them again and again takes a fifth of the time."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _unmask_empty_rows(graph: Any) -> None:
    """Let a query that may attend to nothing attend to everything.

    A padded position farther from the text than a sliding window has no key left; OpenVINO's softmax then gives NaN,
    which the next layer carries into real tokens. Its own output is never pooled, so any finite value will do.
    """
    from openvino import opset13 as ops

    repaired: dict[Any, Any] = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention" or node.get_input_size() < 4:
            continue
        mask = node.input_value(3)
        if mask.get_element_type().get_type_name() != "boolean":
            continue
        key = (mask.get_node().get_friendly_name(), mask.get_index())
        if key not in repaired:
            any_key = ops.reduce_logical_or(mask, np.array([-1], dtype=np.int64), keep_dims=True)
            repaired[key] = ops.logical_or(mask, ops.logical_not(any_key))
        node.input(3).replace_source_output(repaired[key].output(0))
    graph.validate_nodes_and_infer_types()


def _write_companions(
    model: SentenceTransformer, target: Path, *, ref: ModelRef, group_size: int, exits: Sequence[int]
) -> None:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    first = model[0]
    static = isinstance(first, StaticEmbedding)
    if static:
        first.tokenizer.save(str(target / "tokenizer.json"))
        _write_json(target / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        _write_json(target / "config.json", {"model_type": "static", "hidden_size": first.embedding_dim})
        pad, side = 0, "right"
    else:
        first.tokenizer.save_pretrained(target)
        for extra in target.glob("tokenizer.model"):
            extra.unlink()  # the fast tokenizer in tokenizer.json is the one we run
        _write_compact(target / "tokenizer.json")
        first.auto_model.config.save_pretrained(target)
        pad, side = int(first.tokenizer.pad_token_id or 0), str(first.tokenizer.padding_side)
    settings = {"prompts": dict(model.prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write_json(target / PROMPTS, settings)
    _write_json(
        target / "encoder.json",
        {
            "name": ref.name,
            "dim": ref.dim,
            "max_seq_length": length_limit(model),
            "pad_token_id": pad,
            "padding_side": side,
            "add_special_tokens": not static,
            "group_size": group_size,
            "licence": ref.licence,
            "fingerprint": ref.fingerprint,
            "exits": list(exits),
        },
    )


def _write_compact(path: Path) -> None:
    """Write a JSON file again without white space, which is two fifths of a tokenizer's."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
