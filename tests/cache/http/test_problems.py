"""Every error is a problem of the closed list that says what to do."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.cache.http.service import batch, call, client_of, made
from toolcache.core.ports import StoreUnavailable
from toolcache.http.problems import Code
from toolcache.settings import Limits

LOOKUP = batch(call())
TOOL = {"name": "get", "effect": "read"}
LEASE = {"namespace": "shop", "extend_s": 1}
KEY = {"name": "k", "role": "read", "namespaces": ["shop"]}


def without(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "told"),
    [
        ("POST", "/v1/lookup", b"", "malformed_body", "/docs"),
        ("POST", "/v1/lookup", b"{", "malformed_body", "truncated"),
        ("POST", "/v1/lookup", b"\xff", "malformed_body", "/docs"),
        ("POST", "/v1/lookup", b"[" * 100_000, "malformed_body", "/docs"),
        ("POST", "/v1/lookup", b'{"namespace": "\\ud800", "items": []}', "malformed_body", "/docs"),
        ("POST", "/v1/lookup", LOOKUP | {"itemz": 1}, "malformed_body", "itemz"),
        ("POST", "/v1/lookup", without(LOOKUP, "namespace"), "malformed_body", "namespace"),
        ("POST", "/v1/lookup", LOOKUP | {"items": [{"tool": "t", "arguments": {}}]}, "malformed_body", "environment"),
        ("POST", "/v1/lookup", batch(call() | {"arguments": []}), "malformed_body", "array"),
        ("POST", "/v1/lookup", batch(call(tiers=["exakt"])), "malformed_body", "exakt"),
        ("POST", "/v1/lookup", LOOKUP | {"on_miss": "run"}, "malformed_body", "run"),
        ("POST", "/v1/record", LOOKUP, "malformed_body", "result"),
        ("POST", "/v1/lookup", LOOKUP | {"namespace": "shpo"}, "unknown_namespace", "PUT /v1/namespaces/shpo"),
        ("POST", "/v1/lookup", LOOKUP | {"namespace": "n" * 9_000}, "unknown_namespace", "n" * 64 + "..."),
        ("POST", "/v1/record", {"namespace": "shpo", "items": []}, "unknown_namespace", "'shpo'"),
        ("POST", "/v1/import?namespace=shpo", b"", "unknown_namespace", "'shpo'"),
        ("POST", "/v1/import?namespace=shpo", {"messages": []}, "unknown_namespace", "'shpo'"),
        ("GET", "/v1/export?namespace=shpo", None, "unknown_namespace", "'shpo'"),
        ("GET", "/v1/entries?namespace=shpo", None, "unknown_namespace", "'shpo'"),
        ("DELETE", "/v1/entries?namespace=shpo&all=1", None, "unknown_namespace", "'shpo'"),
        ("POST", "/v1/calibrate?namespace=shpo", b"", "unknown_namespace", "'shpo'"),
        ("GET", "/v1/stats?namespace=shpo", None, "unknown_namespace", "'shpo'"),
        ("GET", "/v1/namespaces/shpo", None, "unknown_namespace", "'shpo'"),
        ("DELETE", "/v1/namespaces/shpo", None, "unknown_namespace", "'shpo'"),
        ("GET", "/v1/stats", None, "missing_parameter", "?namespace="),
        ("POST", "/v1/calibrate", b"", "missing_parameter", "?namespace="),
        ("GET", "/v1/stats?namespace=", None, "invalid_parameter", "namespace must be"),
        ("GET", "/v1/stats?namespace=shop&namespace=shop", None, "invalid_parameter", "twice"),
        ("GET", "/v1/stats?namspace=shop", None, "invalid_parameter", "there are: namespace"),
        ("GET", "/v1/stats?" + "a=1&" * 40, None, "invalid_parameter", "query"),
        ("GET", "/v1/entries?namespace=shop&limit=0", None, "invalid_parameter", "1..1000"),
        ("GET", "/v1/entries?namespace=shop&limit=1001", None, "invalid_parameter", "1..1000"),
        ("GET", "/v1/entries?namespace=shop&after=-1", None, "invalid_parameter", "after must be"),
        ("GET", "/v1/entries?namespace=shop&after=1_0", None, "invalid_parameter", "after must be"),
        ("GET", f"/v1/entries?namespace=shop&after={'9' * 5_000}", None, "invalid_parameter", "after must be"),
        ("DELETE", "/v1/entries?namespace=shop&older_than_s=nan", None, "invalid_parameter", "seconds"),
        ("DELETE", "/v1/entries?namespace=shop&older_than_s=-1", None, "invalid_parameter", "seconds"),
        ("DELETE", "/v1/entries?namespace=shop&all=yes", None, "invalid_parameter", "true or false"),
        ("DELETE", "/v1/entries?namespace=shop", None, "invalid_parameter", "all=1"),
        ("POST", "/v1/lookup?explain=maybe", LOOKUP, "invalid_parameter", "explain must be"),
        ("POST", "/v1/record?explain=1", batch(), "invalid_parameter", "there are: none"),
        ("POST", "/v1/lookup", b" " * 200_001, "body_too_large", "TOOLCACHE_MAX_BODY_BYTES"),
        ("POST", "/v1/import", b"x" * 200_001, "body_too_large", "line 1"),
        ("POST", "/v1/import", b"{}\n{}\n" + b"x" * 200_001 + b"\n", "body_too_large", "line 3"),
        ("POST", "/v1/lookup", batch(*[call()] * 51), "too_many_items", "at most 50"),
        ("POST", "/v1/record", batch(*[call(result={"content": ""})] * 51), "too_many_items", "at most 50"),
        ("POST", "/v1/record", {"namespace": "shop", "items": [{}] * 51}, "malformed_body", "tool"),
        ("POST", "/v1/lookup", LOOKUP | {"on_miss": "wait", "wait_s": -1}, "invalid_value", "0..3600"),
        ("POST", "/v1/lookup", LOOKUP | {"on_miss": "lease", "lease_s": 0}, "invalid_value", "lease_s is 0"),
        ("POST", "/v1/lookup", LOOKUP | {"on_miss": "lease", "lease_s": 1e9}, "invalid_value", "86400"),
        ("POST", "/v1/record", batch() | {"request_id": "r" * 129}, "invalid_value", "128"),
        ("POST", "/v1/leases/l", LEASE | {"extend_s": -1}, "invalid_value", "extend_s is -1"),
        ("POST", "/v1/leases/l", LEASE | {"namespace": 1}, "malformed_body", "namespace"),
        ("POST", "/v1/keys", KEY | {"role": "root"}, "malformed_body", "root"),
        ("POST", "/v1/keys", KEY | {"name": ""}, "invalid_value", "name the key"),
        ("POST", "/v1/keys", KEY | {"namespaces": []}, "invalid_value", "where the key holds"),
        ("POST", "/v1/keys", KEY | {"namespaces": ["shop", "a b"]}, "invalid_value", "a b"),
        ("DELETE", "/v1/keys/none", None, "unknown_key", "GET /v1/keys"),
        ("GET", "/v1/lookup", None, "method_not_allowed", "POST"),
        ("PATCH", "/v1/namespaces/shop", None, "method_not_allowed", "DELETE, GET, HEAD, PUT"),
        ("GET", "/v2/lookup", None, "not_found", "/docs"),
        ("POST", "/v1/lookup/", LOOKUP, "not_found", "/docs"),
        ("PUT", "/v1/namespaces/a%2Fb", {"tools": []}, "not_found", "/docs"),
        ("PUT", "/v1/namespaces/.hidden", {"tools": []}, "invalid_namespace", "namespace name"),
        ("PUT", "/v1/namespaces/a%20b", {"tools": []}, "invalid_namespace", "a b"),
        ("PUT", "/v1/namespaces/a%0A", {"tools": []}, "invalid_namespace", "namespace name"),
        ("PUT", f"/v1/namespaces/{'n' * 65}", {"tools": []}, "invalid_namespace", "namespace name"),
        ("PUT", "/v1/namespaces/n", {"tools": [TOOL, TOOL]}, "invalid_namespace", "twice"),
        ("PUT", "/v1/namespaces/n", {"tools": [TOOL | {"parameters": {"type": 5}}]}, "invalid_namespace", "tool get"),
        (
            "PUT",
            "/v1/namespaces/n",
            {"tools": [TOOL | {"parameters": {"properties": {"a": {"pattern": "("}}}}]},
            "invalid_namespace",
            "tool get",
        ),
        ("PUT", "/v1/namespaces/n", {"tools": [TOOL | {"arguments": {"a": "identity"}}]}, "invalid_namespace", "'a'"),
        ("PUT", "/v1/namespaces/n", {"tools": [], "similar_threshold": 1.5}, "invalid_namespace", "1.5"),
        ("PUT", "/v1/namespaces/n", {"tools": [], "max_bytes": -1}, "invalid_namespace", "max_bytes"),
        ("PUT", "/v1/namespaces/n", {"tools": [TOOL | {"samples": 0}]}, "invalid_namespace", "samples"),
        ("PUT", "/v1/namespaces/n", {"tools": [TOOL | {"effect": "reads"}]}, "malformed_body", "reads"),
        ("PUT", "/v1/namespaces/n", {}, "malformed_body", "tools"),
    ],
)
async def test_what_cannot_be_done_is_a_problem_that_says_what_to_do(
    service: httpx.AsyncClient, method: str, path: str, body: Any, code: str, told: str
) -> None:
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    reply = await service.request(method, path, content=content)
    status, title = Code[code.upper()].value
    problem = reply.json()
    assert reply.headers["content-type"] == "application/problem+json"
    assert (reply.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert (problem["title"], problem["type"]) == (title, f"urn:toolcache:problem:{code}")
    assert told in problem["detail"]
    assert len(problem["detail"]) < 1_000


async def test_a_method_that_is_not_there_tells_those_that_are(service: httpx.AsyncClient) -> None:
    assert (await service.post("/v1/entries")).headers["allow"] == "DELETE, GET, HEAD"


def test_a_body_beyond_the_limit_is_refused_by_a_real_server_while_it_is_sent(url: str) -> None:
    reply = httpx.post(f"{url}/v1/lookup", content=b" " * 20_000_000)
    assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")


async def test_a_namespace_that_is_refused_changes_nothing(service: httpx.AsyncClient) -> None:
    before = (await service.get("/v1/namespaces/shop")).json()
    await service.put("/v1/namespaces/shop", json={"tools": [], "similar_threshold": 7})
    assert (await service.get("/v1/namespaces/shop")).json() == before


class GoneStore:
    """A store whose disk went away."""

    def __getattr__(self, name: str) -> Any:
        async def gone(*_: Any, **__: Any) -> Any:
            raise StoreUnavailable("store redis://me:secret@h:1/0: disk I/O error; is the disk full?")

        return gone

    async def close(self) -> None:
        return None


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/lookup", LOOKUP),
        ("POST", "/v1/record", batch()),
        ("POST", "/v1/import", {"messages": [], "environment": "e", "domain": "shop"}),
        ("GET", "/v1/export?namespace=shop", None),
        ("GET", "/v1/entries?namespace=shop", None),
        ("DELETE", "/v1/entries?namespace=shop&all=1", None),
        ("PUT", "/v1/namespaces/n", {"tools": []}),
        ("DELETE", "/v1/namespaces/n", None),
        ("GET", "/v1/namespaces", None),
        ("POST", "/v1/keys", KEY),
        ("GET", "/v1/keys", None),
        ("DELETE", "/v1/keys/k", None),
        ("POST", "/v1/calibrate?namespace=shop", None),
        ("GET", "/v1/stats?namespace=shop", None),
        ("GET", "/readyz", None),
    ],
)
async def test_a_store_that_is_away_is_a_503_with_the_stores_own_words_but_no_login(
    method: str, path: str, body: Any
) -> None:
    store: Any = GoneStore()
    async with client_of(made(store, limits=Limits())) as client:
        reply = await client.request(method, path, json=body)
        assert (reply.status_code, reply.json()["code"]) == (503, "store_unavailable")
        assert reply.headers["content-type"] == "application/problem+json"
        assert "store redis://h:1/0: disk I/O error; is the disk full?" in reply.json()["detail"]
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200


async def test_a_defect_is_a_problem_that_tells_no_argument_and_the_next_request_is_answered(
    service: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("a secret argument")

    with monkeypatch.context() as patched:
        patched.setattr("toolcache.http.wire.answer", broken)
        reply = await service.post("/v1/lookup", json=LOOKUP)
    assert (reply.status_code, reply.json()["code"]) == (500, "internal")
    assert "KeyError" in reply.json()["detail"]
    assert "secret" not in reply.text
    assert (await service.post("/v1/lookup", json=LOOKUP)).status_code == 200
