"""Events: one JSON object each, with what helps, and never an argument, a result or a key."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.cache.http.service import PENDING, Served, batch, call, client_of, made, record
from toolcache import telemetry
from toolcache.core.access import hash_of
from toolcache.core.ports import StoreUnavailable
from toolcache.core.quick import QuickAnswers
from toolcache.http.keyring import Keyring

Events = list[dict[str, Any]]


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.events: Events = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append(json.loads(record.getMessage()))


@pytest.fixture
def events() -> Iterator[Events]:
    """What is told while the test runs."""
    logger, kept = logging.getLogger("toolcache.events"), _Kept()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(kept)
    telemetry._told_at.clear()
    yield kept.events
    logger.removeHandler(kept)
    logger.setLevel(level)


def fails(served: Served, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def failing(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(served.cache, "lookup_quickly", failing)


async def test_a_failure_is_told_with_all_that_helps_to_find_it(
    served: Served, service: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    fails(served, monkeypatch, StoreUnavailable("redis redis://me:hunter2@h/0: no answer"))
    await service.post("/v1/lookup", json=batch(call("#SECRET"), call(), job="run-7"))
    (told,) = events
    assert told | {"at": ""} == {
        "at": "",
        "event": "failed",
        "route": "POST /v1/lookup",
        "untold": 0,
        "namespace": "shop",
        "job": "run-7",
        "items": 2,
        "code": "store_unavailable",
        "detail": "redis redis://h/0: no answer",
    }


async def test_a_defect_is_told_by_its_kind_and_place_without_its_words(
    served: Served, service: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    fails(served, monkeypatch, KeyError("#SECRET"))
    await service.post("/v1/lookup", json=batch(call("#SECRET")))
    (told,) = events
    assert (told["code"], told["error"]) == ("internal", "KeyError")
    assert any(frame.startswith("endpoints.py:") and frame.endswith(" lookup") for frame in told["trace"])
    assert "SECRET" not in json.dumps(told)


async def test_an_outage_is_told_once_a_second_not_with_every_request(
    served: Served, service: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("toolcache.telemetry.time.monotonic", lambda: now_s[0])
    fails(served, monkeypatch, StoreUnavailable("away"))
    for _ in range(50):
        await service.post("/v1/lookup", json=batch(call()))
    now_s[0] += telemetry.PAUSE_S
    await service.post("/v1/lookup", json=batch(call()))
    assert [event["untold"] for event in events] == [0, 49]


@pytest.mark.parametrize("waited_s", [0.0, 1_000.0])
async def test_a_slow_request_is_told_but_not_one_that_waited_for_others(
    monkeypatch: pytest.MonkeyPatch, events: Events, waited_s: float
) -> None:
    monkeypatch.setattr("toolcache.http.operation.SLOW_S", 0.0)
    served = made()

    async def waiting(*_: Any, **__: Any) -> QuickAnswers:
        for exchange in served.traffic._exchanges.values():
            exchange.waited_s = waited_s
        return QuickAnswers(items=[])

    monkeypatch.setattr(served.cache, "lookup_quickly", waiting)
    async with client_of(served) as client:
        await client.post("/v1/lookup", json=batch(job="run-7"))
    told = [(event["event"], event["route"], event["namespace"], event["job"]) for event in events]
    assert told == ([] if waited_s else [("slow", "POST /v1/lookup", "shop", "run-7")])


async def test_nothing_is_told_of_requests_that_go_well_or_are_refused(
    service: httpx.AsyncClient, events: Events
) -> None:
    await record(service, call(result=PENDING))
    await service.post("/v1/lookup", content=b"{")
    await service.get("/v1/stats", params={"namespace": "none"})
    assert events == []


async def test_what_changes_or_removes_much_is_told_and_no_key_is(events: Events) -> None:
    served = made()
    keyring = Keyring(served.store, admin_key_hash=hash_of("correct horse battery staple"))
    guarded = made(served.store, keyring=keyring)
    async with client_of(guarded, headers={"authorization": "Bearer correct horse battery staple"}) as client:
        await client.put("/v1/namespaces/shop", json={"tools": []})
        key = (await client.post("/v1/keys", json={"name": "k", "role": "read", "namespaces": ["*"]})).json()
        await client.delete(f"/v1/keys/{key['id']}")
        await client.post("/v1/import", content=b"")
        await client.delete("/v1/entries", params={"namespace": "shop", "all": "1"})
        await client.delete("/v1/namespaces/shop")
    told = [event["event"] for event in events]
    assert told == ["key_made", "key_revoked", "imported", "removed", "namespace_deleted"]
    assert key["secret"] not in json.dumps(events)
    assert "horse" not in json.dumps(events)


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("uvicorn.error", "it broke", "it broke"),
        (
            "asyncio",
            "Task exception was never retrieved\nfuture: ValueError('#SECRET')",
            "Task exception was never retrieved",
        ),
    ],
)
def test_what_the_web_server_and_the_event_loop_say_are_events_too(
    events: Events, name: str, words: str, told: str
) -> None:
    try:
        raise ValueError("#SECRET")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
        said = logging.LogRecord(name, logging.ERROR, __file__, 1, "%s", (words,), info)
    telemetry._AsEvents().emit(said)
    assert (events[0]["event"], events[0]["level"]) == ("server", "error")
    assert (events[0]["message"], events[0]["error"]) == (told, "ValueError")
    assert "SECRET" not in json.dumps(events)
