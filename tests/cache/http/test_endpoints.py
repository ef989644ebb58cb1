"""Every endpoint, by what it answers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

E = {"environment": "shop@1"}
PENDING = {"content": '{"status": "pending"}', "took_s": 0.5}


def call(order: str = "#W1", **more: Any) -> dict[str, Any]:
    return {"tool": "get_order", "arguments": {"order_id": order}, **E, **more}


async def lookup(service: httpx.AsyncClient, *items: dict[str, Any]) -> list[dict[str, Any]]:
    reply = await service.post("/v1/lookup", json={"namespace": "shop", "items": items})
    assert reply.status_code == 200, reply.text
    return reply.json()["items"]


async def record(service: httpx.AsyncClient, *items: dict[str, Any]) -> list[dict[str, Any]]:
    reply = await service.post("/v1/record", json={"namespace": "shop", "items": items})
    assert reply.status_code == 200, reply.text
    return reply.json()["items"]


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
        "score": None,
        "adapted": False,
        "detail": "",
    }


async def test_a_batch_is_answered_item_by_item(service: httpx.AsyncClient) -> None:
    write = {"tool": "cancel_order", "arguments": {"order_id": "#W1"}, **E}
    done = await record(
        service,
        call(result=PENDING),
        call(result=PENDING),
        call(result={"content": "other"}),
        {**write, "result": {"content": "done"}},
        {**call(result=PENDING), "tool": "teleport"},
    )
    assert [each["outcome"] for each in done] == ["stored", "known", "conflict", "stored", "refused"]
    assert "teleport" in done[4]["detail"]
    await record(service, call(result={"content": "gone"}, state=done[3]["state_after"]))
    answers = await lookup(service, call(), write, call(follows=True), call("#W2"), call("#W1", tiers=[]))
    assert [each["reason"] for each in answers] == ["conflict", "recorded", "recorded", "not_recorded", "not_recorded"]
    assert [each["tier"] for each in answers] == ["exact", "exact", "exact", "miss", "miss"]
    assert answers[2]["result"]["content"] == "gone"
    assert answers[0]["trust"] == 2 / 3
    assert await lookup(service) == []


async def test_large_integers_travel_unharmed(service: httpx.AsyncClient) -> None:
    def item(text: str, **more: Any) -> str:
        return json.dumps({**call(**more), "arguments": {"order_id": "ID"}}).replace('"ID"', text)

    async def post(path: str, item: str) -> dict[str, Any]:
        body = '{"namespace": "shop", "items": [' + item + "]}"
        return (await service.post(path, content=body)).json()["items"][0]

    digits = "123456789012345678901234567890"
    await post("/v1/record", item(digits, result=PENDING))
    assert (await post("/v1/lookup", item(digits)))["tier"] == "exact"
    assert (await post("/v1/lookup", item(digits[:-1] + "1")))["tier"] == "miss"


async def test_namespaces_are_put_got_and_listed(service: httpx.AsyncClient) -> None:
    spec = {
        "tools": [
            {
                "name": "find",
                "description": "d",
                "effect": "pure",
                "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
                "arguments": {"q": "free_text"},
                "errors_change_state": True,
            }
        ],
        "tiers": ["exact", "approximate"],
        "similar_threshold": 0.7,
    }
    assert (await service.put("/v1/namespaces/a.b-c_1", json=spec)).content == b""
    assert (await service.get("/v1/namespaces/a.b-c_1")).json() == spec
    assert (await service.get("/v1/namespaces")).json() == {"namespaces": ["a.b-c_1", "shop"]}


async def test_replacing_a_namespace_keeps_its_entries(service: httpx.AsyncClient) -> None:
    await record(service, call(result=PENDING))
    spec = (await service.get("/v1/namespaces/shop")).json()
    await service.put("/v1/namespaces/shop", json={**spec, "similar_threshold": 0.9})
    assert [each["tier"] for each in await lookup(service, call())] == ["exact"]


async def test_an_unannotated_tool_is_a_write(service: httpx.AsyncClient) -> None:
    await service.put("/v1/namespaces/plain", json={"tools": [{"name": "find"}]})
    assert (await service.get("/v1/namespaces/plain")).json()["tools"][0]["effect"] == "write"


async def test_stats_count_entries_answers_and_saved_seconds(service: httpx.AsyncClient) -> None:
    await record(service, call(result=PENDING), call("#W2", result=PENDING), call("#W2", result={"content": "x"}))
    await lookup(service, call(), call(), call("#W9"))
    stats = (await service.get("/v1/stats", params={"namespace": "shop"})).json()
    assert (stats["entries"], stats["environments"], stats["seconds_saved"]) == (3, 1, 1.0)
    assert stats["answers"] == {"exact": 2, "similar": 0, "approximate": 0, "miss": 1}
    orders = {tool["name"]: tool for tool in stats["tools"]}["get_order"]
    assert (orders["entries"], orders["conflicts"], orders["effect"]) == (3, 1, "read")
    assert orders["trust"]["recorded"] == 1.0
    calibrated = (await service.post("/v1/calibrate", params={"namespace": "shop"})).json()
    # #W2 was repeated once, with another result: (0 + 1) / (1 + 2).
    orders = {tool["name"]: tool for tool in calibrated["tools"]}["get_order"]
    assert orders["trust"] == {
        "recorded": 1 / 3,
        "free_text": 0.5,
        "irrelevant": 0.5,
        "other_state": 0.2,
        "nearest": 0.2,
    }


def line(order: str, content: str = "pending", **more: Any) -> dict[str, Any]:
    function = {"name": "get_order", "arguments": json.dumps({"order_id": order})}
    return {
        "domain": "shop",
        **E,
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


@pytest.mark.parametrize(("path", "status"), [("/healthz", "ok"), ("/readyz", "ready")])
async def test_health_and_readiness(service: httpx.AsyncClient, path: str, status: str) -> None:
    assert (await service.get(path)).json() == {"status": status}


async def test_the_openapi_document_describes_every_endpoint_and_refers_to_nothing_missing(
    service: httpx.AsyncClient,
) -> None:
    document = (await service.get("/openapi.json")).json()
    assert set(document["paths"]) >= {
        "/v1/lookup",
        "/v1/record",
        "/v1/import",
        "/v1/namespaces",
        "/v1/namespaces/{name}",
        "/v1/calibrate",
        "/v1/stats",
        "/healthz",
        "/readyz",
    }
    text = json.dumps(document)
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(document["components"]["schemas"])
    assert {"LookupRequest", "Answer", "Problem", "NamespaceSpec"} <= named
    assert document["components"]["schemas"]["LookupItem"]["required"] == ["tool", "arguments", "environment"]
    assert (await service.get("/docs")).status_code == 200


def test_a_real_server_records_imports_and_answers(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        item = call(result=PENDING)
        recorded = client.post("/v1/record", json={"namespace": "shop", "items": [item]}).json()["items"]
        answer = client.post("/v1/lookup", json={"namespace": "shop", "items": [call()]}).json()["items"][0]
        assert (recorded[0]["entry"], answer["result"]["content"]) == (answer["donor"], PENDING["content"])

        def chunks() -> Any:
            """A line cut in two by the transport, then a last one without its end."""
            text = (json.dumps(line("#W2")) + "\n").encode()
            yield text[:50]
            yield text[50:] + json.dumps(line("#W3")).encode()

        assert client.post("/v1/import", content=chunks()).json()["outcomes"] == {"stored": 2}
        assert client.get("/healthz").status_code == 200


async def test_an_unknown_state_is_null_and_sending_it_back_is_refused(service: httpx.AsyncClient) -> None:
    """An empty string would ask for the initial state: a rollout would read the world from before its own write."""
    missed_write = {"tool": "cancel_order", "arguments": {"order_id": "1"}, "environment": "v1"}
    after = {"tool": "get_order", "arguments": {"order_id": "1"}, "environment": "v1", "follows": True}
    body = {"namespace": "shop", "items": [missed_write, after]}
    write, read = (await service.post("/v1/lookup", json=body)).json()["items"]
    assert write["state"] is not None
    assert write["state_after"] is None
    assert (read["reason"], read["state"], read["state_after"]) == ("state_unknown", None, None)

    for path, item in (
        ("/v1/lookup", after | {"state": None, "follows": False}),
        ("/v1/record", missed_write | {"state": None, "result": {"content": "done"}}),
    ):
        refused = await service.post(path, json={"namespace": "shop", "items": [item]})
        assert refused.status_code == 400
        assert "state" in refused.json()["detail"]
