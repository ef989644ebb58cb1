"""Two services over one Redis: one cache, the same keys, and 503 until an outage is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest

from tests.cache.http.service import PENDING, SPEC, batch, call, client_of, lookup, made, record
from tests.conftest import StartRedis
from toolcache.adapters.redis_leases import RedisLeases
from toolcache.adapters.redis_store import RedisStore
from toolcache.core.access import hash_of
from toolcache.http.keyring import Keyring

ADMIN_KEY = "correct horse battery staple"


async def replica(stack: AsyncExitStack, url: str, *, asks_for_keys: bool = False) -> httpx.AsyncClient:
    """A client of a service of its own."""
    store = await RedisStore.open(url)
    keyring = Keyring(store, admin_key_hash=hash_of(ADMIN_KEY)) if asks_for_keys else None
    served = made(store, leases=await RedisLeases.open(url), keyring=keyring)
    return await stack.enter_async_context(client_of(served))


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def test_a_call_leased_at_one_is_answered_to_who_waits_at_the_other(
    redis_url: str, stack: AsyncExitStack
) -> None:
    one, other = [await replica(stack, redis_url) for _ in range(2)]
    await one.put("/v1/namespaces/shop", json=SPEC)
    (missed,) = await lookup(one, call(), on_miss="lease")
    waiting = asyncio.create_task(lookup(other, call(), on_miss="lease", wait_s=60.0))
    while "toolcache_requests_waiting 1.0" not in (await other.get("/metrics")).text:
        pass
    await record(one, call(result=PENDING, lease=missed["lease"]))
    (answer,) = await waiting
    assert (answer["tier"], answer["result"]["content"]) == ("exact", PENDING["content"])


async def test_a_key_made_at_one_works_at_the_other_at_once(redis_url: str, stack: AsyncExitStack) -> None:
    one, other = [await replica(stack, redis_url, asks_for_keys=True) for _ in range(2)]
    admin = {"authorization": f"Bearer {ADMIN_KEY}"}
    await one.put("/v1/namespaces/shop", json=SPEC, headers=admin)
    for _ in range(3):
        spec = {"name": "n", "role": "read", "namespaces": ["shop"]}
        key = (await one.post("/v1/keys", json=spec, headers=admin)).json()
        headers = {"authorization": f"Bearer {key['secret']}"}
        assert (await other.post("/v1/lookup", json=batch(call()), headers=headers)).status_code == 200
        assert (await other.post("/v1/record", json=batch(), headers=headers)).status_code == 403
    listed = (await other.get("/v1/keys", headers=admin)).json()["keys"]
    assert [each["secret"] for each in listed] == ["", "", ""]


async def test_while_the_store_is_away_it_says_so_and_afterwards_it_goes_on(
    stack: AsyncExitStack, start_redis: StartRedis
) -> None:
    server = start_redis(is_durable=True)
    service = await replica(stack, server.url)
    await service.put("/v1/namespaces/shop", json=SPEC)
    await record(service, call(result=PENDING))
    server.kill()
    for method, path, body in (
        ("POST", "/v1/lookup", batch(call())),
        ("POST", "/v1/lookup", batch(call(), on_miss="lease")),
        ("POST", "/v1/record", batch(call(result=PENDING))),
        ("GET", "/v1/stats?namespace=shop", None),
        ("GET", "/readyz", None),
    ):
        reply = await service.request(method, path, json=body)
        assert (reply.status_code, reply.json()["code"]) == (503, "store_unavailable")
    assert (await service.get("/healthz")).status_code == 200
    server.start()
    assert (await service.get("/readyz")).status_code == 200
    assert [each["tier"] for each in await lookup(service, call(), call("#W2"))] == ["exact", "miss"]
    assert "toolcache_store_errors_total 5.0" in (await service.get("/metrics")).text
