"""Who executes what, across all replicas that share a Redis.

A lease is a key with its holder's secret in it, which Redis lets expire by its own clock: clocks of replicas do not
matter. `settle`, `extend` and `release` compare the secret and act in one script, so a lease that has passed on is left
alone.

Waiting: who waits in the process that settles or releases is woken at once. For the others, one task a process asks
Redis every 20 ms after all leases that are waited for, with one command a namespace, and only while somebody waits.

Not covered: a replica of Redis that takes over may not know the youngest leases; a call is then executed twice.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from toolcache.adapters.redis_connection import TIMEOUT_S, Argument, RedisConnection, Script, slot
from toolcache.core.canonical import digest
from toolcache.core.ports import Lease, StoreUnavailable

SETTLED_S = 5.0
"""Seconds for which a settled lease still counts as held: long enough for whoever waited to read the result."""
POLL_S = 0.02
"""Between two looks at the leases that are waited for."""

# All leases of a namespace, by the millisecond of their end: so that they can be told without looking at every key.
_BEGIN = r"""
local at = string.sub(KEYS[1], 1, -7) -- KEYS[1] ends with "leases"
local time = redis.call('TIME')
local now_ms = math.floor(time[1] * 1000 + time[2] / 1000)

local function lease(key) return at .. 'l:' .. key end

local function hold(key, secret, ms)
    redis.call('SET', lease(key), secret, 'PX', ms)
    redis.call('ZADD', KEYS[1], now_ms + ms, key)
    if redis.call('PTTL', KEYS[1]) < tonumber(ms) then redis.call('PEXPIRE', KEYS[1], ms) end
end

local function is_held(key, secret)
    return secret ~= '' and redis.call('GET', lease(key)) == secret
end
"""

# An empty secret marks what was settled: nobody's lease, so it may be taken.
_ACQUIRE = Script(
    text=_BEGIN
    + r"""
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
local reply = {}
for i = 2, #ARGV, 2 do
    local holder = redis.call('GET', lease(ARGV[i]))
    local is_free = not holder or holder == ''
    if is_free then hold(ARGV[i], ARGV[i + 1], ARGV[1]) end
    table.insert(reply, is_free and 1 or 0)
end
return reply
"""
)
"""milliseconds, key, secret, ... -> 1 or 0 for each"""

_SETTLE = Script(
    text=_BEGIN
    + r"""
local settled = {}
for i = 2, #ARGV, 2 do
    if is_held(ARGV[i], ARGV[i + 1]) then
        hold(ARGV[i], '', ARGV[1])
        table.insert(settled, ARGV[i])
    end
end
return settled
"""
)
"""milliseconds to remember it, key, secret, ... -> keys of those that were held"""

_EXTEND = Script(
    text=_BEGIN
    + r"""
if not is_held(ARGV[2], ARGV[3]) then return 0 end
hold(ARGV[2], ARGV[3], ARGV[1])
return 1
"""
)
"""milliseconds, key, secret -> whether it was held"""

_RELEASE = Script(
    text=_BEGIN
    + r"""
if not is_held(ARGV[1], ARGV[2]) then return 0 end
redis.call('DEL', lease(ARGV[1]))
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
"""
)
"""key, secret -> whether it was held"""

_HOLDING = Script(text=_BEGIN + "return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now_ms, '+inf')\n")
"""() -> keys"""

_DRAW = Script(
    text=r"""
local drawn = redis.call('HINCRBY', KEYS[1], 'drawn', 1)
redis.call('HSETNX', KEYS[1], 'have', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {drawn - 1, tonumber(redis.call('HGET', KEYS[1], 'have'))}
"""
)
"""have, milliseconds -> how often before, the first `have`"""


class RedisLeases:
    """Leases in Redis. Create it with `open`."""

    def __init__(self, connection: RedisConnection) -> None:
        self._redis = connection
        self._waiting: dict[tuple[str, str], set[asyncio.Future[None]]] = defaultdict(set)
        """Who waits, by namespace and key."""
        self._poller: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, url: str, *, timeout_s: float = TIMEOUT_S) -> RedisLeases:
        """Raises StoreUnavailable."""
        return cls(await RedisConnection.open(url, timeout_s=timeout_s))

    async def close(self) -> None:
        """Who still waits is let go."""
        if self._poller is not None:
            self._poller.cancel()
        for namespace, key in list(self._waiting):
            self._wake(namespace, (key,))
        await self._redis.close()

    async def acquire(self, namespace: str, keys: Sequence[str], *, ttl_s: float) -> list[Lease | None]:
        # A script, not a SET NX for each key: one command to send, and one answer to wait for.
        wanted = [(key, secrets.token_hex(16)) for key in keys]
        if not wanted:
            return []
        granted = await self._run(_ACQUIRE, namespace, _milliseconds(ttl_s), *_flat(wanted))
        return [
            Lease(id=f"{key}.{secret}", key=key) if is_granted else None
            for (key, secret), is_granted in zip(wanted, granted, strict=True)
        ]

    async def settle(self, namespace: str, lease_ids: Collection[str]) -> None:
        ended = [_parted(each) for each in lease_ids]
        if ended:
            settled = await self._run(_SETTLE, namespace, _milliseconds(SETTLED_S), *_flat(ended))
            self._wake(namespace, (key.decode() for key in settled))

    async def extend(self, namespace: str, lease_id: str, ttl_s: float) -> bool:
        return bool(await self._run(_EXTEND, namespace, _milliseconds(ttl_s), *_parted(lease_id)))

    async def release(self, namespace: str, lease_id: str) -> bool:
        key, secret = _parted(lease_id)
        was_held = bool(await self._run(_RELEASE, namespace, key, secret))
        if was_held:
            self._wake(namespace, (key,))
        return was_held

    async def held(self, namespace: str, keys: Collection[str]) -> frozenset[str]:
        holders = await self._holders(namespace, list(keys))
        return frozenset(key for key, holder in holders.items() if holder is not None)

    async def holding(self, namespace: str) -> frozenset[str]:
        return frozenset(key.decode() for key in await self._run(_HOLDING, namespace))

    async def wait(self, namespace: str, keys: Collection[str], timeout_s: float) -> None:
        if not keys:
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        places = [(namespace, key) for key in keys]
        for place in places:
            self._waiting[place].add(woken)
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll(), name="redis-leases")
        try:
            done, _ = await asyncio.wait([woken], timeout=timeout_s)
        finally:
            for place in places:
                self._waiting[place].discard(woken)
                if not self._waiting[place]:
                    del self._waiting[place]
        if done:
            woken.result()  # raises what the poller could not do

    async def draw(self, namespace: str, key: str, group: str, *, have: int, keep_s: float) -> tuple[int, int]:
        drawn, first = await self._redis.run(
            _DRAW, f"{slot(namespace)}d:{digest(key, group)}", have, _milliseconds(keep_s)
        )
        return drawn, first

    async def _run(self, script: Script, namespace: str, *words: Argument) -> Any:
        return await self._redis.run(script, slot(namespace) + "leases", *words)

    async def _holders(self, namespace: str, keys: Sequence[str]) -> dict[str, bytes | None]:
        """Their secrets; empty where a lease was settled, None where there is none."""
        if not keys:
            return {}
        at = slot(namespace)
        found = await self._redis.command("MGET", *(f"{at}l:{key}" for key in keys))
        return dict(zip(keys, found, strict=True))

    async def _poll(self) -> None:
        """Wake who waits for leases that ended elsewhere; ends itself when nobody waits."""
        try:
            while self._waiting:
                by_namespace: dict[str, list[str]] = defaultdict(list)
                for namespace, key in self._waiting:
                    by_namespace[namespace].append(key)
                await asyncio.gather(*(self._look(namespace, keys) for namespace, keys in by_namespace.items()))
                await asyncio.sleep(POLL_S)
        finally:
            self._poller = None

    async def _look(self, namespace: str, keys: Sequence[str]) -> None:
        try:
            holders = await self._holders(namespace, keys)
        except StoreUnavailable as error:
            self._wake(namespace, keys, error)
        else:
            self._wake(namespace, (key for key, holder in holders.items() if not holder))

    def _wake(self, namespace: str, keys: Iterable[str], error: StoreUnavailable | None = None) -> None:
        for key in keys:
            for woken in self._waiting.get((namespace, key), ()):
                if woken.done():
                    continue
                if error is None:
                    woken.set_result(None)
                else:
                    woken.set_exception(error)


def _parted(lease_id: str) -> tuple[str, str]:
    """Its key and its secret, whatever its sender wrote: what is no id of a lease has a secret that nobody holds."""
    key, _, secret = lease_id.rpartition(".")
    return key, secret


def _flat(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [each for pair in pairs for each in pair]


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
