"""No more requests in work than there may be, waiting ones apart; and none for a client that has gone away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.cache.http.service import PENDING, SPEC, Served, batch, call, client_of, lookup, made, record
from toolcache.core.ports import StoreUnavailable
from toolcache.http.traffic import LONGEST_PAUSE_S
from toolcache.settings import Limits

SMALL = Limits(in_flight=2, waiting=1)
LINE = b'{"domain": "shop"}\n'


async def until(is_so: Callable[[], bool]) -> None:
    """Let the others work until it is so."""
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110  what is waited for is nobody's to tell
            await asyncio.sleep(0)


def too_busy(reply: httpx.Response) -> bool:
    is_refused = reply.status_code == 429
    if is_refused:
        assert (reply.json()["code"], reply.headers["retry-after"]) == ("too_busy", "1")
    return is_refused


async def test_beyond_the_limit_requests_are_refused_until_others_have_ended() -> None:
    served, go_on = made(limits=SMALL), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield LINE
        await go_on.wait()

    async with client_of(served) as client:
        importing = [asyncio.create_task(client.post("/v1/import", content=slow())) for _ in range(SMALL.in_flight)]
        await until(lambda: served.traffic.in_flight == SMALL.in_flight)
        assert too_busy(await client.get("/v1/namespaces"))
        assert too_busy(await client.post("/v1/lookup", json=batch()))
        assert [(await client.get(path)).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3
        go_on.set()
        assert [(await each).status_code for each in importing] == [200, 200]
        assert (await client.get("/v1/namespaces")).status_code == 200
    assert served.traffic.in_flight == 0


async def test_who_waits_for_a_lease_makes_room_up_to_a_limit_of_its_own() -> None:
    served = made(limits=Limits(in_flight=1, waiting=1))
    async with client_of(served) as client:
        await client.put("/v1/namespaces/shop", json=SPEC)
        (missed,) = await lookup(client, call(), on_miss="lease")
        waiting = asyncio.create_task(lookup(client, call(), on_miss="lease", wait_s=60.0))
        await until(lambda: served.traffic.waiting == 1)
        assert served.traffic.in_flight == 0
        assert too_busy(await client.post("/v1/lookup", json=batch(call(), on_miss="wait", wait_s=60.0)))
        (hit_less,) = await lookup(client, call("#W2"))  # one that need not wait is answered
        assert hit_less["tier"] == "miss"
        await record(client, call(result=PENDING, lease=missed["lease"]))
        assert [each["tier"] for each in await waiting] == ["exact"]
    assert (served.traffic.waiting, served.traffic.in_flight) == (0, 0)


class Connection:
    """One request to an ASGI application, with everything that happens on its wire under control."""

    def __init__(self, method: str, path: str, query: str = "") -> None:
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [],
            "root_path": "",
        }
        self._arriving: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.takes = 10**6
        """Messages that the client reads; whoever sends more waits."""

    def arrives(self, body: bytes, *, more: bool = False) -> Connection:
        self._arriving.put_nowait({"type": "http.request", "body": body, "more_body": more})
        return self

    def is_cut(self) -> Connection:
        self._arriving.put_nowait({"type": "http.disconnect"})
        return self

    async def send(self, message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        while len(self.sent) == self.takes:  # noqa: ASYNC110  what is waited for is nobody's to tell
            await asyncio.sleep(0)
        self.sent.append(message)

    async def asks(self, served: Served) -> None:
        await served.app(self.scope, self._arriving.get, self.send)


def statuses(served: Served) -> dict[tuple[str, str], int]:
    """How many requests there were, by route and class of status."""
    return {
        (sample.labels["route"], sample.labels["status"]): int(sample.value)
        for family in served.metrics.collect()
        for sample in family.samples
        if sample.name == "toolcache_request_seconds_count"
    }


async def test_a_client_that_leaves_while_it_waits_is_waited_for_by_nobody(
    served: Served, service: httpx.AsyncClient
) -> None:
    await lookup(service, call(), on_miss="lease")
    body = json.dumps(batch(call(), on_miss="wait", wait_s=3600.0)).encode()
    connection = Connection("POST", "/v1/lookup").arrives(body)
    asking = asyncio.create_task(connection.asks(served))
    await until(lambda: served.traffic.waiting == 1)
    connection.is_cut()
    await asyncio.wait_for(asking, 10)
    assert connection.sent == []
    assert (served.traffic.waiting, served.traffic.in_flight) == (0, 0)
    assert statuses(served)["POST /v1/lookup", "gone"] == 1


def test_a_real_server_notices_a_client_that_leaves_while_it_waits(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        client.post("/v1/lookup", json=batch(call(), on_miss="lease"))
        with httpx.Client(base_url=url, timeout=0.2) as leaver, pytest.raises(httpx.ReadTimeout):
            leaver.post("/v1/lookup", json=batch(call(), on_miss="wait", wait_s=3600.0))
        while "toolcache_requests_waiting 0.0" not in client.get("/metrics").text:
            pass
        assert 'route="POST /v1/lookup",status="gone"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/v1/lookup", "/v1/record", "/v1/import"])
async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind(
    served: Served, service: httpx.AsyncClient, path: str
) -> None:
    whole = json.dumps(batch(call(result=PENDING))).encode()
    connection = Connection("POST", path).arrives(whole, more=True).is_cut()
    await connection.asks(served)
    assert connection.sent == []
    assert served.traffic.in_flight == 0
    assert (await service.get("/v1/stats", params={"namespace": "shop"})).json()["entries"] == 0


async def test_a_body_that_stops_arriving_is_refused_and_makes_room(served: Served, service: httpx.AsyncClient) -> None:
    connection = Connection("POST", "/v1/record").arrives(b"{", more=True)
    asking = asyncio.create_task(connection.asks(served))
    await until(lambda: served.traffic.in_flight == 1 and len(asyncio.all_tasks()) > 1)
    await asyncio.sleep(0)
    served.traffic.end_stalled(time.monotonic() + LONGEST_PAUSE_S - 1.0)
    await asyncio.sleep(0)
    assert not asking.done()
    served.traffic.end_stalled(time.monotonic() + LONGEST_PAUSE_S + 1.0)
    await asyncio.wait_for(asking, 10)
    assert asking.cancelling() == 0
    assert (connection.sent[0]["status"], json.loads(connection.sent[1]["body"])["code"]) == (408, "body_stalled")
    assert served.traffic.in_flight == 0


async def test_work_that_is_slow_for_another_reason_is_not_taken_for_a_stalled_body(
    served: Served, service: httpx.AsyncClient
) -> None:
    (missed,) = await lookup(service, call(), on_miss="lease")
    waiting = asyncio.create_task(lookup(service, call(), on_miss="wait", wait_s=60.0))
    await until(lambda: served.traffic.waiting == 1)
    served.traffic.end_stalled(time.monotonic() + 2 * LONGEST_PAUSE_S)
    await record(service, call(result=PENDING, lease=missed["lease"]))
    assert (await waiting)[0]["tier"] == "exact"


async def test_an_export_ends_when_its_reader_leaves(
    served: Served, service: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_closed = asyncio.Event()

    async def endless(_: str) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 70_000
        finally:
            is_closed.set()

    monkeypatch.setattr(served.cache, "export", endless)
    connection = Connection("GET", "/v1/export", "namespace=shop")
    asking = asyncio.create_task(connection.asks(served))
    await until(lambda: len(connection.sent) > 3)
    connection.is_cut()
    await asyncio.wait_for(asking, 10)
    assert is_closed.is_set()
    assert statuses(served)["GET /v1/export", "gone"] == 1


async def test_an_export_that_nobody_reads_makes_room_and_one_that_is_read_goes_on(
    served: Served, service: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def long(_: str) -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b"x" * 70_000

    monkeypatch.setattr(served.cache, "export", long)
    connection = Connection("GET", "/v1/export", "namespace=shop")
    connection.takes = 3
    asking = asyncio.create_task(connection.asks(served))
    await until(lambda: len(connection.sent) == 3)
    served.traffic.end_stalled(time.monotonic() + LONGEST_PAUSE_S - 1.0)
    connection.takes = 4
    await until(lambda: len(connection.sent) == 4)
    assert not asking.done()
    served.traffic.end_stalled(time.monotonic() + LONGEST_PAUSE_S + 1.0)
    await asyncio.wait_for(asking, 10)
    assert served.traffic.in_flight == 0
    assert connection.sent[-1]["more_body"]
    assert statuses(served)["GET /v1/export", "gone"] == 1


async def test_who_waits_is_told_at_once_when_the_service_is_going_down(
    served: Served, service: httpx.AsyncClient
) -> None:
    await lookup(service, call(), on_miss="lease")
    body = batch(call(), on_miss="wait", wait_s=3600.0)
    waiting = asyncio.create_task(service.post("/v1/lookup", json=body))
    await until(lambda: served.traffic.waiting == 1)
    served.traffic.stop()
    replies = [await asyncio.wait_for(waiting, 10), await asyncio.wait_for(service.post("/v1/lookup", json=body), 10)]
    assert [(each.status_code, each.json()["code"]) for each in replies] == [(503, "stopping")] * 2
    assert (served.traffic.waiting, served.traffic.in_flight) == (0, 0)
    assert (await service.get("/v1/stats", params={"namespace": "shop"})).status_code == 200


async def test_an_export_that_breaks_off_does_not_look_whole(
    served: Served, service: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaking(_: str) -> AsyncIterator[bytes]:
        yield b"x" * 70_000
        raise StoreUnavailable("the disk went away")

    monkeypatch.setattr(served.cache, "export", breaking)
    connection = Connection("GET", "/v1/export", "namespace=shop")
    with pytest.raises(StoreUnavailable):
        await connection.asks(served)
    assert [message.get("more_body") for message in connection.sent] == [None, True]
    assert served.traffic.in_flight == 0


async def test_a_server_that_is_stopped_takes_its_requests_along(served: Served, service: httpx.AsyncClient) -> None:
    connection = Connection("POST", "/v1/record").arrives(b"{", more=True)
    asking = asyncio.create_task(connection.asks(served))
    await until(lambda: served.traffic.in_flight == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert connection.sent == []
    assert served.traffic.in_flight == 0
