"""Lookups of all rollouts in flight, sent together: one request a turn of the event loop, not one a rollout.

A request costs far more than an item in it, on both sides. Nothing is delayed for it: what rollouts ask within one
turn of the event loop leaves at its end. Lookups that are to wait for others' executions are sent as they are, or
everyone in the request would wait for the slowest.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from cacherl.rollout.tools import REFUSED_REQUEST, CacheLookup
from toolcache_client.errors import CacheError, CacheRefused, CacheReplyMalformed
from toolcache_client.messages import Answer, LookupItem, OnMiss, Recorded, RecordItem
from toolcache_client.resolve import LEASE_S

MOST_ITEMS = 64
"""Items of one request: enough that its own cost is spread thin, few enough that 64 results of 32 KB are read in a few
milliseconds, during which the event loop does nothing else."""


class LookupBatcher:
    """A CacheLookup that merges the lookups of one turn of the event loop; all else goes straight to the cache."""

    def __init__(self, cache: CacheLookup) -> None:
        self._cache = cache
        self._waiting: dict[_Terms, list[_Asked]] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def lookup(
        self,
        namespace: str,
        items: Sequence[LookupItem],
        *,
        on_miss: OnMiss = "fail",
        wait_s: float = 0.0,
        lease_s: float = LEASE_S,
    ) -> list[Answer]:
        """See AsyncCacheClient.lookup. A request that is refused for one caller's items costs only that caller.

        Leases that were granted to a caller who is gone by then are given back.
        """
        if wait_s > 0 or not items or items[0].follows:  # a first item that follows would follow another caller's
            return await self._cache.lookup(namespace, items, on_miss=on_miss, wait_s=wait_s, lease_s=lease_s)
        loop = asyncio.get_running_loop()
        # Chains by themselves: a service answers a request without any at a quarter of the price.
        terms = _Terms(namespace, on_miss, lease_s, any(item.follows for item in items))
        if terms not in self._waiting:
            self._waiting[terms] = []
            loop.call_soon(self._flush, terms)
        asked = _Asked(items=items, answers=loop.create_future())
        self._waiting[terms].append(asked)
        try:
            return await asked.answers
        except asyncio.CancelledError:
            if not asked.answers.cancelled() and asked.answers.exception() is None:
                await self._give_back(namespace, asked.answers.result())
            raise

    async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
        return await self._cache.record(namespace, items)

    async def extend_lease(self, namespace: str, lease_id: str, *, extend_s: float = LEASE_S) -> bool:
        return await self._cache.extend_lease(namespace, lease_id, extend_s=extend_s)

    async def release_lease(self, namespace: str, lease_id: str) -> bool:
        return await self._cache.release_lease(namespace, lease_id)

    def _flush(self, terms: "_Terms") -> None:
        for together in _packed(self._waiting.pop(terms)):
            task = asyncio.ensure_future(self._send(terms, together))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send(self, terms: "_Terms", together: "Sequence[_Asked]") -> None:
        """Ask the cache once for all of them, and give each its own answers, or the error."""
        items = [item for asked in together for item in asked.items]
        try:
            answers = await self._cache.lookup(
                terms.namespace, items, on_miss=terms.on_miss, wait_s=0.0, lease_s=terms.lease_s
            )
            if len(answers) != len(items):
                raise CacheReplyMalformed(f"asked about {len(items)} calls, the cache answered {len(answers)}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who asked
            is_one_s_fault = isinstance(error, CacheRefused) and error.status in REFUSED_REQUEST
            if is_one_s_fault and len(together) > 1:
                await asyncio.gather(*(self._send(terms, [asked]) for asked in together if not asked.answers.done()))
            else:
                _fail(together, error)
        else:
            await self._hand_out(terms.namespace, together, answers)

    async def _hand_out(self, namespace: str, together: "Sequence[_Asked]", answers: Sequence[Answer]) -> None:
        rest = iter(answers)
        unclaimed: list[Answer] = []
        for asked in together:
            own = [next(rest) for _ in asked.items]
            if asked.answers.cancelled():
                unclaimed += own
            else:
                asked.answers.set_result(own)
        await self._give_back(namespace, unclaimed)

    async def _give_back(self, namespace: str, answers: Sequence[Answer]) -> None:
        with suppress(CacheError):  # a lease that cannot be given back ends by itself
            for answer in answers:
                if answer.lease is not None:
                    await self._cache.release_lease(namespace, answer.lease)


class _Terms(NamedTuple):
    """What must be equal for lookups to share a request."""

    namespace: str
    on_miss: OnMiss
    lease_s: float
    has_chain: bool


@dataclass(slots=True, kw_only=True)
class _Asked:
    """One caller's lookup."""

    items: Sequence[LookupItem]
    answers: "asyncio.Future[list[Answer]]"


def _packed(waiting: "Sequence[_Asked]") -> "Iterator[list[_Asked]]":
    """Requests of at most MOST_ITEMS items; what one caller asks stays together, even if it is more."""
    together: list[_Asked] = []
    count = 0
    for asked in waiting:
        if together and count + len(asked.items) > MOST_ITEMS:
            yield together
            together, count = [], 0
        together.append(asked)
        count += len(asked.items)
    yield together


def _fail(together: "Sequence[_Asked]", error: Exception) -> None:
    for asked in together:
        if not asked.answers.done():
            asked.answers.set_exception(error)
