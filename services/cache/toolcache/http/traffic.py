"""How many requests are in work, how many wait, and which of them nobody waits for any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from toolcache.core.ports import Lease, Leases
from toolcache.http.exchange import Exchange
from toolcache.http.problems import ClientGone, Code, Refused
from toolcache.metrics import Metrics
from toolcache.settings import Limits

TICK_S = 0.25
LONGEST_PAUSE_S = 30.0
"""Seconds between two pieces of a body, or of a streamed reply, after which its client counts as gone: it holds a place
of `in_flight`."""


class Traffic:
    """The requests in work. One that waits for somebody else's result makes room for another, up to a limit."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._exchanges: dict[asyncio.Task[Any], Exchange] = {}
        self._waiting: set[Exchange] = set()
        self._is_stopping = False
        metrics.watch(load=self)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        return len(self._exchanges) - len(self._waiting)

    def enter(self, exchange: Exchange) -> None:
        """Raises Refused if there is no room. Whoever waits may come back to work even so: it was let in before."""
        if self.in_flight >= self._limits.in_flight:
            raise Refused(Code.TOO_BUSY, f"{self._limits.in_flight} requests are in work (TOOLCACHE_MAX_IN_FLIGHT)")
        exchange.task = task = asyncio.current_task()
        assert task is not None
        self._exchanges[task] = exchange

    def leave(self, exchange: Exchange) -> None:
        if exchange.task is not None:
            del self._exchanges[exchange.task]

    @contextmanager
    def waits(self) -> Iterator[None]:
        """The request of this task does nothing but wait in here, as long as its client is there. Raises Refused."""
        task = asyncio.current_task()
        exchange = None if task is None else self._exchanges.get(task)
        if exchange is None:  # asked for by a program in this process, not by a request
            yield
            return
        if self._is_stopping:
            raise _stopping()
        if len(self._waiting) >= self._limits.waiting:
            raise Refused(Code.TOO_BUSY, f"{self._limits.waiting} requests wait already (TOOLCACHE_MAX_WAITING)")
        began_s = time.perf_counter()
        self._waiting.add(exchange)
        try:
            with exchange.while_connected():
                yield
        finally:
            self._waiting.discard(exchange)
            waited_s = time.perf_counter() - began_s
            exchange.waited_s += waited_s
            self._metrics.waited(waited_s)

    async def watch(self) -> None:
        """Until cancelled: measure how late the event loop is, and end requests that stopped going on."""
        while True:
            due_s = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            self._metrics.lagged(max(0.0, now_s - due_s))
            self.end_stalled(now_s)

    def end_stalled(self, now_s: float) -> None:
        """End requests whose body or reply has not gone on for too long at that time of time.monotonic."""
        for exchange in list(self._exchanges.values()):
            if exchange.reading_since_s and now_s - exchange.reading_since_s > LONGEST_PAUSE_S:
                detail = f"no more of the body came in {LONGEST_PAUSE_S:g} s; send the request again"
                exchange.end(Refused(Code.BODY_STALLED, detail))
            elif exchange.sending_since_s and now_s - exchange.sending_since_s > LONGEST_PAUSE_S:
                exchange.end(ClientGone())

    def stop(self) -> None:
        """Let nobody wait from now on: the service is going down, and requests in work are all it still ends."""
        self._is_stopping = True
        for exchange in list(self._waiting):
            exchange.end(_stopping())


def _stopping() -> Refused:
    return Refused(Code.STOPPING, "the service stops and waits for no results; ask another replica, or again")


class WatchedLeases:
    """Leases whose waiting is known to the traffic, and whose grants are counted. Otherwise those it is made of."""

    def __init__(self, leases: Leases, traffic: Traffic, metrics: Metrics) -> None:
        self._leases = leases
        self._traffic = traffic
        self._metrics = metrics

    async def wait(self, namespace: str, keys: Collection[str], timeout_s: float) -> None:
        with self._traffic.waits():
            await self._leases.wait(namespace, keys, timeout_s)

    async def acquire(self, namespace: str, keys: Sequence[str], *, ttl_s: float) -> list[Lease | None]:
        leases = await self._leases.acquire(namespace, keys, ttl_s=ttl_s)
        if granted := len(leases) - leases.count(None):
            self._metrics.leased(namespace, "granted", granted)
        return leases

    async def settle(self, namespace: str, lease_ids: Collection[str]) -> None:
        await self._leases.settle(namespace, lease_ids)

    async def extend(self, namespace: str, lease_id: str, ttl_s: float) -> bool:
        is_held = await self._leases.extend(namespace, lease_id, ttl_s)
        self._metrics.leased(namespace, "extended" if is_held else "lost")
        return is_held

    async def release(self, namespace: str, lease_id: str) -> bool:
        is_held = await self._leases.release(namespace, lease_id)
        self._metrics.leased(namespace, "released" if is_held else "lost")
        return is_held

    async def held(self, namespace: str, keys: Collection[str]) -> frozenset[str]:
        return await self._leases.held(namespace, keys)

    async def holding(self, namespace: str) -> frozenset[str]:
        return await self._leases.holding(namespace)

    async def draw(self, namespace: str, key: str, group: str, *, have: int, keep_s: float) -> tuple[int, int]:
        return await self._leases.draw(namespace, key, group, have=have, keep_s=keep_s)

    async def close(self) -> None:
        await self._leases.close()
