"""Two service processes over one Redis: what one records, the other serves; what one leases, the other waits for."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolcache_client import AsyncCacheClient, CacheClient
from toolcache_client.messages import LookupItem, NamespaceSpec, RecordItem, ToolResult, ToolSpec

SPEC = NamespaceSpec(
    tools=(
        ToolSpec(
            name="search_help",
            effect="read",
            parameters={"type": "object", "properties": {"query": {"type": "string"}}},
            arguments={"query": "free_text"},
            similar_floor=0.0,
        ),
    ),
    similar_threshold=0.5,
)


class Replica:
    """A real `toolcache serve` on a port of its own choice."""

    def __init__(self, store: str) -> None:
        program = str(Path(sys.executable).with_name("toolcache"))
        self.process = subprocess.Popen(
            [program, "serve", "--port", "0", "--store", store], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            event = json.loads(line)
            if event["event"] == "serving":
                break
        self.url: str = event["url"]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def replicas(redis_url: str) -> Iterator[tuple[Replica, Replica]]:
    both = (Replica(redis_url), Replica(redis_url))
    with CacheClient(both[0].url) as client:
        client.put_namespace("shop", SPEC)
    yield both
    for each in both:
        each.kill()


def search(query: str) -> LookupItem:
    return LookupItem(tool="search_help", arguments={"query": query}, environment="shop@1")


def found(query: str, content: str, lease: str = "") -> RecordItem:
    return RecordItem(
        tool="search_help",
        arguments={"query": query},
        environment="shop@1",
        result=ToolResult(content=content),
        lease=lease,
    )


async def test_a_record_is_an_exact_hit_through_the_other_replica_at_once(replicas: tuple[Replica, Replica]) -> None:
    one, other = (AsyncCacheClient(each.url) for each in replicas)
    for n in range(20):
        await one.record("shop", [found(f"lamp {n}", f"result {n}")])
        (answer,) = await other.lookup("shop", [search(f"lamp {n}")])
        assert (answer.tier, answer.result and answer.result.content) == ("exact", f"result {n}")
    await one.aclose()
    await other.aclose()


async def test_a_policy_changed_through_one_decides_the_very_next_answer_of_the_other(
    replicas: tuple[Replica, Replica],
) -> None:
    one, other = (AsyncCacheClient(each.url) for each in replicas)
    await one.record("shop", [found("lamp", "x")])
    assert (await other.lookup("shop", [search("lamp")]))[0].tier == "exact"
    await one.put_namespace("shop", NamespaceSpec(tools=SPEC.tools, tiers=()))
    assert (await other.lookup("shop", [search("lamp")]))[0].tier == "miss"
    await one.aclose()
    await other.aclose()


async def test_a_record_is_a_similar_hit_through_the_other_replica_soon(replicas: tuple[Replica, Replica]) -> None:
    one, other = (AsyncCacheClient(each.url) for each in replicas)
    wordings = [f"how can I return the {what} lamp" for what in ("broken", "bright", "wooden", "heavy", "cheap")]
    await one.record("shop", [found(text, "the returns desk") for text in wordings])
    await one.calibrate("shop")
    await one.record("shop", [found("where do customers park the car", "behind the shop")])
    async with asyncio.timeout(30):
        while True:
            (answer,) = await other.lookup("shop", [search("where can customers park the car")])
            if answer.tier == "similar":
                break
            await asyncio.sleep(0.05)
    assert answer.result is not None and answer.result.content == "behind the shop"
    await one.aclose()
    await other.aclose()


async def test_sixty_four_misses_over_two_replicas_are_executed_once(replicas: tuple[Replica, Replica]) -> None:
    clients = [AsyncCacheClient(each.url, timeout_s=30.0) for each in replicas]
    executed = 0

    async def play(n: int) -> str:
        nonlocal executed
        client = clients[n % 2]
        (answer,) = await client.lookup("shop", [search("lamp")], on_miss="lease", wait_s=20.0)
        if answer.result is not None:
            return answer.result.content
        assert answer.lease is not None
        executed += 1
        await asyncio.sleep(0.05)
        await client.record("shop", [found("lamp", "found", answer.lease)])
        return "found"

    assert await asyncio.gather(*(play(n) for n in range(64))) == ["found"] * 64
    assert executed == 1
    for client in clients:
        await client.aclose()


async def test_the_lease_of_a_job_that_died_passes_on(replicas: tuple[Replica, Replica]) -> None:
    one, other = (AsyncCacheClient(each.url, timeout_s=30.0) for each in replicas)
    (dead,) = await one.lookup("shop", [search("lamp")], on_miss="lease", lease_s=0.3)
    assert dead.lease is not None
    (heir,) = await other.lookup("shop", [search("lamp")], on_miss="lease", wait_s=20.0)
    assert heir.lease is not None and heir.lease != dead.lease
    await one.aclose()
    await other.aclose()


async def test_what_a_killed_replica_acknowledged_is_served_by_the_other(replicas: tuple[Replica, Replica]) -> None:
    victim, survivor = replicas
    acknowledged: list[int] = []
    enough = asyncio.Event()

    async def load(client: AsyncCacheClient, start: int) -> None:
        for n in range(start, start + 500):
            await client.record("shop", [found(f"lamp {n}", str(n))])
            acknowledged.append(n)
            if len(acknowledged) == 100:
                enough.set()

    async with AsyncCacheClient(victim.url, timeout_s=2.0) as client:
        working = [asyncio.ensure_future(load(client, start * 1000)) for start in range(8)]
        await enough.wait()
        victim.kill()
        for each in working:
            each.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    async with AsyncCacheClient(survivor.url) as client:
        answers = await client.lookup("shop", [search(f"lamp {n}") for n in acknowledged])
    assert [each.result and each.result.content for each in answers] == [str(n) for n in acknowledged]
