"""Prices a student before anything is trained: parameters and megabytes by part, early exits, memory of training.

Parts: the *token table* (input matrix, read a few rows at a time), the *body* (layers, norms, positions) and the *head*
(Dense). *Active* parameters are those a token passes through: all but the token table.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafembed.errors import ModelError
from leafembed.learn.memory import Memory, Weights, training_memory
from leafembed.learn.models import pick_device, resolve
from leafembed.learn.remote import connect
from leafembed.learn.shapes import LAYER_NAME, cut_vocabulary, require_dims, require_exits, student_config
from leafembed.learn.token_store import bytes_per_token
from leafembed.recipe import Recipe, is_url
from leafembed.recipe_learn import StudentConfig, TeacherConfig
from leafembed.types import TABLE_GROUP, Factors

__all__ = ["BODY", "HEAD", "TABLE", "Exit", "Part", "Plan", "parts_of", "plan"]

TABLE, BODY, HEAD = "token table", "body", "head"


@dataclass(frozen=True, slots=True)
class Part:
    """The cost of one part of a model.

    Attributes:
        part: ``token table``, ``body`` or ``head``.
        parameters: Number of weights.
        fp32_mb: 4 bytes each, in MB (10^6 bytes).
        int8_mb: As INT8 OpenVINO stores it: matrices at 1 byte a weight and a 2-byte scale a row, vectors in fp32; a
            token table of 4 bits at half a byte and a 2-byte scale for every 64 weights.
    """

    part: str
    parameters: int
    fp32_mb: float
    int8_mb: float


@dataclass(frozen=True, slots=True)
class Exit:
    """The cost of a vector taken early.

    Attributes:
        layers: Layers that a token passes through.
        active: Parameters that it passes through: these layers, norms, positions and the head.
    """

    layers: int
    active: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a student will cost.

    Attributes:
        parts: By part, in order.
        exits: The student's early exits and, last, all of its layers; empty without exits.
        memory: What training takes, by phase of the length curriculum.
        at_most: Whether the token table is an upper bound: it is cut to what occurs in a text.
        token_bytes: What the teacher's vector of one token takes on the disk; 0: it is not kept.
    """

    parts: tuple[Part, ...]
    exits: tuple[Exit, ...]
    memory: tuple[Memory, ...]
    at_most: bool = False
    token_bytes: int = 0

    @property
    def total(self) -> int:
        """Parameters of the student."""
        return sum(part.parameters for part in self.parts)

    @property
    def active(self) -> int:
        """Parameters that a token passes through: all but the token table."""
        return sum(part.parameters for part in self.parts if part.part != TABLE)


def plan(recipe: Recipe) -> Plan:
    """Price the recipe's student from config files alone; no weights are read. A teacher at a URL is asked for its dim.

    Raises:
        ModelError: If a config cannot be read, or a server does not answer.
        RecipeError: If the recipe asks for layers, exits or dimensions that there are not.
    """
    teacher, heads, dim = _teacher(recipe.teacher)
    require_dims(recipe.student.dims, dim)
    config, heads = _student(recipe.student, teacher, heads, dim)
    if config is None:
        assert teacher is not None  # a table is made of the teacher's
        tokens = min(recipe.student.vocab_size or teacher.vocab_size, teacher.vocab_size)
        body: list[tuple[str, tuple[int, ...]]] = [("", (int(tokens), dim))]
        table = body[0][1]
    else:
        body, table = _weights(config)
    shapes = [(TABLE if not name else BODY, shape) for name, shape in body]
    shapes += [(HEAD, shape) for head in heads for shape in head.shapes]
    trainable = sum(map(math.prod, (shape for _, shape in shapes)))
    held = Weights(
        student=trainable,
        table=math.prod(table),
        trainable=trainable - (math.prod(table) if recipe.train.freeze_token_table and config is not None else 0),
        teacher=0 if teacher is None else sum(math.prod(shape) for _, shape in _weights(teacher)[0]),
    )
    memory = training_memory(
        config,
        held,
        recipe.train,
        limit=_limit(recipe.student, config),
        dims=(dim, *recipe.student.dims),
        device=pick_device(),
        exits=len(recipe.student.exits),
        head=sum(head.outputs for head in heads),
    )
    parts = _price(_factored(shapes, recipe.student.table_rank), recipe.student.table_bits)
    counted = bool(recipe.student.vocab_languages or recipe.student.vocab_text)
    at_most = counted and recipe.student.vocab_size is None
    stored = bytes_per_token(dim) if recipe.train.token_distillation else 0
    return Plan(tuple(parts), _exits(recipe.student, config, body, parts), tuple(memory), at_most, stored)


def _teacher(teacher: TeacherConfig) -> tuple[Any | None, list[_Head], int]:
    """A teacher's transformer config (``None``: it is at a URL), its Dense modules and its dim."""
    if is_url(teacher.model):
        return None, [], connect(teacher).ref.dim
    folder = resolve(teacher.model, teacher.revision)
    config, heads = _read_config(folder), _heads(folder)
    return config, heads, heads[-1].outputs if heads else int(config.hidden_size)


def parts_of(model: Any, factors: Factors | None = None, table_bits: int | None = None) -> list[Part]:
    """Price a loaded sentence-transformers model; its token table by its factors or its bits, where it has them."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    if isinstance(model[0], StaticEmbedding):
        return _price([(TABLE, tuple(model[0].embedding.weight.shape))])
    shapes = [(TABLE if not name else BODY, shape) for name, shape in _named_shapes(model[0].auto_model)]
    shapes += [(HEAD, tuple(p.shape)) for module in list(model)[1:] for p in module.parameters()]
    return _price(_factored(shapes, factors.matrix.shape[0] if factors is not None else None), table_bits)


def _student(student: StudentConfig, teacher: Any, heads: list[_Head], dim: int) -> tuple[Any | None, list[_Head]]:
    """The student's transformer config (``None``: it is a table) and its Dense modules."""
    if student.init == "static":
        return None, []
    if student.init == "encoder":
        config = _read_config(resolve(student.model, student.revision, section="student"))
        cut_vocabulary(config, student.vocab_size)
        return config, [_Head(int(config.hidden_size), dim, biased=False, linear=True)]
    config = student_config(teacher, student)
    hidden = int(config.hidden_size)
    if student.init == "random":
        return config, [_Head(hidden, dim, biased=False, linear=True)]
    if hidden != teacher.hidden_size:  # the change of basis goes into the first Dense
        first = heads[0] if heads else _Head(hidden, dim, biased=False, linear=True)
        heads = [dataclasses.replace(first, inputs=hidden), *heads[1:]]
    return config, heads


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no usable config.json: {str(error).splitlines()[0]}") from error


def _weights(config: Any) -> tuple[list[tuple[str, tuple[int, ...]]], tuple[int, ...]]:
    """Names and shapes of a transformer's weights, and the shape of its token table, whose name is empty."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config)
    return list(_named_shapes(model)), tuple(model.get_input_embeddings().weight.shape)


def _named_shapes(model: Any) -> Iterable[tuple[str, tuple[int, ...]]]:
    table = model.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        if not name.startswith("pooler."):  # BERT's own pooler, which sentence vectors do not use
            yield ("" if parameter is table else name), tuple(parameter.shape)


def _limit(student: StudentConfig, config: Any | None) -> int:
    """Tokens that the student can read, as far as its config says."""
    positions = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
    return min(student.max_seq_length or positions, positions)


def _factored(shapes: Iterable[tuple[str, tuple[int, ...]]], rank: int | None) -> list[tuple[str, tuple[int, ...]]]:
    """The shapes with the token table as two matrices; every token passes through the second, so it is of the body."""
    result: list[tuple[str, tuple[int, ...]]] = []
    for part, shape in shapes:
        if part == TABLE and rank is not None:
            result += [(TABLE, (shape[0], rank)), (BODY, (shape[1], rank))]
        else:
            result.append((part, shape))
    return result


def _exits(
    student: StudentConfig, config: Any | None, body: Iterable[tuple[str, tuple[int, ...]]], parts: Iterable[Part]
) -> tuple[Exit, ...]:
    """Active parameters of each exit. Norm and head are those of the whole student."""
    if not student.exits:
        return ()
    total = int(config.num_hidden_layers) if config is not None else 0
    require_exits(student.exits, total)
    by_layer = [0] * total
    for name, shape in body:
        match = LAYER_NAME.search(name)
        if match:
            by_layer[int(match.group(2))] += math.prod(shape)
    active = sum(part.parameters for part in parts if part.part != TABLE)
    return tuple(Exit(layers, active - sum(by_layer[layers:])) for layers in (*student.exits, total))


def _price(shapes: Iterable[tuple[str, tuple[int, ...]]], table_bits: int | None = None) -> list[Part]:
    parameters: dict[str, int] = {}
    int8: dict[str, int] = {}
    for part, shape in shapes:
        size = math.prod(shape)
        parameters[part] = parameters.get(part, 0) + size
        if part == TABLE and table_bits is not None:
            stored = size * table_bits // 8 + 2 * (size // TABLE_GROUP)
        else:
            stored = size + 2 * shape[0] if len(shape) == 2 else 4 * size
        int8[part] = int8.get(part, 0) + stored
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
