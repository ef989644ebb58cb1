"""Who executes what, among the callers of this one process: leases, and draws of samples.

Nothing here outlives the process, nor needs to: after a crash a call is at worst executed twice.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from toolcache.core.ports import Lease

GRACE_S = 5.0
"""Seconds a settled key still counts as held: who waited for it may not have read the result yet."""

_V = TypeVar("_V")
_Key = tuple[str, ...]
"""Namespace and key, and for a draw the group."""


class MemoryLeases:
    """Leases of one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds and never goes back."""
        self._clock = clock
        self._held: _Lasting[_Holder] = _Lasting(_Holder.end)
        self._settled: _Lasting[None] = _Lasting()
        self._draws: _Lasting[tuple[int, int]] = _Lasting()

    async def acquire(self, namespace: str, keys: Sequence[str], *, ttl_s: float) -> list[Lease | None]:
        now_s = self._now()
        return [self._acquire(namespace, key, now_s + ttl_s) for key in keys]

    def _acquire(self, namespace: str, key: str, until_s: float) -> Lease | None:
        if self._held.get((namespace, key)) is not None:
            return None
        holder = _Holder(f"{key}.{secrets.token_urlsafe(16)}")
        self._held.put((namespace, key), holder, until_s)
        return Lease(id=holder.lease_id, key=key)

    async def settle(self, namespace: str, lease_ids: Collection[str]) -> None:
        now_s = self._now()
        for lease_id in lease_ids:
            if self._end(namespace, lease_id):
                self._settled.put((namespace, _key_of(lease_id)), None, now_s + GRACE_S)

    async def extend(self, namespace: str, lease_id: str, ttl_s: float) -> bool:
        now_s = self._now()
        key = (namespace, _key_of(lease_id))
        holder = self._held.get(key)
        if holder is None or holder.lease_id != lease_id:
            return False
        self._held.put(key, holder, now_s + ttl_s)
        return True

    async def release(self, namespace: str, lease_id: str) -> bool:
        self._now()
        return self._end(namespace, lease_id)

    def _end(self, namespace: str, lease_id: str) -> bool:
        """Whether it was still held."""
        key = (namespace, _key_of(lease_id))
        holder = self._held.get(key)
        if holder is None or holder.lease_id != lease_id:
            return False
        self._held.drop(key)
        holder.end()
        return True

    async def held(self, namespace: str, keys: Collection[str]) -> frozenset[str]:
        self._now()
        return frozenset(key for key in keys if (namespace, key) in self._held or (namespace, key) in self._settled)

    async def holding(self, namespace: str) -> frozenset[str]:
        self._now()
        return frozenset(key for space, key in (*self._held, *self._settled) if space == namespace)

    async def wait(self, namespace: str, keys: Collection[str], timeout_s: float) -> None:
        deadline_s = self._now() + timeout_s
        woken = asyncio.Event()
        waited_for = {(namespace, key) for key in keys}
        if not waited_for:
            return
        holders = [self._held.get(key) for key in waited_for]
        for holder in holders:
            if holder is not None:
                holder.waiting.add(woken)
        try:
            # An extended lease expires later than it would have, so that the time is looked up again after each sleep.
            while not woken.is_set() and all(key in self._held for key in waited_for):
                until_s = min([deadline_s, *(self._held.until_s(key) for key in waited_for)])
                left_s = until_s - self._clock()
                if left_s <= 0 and until_s == deadline_s:
                    return
                await _first_of(woken, left_s)
                self._now()
        finally:
            for holder in holders:
                if holder is not None:
                    holder.waiting.discard(woken)

    async def draw(self, namespace: str, key: str, group: str, *, have: int, keep_s: float) -> tuple[int, int]:
        now_s = self._now()
        count, first_have = self._draws.get((namespace, key, group)) or (0, have)
        self._draws.put((namespace, key, group), (count + 1, first_have), now_s + keep_s)
        return count, first_have

    async def close(self) -> None:
        """Who still waits is let go."""
        self._held.expire(math.inf)

    def _now(self) -> float:
        """The time, after all that is over by now has ended: whoever asks never meets it."""
        now_s = self._clock()
        for lasting in (self._held, self._settled, self._draws):
            lasting.expire(now_s)
        return now_s


@dataclass(frozen=True, slots=True, eq=False)
class _Holder:
    """A lease under way, and those who wait for its end."""

    lease_id: str
    waiting: set[asyncio.Event] = field(default_factory=set)

    def end(self) -> None:
        for woken in self.waiting:
            woken.set()


class _Lasting(Generic[_V]):
    """Values by key, each until its time. What is over is found without looking at what is not."""

    def __init__(self, ended: Callable[[_V], None] = lambda value: None) -> None:
        self._ended = ended
        self._values: dict[_Key, tuple[float, _V]] = {}
        self._times: list[tuple[float, _Key]] = []
        """A heap; a time that is no longer the value's own says nothing."""

    def __contains__(self, key: _Key) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[_Key]:
        return iter(self._values)

    def get(self, key: _Key) -> _V | None:
        found = self._values.get(key)
        return None if found is None else found[1]

    def until_s(self, key: _Key) -> float:
        return self._values[key][0]

    def put(self, key: _Key, value: _V, until_s: float) -> None:
        self._values[key] = (until_s, value)
        heapq.heappush(self._times, (until_s, key))
        if len(self._times) > 2 * len(self._values) + 64:  # most of them were ended, or given another time
            self._times = [(until_s, key) for key, (until_s, _) in self._values.items()]
            heapq.heapify(self._times)

    def drop(self, key: _Key) -> None:
        del self._values[key]

    def expire(self, now_s: float) -> None:
        while self._times and self._times[0][0] <= now_s:
            until_s, key = heapq.heappop(self._times)
            found = self._values.get(key)
            if found is not None and found[0] == until_s:
                del self._values[key]
                self._ended(found[1])


async def _first_of(woken: asyncio.Event, timeout_s: float) -> None:
    """Return when woken, or after so many seconds."""
    try:
        async with asyncio.timeout(max(timeout_s, 0.0)):
            await woken.wait()
    except TimeoutError:
        return


def _key_of(lease_id: str) -> str:
    return lease_id.rpartition(".")[0]
