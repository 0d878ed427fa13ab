"""Prices a student: parameters and megabytes by part, before anything is trained and after.

Parts: the *token table* (input matrix, read a few rows at a time), the *body* (layers, norms, positions) and the *head*
(Dense). *Active* parameters are those a token passes through: all but the token table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafembed.errors import ModelError
from leafembed.learn.models import resolve
from leafembed.learn.remote import connect
from leafembed.learn.student import kept_config
from leafembed.recipe import Recipe, is_url
from leafembed.recipe_learn import StudentConfig

__all__ = ["BODY", "HEAD", "TABLE", "Part", "parts_of", "plan"]

TABLE, BODY, HEAD = "token table", "body", "head"


@dataclass(frozen=True, slots=True)
class Part:
    """The cost of one part of a model.

    Attributes:
        part: ``token table``, ``body`` or ``head``.
        parameters: Number of weights.
        fp32_mb: 4 bytes each, in MB (10^6 bytes).
        int8_mb: As INT8 OpenVINO stores it: matrices at 1 byte a weight and a 2-byte scale a row, vectors in fp32.
    """

    part: str
    parameters: int
    fp32_mb: float
    int8_mb: float


def plan(recipe: Recipe) -> list[Part]:
    """Price the recipe's student from config files alone; no weights are read. A teacher at a URL is asked for its dim.

    Raises:
        ModelError: If a config cannot be read, or a server does not answer.
        RecipeError: If the recipe asks for layers that the teacher does not have.
    """
    if is_url(recipe.teacher.model):
        return _plan_encoder(recipe.student, connect(recipe.teacher).ref.dim)
    folder = resolve(recipe.teacher.model, recipe.teacher.revision)
    config = _config(folder)
    heads = _heads(folder)
    dim = heads[-1].outputs if heads else int(config.hidden_size)
    if recipe.student.init == "static":
        return _price([(TABLE, (int(config.vocab_size), dim))])
    if recipe.student.init == "encoder":
        return _plan_encoder(recipe.student, dim)
    return _price_model(kept_config(config, recipe.student.layers), heads)


def _plan_encoder(student: StudentConfig, dim: int) -> list[Part]:
    config = _config(resolve(student.model, student.revision))
    return _price_model(config, [_Head(int(config.hidden_size), dim, biased=False, linear=True)])


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no usable config.json: {str(error).splitlines()[0]}") from error


def _price_model(config: Any, heads: Iterable[_Head]) -> list[Part]:
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config)
    return _price([*_body_shapes(model), *((HEAD, shape) for head in heads for shape in head.shapes)])


def parts_of(model: Any) -> list[Part]:
    """Price a loaded sentence-transformers model."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    if isinstance(model[0], StaticEmbedding):
        return _price([(TABLE, tuple(model[0].embedding.weight.shape))])
    shapes = list(_body_shapes(model[0].auto_model))
    shapes += [(HEAD, tuple(p.shape)) for module in list(model)[1:] for p in module.parameters()]
    return _price(shapes)


def _body_shapes(model: Any) -> Iterable[tuple[str, tuple[int, ...]]]:
    table = model.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        if not name.startswith("pooler."):  # BERT's own pooler, which sentence vectors do not use
            yield (TABLE if parameter is table else BODY), tuple(parameter.shape)


def _price(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> list[Part]:
    parameters: dict[str, int] = {}
    int8: dict[str, int] = {}
    for part, shape in shapes:
        size = 1
        for length in shape:
            size *= length
        parameters[part] = parameters.get(part, 0) + size
        int8[part] = int8.get(part, 0) + (size + 2 * shape[0] if len(shape) == 2 else 4 * size)
    return [
        Part(part, parameters[part], parameters[part] * 4 / 1e6, int8[part] / 1e6)
        for part in (TABLE, BODY, HEAD)
        if part in parameters
    ]


@dataclass(frozen=True, slots=True)
class _Head:
    """One Dense of a student, as config files describe it."""

    inputs: int
    outputs: int
    biased: bool
    linear: bool

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        matrix = (self.outputs, self.inputs)
        return (matrix, (self.outputs,)) if self.biased else (matrix,)


def _heads(folder: Path) -> list[_Head]:
    """The Dense modules that a student of this teacher has: linear neighbours are folded into one."""
    heads: list[_Head] = []
    before = ""
    for module in _read_json(folder / "modules.json"):
        if module["type"].endswith(".Dense"):
            config = _read_json(folder / module["path"] / "config.json")
            linear = str(config["activation_function"]).endswith(".Identity") and not config.get("use_residual")
            head = _Head(config["in_features"], config["out_features"], biased=config["bias"], linear=linear)
            if before.endswith(".Dense") and heads[-1].linear and linear:
                first = heads.pop()
                head = _Head(first.inputs, head.outputs, biased=first.biased or head.biased, linear=True)
            heads.append(head)
        before = module["type"]
    return heads


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error}); expected a sentence-transformers folder") from error
