"""OpenAI's ``/v1/embeddings`` and ``/v1/models``.

Lists of token numbers are refused: they are of another model's vocabulary, and vectors of them would look right.
A text that is too long is cut, and a header says so; with ``truncate`` false, a key of ours, it is refused.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from leafembed.serve.embedding import Asked, Service
from leafembed.serve.models import Named
from leafembed.serve.ollama import truncation_header
from leafembed.serve.refusals import Refusal
from leafembed.serve.wire import answer, flag, json_body, rows_answer, text_field, texts_field, whole_field

__all__ = ["routes"]

_KEYS = ("model", "input", "dimensions", "encoding_format", "input_type", "prompt_name", "truncate", "user")


def routes() -> list[Route]:
    """OpenAI's routes."""
    return [
        Route("/v1/models", _models, methods=["GET"]),
        Route("/v1/models/{name:path}", _model, methods=["GET"]),
        Route("/v1/embeddings", _embeddings, methods=["POST"]),
    ]


async def _models(request: Request) -> Response:
    service: Service = request.app.state.service
    return answer({"object": "list", "data": [_entry(named) for named in service.models.listed]})


async def _model(request: Request) -> Response:
    service: Service = request.app.state.service
    return answer(_entry(service.named(request.path_params["name"])))


async def _embeddings(request: Request) -> Response:
    service: Service = request.app.state.service
    data = json_body(request, *_KEYS)
    name = text_field(data, "model")
    if not name:
        raise Refusal("invalid", "you must provide a model parameter", param="model")
    encoded = _is_base64(data)
    dim = whole_field(data, "dimensions")
    texts = _texts(data.get("input"))
    text_field(data, "user")
    result = await service.embed(
        Asked(
            name=name,
            texts=texts,
            dim=dim,
            truncate=flag(data, "truncate", True),
            prompt=text_field(data, "prompt_name"),
            input_type=text_field(data, "input_type"),
        )
    )
    usage = {"prompt_tokens": result.tokens, "total_tokens": result.tokens}
    return await rows_answer(
        request,
        result.vectors,
        before=b'{"object":"list","data":',
        after=b"," + orjson.dumps({"model": name, "usage": usage})[1:],
        row=(b'{"object":"embedding","embedding":', b',"index":%d}'),
        encoded=encoded,
        headers=truncation_header(result),
    )


def _texts(value: Any) -> list[str]:
    texts = texts_field(value)
    if isinstance(value, list) and value and all(isinstance(item, (int, list)) for item in value):
        raise Refusal(
            "invalid",
            "input: got token numbers, which are of another model's vocabulary; expected a string or a list of strings "
            "(langchain's OpenAIEmbeddings: check_embedding_ctx_length=False)",
            param="input",
        )
    if not texts:
        raise Refusal("invalid", "input: expected a string or a list of at least one string", param="input")
    return texts


def _is_base64(data: dict[str, Any]) -> bool:
    value = text_field(data, "encoding_format")
    if value is not None and value.lower() not in ("float", "base64"):
        raise Refusal("invalid", "encoding_format: expected float or base64", param="encoding_format")
    return value is not None and value.lower() == "base64"


def _entry(named: Named) -> dict[str, Any]:
    created = datetime.fromisoformat(named.model.about.manifest["created"]).timestamp()
    return {"id": named.name, "object": "model", "created": int(created), "owned_by": "leafembed"}
