"""No JSON of a stranger is an error of ours: it is stored exactly or refused, and its neighbours are unharmed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cache.http.service import ENVIRONMENT, PENDING, batch, call, client_of, lookup, made
from toolcache.adapters.sqlite_store import SqliteStore
from toolcache.settings import Limits


def body_with(arguments: str, *, content: str = '"x"', **fields: str) -> bytes:
    """A record of three calls; of the one in the middle these JSON texts."""
    more = "".join(f', "{name}": {text}' for name, text in fields.items())
    middle = (
        f'{{"tool": "get_order", "arguments": {arguments}, "environment": "{ENVIRONMENT}", '
        f'"result": {{"content": {content}}}{more}}}'
    )
    before, after = (json.dumps(call(order, result=PENDING)) for order in ("#before", "#after"))
    return f'{{"namespace": "shop", "items": [{before}, {middle}, {after}]}}'.encode()


DEEP = 300


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        pytest.param(body_with("{" * DEEP), "malformed", id="cut off in the deep"),
        pytest.param(body_with('{"a": NaN}'), "malformed", id="NaN"),
        pytest.param(body_with('{"a": Infinity}'), "malformed", id="Infinity"),
        pytest.param(body_with('{"a": -Infinity}'), "malformed", id="-Infinity"),
        pytest.param(body_with('{"a": 1e400}'), "malformed", id="beyond every float"),
        pytest.param(body_with(f'{{"a": {"9" * 5_000}}}'), "malformed", id="an endless integer"),
        pytest.param(body_with('{"a": "\\ud800"}'), "malformed", id="a lone surrogate"),
        pytest.param(body_with('{"\\udc00": 1}'), "malformed", id="a lone surrogate as a name"),
        pytest.param(body_with("{}", content='"\\ud800"'), "malformed", id="a lone surrogate as a result"),
        pytest.param(body_with('{"a": "\x01"}'), "malformed", id="a bare control character"),
        pytest.param(body_with("{}").replace(b'"x"', b'"\xff"'), "malformed", id="not UTF-8"),
        pytest.param(body_with("null"), "malformed", id="no arguments"),
        pytest.param(body_with("{}", tags='["a", 1]'), "malformed", id="a tag that is no text"),
        pytest.param(body_with('{"a": ' + "[" * DEEP + "]" * DEEP + "}"), "refused", id="deep"),
        pytest.param(body_with("{}", content=json.dumps("x" * 6_000)), "refused", id="a result too large"),
        pytest.param(body_with("{}", content='"x", "took_s": -1'), "refused", id="less than no time"),
        pytest.param(body_with("{}", content='"x", "took_s": 1e300'), "refused", id="more than all time"),
    ],
)  # fmt: skip
async def test_poison_is_refused_and_its_neighbours_are_as_well_off_as_without_it(
    service: httpx.AsyncClient, sent: bytes, outcome: str
) -> None:
    """What is no message spoils its request, as nobody can tell what it meant; anything else only itself."""
    reply = await service.post("/v1/record", content=sent)
    stored = [each["tier"] for each in await lookup(service, call("#before"), call("#after"))]
    if outcome == "malformed":
        assert (reply.status_code, reply.json()["code"], stored) == (400, "malformed_body", ["miss", "miss"])
    else:
        assert [each["outcome"] for each in reply.json()["items"]] == ["stored", "refused", "stored"]
        assert stored == ["exact", "exact"]


@pytest.mark.parametrize(
    "arguments",
    [
        '{"a": 9007199254740993}',
        '{"a": -9007199254740993}',
        '{"a": 18446744073709551616}',
        '{"a": 123456789012345678901234567890}',
        '{"a": "x\\u0000y", "\\u0000": 1}',
        '{"a": 1e308, "b": 5e-324, "c": -0.0}',
        '{"a": "\U0001f642\u2028\ufeff", "": {"": []}}',
        '{"a": ' + "[" * 60 + "]" * 60 + "}",
        '{"__proto__": 1, "constructor": null}',
        '{"a": "' + "x" * 100_000 + '"}',
    ],
    ids=lambda text: text[:40],
)
@pytest.mark.parametrize("content", ['"\\u0000"', '"\U0001f642"', '""', json.dumps('{"a": NaN}')], ids=str)
async def test_odd_values_come_back_exactly(service: httpx.AsyncClient, arguments: str, content: str) -> None:
    reply = await service.post("/v1/record", content=body_with(arguments, content=content))
    assert [each["outcome"] for each in reply.json()["items"]] == ["stored"] * 3
    asked = call() | {"arguments": json.loads(arguments)}
    (answer,) = (await service.post("/v1/lookup", content=json.dumps(batch(asked)).encode())).json()["items"]
    assert (answer["tier"], answer["result"]["content"]) == ("exact", json.loads(content))
    entries = (await service.get("/v1/entries", params={"namespace": "shop"})).json()["entries"]
    browsed = entries[1]["arguments"]
    assert json.dumps(browsed, sort_keys=True) == json.dumps(json.loads(arguments), sort_keys=True)


async def test_of_a_name_given_twice_the_last_value_counts_for_records_and_lookups_alike(
    service: httpx.AsyncClient,
) -> None:
    twice, once = '{"order_id": "#A", "order_id": "#B"}', '{"order_id": "#B"}'
    await service.post("/v1/record", content=body_with(twice))
    for arguments in (twice, once):
        asked = body_with(arguments).replace(b', "result": {"content": "x"}', b"").replace(b', "result"', b', "gone"')
        item = json.loads(asked)["items"][1]
        assert (await lookup(service, item))[0]["tier"] == "exact"


# -- everything else somebody might send -------------------------------------------------------------------------------

plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(["shop", "\x00", "\U0001f642"])
texts = st.one_of([plain] * 20 + [st.just("\ud800")])  # half of a pair spoils the whole request
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
results = st.fixed_dictionaries(
    {"content": texts}, optional={"is_error": st.booleans(), "took_s": st.floats() | st.integers()}
)
common = {"state": texts, "rollout": texts}
questions = st.fixed_dictionaries(
    {"tool": names, "arguments": arguments, "environment": texts},
    optional={
        **common,
        "follows": st.booleans(),
        "group": texts,
        "tiers": st.none() | st.lists(st.sampled_from(["exact", "similar", "approximate", "miss"])),
    },
)
recordings = st.fixed_dictionaries(
    {"tool": names, "arguments": arguments, "environment": texts, "result": results},
    optional={
        **common,
        "lease": texts,
        "tags": st.lists(texts, max_size=2),
        "served": st.none()
        | st.fixed_dictionaries(
            {"reason": texts | st.sampled_from(["free_text", "recorded", "nearest", "leased"]), "result": results},
            optional={"score": st.none() | st.floats()},
        ),
    },
)
numbers = st.floats() | st.integers() | st.sampled_from([0, 0.001, 60])
lookups = st.fixed_dictionaries(
    {"namespace": st.just("shop"), "items": st.lists(questions, max_size=4)},
    optional={
        "on_miss": st.sampled_from(["fail", "lease", "wait"]),
        "lease_s": numbers,
        "job": texts,
        "wait_s": st.just(0),
    },
)
records = st.fixed_dictionaries(
    {"namespace": st.just("shop"), "items": st.lists(recordings, max_size=4)},
    optional={"request_id": texts, "job": texts},
)
releases = st.fixed_dictionaries({"namespace": st.just("shop") | texts}, optional={"extend_s": numbers})
PATHS = {
    "/v1/lookup": lookups,
    "/v1/lookup?explain=1": lookups,
    "/v1/record": records,
    "/v1/leases/a.b": releases,
}
SENT = [st.tuples(st.just(path), bodies | values) for path, bodies in PATHS.items()]
TOOLS = [
    {
        "name": "get_order",
        "effect": "read",
        "samples": 3,
        "ttl_s": 5.0,
        "parameters": {"properties": {"weight": {"multipleOf": 0.01}}},
        "masks": [{"argument": "order_id", "pattern": "[0-9]+"}],
    },
    {"name": "search_help", "effect": "read", "parameters": {"properties": {"query": {"type": "string"}}}},
    {"name": "cancel_order", "simulate_writes": True},
]


def test_no_json_body_is_a_500(tmp_path: Path) -> None:
    """Whatever is sent: an answer, or a refusal, and everything that was stored can be read back and learned from."""
    served = made(SqliteStore.open(tmp_path / "c.sqlite3"), limits=Limits())
    seen: set[tuple[str, int]] = set()
    exported: list[bytes] = []

    with asyncio.Runner() as runner:
        client: Any = client_of(served)
        service: httpx.AsyncClient = runner.run(client.__aenter__())

        @settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
        @given(st.one_of(SENT))
        def poisoned(sent: tuple[str, Any]) -> None:
            path, body = sent

            async def post() -> None:
                reply = await service.post(path, content=json.dumps(body).encode())
                assert reply.status_code < 500, reply.text
                seen.add((path, reply.status_code))

            runner.run(post())

        async def prepared() -> None:
            spec = {"tools": TOOLS, "tiers": ["exact", "similar", "approximate"], "similar_threshold": 0.0}
            assert (await service.put("/v1/namespaces/shop", json=spec)).status_code == 204
            # One that no ttl removes while the others are sent.
            item = {"tool": "search_help", "arguments": {"query": "q"}, "environment": "e", "result": {"content": "r"}}
            sent = await service.post("/v1/record", json={"namespace": "shop", "items": [item]})
            assert sent.json()["items"][0]["outcome"] == "stored"

        async def all_is_well() -> None:
            assert (await service.post("/v1/calibrate", params={"namespace": "shop"})).status_code == 200
            assert (await service.get("/v1/stats", params={"namespace": "shop"})).status_code == 200
            assert (await service.get("/v1/entries", params={"namespace": "shop"})).status_code == 200
            exported.append((await service.get("/v1/export", params={"namespace": "shop"})).content)
            into = await service.post("/v1/import", params={"namespace": "copy"}, content=exported[0])
            assert (into.status_code, into.json()["rejected"]) == (200, {})

        runner.run(prepared())
        poisoned()
        runner.run(all_is_well())
        runner.run(client.__aexit__(None, None, None))
    assert seen >= {(path, status) for path in PATHS for status in (200, 400)}
    assert exported[0].count(b"\n") > 1


exported_lines = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["toolcache/entry/1", "toolcache/namespace/1", "toolcache/entry/2"]),
        "scope": st.just("a" * 64) | texts,
        "environment": texts,
        "tool": names,
        "arguments": arguments,
        "content": texts,
    },
    optional={
        "is_error": st.booleans(),
        "took_s": numbers,
        "recorded_at_s": numbers,
        "expires_at_s": numbers,
        "tags": st.lists(texts, max_size=2),
        "seen": st.sampled_from([1, 2, 0, -1, 2**63, 2**70]),
        "vector": st.binary(max_size=8).map(lambda b: b.hex()),
        "version": texts,
        "namespace": st.fixed_dictionaries({"name": texts, "tools": values}),
    },
)


def test_no_line_of_an_import_is_a_500(tmp_path: Path) -> None:
    served = made(SqliteStore.open(tmp_path / "c.sqlite3"), limits=Limits())
    outcomes: set[str] = set()

    with asyncio.Runner() as runner:
        client: Any = client_of(served)
        service: httpx.AsyncClient = runner.run(client.__aenter__())

        @settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
        @given(st.lists(exported_lines | values, max_size=4))
        def poisoned(lines: list[Any]) -> None:
            async def post() -> None:
                content = "\n".join(json.dumps(each, separators=(",", ":")) for each in lines).encode()
                reply = await service.post("/v1/import", params={"namespace": "shop"}, content=content)
                assert reply.status_code == 200, reply.text
                outcomes.update({*reply.json()["outcomes"], *reply.json()["rejected"]})
                for path in ("/v1/entries", "/v1/stats", "/v1/export"):
                    assert (await service.get(path, params={"namespace": "shop"})).status_code == 200

            runner.run(post())

        runner.run(service.put("/v1/namespaces/shop", json={"tools": TOOLS}))
        poisoned()
        runner.run(client.__aexit__(None, None, None))
    assert outcomes >= {"stored", "invalid_line"}
