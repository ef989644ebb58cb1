"""Every endpoint, by what it answers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.cache.http.service import ENVIRONMENT, LIMITS, NOW_S, PENDING, SPEC, Served, batch, call, lookup, record

WRITE = {"tool": "cancel_order", "arguments": {"order_id": "#W1"}, "environment": ENVIRONMENT}


async def stats(service: httpx.AsyncClient, namespace: str = "shop") -> dict[str, Any]:
    found: dict[str, Any] = (await service.get("/v1/stats", params={"namespace": namespace})).json()
    return found


# -- lookup and record -------------------------------------------------------------------------------------------------


async def test_what_is_recorded_is_looked_up_with_all_that_is_known_of_it(service: httpx.AsyncClient) -> None:
    (recorded,) = await record(service, call(result=PENDING))
    (answer,) = await lookup(service, call())
    assert recorded["outcome"] == "stored"
    assert answer == {
        "tier": "exact",
        "trust": 1.0,
        "reason": "recorded",
        "state": recorded["state_after"],
        "state_after": recorded["state_after"],
        "result": {"content": '{"status": "pending"}', "is_error": False, "took_s": 0.5},
        "donor": recorded["entry"],
    }


async def test_a_batch_is_answered_item_by_item(service: httpx.AsyncClient) -> None:
    done = await record(
        service,
        call(result=PENDING),
        call(result=PENDING),
        call(result={"content": "other"}),
        {**WRITE, "result": {"content": "done"}},
        {**call(result=PENDING), "tool": "teleport"},
    )
    assert [each["outcome"] for each in done] == ["stored", "known", "conflict", "stored", "refused"]
    assert "teleport" in done[4]["detail"]
    await record(service, call(result={"content": "gone"}, state=done[3]["state_after"]))
    answers = await lookup(service, call(), WRITE, call(follows=True), call("#W2"), call("#W1", tiers=[]))
    assert [each["reason"] for each in answers] == ["conflict", "recorded", "recorded", "not_recorded", "not_recorded"]
    assert [each["tier"] for each in answers] == ["exact", "exact", "exact", "miss", "miss"]
    assert answers[2]["result"]["content"] == "gone"
    assert answers[0]["trust"] == 2 / 3
    assert await lookup(service) == []


async def test_an_unknown_state_is_null_and_sending_it_back_is_refused(service: httpx.AsyncClient) -> None:
    """An empty string would ask for the initial state: a rollout would read the world from before its own write."""
    write, read = await lookup(service, WRITE, call(follows=True))
    assert write["state"] is not None
    assert "state_after" not in write
    assert (read["reason"], read.get("state"), read.get("state_after")) == ("state_unknown", None, None)
    for path, item in (
        ("/v1/lookup", call(state=None)),
        ("/v1/record", {**WRITE, "state": None, "result": {"content": "done"}}),
    ):
        refused = await service.post(path, json=batch(item))
        assert refused.status_code == 400
        assert "state" in refused.json()["detail"]


async def test_a_lookup_explains_itself_only_when_asked(service: httpx.AsyncClient) -> None:
    await record(service, call(result=PENDING))
    (plain,) = await lookup(service, call())
    assert "explanation" not in plain
    reply = await service.post("/v1/lookup", params={"explain": "1"}, json=batch(call(), call("#W2")))
    hit, miss = reply.json()["items"]
    assert {**plain, "lineage": 1.0, "explanation": hit["explanation"]} == hit
    assert hit["explanation"]["canonical"] == '{"order_id":"#W1"}'
    assert [each["donor"] for each in hit["explanation"]["candidates"]] == [hit["donor"]]
    assert miss["explanation"]["key"] != hit["explanation"]["key"]
    assert miss["explanation"]["steps"]


async def test_a_result_that_is_too_large_is_refused_alone_and_its_lease_passes_on(service: httpx.AsyncClient) -> None:
    (missed,) = await lookup(service, call("#W1"), on_miss="lease")
    large = {"content": "\N{EURO SIGN}" * (LIMITS.result_bytes // 3 + 1)}
    refused, stored = await record(
        service, call("#W1", result=large, lease=missed["lease"]), call("#W2", result={"content": "x" * 5_000})
    )
    assert (refused["outcome"], stored["outcome"]) == ("refused", "stored")
    assert "TOOLCACHE_MAX_RESULT_BYTES" in refused["detail"]
    (again,) = await lookup(service, call("#W1"), on_miss="lease")
    assert again["lease"] != missed["lease"]


async def test_a_request_that_is_named_and_sent_again_counts_nothing_twice(service: httpx.AsyncClient) -> None:
    async def seen_after(**named: str) -> int:
        await record(service, call(result=PENDING), **named)
        entries = (await service.get("/v1/entries", params={"namespace": "shop"})).json()["entries"]
        seen: int = entries[0]["seen"]
        return seen

    assert [await seen_after(request_id="a") for _ in range(2)] == [1, 1]
    assert [await seen_after(request_id="b"), await seen_after()] == [2, 3]


# -- leases ------------------------------------------------------------------------------------------------------------


async def test_a_lease_is_granted_once_extended_and_given_back(service: httpx.AsyncClient) -> None:
    first, second = await lookup(service, call("#W1"), call("#W1"), on_miss="lease")
    (other,) = await lookup(service, call("#W1"), on_miss="lease")
    assert first["lease"]
    assert "lease" not in second
    assert (other["reason"], other.get("lease")) == ("leased", None)

    async def held(extend_s: float) -> bool:
        body = {"namespace": "shop", "extend_s": extend_s}
        reply = await service.post(f"/v1/leases/{first['lease']}", json=body)
        assert reply.status_code == 200
        is_held: bool = reply.json()["held"]
        return is_held

    assert [await held(60.0), await held(0.0), await held(60.0)] == [True, True, False]
    (next_one,) = await lookup(service, call("#W1"), on_miss="lease")
    assert next_one["lease"] not in (None, first["lease"])


async def test_who_waits_for_a_leased_call_gets_the_result_its_holder_records(service: httpx.AsyncClient) -> None:
    import asyncio

    (missed,) = await lookup(service, call(), on_miss="lease")
    waiting = asyncio.create_task(lookup(service, call(), on_miss="wait", wait_s=30.0))
    done = await record(service, call(result=PENDING, lease=missed["lease"]))
    (answer,) = await waiting
    assert (answer["tier"], answer["donor"]) == ("exact", done[0]["entry"])


# -- namespaces --------------------------------------------------------------------------------------------------------

FULL_SPEC = {
    "tools": [
        {
            "name": "find",
            "description": "d",
            "effect": "pure",
            "parameters": {"type": "object", "properties": {"q": {"type": "string"}, "id": {"type": "string"}}},
            "arguments": {"q": "free_text"},
            "errors_change_state": True,
            "ttl_s": 60.0,
            "samples": 4,
            "masks": [{"argument": "id", "pattern": ""}, {"argument": "q", "pattern": "\\d+"}],
            "simulate_writes": True,
            "similar_floor": 0.95,
        }
    ],
    "tiers": ["exact", "approximate"],
    "similar_threshold": 0.7,
    "max_bytes": 2**40 + 1,
    "shadow_share": 0.25,
}


async def test_namespaces_are_put_got_and_listed(service: httpx.AsyncClient) -> None:
    assert (await service.put("/v1/namespaces/a.b-c_1", json=FULL_SPEC)).content == b""
    assert (await service.get("/v1/namespaces/a.b-c_1")).json() == FULL_SPEC
    assert (await service.get("/v1/namespaces")).json() == {"namespaces": ["a.b-c_1", "shop"]}


async def test_replacing_a_namespace_keeps_its_entries(service: httpx.AsyncClient) -> None:
    await record(service, call(result=PENDING))
    spec = (await service.get("/v1/namespaces/shop")).json()
    await service.put("/v1/namespaces/shop", json={**spec, "similar_threshold": 0.9})
    assert [each["tier"] for each in await lookup(service, call())] == ["exact"]


async def test_a_deleted_namespace_takes_its_entries_along(service: httpx.AsyncClient) -> None:
    await record(service, call("#W1", result=PENDING), call("#W2", result=PENDING))
    assert (await service.delete("/v1/namespaces/shop")).json() == {"removed": 2}
    assert (await service.post("/v1/lookup", json=batch(call()))).status_code == 404
    assert (await service.delete("/v1/namespaces/shop")).status_code == 404
    await service.put("/v1/namespaces/shop", json=SPEC)
    assert [each["tier"] for each in await lookup(service, call())] == ["miss"]


async def test_an_unannotated_tool_is_a_write(service: httpx.AsyncClient) -> None:
    await service.put("/v1/namespaces/plain", json={"tools": [{"name": "find"}]})
    assert (await service.get("/v1/namespaces/plain")).json()["tools"][0]["effect"] == "write"


# -- stats and calibration ---------------------------------------------------------------------------------------------


async def test_stats_count_entries_answers_and_saved_seconds(service: httpx.AsyncClient) -> None:
    await record(service, call(result=PENDING), call("#W2", result=PENDING), call("#W2", result={"content": "x"}))
    await lookup(service, call(), call(), call("#W9"))
    told = await stats(service)
    assert (told["entries"], told["environments"], told["seconds_saved"]) == (3, 1, 1.0)
    assert told["answers"] == {"exact": 2, "similar": 0, "approximate": 0, "miss": 1}
    assert told["size_bytes"] > 3 * len('{"order_id":"#W1"}')
    orders = {tool["name"]: tool for tool in told["tools"]}["get_order"]
    assert (orders["entries"], orders["conflicts"], orders["effect"]) == (3, 1, "read")
    assert orders["trust"] == {"recorded": 1.0}


async def test_calibrating_tells_the_evidence_behind_the_trust(service: httpx.AsyncClient) -> None:
    await record(service, call("#W2", result=PENDING), call("#W2", result={"content": "x"}))
    calibrated = (await service.post("/v1/calibrate", params={"namespace": "shop"})).json()
    orders = {tool["name"]: tool for tool in calibrated["tools"]}["get_order"]
    # #W2 was repeated once, with another result: (0 + 1) / (1 + 2).
    assert orders["evidence"]["recorded"] == {"right": 0, "compared": 1, "proven": 0.0}
    assert orders["trust"]["recorded"] == 1 / 3


# -- import and export -------------------------------------------------------------------------------------------------


def line(order: str, content: str = "pending", **more: Any) -> dict[str, Any]:
    function = {"name": "get_order", "arguments": json.dumps({"order_id": order})}
    return {
        "domain": "shop",
        "environment": ENVIRONMENT,
        "messages": [
            {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": "1", "content": content},
        ],
        **more,
    }


async def test_an_import_stores_every_whole_line_and_counts_the_rest(service: httpx.AsyncClient) -> None:
    lines = [json.dumps(line(f"#W{n}")).encode() for n in range(40)]
    poison = json.dumps({**line("#P", "\ud800"), "uid": "\ud800"}).encode()
    tool_calls = json.dumps({**line("#Q"), "messages": [{"role": "assistant", "tool_calls": 7}]}).encode()
    body = b"\n".join([*lines[:20], b"", poison, tool_calls, b"\xff", *lines[20:], lines[0][: len(lines[0]) // 2]])
    report = (await service.post("/v1/import", content=body)).json()
    assert (report["trajectories"], report["calls"]) == (41, 41)
    assert report["outcomes"] == {"stored": 40}
    assert report["rejected"] == {"invalid_line": 3, "refused": 1}
    assert [reject["line"] for reject in report["rejects"]] == [22, 23, 24, 45]
    assert "cut off" in report["rejects"][3]["detail"]
    assert report["namespaces"] == ["shop"]
    assert [each["tier"] for each in await lookup(service, call("#W0"), call("#W39"))] == ["exact", "exact"]


async def test_an_import_can_name_the_namespace(service: httpx.AsyncClient) -> None:
    body = json.dumps(line("#W1", domain="elsewhere")).encode()
    assert (await service.post("/v1/import", content=body)).json()["rejected"] == {"unknown_namespace": 1}
    named = (await service.post("/v1/import", params={"namespace": "shop"}, content=body)).json()
    assert named["outcomes"] == {"stored": 1}


async def test_an_empty_import_is_no_error(service: httpx.AsyncClient) -> None:
    report = (await service.post("/v1/import", content=b"\n \n")).json()
    assert (report["trajectories"], report["rejected"]) == (0, {})


async def test_an_imported_result_that_is_too_large_is_refused_alone(service: httpx.AsyncClient) -> None:
    large = "x" * (LIMITS.result_bytes + 1)
    body = "\n".join(json.dumps(line(order, content)) for order, content in (("#W1", large), ("#W2", "fits")))
    report = (await service.post("/v1/import", content=body.encode())).json()
    assert (report["outcomes"], report["rejected"]) == ({"stored": 1}, {"refused": 1})


async def test_an_export_imported_elsewhere_gives_the_same_answers(service: httpx.AsyncClient) -> None:
    """More lines than are imported at once: those after the first need the namespace that it makes."""
    asked = [call(f"#W{n}") for n in range(45)]
    await record(service, *(each | {"result": PENDING, "tags": ["t"]} for each in asked))
    exported = await service.get("/v1/export", params={"namespace": "shop"})
    assert exported.headers["content-type"] == "application/x-ndjson"
    assert exported.text.count("\n") == 46
    into = await service.post("/v1/import", params={"namespace": "copy"}, content=exported.content)
    assert into.json()["outcomes"] == {"stored": 45}
    assert (await service.get("/v1/namespaces/copy")).json() == (await service.get("/v1/namespaces/shop")).json()
    replies = [
        (await service.post("/v1/lookup", json={"namespace": name, "items": asked})).json() for name in ("shop", "copy")
    ]
    assert replies[0] == replies[1]
    again = await service.post("/v1/import", params={"namespace": "copy"}, content=exported.content)
    assert again.json()["outcomes"] == {"known": 45}
    assert (await stats(service, "copy"))["entries"] == 45


# -- entries -----------------------------------------------------------------------------------------------------------


async def test_entries_are_browsed_page_by_page(service: httpx.AsyncClient) -> None:
    await record(service, *(call(f"#W{n}", result=PENDING, tags=["t"]) for n in range(3)))
    await record(service, {**WRITE, "result": {"content": "done"}})

    async def page(**asked: Any) -> tuple[list[str], int | None]:
        reply = (await service.get("/v1/entries", params={"namespace": "shop", **asked})).json()
        return [entry["arguments"]["order_id"] for entry in reply["entries"]], reply["next_after"]

    first, after = await page(limit=2, tool="get_order")
    assert first == ["#W0", "#W1"]
    assert await page(limit=2, tool="get_order", after=after) == (["#W2"], None)
    assert (await page())[0] == ["#W0", "#W1", "#W2", "#W1"]
    (entry, *_) = (await service.get("/v1/entries", params={"namespace": "shop"})).json()["entries"]
    assert entry | {"id": "", "order": 0} == {
        "id": "",
        "order": 0,
        "tool": "get_order",
        "arguments": {"order_id": "#W0"},
        "environment": ENVIRONMENT,
        "result": {"content": '{"status": "pending"}', "is_error": False, "took_s": 0.5},
        "recorded_at_s": NOW_S,
        "seen": 1,
        "expires_at_s": 0.0,
        "tags": ["t"],
    }


@pytest.mark.parametrize(
    ("which", "left"),
    [
        ({"tool": "get_order"}, ["cancel"]),
        ({"tag": "b"}, ["#W1", "cancel"]),
        ({"environment": "shop@2"}, ["#W1", "#W2", "cancel"]),
        ({"tool": "get_order", "tag": "a"}, ["#W2", "cancel"]),
        ({"older_than_s": "0"}, ["#W1", "#W2", "cancel"]),
        ({"all": "1"}, []),
        ({"all": "true"}, []),
    ],
)
async def test_entries_are_removed_by_what_all_of_them_have(
    service: httpx.AsyncClient, which: dict[str, str], left: list[str]
) -> None:
    await record(service, call("#W1", result=PENDING, tags=["a"]), call("#W2", result=PENDING, tags=["b"]))
    cancel = {**WRITE, "arguments": {"order_id": "cancel"}, "environment": ENVIRONMENT}
    await record(service, {**cancel, "result": {"content": "done"}})
    before = {"#W1", "#W2", "cancel"}
    removed = (await service.delete("/v1/entries", params={"namespace": "shop", **which})).json()["removed"]
    entries = (await service.get("/v1/entries", params={"namespace": "shop"})).json()["entries"]
    assert [entry["arguments"]["order_id"] for entry in entries] == left
    assert removed == len(before) - len(left)


@pytest.mark.parametrize(
    "which", [{}, {"all": "0"}, {"all": "1", "tool": "get_order"}, {"tool": ""}, {"tol": "get_order", "tag": "a"}]
)
async def test_nothing_is_removed_where_it_is_not_clear_what(service: httpx.AsyncClient, which: dict[str, str]) -> None:
    await record(service, call(result=PENDING, tags=["a"]))
    refused = await service.delete("/v1/entries", params={"namespace": "shop", **which})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_parameter")
    assert (await stats(service))["entries"] == 1


# -- the service itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "status"), [("/healthz", "ok"), ("/readyz", "ready")])
async def test_health_and_readiness(service: httpx.AsyncClient, path: str, status: str) -> None:
    assert (await service.get(path)).json() == {"status": status}
    assert (await service.get(path, params={"probe": "1"})).status_code == 200


async def test_the_docs_are_there(service: httpx.AsyncClient) -> None:
    assert "/openapi.json" in (await service.get("/docs")).text


def test_a_get_can_be_asked_for_its_headers_alone(url: str) -> None:
    reply = httpx.head(f"{url}/v1/namespaces")
    assert (reply.status_code, reply.content) == (200, b"")


async def test_large_integers_travel_unharmed(service: httpx.AsyncClient) -> None:
    def item(text: str, **more: Any) -> str:
        return json.dumps({**call(**more), "arguments": {"order_id": "ID"}}).replace('"ID"', text)

    async def post(path: str, item: str) -> dict[str, Any]:
        body = '{"namespace": "shop", "items": [' + item + "]}"
        answer: dict[str, Any] = (await service.post(path, content=body)).json()["items"][0]
        return answer

    for digits in ("123456789012345678901234567890", "9007199254740993", "-9223372036854775809"):
        await post("/v1/record", item(digits, result=PENDING))
        assert (await post("/v1/lookup", item(digits)))["tier"] == "exact"
        assert (await post("/v1/lookup", item(digits[:-1] + "1")))["tier"] == "miss"
    entries = (await service.get("/v1/entries", params={"namespace": "shop"})).json()["entries"]
    assert [entry["arguments"]["order_id"] for entry in entries] == [
        123456789012345678901234567890,
        9007199254740993,
        -9223372036854775809,
    ]


def test_a_real_server_records_imports_exports_and_answers(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        recorded = client.post("/v1/record", json=batch(call(result=PENDING))).json()["items"]
        answer = client.post("/v1/lookup", json=batch(call())).json()["items"][0]
        assert (recorded[0]["entry"], answer["result"]["content"]) == (answer["donor"], PENDING["content"])

        def chunks() -> Any:
            """A line cut in two by the transport, then a last one without its end."""
            text = (json.dumps(line("#W2")) + "\n").encode()
            yield text[:50]
            yield text[50:] + json.dumps(line("#W3")).encode()

        assert client.post("/v1/import", content=chunks()).json()["outcomes"] == {"stored": 2}
        assert client.get("/v1/export", params={"namespace": "shop"}).text.count("\n") == 4
        assert client.get("/healthz").status_code == 200


async def test_the_cache_is_closed_with_the_service(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("start", "close"):

        async def noted(name: str = name) -> None:
            calls.append(name)

        monkeypatch.setattr(served.cache, name, noted)
    async with served.app.router.lifespan_context(served.app):
        assert calls == ["start"]
    assert calls == ["start", "close"]
