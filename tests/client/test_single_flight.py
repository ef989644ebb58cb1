"""The SDK against the real service, over real connections: of all who miss a call at once, one executes it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cache.http.service import made, serving
from toolcache.adapters.memory_leases import MemoryLeases
from toolcache.settings import Limits
from toolcache_client import AsyncCacheClient, CacheClient, CacheRefused, Resolved
from toolcache_client.messages import LookupItem, NamespaceSpec, RecordItem, ToolResult, ToolSpec

CALLERS = 64
ITEM = LookupItem(tool="get_order", arguments={"order_id": "#W1"}, environment="shop@1")
SPEC = NamespaceSpec(tools=(ToolSpec(name="get_order", effect="read"), ToolSpec(name="cancel_order")))
PENDING = ToolResult(content="pending", took_s=3.0)


class Desk(MemoryLeases):
    """Leases that tell when so many callers wait for others."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self._arrivals = threading.Semaphore(0)

    async def wait(self, namespace: str, keys: Collection[str], timeout_s: float) -> None:
        self._arrivals.release()
        await super().wait(namespace, keys, timeout_s)

    def see_waiting(self, callers: int) -> None:
        for _ in range(callers):
            assert self._arrivals.acquire(timeout=20.0)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def url(desk: Desk) -> Iterator[str]:
    with serving(made(limits=Limits(), leases=desk).app) as address:
        with CacheClient(address) as client:
            client.put_namespace("shop", SPEC)
        yield address


def tiers(found: list[Resolved]) -> dict[str, int]:
    names = [each.tier for each in found]
    return {tier: names.count(tier) for tier in sorted(set(names))}


async def test_64_callers_at_once_execute_a_missing_call_once(url: str, desk: Desk) -> None:
    executions: list[str] = []

    async with AsyncCacheClient(url) as client:

        async def execute() -> ToolResult:
            executions.append("one")
            await asyncio.to_thread(desk.see_waiting, CALLERS - 1)
            return PENDING

        found = await asyncio.gather(*(client.resolve("shop", ITEM, execute) for _ in range(CALLERS)))
        assert executions == ["one"]
        assert tiers(found) == {"exact": CALLERS - 1, "live": 1}
        assert {(each.result, each.state_after) for each in found} == {(PENDING, found[0].state_after)}
        assert (await client.stats("shop")).entries == 1


def test_threads_without_an_event_loop_do_too(url: str, desk: Desk) -> None:
    executions: list[str] = []

    with CacheClient(url) as client, ThreadPoolExecutor(CALLERS) as threads:

        def execute() -> ToolResult:
            executions.append("one")
            desk.see_waiting(CALLERS - 1)
            return PENDING

        found = list(threads.map(lambda _: client.resolve("shop", ITEM, execute), range(CALLERS)))
    assert executions == ["one"]
    assert tiers(found) == {"exact": CALLERS - 1, "live": 1}


async def test_where_the_first_execution_fails_the_next_caller_takes_over(url: str, desk: Desk) -> None:
    executions: list[str] = []

    async with AsyncCacheClient(url) as client:

        async def execute() -> ToolResult:
            executions.append("one")
            if len(executions) == 1:
                await asyncio.to_thread(desk.see_waiting, 7)
                raise OSError("the sandbox is gone")
            return PENDING

        work = (client.resolve("shop", ITEM, execute) for _ in range(8))
        found = await asyncio.gather(*work, return_exceptions=True)
        assert len(executions) == 2
        assert [str(each) for each in found if isinstance(each, BaseException)] == ["the sandbox is gone"]
        assert tiers([each for each in found if isinstance(each, Resolved)]) == {"exact": 6, "live": 1}


async def test_a_lease_is_extended_given_back_and_lost(url: str) -> None:
    async with AsyncCacheClient(url) as client:
        (answer,) = await client.lookup("shop", [ITEM], on_miss="lease")
        assert answer.lease is not None
        (other,) = await client.lookup("shop", [ITEM], on_miss="lease")
        assert (other.lease, other.reason) == (None, "leased")
        assert await client.extend_lease("shop", answer.lease, extend_s=5.0)
        assert await client.release_lease("shop", answer.lease)
        assert not await client.extend_lease("shop", answer.lease, extend_s=5.0)
        (again,) = await client.lookup("shop", [ITEM], on_miss="lease")
        assert again.lease not in (None, answer.lease)


async def test_what_a_batch_missed_is_resolved_call_by_call_under_the_leases_that_it_got(url: str) -> None:
    items = [LookupItem(tool="get_order", arguments={"order_id": f"#W{n}"}, environment="shop@1") for n in range(3)]

    async def execute() -> ToolResult:
        return PENDING

    async with AsyncCacheClient(url) as client:
        answers = await client.lookup("shop", items, on_miss="lease")
        for item, answer in zip(items, answers, strict=True):
            assert (await client.resolve("shop", item, execute, answer=answer)).tier == "live"
        assert [await client.release_lease("shop", each.lease or "") for each in answers] == [False] * 3
        assert [each.tier for each in await client.lookup("shop", items)] == ["exact"] * 3


def test_a_rollout_is_followed_from_write_to_read(url: str) -> None:
    cancel = LookupItem(tool="cancel_order", arguments={"order_id": "#W1"}, environment="shop@1")
    with CacheClient(url) as client:
        wrote = client.resolve("shop", cancel, lambda: ToolResult(content="done"))
        assert wrote.state_after is not None
        after = LookupItem(
            tool="get_order", arguments={"order_id": "#W1"}, environment="shop@1", state=wrote.state_after
        )
        assert client.resolve("shop", after, lambda: ToolResult(content="cancelled")).tier == "live"
        assert client.resolve("shop", ITEM, lambda: PENDING).result == PENDING
        found = client.resolve("shop", after, lambda: PENDING)
        assert (found.tier, found.result.content) == ("exact", "cancelled")


def test_everything_else_is_understood_by_the_service_too(url: str) -> None:
    with CacheClient(url) as client:
        told = [
            RecordItem(
                tool="get_order", arguments={"order_id": f"#W{n}"}, environment="shop@1", result=PENDING, tags=("t",)
            )
            for n in range(5)
        ]
        client.record("shop", told)
        assert [each.arguments["order_id"] for each in client.entries("shop", tool="get_order")] == [
            f"#W{n}" for n in range(5)
        ]
        lines = list(client.export("shop"))
        assert len(lines) == 6
        assert client.import_lines(lines, namespace="copy").outcomes == {"stored": 5}
        assert client.remove("shop", tag="t") == 5
        assert (client.delete_namespace("copy"), client.namespaces()) == (5, ["shop"])
        with pytest.raises(CacheRefused, match="unknown_namespace"):
            client.delete_namespace("copy")
        (answer,) = client.lookup("shop", [ITEM], explain=True)
        assert answer.explanation is not None
        assert client.calibrate("shop").namespace == client.stats("shop").namespace == "shop"
        key = client.make_api_key("me", "read", ["*"])
        assert key.secret.startswith("tck_")
        assert [each.secret for each in client.api_keys()] == [""]
        client.delete_api_key(key.id)
        assert client.api_keys() == []
        client.health()
