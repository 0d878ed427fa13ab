"""The routes as an OpenAPI document, at ``/openapi.json``: what a client may send, and what it gets.

The routes check their input by hand, since a model of pydantic's takes what the families' servers refuse and costs a
third of the rate. A test sends what this document allows and forbids, and holds the answers against it.
"""

from __future__ import annotations

from typing import Any

from leafembed import __version__
from leafembed.serve.refusals import FAMILIES

__all__ = ["document"]

_Schema = dict[str, Any]


def document() -> _Schema:
    """Return the document, OpenAPI 3.1."""
    paths = {**_ollama(), **_openai(), **_tei(), **_operation()}
    schemas = {f"{name}_error": schema for name, schema in _ERRORS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "leaf serve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _object(required: tuple[str, ...] = (), **properties: _Schema) -> _Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def _or_null(kind: str, **more: Any) -> _Schema:
    return {"type": [kind, "null"], **more}


_STRING: _Schema = {"type": "string"}
_VECTOR: _Schema = {"type": "array", "items": {"type": "number"}, "minItems": 1}
_VECTORS: _Schema = {"type": "array", "items": _VECTOR}
_TEXTS: _Schema = {"anyOf": [_STRING, {"type": "array", "items": _STRING, "minItems": 1}]}
_COMMON: _Schema = {
    "dimensions": _or_null("integer"),
    "truncate": _or_null("boolean"),
    "prompt_name": _or_null("string"),
    "input_type": _or_null("string"),
}
_ERRORS: dict[str, _Schema] = {
    "ollama": _object(("error",), error=_STRING),
    "openai": _object(
        ("error",),
        error=_object(
            ("message", "type", "param", "code"),
            message=_STRING,
            type=_STRING,
            param=_or_null("string"),
            code=_or_null("string"),
        ),
    ),
    "tei": _object(("error", "error_type"), error=_STRING, error_type=_STRING),
}


def _json(schema: _Schema) -> _Schema:
    return {"application/json": {"schema": schema}}


def _operation_of(family: str, name: str, answer: _Schema, body: _Schema | None = None) -> _Schema:
    """One operation of a family; every status that is no success has the family's body."""
    error = {"description": "refused", "content": _json({"$ref": f"#/components/schemas/{family}_error"})}
    found: _Schema = {
        "operationId": name,
        "tags": [FAMILIES[family].name],
        "responses": {"200": {"description": "answered", "content": _json(answer)}, "4XX": error, "5XX": error},
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": _json(body)}
    return found


def _ollama() -> _Schema:
    asked = {
        **_COMMON,
        "keep_alive": {"type": ["number", "string", "null"]},
        "options": _or_null("object"),
    }
    inputs = {"anyOf": [_STRING, {"type": "array", "items": _STRING}, {"type": "null"}]}
    embedded = _object(("model", "embeddings"), model=_STRING, embeddings=_VECTORS, embedding=_VECTOR)
    old = _object(("embedding",), embedding={"type": "array", "items": {"type": "number"}})
    models = _object(("models",), models={"type": "array", "items": _object(("name", "model"))})
    show = _object(("model_info", "details", "capabilities"), model_info={"type": "object"})
    posts = {
        "/api/embed": ("embed", embedded, _object(("model",), model=_STRING, input=inputs, **asked)),
        "/api/embeddings": ("embeddings", old, _object(("model",), model=_STRING, prompt=_or_null("string"), **asked)),
        "/api/show": ("show", show, _object(("model",), model=_STRING)),
    }
    gets = {
        "/api/tags": ("tags", models),
        "/api/ps": ("ps", models),
        "/api/version": ("version", _object(("version",), version=_STRING)),
    }
    return {
        **{path: {"post": _operation_of("ollama", name, answer, body)} for path, (name, answer, body) in posts.items()},
        **{path: {"get": _operation_of("ollama", name, answer)} for path, (name, answer) in gets.items()},
    }


def _openai() -> _Schema:
    body = _object(
        ("model", "input"),
        model={"type": "string", "minLength": 1},
        input=_TEXTS,
        encoding_format=_or_null("string"),
        user=_or_null("string"),
        **_COMMON,
    )
    row = _object(("object", "index", "embedding"), embedding={"anyOf": [_VECTOR, _STRING]})
    answer = _object(("object", "data", "model", "usage"), data={"type": "array", "items": row})
    models = _object(("object", "data"), data={"type": "array", "items": _object(("id", "object", "created"))})
    return {
        "/v1/embeddings": {"post": _operation_of("openai", "create_embedding", answer, body)},
        "/v1/models": {"get": _operation_of("openai", "list_models", models)},
    }


def _tei() -> _Schema:
    body = _object(
        ("inputs",),
        inputs=_TEXTS,
        normalize=_or_null("boolean"),
        truncation_direction=_or_null("string"),
        model=_or_null("string"),
        **_COMMON,
    )
    tokens = {"type": "array", "items": {"type": "array", "items": _object(("id", "text", "special"))}}
    asked = _object(("inputs",), inputs=_TEXTS, add_special_tokens=_or_null("boolean"), model=_or_null("string"))
    return {
        "/embed": {"post": _operation_of("tei", "tei_embed", _VECTORS, body)},
        "/tokenize": {"post": _operation_of("tei", "tei_tokenize", tokens, asked)},
        "/info": {"get": _operation_of("tei", "tei_info", _object(("model_id", "max_input_length")))},
    }


def _operation() -> _Schema:
    status = _object(("status",), status=_STRING)
    ready = _operation_of("ollama", "ready", status)
    ready["responses"]["503"] = {"description": "not ready, and why", "content": _json(status)}
    return {
        "/health/live": {"get": _operation_of("ollama", "live", status)},
        "/health/ready": {"get": ready},
    }
