"""The OpenAPI document: it changes on purpose only, and the service does what it says."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.cache.http.service import PENDING, SPEC, batch, call, client_of, made
from toolcache.settings import Limits

GOLDEN = Path(__file__).with_name("openapi.json")
DOCUMENT = made().app.openapi()
OPERATIONS = [
    (method.upper(), path, about) for path, methods in DOCUMENT["paths"].items() for method, about in methods.items()
]
EXAMPLES = 50
"""For each endpoint, of requests as they should be and again of requests as they should not be."""


def _name(each: object) -> str:
    return each if isinstance(each, str) else ""


def test_the_document_is_the_one_that_was_agreed_on() -> None:
    """After a change that is meant: UPDATE_GOLDEN=1 pytest tests/cache/http/test_openapi.py, and look at the diff."""
    made = json.dumps(DOCUMENT, indent=2, sort_keys=True) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(made)
    assert made == GOLDEN.read_text()


def test_the_document_refers_to_nothing_that_is_missing_and_has_nothing_to_spare() -> None:
    text = json.dumps(DOCUMENT)
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named == set(DOCUMENT["components"]["schemas"])
    assert DOCUMENT["components"]["schemas"]["LookupItem"]["required"] == ["tool", "arguments", "environment"]


@pytest.mark.parametrize(("method", "path", "about"), OPERATIONS, ids=_name)
def test_every_endpoint_has_a_promise_a_name_of_its_own_and_its_problems(
    method: str, path: str, about: dict[str, Any]
) -> None:
    assert about["summary"].endswith(".")
    assert [other["operationId"] for _, _, other in OPERATIONS].count(about["operationId"]) == 1
    statuses = set(about["responses"])
    assert statuses & {"200", "204"}
    assert "500" in statuses
    if about["security"]:
        assert statuses >= {"400", "401", "403", "405", "503"}
    if "requestBody" in about:
        assert statuses >= {"400", "408", "413"}


async def test_it_is_served(service: httpx.AsyncClient) -> None:
    assert (await service.get("/openapi.json")).json() == json.loads(GOLDEN.read_text())


class _Running:
    """A service in this thread that is asked one request after the other; asking for keys is another test's."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._context: Any = client_of(made(limits=Limits()))
        self.client: httpx.AsyncClient = self._runner.run(self._context.__aenter__())
        for name in ("shop", "0"):  # the second name is one that is soon made up
            self._runner.run(self.client.put(f"/v1/namespaces/{name}", json=SPEC))
        self._runner.run(self.client.post("/v1/record", json=batch(call(result=PENDING))))

    def ask(self, case: Case) -> httpx.Response:
        sent = requests.Request(**case.as_transport_kwargs(base_url="http://t")).prepare()
        assert sent.method is not None
        assert sent.url is not None
        reply = self.client.request(sent.method, sent.url, headers=dict(sent.headers), content=sent.body)
        return self._runner.run(reply)

    def close(self) -> None:
        self._runner.run(self._context.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module")
def running() -> Iterator[_Running]:
    running = _Running()
    yield running
    running.close()


@schemathesis.serializer("application/x-ndjson")
def _one_line(_: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
CONFORMS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


TAKES_ANYTHING = {("POST", "/v1/import"), ("DELETE", "/v1/keys/{id}")}
"""Lines that are none are counted and not refused, and an id is any text."""
CASES = [(GenerationMode.POSITIVE, method, path) for method, path, _ in OPERATIONS] + [
    (GenerationMode.NEGATIVE, method, path)
    for method, path, about in OPERATIONS
    if (about["parameters"] or "requestBody" in about) and (method, path) not in TAKES_ANYTHING
]


@pytest.mark.parametrize(("mode", "method", "path"), CASES, ids=lambda each: getattr(each, "value", each))
def test_replies_are_as_documented_and_wrong_requests_refused(
    running: _Running, mode: GenerationMode, method: str, path: str
) -> None:
    checks = [*CONFORMS, negative_data_rejection] if mode is GenerationMode.NEGATIVE else CONFORMS

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(SCHEMA[path][method].as_strategy(generation_mode=mode), st.booleans())
    def asked(case: Case, is_known: bool) -> None:
        for part in (case.query, case.body):
            if is_known and mode is GenerationMode.POSITIVE and isinstance(part, dict) and "namespace" in part:
                part["namespace"] = "shop"
        case.validate_response(running.ask(case), checks=checks)

    asked()
