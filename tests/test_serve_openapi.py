"""schemathesis: what the OpenAPI document allows and forbids, sent to a server, whose answers must be as it says."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from served import make_bundle, serving

from leafembed.serve.openapi import document

MEANT = {
    "model": ["leaf", "LEAF:latest", "leaf-document", "missing", None],
    "prompt_name": ["query", "STS", None, None, "missing"],
    "input_type": ["query", "search_document", None, None, "missing"],
    "encoding_format": ["float", "base64", None, "hex"],
    "truncation_direction": ["right", "Right", None, "left"],
    "keep_alive": ["5m", 0, -1, None, "abc"],
}
"""Values that reach further into a route than any string does."""


def meant(schema, values):
    """The schema of a body whose fields of these names take nothing else."""
    if isinstance(schema, list):
        return [meant(one, values) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: meant(one, values) for key, one in schema.items()}
    for name, one in found.get("properties", {}).items():
        if name in values:
            one["enum"] = values[name]
    return found


def operations(values):
    whole = document()
    for path in whole["paths"].values():
        for operation in path.values():
            operation["requestBody"] = meant(operation.get("requestBody", {}), values)
            if not operation["requestBody"]:
                del operation["requestBody"]
    found = [result.ok() for result in schemathesis.openapi.from_dict(whole).get_all_operations()]
    return {f"{operation.method} {operation.path}": operation for operation in found}


LEGAL = operations(MEANT)
ILLEGAL = {
    name: operation for name, operation in operations({"model": MEANT["model"]}).items() if operation.body
}  # of the other fields more values are legal than those
CASES = [
    *(pytest.param(operation, GenerationMode.POSITIVE, id=f"legal-{name}") for name, operation in LEGAL.items()),
    *(pytest.param(operation, GenerationMode.NEGATIVE, id=f"illegal-{name}") for name, operation in ILLEGAL.items()),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving({"leaf": make_bundle(tmp_path_factory.mktemp("openapi"))}) as running:
        yield running


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def check(served, operation, mode, n):
    wanted = [*CHECKS, *([negative_data_rejection] if mode == GenerationMode.NEGATIVE else [])]
    cases = operation.as_strategy(generation_mode=mode)

    @settings(max_examples=n, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @seed(0)
    @given(case=cases)
    def run(case):
        answer = case.call(base_url=served.url, timeout=20)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=wanted)

    statuses = set()
    run()
    return statuses


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_answers_are_as_the_document_says(served, operation, mode):
    statuses = check(served, operation, mode, 25)
    assert (200 in statuses) == (mode == GenerationMode.POSITIVE)


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_many_answers_are_as_the_document_says(served, operation, mode):
    check(served, operation, mode, 400)


def test_the_document_names_every_route(served):
    """But the page, its parts, and what is no JSON."""
    routes = {route.path for route in served.server.config.app.app.routes}
    assert set(document()["paths"]) == routes - {"/", "/metrics", "/openapi.json", "/ui", "/ui/card/{name}"} - {
        "/v1/models/{name:path}"
    }
    assert served.ask("/openapi.json")[1] == document()
