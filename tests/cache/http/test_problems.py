"""Every error is a problem of the closed list that says what to do, and no JSON of a stranger is an error of ours."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolcache.core.ports import StoreUnavailable
from toolcache.http.app import create_app
from toolcache.http.problems import Code
from toolcache.settings import Limits

LOOKUP = {"namespace": "shop", "items": [{"tool": "get_order", "arguments": {}, "environment": "e"}]}
TOOL = {"name": "get", "effect": "read"}


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
        ("POST", "/v1/lookup", LOOKUP | {"items": [LOOKUP["items"][0] | {"arguments": []}]}, "malformed_body", "array"),
        (
            "POST",
            "/v1/lookup",
            LOOKUP | {"items": [LOOKUP["items"][0] | {"tiers": ["exakt"]}]},
            "malformed_body",
            "exakt",
        ),
        ("POST", "/v1/record", LOOKUP, "malformed_body", "result"),
        ("POST", "/v1/lookup", LOOKUP | {"namespace": "shpo"}, "unknown_namespace", "there are: shop"),
        ("POST", "/v1/record", {"namespace": "shpo", "items": []}, "unknown_namespace", "PUT /v1/namespaces/shpo"),
        ("POST", "/v1/import?namespace=shpo", b"", "unknown_namespace", "there are: shop"),
        ("POST", "/v1/calibrate?namespace=shpo", b"", "unknown_namespace", "there are: shop"),
        ("GET", "/v1/stats?namespace=shpo", None, "unknown_namespace", "there are: shop"),
        ("GET", "/v1/namespaces/shpo", None, "unknown_namespace", "there are: shop"),
        ("GET", "/v1/stats", None, "missing_parameter", "?namespace="),
        ("POST", "/v1/calibrate", b"", "missing_parameter", "?namespace="),
        ("POST", "/v1/lookup", b" " * 200_001, "body_too_large", "TOOLCACHE_MAX_BODY_BYTES"),
        ("POST", "/v1/import", b"x" * 200_001, "body_too_large", "line 1"),
        ("POST", "/v1/lookup", LOOKUP | {"items": LOOKUP["items"] * 51}, "too_many_items", "at most 50"),
        ("POST", "/v1/record", {"namespace": "shop", "items": [{}] * 51}, "malformed_body", "tool"),
        ("GET", "/v1/lookup", None, "method_not_allowed", "/docs"),
        ("DELETE", "/v1/namespaces/shop", None, "method_not_allowed", "/docs"),
        ("GET", "/v2/lookup", None, "not_found", "/docs"),
        ("PUT", "/v1/namespaces/a%2Fb", {"tools": []}, "not_found", "/docs"),
        ("PUT", "/v1/namespaces/.hidden", {"tools": []}, "invalid_namespace", "namespace name"),
        ("PUT", "/v1/namespaces/a%20b", {"tools": []}, "invalid_namespace", "a b"),
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
            raise StoreUnavailable("store /data/c.sqlite3: disk I/O error; is the disk full?")

        return gone

    async def close(self) -> None:
        return None


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/lookup", LOOKUP),
        ("POST", "/v1/record", {"namespace": "shop", "items": []}),
        ("POST", "/v1/import", {"messages": [], "environment": "e", "domain": "shop"}),
        ("PUT", "/v1/namespaces/n", {"tools": []}),
        ("GET", "/v1/namespaces", None),
        ("GET", "/readyz", None),
    ],
)
async def test_a_store_that_is_away_is_a_503_with_the_stores_own_words(method: str, path: str, body: Any) -> None:
    from toolcache.adapters.faiss_index import FaissIndex
    from toolcache.adapters.hash_embedder import HashEmbedder
    from toolcache.core.cache import ToolCache

    store: Any = GoneStore()
    app = create_app(ToolCache(store, FaissIndex(), HashEmbedder(), lambda: 0.0), store, Limits())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://t") as client:
        reply = await client.request(method, path, json=body)
        health = await client.get("/healthz")
    assert (reply.status_code, reply.json()["code"]) == (503, "store_unavailable")
    assert reply.headers["content-type"] == "application/problem+json"
    assert "is the disk full?" in reply.json()["detail"]
    assert health.status_code == 200


async def test_a_defect_is_a_problem_that_tells_no_argument_and_the_next_request_is_answered(
    service: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("a secret argument")

    transport: Any = service._transport
    transport.raise_app_exceptions = False
    with monkeypatch.context() as patched:
        patched.setattr("toolcache.http.wire.question", broken)
        reply = await service.post("/v1/lookup", json=LOOKUP)
    assert (reply.status_code, reply.json()["code"]) == (500, "internal")
    assert "secret" not in reply.text
    assert (await service.post("/v1/lookup", json=LOOKUP)).status_code == 200


texts = st.text(max_size=5) | st.sampled_from(["shop", "get_order", "cancel_order", "\ud800", "\x00", "🙂"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**53 + 1, 2**64, -(2**70), 10**400])
    | st.floats()
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["get_order", "search_help", "cancel_order"]) | texts
arguments = st.dictionaries(st.sampled_from(["order_id", "weight", "query"]) | texts, values, max_size=3)
items = st.fixed_dictionaries(
    {"tool": names, "arguments": arguments, "environment": texts},
    optional={
        "state": texts,
        "rollout": texts,
        "follows": st.booleans(),
        "tiers": st.none() | st.lists(st.sampled_from(["exact", "similar", "approximate", "miss"])),
        "result": st.fixed_dictionaries(
            {"content": texts}, optional={"is_error": st.booleans(), "took_s": st.floats() | st.integers()}
        ),
    },
)
bodies = st.fixed_dictionaries({"namespace": st.just("shop"), "items": st.lists(items | values, max_size=4)}) | values


def as_record(body: Any) -> Any:
    """The same body with what a record needs and lookups have not."""
    if not isinstance(body, dict) or not isinstance(body.get("items"), list):
        return body
    kept = ("tool", "arguments", "environment", "state", "rollout", "result")
    return body | {
        "items": [
            {"result": {"content": "x"}} | {key: each[key] for key in kept if key in each}
            if isinstance(each, dict)
            else each
            for each in body["items"]
        ]
    }


def test_no_json_body_is_a_500(tmp_path: Path) -> None:
    """Whatever is sent: an answer, or a refusal, and everything that was stored can be read back and learned from."""
    from toolcache.adapters.faiss_index import FaissIndex
    from toolcache.adapters.hash_embedder import HashEmbedder
    from toolcache.adapters.sqlite_store import SqliteStore
    from toolcache.core.cache import ToolCache

    store = SqliteStore.open(tmp_path / "c.sqlite3")
    app = create_app(ToolCache(store, FaissIndex(), HashEmbedder(), lambda: 1000.0), store, Limits())
    seen: set[int] = set()

    @settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
    @given(bodies)
    def poisoned(body: Any) -> None:
        async def post() -> None:
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                for path, sent in (("/v1/record", as_record(body)), ("/v1/lookup", body)):
                    content = json.dumps(sent).encode()
                    reply = await client.post(path, content=content)
                    assert reply.status_code < 500, reply.text
                    seen.add(reply.status_code)

        asyncio.run(post())

    async def all_is_well() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            assert (await client.post("/v1/calibrate", params={"namespace": "shop"})).status_code == 200
            assert (await client.get("/v1/stats", params={"namespace": "shop"})).status_code == 200
        await store.close()

    async def put() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            tools = [
                {"name": "get_order", "effect": "read", "parameters": {"properties": {"weight": {"multipleOf": 0.01}}}},
                {"name": "search_help", "effect": "read", "parameters": {"properties": {"query": {"type": "string"}}}},
                {"name": "cancel_order"},
            ]
            spec = {"tools": tools, "tiers": ["exact", "similar", "approximate"], "similar_threshold": 0.0}
            assert (await client.put("/v1/namespaces/shop", json=spec)).status_code == 204

    asyncio.run(put())
    poisoned()
    asyncio.run(all_is_well())
    assert seen >= {200, 400}
