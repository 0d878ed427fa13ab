"""Turns a sentence-transformers folder into an INT8 OpenVINO model folder.

The graph holds everything from token ids to the unit vector: encoder, pooling, head and normalisation, so that no
runtime re-implements a part of the model. Weights, token table and head included, are stored as INT8 with one scale
per output row; activations are quantised at run time in groups, because one scale per tensor breaks on the outliers
of gated MLPs (mean cosine 0.975 instead of 0.9998 on a 6-layer Gemma).

This is the one room of the ship floor that needs torch.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leafembed.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from leafembed.types import Factors, ModelRef

__all__ = ["MAX_BATCH", "NO_LIMIT", "export_openvino", "quantize"]

MAX_BATCH = 65_536
"""Upper bound of the batch dimension that the exporter is told about."""

NO_LIMIT = 1 << 20
"""Tokens that a model without a length limit reads."""


def quantize(
    model: SentenceTransformer,
    target: Path,
    *,
    ref: ModelRef,
    group_size: int,
    factors: Factors | None = None,
    int8: bool = True,
) -> Path:
    """Write the INT8 model folder of a student (or teacher) and return ``target``.

    Args:
        model: A sentence-transformers model in fp32, with the length limit it is to have; left as it is.
        target: Folder to create; it must not exist.
        ref: Name, prompts, licence and fingerprint to record.
        group_size: Activations that share a scale at run time; 0 leaves them in floating point.
        factors: Stored instead of the token table, which must be their product; ``None``: the table itself.
        int8: ``False`` keeps fp32 weights, for comparisons.

    Raises:
        ModelError: If the model cannot be exported, or its token table is not the product of the factors.
    """
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise MissingExtraError(error.name or "nncf", "train") from error

    model = (copy.deepcopy(model).cpu() if model.device.type != "cpu" else model).eval()
    _refuse_prompt_masking(model)
    with _factored_table(model, factors):
        graph = export_openvino(model)
    if int8:
        nncf.set_log_level(logging.ERROR)
        with redirect_stdout(io.StringIO()):  # its tables and bars; our stdout is for data
            graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
    target.mkdir(parents=True)
    openvino.save_model(graph, target / "model.xml", compress_to_fp16=False)
    _write_companions(model, target, ref=ref, group_size=group_size if int8 else 0)
    return target


def export_openvino(model: SentenceTransformer) -> Any:
    """Convert a sentence-transformers model to one OpenVINO graph.

    Returns:
        An ``openvino.Model`` from ``input_ids`` and ``attention_mask``, both ``(batch, tokens)`` int64, to the
        embedding ``(batch, dim)`` float32 of unit length.

    Raises:
        ModelError: If torch.export cannot capture the model.
    """
    import openvino
    import torch

    graph_module = _embedding_graph(model)
    length = _length_limit(model)
    # Sample sizes that no other dimension has: the exporter must not take them for a hidden size.
    ids = torch.randint(5, 50, (3, min(19, length)), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    sample = {"input_ids": ids, "attention_mask": mask}
    shape = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH), 1: torch.export.Dim("tokens", min=2, max=length)}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch's and OpenVINO's own calls
            program = torch.export.export(
                graph_module, (), kwargs=sample, dynamic_shapes=dict.fromkeys(sample, shape), strict=False
            )
            graph = openvino.convert_model(program)
    except (RuntimeError, ValueError, TypeError, torch._dynamo.exc.UserError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the model cannot be exported as one graph: {first}") from error
    for port, name in zip(graph.inputs, sample, strict=True):
        port.get_tensor().set_names({name})
    graph.outputs[0].get_tensor().set_names({"embedding"})
    _unmask_empty_rows(graph)
    return graph


def _embedding_graph(model: SentenceTransformer) -> Any:
    """Wrap the model as a torch module of two tensors; static tables get the padded form of their bag."""
    import torch
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    first = model[0]

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            features = self.model({"input_ids": input_ids, "attention_mask": attention_mask})
            return torch.nn.functional.normalize(features["sentence_embedding"], dim=-1)

    class Bag(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = first.embedding.weight

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            rows = torch.nn.functional.embedding(input_ids, self.weight)
            weights = attention_mask.unsqueeze(-1).to(rows.dtype)
            return torch.nn.functional.normalize((rows * weights).sum(1), dim=-1)

    return (Bag() if isinstance(first, StaticEmbedding) else Whole()).eval()


@contextmanager
def _factored_table(model: SentenceTransformer, factors: Factors | None) -> Iterator[None]:
    """Let the model look up a row of one factor and multiply it with the other, within this block."""
    if factors is None:
        yield
        return
    import torch

    body = model[0].auto_model
    table = body.get_input_embeddings()
    _require_product(table.weight, factors)
    scale = float(getattr(table, "embed_scale", 1.0))  # Gemma's own rows are multiplied by it

    class Factored(torch.nn.Module):
        def __init__(self, factors: Factors) -> None:
            super().__init__()
            self.rows = torch.nn.Parameter(torch.from_numpy(factors.rows))
            self.matrix = torch.nn.Parameter(torch.from_numpy(factors.matrix.T * np.float32(scale)).contiguous())

        def forward(self, input_ids: Any) -> Any:
            rows = torch.nn.functional.embedding(input_ids, self.rows)
            return torch.nn.functional.linear(rows, self.matrix)

    body.set_input_embeddings(Factored(factors))
    try:
        yield
    finally:
        body.set_input_embeddings(table)


def _require_product(table: Any, factors: Factors) -> None:
    expected = (factors.rows.shape[0], factors.matrix.shape[1])
    if tuple(table.shape) != expected:
        raise ModelError(f"factors of the token table: got a product of {expected}, the table is {tuple(table.shape)}")
    stored = table.detach().numpy()
    apart = max(
        float(np.abs(stored[i : i + 16_384] - factors.rows[i : i + 16_384] @ factors.matrix).max())
        for i in range(0, len(stored), 16_384)
    )
    if apart > 1e-3 * float(np.abs(stored).max()):
        raise ModelError(
            f"factors of the token table: their product differs from the table by up to {apart:.3g}, so it was trained "
            "after it was factorised; set train.freeze_token_table, or remove the file with the factors"
        )


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


def _length_limit(model: SentenceTransformer) -> int:
    """Tokens that the model reads: as it states, and no more than its position table has room for.

    RoBERTa and its kin count positions from after the padding id.
    """
    import torch

    body = getattr(model[0], "auto_model", None)
    stated = model.max_seq_length  # of a table: infinity
    positions = getattr(getattr(body, "config", None), "max_position_embeddings", None)
    limit = min(stated if isinstance(stated, int) else NO_LIMIT, int(positions or NO_LIMIT))
    for module in body.modules() if body is not None else ():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), torch.nn.Embedding):
            return min(limit, int(module.position_embeddings.num_embeddings) - padding - 1)
    return limit


def _refuse_prompt_masking(model: SentenceTransformer) -> None:
    """Pooling that leaves the prompt out needs its length at run time, which the graph does not have."""
    for module in model:
        if getattr(module, "include_prompt", True) is False and any(model.prompts.values()):
            raise ModelError("got a pooling that leaves out the prompt, expected include_prompt = true: not exportable")


def _write_companions(model: SentenceTransformer, target: Path, *, ref: ModelRef, group_size: int) -> None:
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
        first.auto_model.config.save_pretrained(target)
        pad, side = int(first.tokenizer.pad_token_id or 0), str(first.tokenizer.padding_side)
    settings = {"prompts": dict(model.prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write_json(target / "config_sentence_transformers.json", settings)
    _write_json(
        target / "encoder.json",
        {
            "name": ref.name,
            "dim": ref.dim,
            "max_seq_length": _length_limit(model),
            "pad_token_id": pad,
            "padding_side": side,
            "add_special_tokens": not static,
            "group_size": group_size,
            "licence": ref.licence,
            "fingerprint": ref.fingerprint,
        },
    )


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
