"""The routes of text-embeddings-inference that its clients use: ``/embed``, ``/info``, ``/tokenize``.

They name no model: the first one of the server answers, or the one that an added ``model`` names.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from leafembed import __version__
from leafembed.serve.embedding import Answer, Asked, Service
from leafembed.serve.ollama import truncation_header
from leafembed.serve.refusals import Refusal
from leafembed.serve.wire import (
    answer,
    flag,
    json_body,
    parts_answer,
    rows_answer,
    text_field,
    texts_field,
    whole_field,
)

__all__ = ["routes"]

_KEYS = ("inputs", "model", "dimensions", "truncate", "truncation_direction", "prompt_name", "input_type",
         "normalize")  # fmt: skip


def routes() -> list[Route]:
    """The routes of text-embeddings-inference."""
    return [
        Route("/embed", _embed, methods=["POST"]),
        Route("/info", _info, methods=["GET"]),
        Route("/tokenize", _tokenize, methods=["POST"]),
    ]


async def _embed(request: Request) -> Response:
    service: Service = request.app.state.service
    data = json_body(request, *_KEYS)
    texts = _inputs(data)
    side = text_field(data, "truncation_direction")
    if side is not None and side.lower() != "right":
        raise Refusal("invalid", "truncation_direction: expected right, texts are cut at their end here")
    name = _model_name(service, data)
    limit = service.named(name).model.about.config.max_seq_length
    result = await service.embed(
        Asked(
            name=name,
            texts=texts,
            dim=whole_field(data, "dimensions"),
            truncate=flag(data, "truncate", True),
            prompt=text_field(data, "prompt_name"),
            input_type=text_field(data, "input_type"),
            normalize=flag(data, "normalize", True),
            too_long=f"`inputs` must have less than {limit} tokens",
        )
    )
    return await rows_answer(request, result.vectors, headers={**truncation_header(result), **_timings(result, texts)})


async def _info(request: Request) -> Response:
    service: Service = request.app.state.service
    model, limits = service.models.default.model, service.settings.limits
    return answer({
        "model_id": model.spec.name,
        "model_sha": model.about.config.fingerprint,
        "model_dtype": "int8",
        "served_model_name": model.spec.name,
        "model_type": {"embedding": {"pooling": "in the graph"}},
        "max_concurrent_requests": limits.requests,
        "max_input_length": model.about.config.max_seq_length,
        "max_batch_tokens": limits.batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": limits.items,
        "auto_truncate": True,
        "tokenization_workers": 2,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    })  # fmt: skip


async def _tokenize(request: Request) -> Response:
    service: Service = request.app.state.service
    data = json_body(request, "inputs", "model", "add_special_tokens")
    special = flag(data, "add_special_tokens", True)
    name = _model_name(service, data)
    return parts_answer(await service.tokens_of(name, _inputs(data), special=special))


def _model_name(service: Service, data: dict[str, Any]) -> str:
    name = text_field(data, "model")
    return service.models.default.name if name is None else name


def _inputs(data: dict[str, Any]) -> list[str]:
    value = data.get("inputs")
    texts = texts_field(value)
    if value is None or texts is None:
        raise Refusal("invalid", "inputs: expected a string or a list of strings", param="inputs")
    if not texts or "" in texts:
        raise Refusal("empty", "`inputs` cannot be empty", param="inputs")
    return texts


def _timings(result: Answer, texts: list[str]) -> dict[str, str]:
    """Headers with what it cost; times in milliseconds."""
    return {
        "x-compute-type": "cpu",
        "x-compute-time": _ms(result.total_s),
        "x-compute-characters": str(sum(map(len, texts))),
        "x-compute-tokens": str(result.tokens),
        "x-total-time": _ms(result.total_s),
        "x-tokenization-time": _ms(result.tokenize_s),
        "x-queue-time": _ms(result.queue_s),
        "x-inference-time": _ms(result.compute_s),
    }


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
