"""Vectors to learn by from the engine that bundles run on: the same teacher, on a CPU faster than in torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.errors import ModelError, RecipeError, require
from leafembed.learn.cache import VectorStore
from leafembed.learn.cached import CachedEncoder, InBatches
from leafembed.learn.teacher import CachedTeacher, TorchEncoder
from leafembed.learn.token_pass import Forward, in_torch
from leafembed.learn.tokens import token_ends
from leafembed.progress import say
from leafembed.recipe import QuantizeConfig
from leafembed.recipe_learn import TeacherConfig
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.machine import versions
from leafembed.ship.quantize import quantize
from leafembed.ship.token_graph import TokenProgram, write_token_graph
from leafembed.stages import fingerprint, once
from leafembed.types import FloatArray

__all__ = ["CHECK_TEXTS", "MIN_COSINE", "MIN_TOKEN_COSINE", "in_openvino", "tokens_in_openvino"]

CHECK_TEXTS = 64
"""Texts on which the engine is compared with torch before it is used."""

MIN_COSINE = 0.998
"""Least mean cosine between both."""

MIN_TOKEN_COSINE = 0.99
"""The same for the vectors of single tokens, whose errors cancel in a text's mean."""


def in_openvino(config: TeacherConfig, teacher: CachedTeacher, cache_dir: Path, texts: Sequence[str]) -> CachedEncoder:
    """The teacher in OpenVINO behind a store of its own, exported and compared with torch once.

    Weights are INT8 with a scale for each row. Activations are bf16 where ``teacher.precision`` comes to that, else
    INT8 with scales for groups, as in bundles.

    Args:
        config: The recipe's teacher.
        teacher: The same one in torch.
        cache_dir: Where the export and the vectors are kept.
        texts: What both are compared on; the first ``CHECK_TEXTS`` are read.

    Raises:
        RecipeError: If there are no weights, or they are on a GPU.
        ModelError: If the model cannot be exported or its vectors are too far from torch's.
    """
    torch = teacher.torch
    if torch is None:
        raise RecipeError(f"teacher.engine: got {config.engine!r}, expected 'torch': this teacher is at a URL")
    require(
        teacher.arithmetic.device == "cpu",
        "teacher.engine",
        config.engine,
        "'torch': this machine has a GPU, which is faster",
    )
    change = _engine_arithmetic(teacher)
    key = fingerprint(torch.ref.fingerprint, change, MIN_COSINE, versions(("openvino", "nncf")))
    name = f"{teacher.store.folder.name}-openvino-{key}"
    folder = cache_dir / "engines" / name
    teacher.copies = config.engine == "either"

    def build(target: Path) -> dict[str, Any]:
        say(f"exporting {teacher.ref.name} to OpenVINO")
        quantize(torch.model, target, ref=torch.ref, group_size=QuantizeConfig().group_size)
        path = target / "encoder.json"
        settings = json.loads(path.read_text(encoding="utf-8")) | change
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return _compared(torch, _open(target, config), texts[:CHECK_TEXTS], config.prompt_name)

    facts = once(folder, key, build)
    say("teacher in OpenVINO: mean cosine to torch {mean:.5f}, least {least:.5f}, over {texts} texts".format(**facts))
    own = name.replace("-openvino-", "-either-") if teacher.copies else name  # what it holds depends on the past
    store = VectorStore(cache_dir / "vectors" / own, teacher.ref.dim)
    return CachedEncoder(InBatches(_open(folder, config)), store, shard_rows=config.shard_rows)


def tokens_in_openvino(
    config: TeacherConfig, teacher: CachedTeacher, cache_dir: Path, texts: Sequence[str]
) -> tuple[str, Forward | None]:
    """What computes the teacher's token vectors, and the name of their store; ``None``: the teacher itself, in torch.

    After :func:`in_openvino` and in the same arithmetic; compared with torch once, as there.

    Raises:
        ModelError: If the model cannot be exported or its vectors are too far from torch's.
    """
    torch, name = teacher.torch, teacher.targets.store.folder.name
    if torch is None or teacher.targets is teacher:
        return name, None
    how = _engine_arithmetic(teacher)
    key = fingerprint(torch.ref.fingerprint, how, MIN_COSINE, MIN_TOKEN_COSINE, versions(("openvino", "nncf")))
    folder = cache_dir / "engines" / f"{teacher.store.folder.name}-tokens-{key}"

    def build(target: Path) -> dict[str, Any]:
        say(f"exporting {teacher.ref.name} to OpenVINO, with its tokens")
        write_token_graph(torch.model, target)
        return _compared_tokens(torch, TokenProgram(target, **how), texts[:CHECK_TEXTS], config.prompt_name)

    facts = once(folder, key, build)
    say(
        "its tokens: mean cosine to torch {mean:.5f}, least {least:.5f}; of {texts} texts {of_texts:.5f}".format(
            **facts
        )
    )
    return name, TokenProgram(folder, **how)


def _engine_arithmetic(teacher: CachedTeacher) -> dict[str, Any]:
    bf16 = teacher.arithmetic.precision == "bf16"
    return {"precision": "bf16" if bf16 else "f32", "group_size": 0 if bf16 else QuantizeConfig().group_size}


def _open(folder: Path, config: TeacherConfig) -> BundleEncoder:
    return BundleEncoder(folder, batch_size=config.batch_tokens, batch_tokens=config.batch_tokens)


def _compared(torch: TorchEncoder, engine: BundleEncoder, texts: Sequence[str], prompt: str | None) -> dict[str, Any]:
    """Cosines between the vectors of both.

    Raises:
        ModelError: If their mean is below ``MIN_COSINE``.
    """
    cosines = np.sum(torch.encode(texts, prompt_name=prompt) * engine.encode(texts, prompt_name=prompt), axis=1)
    return _near(cosines, len(texts), MIN_COSINE)


def _compared_tokens(
    encoder: TorchEncoder, program: TokenProgram, texts: Sequence[str], prompt_name: str | None
) -> dict[str, Any]:
    """Cosines between both vectors of each token, and of each text.

    Raises:
        ModelError: If the mean of texts is below ``MIN_COSINE`` or that of tokens below ``MIN_TOKEN_COSINE``.
    """
    prompt, own = encoder.ref.prompts.get(prompt_name or "", ""), in_torch(encoder)
    found: tuple[list[FloatArray], list[FloatArray]] = ([], [])
    for index in encoder.planned(texts, prompt):
        given = [prompt + texts[i] for i in index]
        features = encoder.model.preprocess(given)
        read = token_ends(encoder.model, features["input_ids"], given, [len(prompt)] * len(given)) > 0
        for (one, other), cosines in zip(zip(own(features), program(features), strict=True), found, strict=True):
            a, b = (one, other) if one.ndim == 2 else (one[read], other[read])
            cosines.append(np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    of_texts, of_tokens = (np.concatenate(cosines) for cosines in found)
    near = {"of_texts": _near(of_texts, len(texts), MIN_COSINE)["mean"]}
    return near | _near(of_tokens, len(texts), MIN_TOKEN_COSINE)


def _near(cosines: FloatArray, texts: int, at_least: float) -> dict[str, Any]:
    mean = float(cosines.mean())
    if not mean >= at_least:  # NaN is not
        raise ModelError(
            f"teacher.engine: got a mean cosine of {mean:.4f} between OpenVINO and torch over {texts} texts, "
            f"expected at least {at_least}; set teacher.engine = 'torch'"
        )
    return {"mean": mean, "least": float(cosines.min()), "texts": texts}
