"""Writes a student as the first attempt's ``.pt`` files, for programs that were written against its model card.

A ``.pt`` file is a pickle: whoever opens it runs what it holds. So such files are written here and never read.

What is pickled is a torch.fx graph of plain tensor operations and the text of ``seed_model.py``. Neither
sentence-transformers nor this package is needed to open it, and no class of transformers is stored whose meaning
another version could change.

The first attempt quantised with ``torch.ao.quantization.quantize_dynamic``. That is deprecated, and it gives all
activations of a matrix one scale of 7 bits: a mean cosine of 0.955 on two layers of EmbeddingGemma, 0.990 with
``down_proj`` left out. So weights alone are INT8 here, with a scale for each row of a matrix; the arithmetic is fp32.
"""

from __future__ import annotations

import inspect
import warnings
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leafembed.ship import seed_model
from leafembed.ship.graph import capture, factored_table
from leafembed.ship.seed_model import SeedModel

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from leafembed.types import Factors

__all__ = ["SEED_FILES", "build_seed", "save_seed"]

SEED_FILES = {"model_fp32.pt": False, "model_quantized.pt": True}
"""Names of the first attempt's files, and whether their weights are INT8."""


def build_seed(model: SentenceTransformer, *, max_seq_length: int, factors: Factors | None, int8: bool) -> SeedModel:
    """Return what goes into a ``.pt`` file; it shares the fp32 weights of ``model``.

    Args:
        model: A sentence-transformers model in fp32, on the CPU.
        max_seq_length: Tokens it reads.
        factors: Stored instead of the token table; ``None``: the table itself.
        int8: Store matrices and tables as INT8.

    Raises:
        ModelError: If the model cannot be captured as one graph.
    """
    with factored_table(model, factors), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch's own calls
        program = capture(model).run_decompositions({})  # without it a mask made by vmap stays one
        graph = _plain_graph(program.module(), int8=int8)
    return SeedModel(graph, max_seq_length, inspect.getsource(seed_model))


def save_seed(model: SeedModel, file: Path) -> None:
    """Write a ``.pt`` file, in which the model is under ``model``."""
    import torch

    torch.save({"model": model}, file)


def _plain_graph(source: Any, *, int8: bool) -> Any:
    """Copy a captured graph without its checks, its weights flat below one module, and INT8 where asked."""
    import torch

    root, graph = torch.nn.Module(), torch.fx.Graph()
    copied: dict[Any, Any] = {}

    def stored(node: Any, ending: str, tensor: Any) -> Any:
        name = node.target.replace(".", "__") + ending
        if not hasattr(root, name):
            root.register_buffer(name, tensor.detach())
        return graph.get_attr(name)

    def copy_of(node: Any) -> Any:
        if node not in copied:  # only weights are copied when they are first used
            copied[node] = stored(node, "", attrgetter(node.target)(source))
        return copied[node]

    aten = torch.ops.aten
    for node in source.graph.nodes:
        matrix = _matrix(node) if int8 else None
        if node.op in ("get_attr", "call_module"):
            continue
        if matrix is None:
            copied[node] = graph.node_copy(node, copy_of)
            continue
        pair = _rounded(attrgetter(matrix.target)(source))
        whole, scale = (stored(matrix, end, part) for end, part in zip(("__int8", "__scale"), pair, strict=True))
        if node.target is aten.linear.default:
            weight = graph.call_function(aten.mul.Tensor, (whole, scale))
            others = [copy_of(other) for other in (node.args[0], *node.args[2:]) if other is not None]
            copied[node] = graph.call_function(node.target, (others[0], weight, *others[1:]))
        else:
            ids = copy_of(node.args[1])
            rows = (graph.call_function(node.target, (part, ids)) for part in (whole, scale))
            copied[node] = graph.call_function(aten.mul.Tensor, tuple(rows))
    return _finished(root, graph)


def _matrix(node: Any) -> Any:
    """The weight that a node multiplies with or looks rows up in; ``None`` for any other node."""
    import torch

    aten = torch.ops.aten
    place = {aten.linear.default: 1, aten.embedding.default: 0}.get(node.target)
    found = None if place is None else node.args[place]
    return found if found is not None and found.op == "get_attr" else None


def _rounded(weight: Any) -> tuple[Any, Any]:
    """A matrix as INT8 and a scale for each row, ``(rows, 1)`` float32; their product is nearest to it."""
    import torch

    weight = weight.detach()
    scale = weight.abs().amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale).round().to(torch.int8), scale


def _finished(root: Any, graph: Any) -> Any:
    """A module of the graph without its checks and what only they used; it returns one tensor."""
    import torch

    output = next(node for node in graph.nodes if node.op == "output")
    output.args = output.args[0]
    aten = torch.ops.aten
    for node in reversed(graph.nodes):
        if node.target in (aten._assert_tensor_metadata.default, aten._assert_scalar.default):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    return torch.fx.GraphModule(root, graph)
