"""Ollama's routes for embeddings and for asking what models there are; nothing that loads, makes or deletes models.

After Ollama's own handlers (server/routes.go, api/types.go): an unknown key is ignored, a content type is not looked
at, an empty input is an empty answer, ``dimensions`` out of range gives the whole vector, and every error is an object
with a string. Vectors of the old ``/api/embeddings`` have unit length here; Ollama's have not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from leafembed import __version__
from leafembed.serve.embedding import Answer, Asked, Service
from leafembed.serve.models import Named
from leafembed.serve.refusals import Refusal
from leafembed.serve.wire import answer, flag, json_body, rows_answer, text_field, texts_field, whole_field

__all__ = ["routes", "truncation_header"]

_DURATION = re.compile(
    r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h)(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))*|[+-]?0"
)
_FOREVER = "2318-01-01T00:00:00Z"
_KEYS = ("model", "input", "prompt", "dimensions", "truncate", "prompt_name", "input_type", "keep_alive",
         "options")  # fmt: skip


def routes() -> list[Route]:
    """Ollama's routes."""
    return [
        Route("/", _root, methods=["GET"]),
        Route("/api/version", _version, methods=["GET"]),
        Route("/api/tags", _tags, methods=["GET"]),
        Route("/api/ps", _ps, methods=["GET"]),
        Route("/api/show", _show, methods=["POST"]),
        Route("/api/embed", _embed, methods=["POST"]),
        Route("/api/embeddings", _embeddings, methods=["POST"]),
    ]


def truncation_header(result: Answer) -> dict[str, str]:
    """A header that says how many texts were cut; none where none was."""
    return {"X-Truncated-Texts": str(result.cut)} if result.cut else {}


async def _root(request: Request) -> Response:
    return PlainTextResponse("Ollama is running")


async def _version(request: Request) -> Response:
    return answer({"version": __version__})


async def _embed(request: Request) -> Response:
    service: Service = request.app.state.service
    data = json_body(request, *_KEYS)
    value = data.get("input")
    texts = [] if value is None or value == "" else texts_field(value)
    asked = _asked(data, texts or [])
    service.models.check_name(asked.name)
    if texts is None:  # Ollama finds this after a name that is none, and before a model that is not there
        raise Refusal("invalid", "invalid input type", param="input")
    result = await _embedded(service, asked)
    if result is None:
        return answer({"model": asked.name, "embeddings": []})
    tail: dict[str, Any] = {
        "total_duration": _ns(result.total_s),
        "load_duration": _ns(result.load_s),  # 1 of a model that is open: Ollama leaves out what is 0, and never has 0
        "prompt_eval_count": result.tokens,
    }
    if isinstance(value, str):  # the first service of ours gave one vector under this name too
        tail["embedding"] = result.vectors[0]
    return await rows_answer(
        request,
        result.vectors,
        before=b'{"model":' + orjson.dumps(asked.name) + b',"embeddings":',
        after=b"," + orjson.dumps(tail, option=orjson.OPT_SERIALIZE_NUMPY)[1:],
        headers=truncation_header(result),
    )


async def _embeddings(request: Request) -> Response:
    service: Service = request.app.state.service
    data = json_body(request, *_KEYS)
    prompt = text_field(data, "prompt")
    asked = _asked(data, [prompt] if prompt else [])
    if not asked.name:
        raise Refusal("invalid", "model is required", param="model")
    result = await _embedded(service, asked)
    if result is None:
        return answer({"embedding": []})
    vector = orjson.dumps(result.vectors[0], option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(b'{"embedding":' + vector + b"}", 200, truncation_header(result), "application/json; charset=utf-8")


def _asked(data: dict[str, Any], texts: Sequence[str]) -> Asked:
    """What both routes ask for their texts, its types checked."""
    asked = Asked(
        name=text_field(data, "model") or "",
        texts=texts,
        dim=whole_field(data, "dimensions"),
        truncate=flag(data, "truncate", True),
        prompt=text_field(data, "prompt_name"),
        input_type=text_field(data, "input_type"),
    )
    _check_keep_alive(data)
    _check_options(data)
    return asked


async def _embedded(service: Service, asked: Asked) -> Answer | None:
    """The vectors; ``None`` where there is no text, which means that the model is to be opened."""
    model = service.named(asked.name).model
    if not asked.texts:
        await service.opened(model)
        return None
    if asked.dim is not None and not 0 < asked.dim <= model.about.config.dim:
        asked = replace(asked, dim=None)
    return await service.embed(asked)


async def _tags(request: Request) -> Response:
    service: Service = request.app.state.service
    return answer({"models": [_entry(named) for named in service.models.listed]})


async def _ps(request: Request) -> Response:
    service: Service = request.app.state.service
    found = []
    for named in service.models.listed:
        if named.model.loaded is not None and named.name == named.model.spec.name:
            entry = _entry(named)
            del entry["modified_at"], entry["capabilities"]
            found.append({**entry, "expires_at": _FOREVER, "size_vram": 0, "context_length": _context(named)})
    return answer({"models": found})


async def _show(request: Request) -> Response:
    service: Service = request.app.state.service
    data = json_body(request, "model", "name")
    name = text_field(data, "model") or text_field(data, "name") or ""
    if not name:
        raise Refusal("invalid", "model is required", param="model")
    try:
        named = service.named(name)
    except Refusal as refusal:
        if refusal.kind == "missing":
            raise Refusal("missing", f"model '{name}' not found", param="model") from None
        raise
    entry = _entry(named)
    return answer({
        "license": named.model.about.config.licence or "",
        "modelfile": "",
        "parameters": "",
        "template": "{{ .Prompt }}",
        "system": "",
        "details": entry["details"],
        "model_info": {
            "general.architecture": "leaf",
            "general.parameter_count": _parameters(named),
            "leaf.context_length": _context(named),
            "leaf.embedding_length": named.dim,
        },
        "capabilities": entry["capabilities"],
        "modified_at": entry["modified_at"],
    })  # fmt: skip


def _entry(named: Named) -> dict[str, Any]:
    manifest = named.model.about.manifest
    modified = str(manifest["created"])
    return {
        "name": f"{named.name}:latest",
        "model": f"{named.name}:latest",
        "modified_at": modified,
        "size": int(manifest["sizes"]["total_bytes"]),
        "digest": str(manifest["seal"]),
        "details": {
            "parent_model": "",
            "format": "openvino",
            "family": "leaf",
            "families": ["leaf"],
            "parameter_size": f"{_parameters(named) / 1e6:.0f}M",
            "quantization_level": "INT8",
            "context_length": _context(named),
            "embedding_length": named.dim,
        },
        "capabilities": ["embedding"],
    }


def _parameters(named: Named) -> int:
    return sum(int(part["parameters"]) for part in named.model.about.manifest["sizes"]["parts"])


def _context(named: Named) -> int:
    return named.model.about.config.max_seq_length


def _check_keep_alive(data: dict[str, Any]) -> None:
    """Models stay open here whatever is asked for; what is no duration is refused as Ollama does."""
    value = data.get("keep_alive")
    if isinstance(value, str) and not _DURATION.fullmatch(value):
        raise Refusal("invalid", "keep_alive: invalid duration", param="keep_alive")
    if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
        raise Refusal("invalid", "keep_alive: expected seconds or a duration such as 5m", param="keep_alive")


def _check_options(data: dict[str, Any]) -> None:
    """Options are Ollama's and change nothing here; a context without room for a text is refused as there."""
    options = data.pop("options", None)  # may be large, and is not kept
    if options is not None and not isinstance(options, dict):
        raise Refusal("invalid", "options: expected an object", param="options")
    if (options or {}).get("num_ctx") in (0, 1):
        raise Refusal("invalid", "input after truncation exceeds maximum context length", param="options")


def _ns(seconds: float) -> int:
    return max(1, round(seconds * 1e9))
