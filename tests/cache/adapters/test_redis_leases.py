"""What leases in Redis promise beyond the contract: across replicas, at what cost, and without Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import redis

from tests.conftest import StartRedis
from toolcache.adapters import redis_leases
from toolcache.adapters.redis_leases import RedisLeases
from toolcache.core.ports import Lease, StoreUnavailable

NEVER_S = 60.0
"""Longer than any test waits for what must happen."""


@pytest.fixture
async def leases(redis_url: str) -> AsyncIterator[RedisLeases]:
    opened = await RedisLeases.open(redis_url)
    yield opened
    await opened.close()


@pytest.fixture
async def replica(redis_url: str) -> AsyncIterator[RedisLeases]:
    """The same leases, as another process sees them."""
    opened = await RedisLeases.open(redis_url)
    yield opened
    await opened.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as opened:
        yield opened


async def taken(leases: RedisLeases, key: str = "k", *, ttl_s: float = NEVER_S) -> Lease:
    (lease,) = await leases.acquire("shop", [key], ttl_s=ttl_s)
    assert lease is not None
    return lease


async def begun(leases: RedisLeases, *keys: str) -> asyncio.Task[None]:
    """Somebody who waits already."""
    waiting = asyncio.create_task(leases.wait("shop", keys, NEVER_S))
    await asyncio.sleep(0)
    return waiting


Ending = Callable[[RedisLeases, str], Awaitable[object]]
ENDINGS: dict[str, Ending] = {
    "settled": lambda leases, lease_id: leases.settle("shop", [lease_id]),
    "released": lambda leases, lease_id: leases.release("shop", lease_id),
    "expired": lambda leases, lease_id: leases.extend("shop", lease_id, 0.0),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_who_waits_on_another_replica_is_woken_when_a_lease_is(
    leases: RedisLeases, replica: RedisLeases, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(redis_leases, "SETTLED_S", 2 * NEVER_S)  # the mark is seen, not its end
    lease = await taken(leases)
    await taken(leases, "other")
    waiting = await begun(replica, "other", "k")
    await ENDINGS[ending](leases, lease.id)
    async with asyncio.timeout(NEVER_S / 2):
        await waiting


@pytest.mark.parametrize("ending", ["settled", "released"])
async def test_who_waits_in_the_same_process_is_woken_without_asking_redis(
    leases: RedisLeases, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    lease = await taken(leases)
    monkeypatch.setattr(redis_leases, "POLL_S", 2 * NEVER_S)
    await leases.wait("shop", ["free"], NEVER_S)  # now that Redis was asked, it is not asked again for long
    waiting = await begun(leases, "k")
    await ENDINGS[ending](leases, lease.id)
    async with asyncio.timeout(NEVER_S / 2):
        await waiting


async def test_a_lease_that_passed_on_wakes_nobody_when_its_old_holder_settles_it(
    leases: RedisLeases, replica: RedisLeases
) -> None:
    old = await taken(leases)
    await leases.extend("shop", old.id, 0.0)
    while await replica.acquire("shop", ["k"], ttl_s=NEVER_S) == [None]:
        pass
    waiting = await begun(leases, "k")
    await leases.settle("shop", [old.id])
    assert not await leases.release("shop", old.id)
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await leases.held("shop", ["k"]) == {"k"}
    waiting.cancel()


async def test_redis_is_asked_with_one_command_for_all_who_wait_in_a_namespace(
    leases: RedisLeases, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [str(n) for n in range(50)]
    await leases.acquire("shop", keys, ttl_s=NEVER_S)
    monkeypatch.setattr(redis_leases, "POLL_S", 2 * NEVER_S)  # one look is enough
    client.config_resetstat()
    waiting = [asyncio.create_task(leases.wait("shop", [key], NEVER_S)) for key in (*keys, "free")]
    await waiting.pop()
    assert client.info("commandstats")["cmdstat_mget"]["calls"] == 1
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not leases._waiting


async def test_redis_is_left_in_peace_when_nobody_waits(leases: RedisLeases) -> None:
    lease = await taken(leases)
    await leases.wait("shop", ["k"], 0.001)
    poller = leases._poller
    assert poller is not None
    async with asyncio.timeout(NEVER_S):
        await poller
    assert leases._poller is None
    assert not leases._waiting
    assert await leases.release("shop", lease.id)


async def test_nothing_of_a_lease_outlives_it(leases: RedisLeases, client: redis.Redis) -> None:
    await taken(leases, "a")
    settled = await taken(leases, "b")
    await leases.settle("shop", [settled.id])
    await leases.draw("shop", "k", "g", have=3, keep_s=NEVER_S)
    assert client.dbsize() == 4
    assert all(0 < client.pttl(key) <= NEVER_S * 1000 for key in client.scan_iter())


async def test_what_is_no_id_of_a_lease_is_held_by_nobody(leases: RedisLeases) -> None:
    settled = await taken(leases)
    await leases.settle("shop", [settled.id])
    for made_up in ("", "k", "k.", ".", "k.secret", f"{settled.id}x", "k.\ud7ff"):
        assert not await leases.release("shop", made_up)
        assert not await leases.extend("shop", made_up, 1.0)
    assert await leases.holding("shop") == {"k"}


async def test_who_waits_is_told_that_redis_is_gone_and_can_wait_again_when_it_is_back(start_redis: StartRedis) -> None:
    server = start_redis()
    leases = await RedisLeases.open(server.url)
    await taken(leases)
    waiting = [await begun(leases, "k") for _ in range(3)]
    server.kill()
    for each in waiting:
        with pytest.raises(StoreUnavailable, match=f"redis .*{server.port}"):
            await each
    server.start()
    lease = await taken(leases)
    again = await begun(leases, "k")
    await leases.settle("shop", [lease.id])
    async with asyncio.timeout(NEVER_S / 2):
        await again
    await leases.close()
