"""One call's result, from the cache or by executing it: the whole dance of leases behind one function.

Of all callers that miss the same call at once, one executes it and records the result; the others wait and are given
it. That saves executions and is no matter of correctness: whoever has waited long enough executes by itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from toolcache_client.errors import CacheError
from toolcache_client.messages import Answer, LookupItem, OnMiss, Recorded, RecordItem, Served, ToolResult

LEASE_S = 60.0
"""Seconds until a lease passes on if its holder is gone. While `execute` runs it is extended."""
PATIENCE_S = 120.0
"""Seconds to wait for somebody else's execution, before executing all the same."""
WAIT_AT_ONCE_S = 20.0
"""Seconds that one request waits at most: load balancers take a longer silence for a dead connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A call's result, and how far it can be trusted."""

    tier: Literal["exact", "similar", "approximate", "live"]
    """`live`: executed just now."""
    trust: float
    result: ToolResult
    reason: str
    """Why the cache gave this answer; where the result is live, why the cache had none, or "shadow"."""
    state_after: str | None
    """Pass it as the next call's `state`; None: unknown."""
    answer: Answer
    """What the cache said."""
    unrecorded: CacheError | None = None
    """Why a live result could not be recorded. It is true all the same."""


class AsyncCache(Protocol):
    """What is needed of AsyncCacheClient."""

    async def lookup(
        self, namespace: str, items: Sequence[LookupItem], *, on_miss: OnMiss, wait_s: float, lease_s: float
    ) -> list[Answer]: ...
    async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]: ...
    async def extend_lease(self, namespace: str, lease_id: str, *, extend_s: float) -> bool: ...
    async def release_lease(self, namespace: str, lease_id: str) -> bool: ...


class Cache(Protocol):
    """What is needed of CacheClient."""

    def lookup(
        self, namespace: str, items: Sequence[LookupItem], *, on_miss: OnMiss, wait_s: float, lease_s: float
    ) -> list[Answer]: ...
    def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]: ...
    def extend_lease(self, namespace: str, lease_id: str, *, extend_s: float) -> bool: ...
    def release_lease(self, namespace: str, lease_id: str) -> bool: ...


async def resolve_async(
    cache: AsyncCache,
    namespace: str,
    item: LookupItem,
    execute: Callable[[], Awaitable[ToolResult]],
    *,
    lease_s: float,
    wait_s: float,
    tags: Sequence[str],
    answer: Answer | None = None,
) -> Resolved:
    """See AsyncCacheClient.resolve."""
    patience = _Patience(item, wait_s)
    while answer is None or patience.should_ask_again(answer):
        [answer] = await cache.lookup(
            namespace, [item], on_miss="lease", wait_s=patience.next_wait_s(), lease_s=lease_s
        )
    if (served := _served(answer)) is not None:
        return served
    began_s = time.perf_counter()
    result: ToolResult | None = None
    try:
        async with _kept_async(cache, namespace, answer.lease, lease_s):
            result = _timed(await execute(), began_s)
            [recorded] = await cache.record(namespace, [_told(item, answer, result, tags)])
    except CacheError as error:
        if result is None:  # it is the executor's own
            raise
        return _live(answer, result, None, error)
    return _live(answer, result, recorded, None)


def resolve(
    cache: Cache,
    namespace: str,
    item: LookupItem,
    execute: Callable[[], ToolResult],
    *,
    lease_s: float,
    wait_s: float,
    tags: Sequence[str],
    answer: Answer | None = None,
) -> Resolved:
    """See CacheClient.resolve."""
    patience = _Patience(item, wait_s)
    while answer is None or patience.should_ask_again(answer):
        [answer] = cache.lookup(namespace, [item], on_miss="lease", wait_s=patience.next_wait_s(), lease_s=lease_s)
    if (served := _served(answer)) is not None:
        return served
    began_s = time.perf_counter()
    result: ToolResult | None = None
    try:
        with _kept(cache, namespace, answer.lease, lease_s):
            result = _timed(execute(), began_s)
            [recorded] = cache.record(namespace, [_told(item, answer, result, tags)])
    except CacheError as error:
        if result is None:  # it is the executor's own
            raise
        return _live(answer, result, None, error)
    return _live(answer, result, recorded, None)


class _Patience:
    """How long one caller goes on waiting for another's execution."""

    def __init__(self, item: LookupItem, wait_s: float) -> None:
        if item.follows:
            raise ValueError("resolve takes a call with its own state; `follows` is for the items of a batch")
        self._deadline_s = time.monotonic() + wait_s

    def next_wait_s(self) -> float:
        return min(max(0.0, self._deadline_s - time.monotonic()), WAIT_AT_ONCE_S)

    def should_ask_again(self, answer: Answer) -> bool:
        return answer.reason == "leased" and time.monotonic() < self._deadline_s


def _served(answer: Answer) -> Resolved | None:
    if answer.result is None or answer.tier == "miss" or answer.shadow:
        return None
    return Resolved(
        tier=answer.tier,
        trust=answer.trust,
        result=answer.result,
        reason=answer.reason,
        state_after=answer.state_after,
        answer=answer,
    )


def _live(answer: Answer, result: ToolResult, recorded: Recorded | None, unrecorded: CacheError | None) -> Resolved:
    return Resolved(
        tier="live",
        trust=1.0,
        result=result,
        reason="shadow" if answer.shadow else answer.reason,
        state_after=None if recorded is None else recorded.state_after,
        answer=answer,
        unrecorded=unrecorded,
    )


def _timed(result: ToolResult, began_s: float) -> ToolResult:
    """With the seconds it took, where the executor does not tell them."""
    return result if result.took_s else msgspec.structs.replace(result, took_s=time.perf_counter() - began_s)


def _told(item: LookupItem, answer: Answer, result: ToolResult, tags: Sequence[str]) -> RecordItem:
    served = None
    if answer.result is not None:
        served = Served(reason=answer.reason, result=answer.result, score=answer.score)
    return RecordItem(
        tool=item.tool,
        arguments=item.arguments,
        environment=item.environment,
        result=result,
        state=item.state,
        rollout=item.rollout,
        lease=answer.lease or "",
        tags=tuple(tags),
        served=served,
    )


@asynccontextmanager
async def _kept_async(cache: AsyncCache, namespace: str, lease: str | None, lease_s: float) -> AsyncIterator[None]:
    """Keep the lease while the body executes and records; give it back if that fails, so that somebody else may try."""
    if lease is None:
        yield
        return

    async def extend() -> None:
        is_held = True
        while is_held:
            await asyncio.sleep(lease_s / 2)
            with suppress(CacheError):  # the next half may reach it in time
                is_held = await cache.extend_lease(namespace, lease, extend_s=lease_s)

    keeper = asyncio.create_task(extend())
    try:
        yield
    except BaseException:
        keeper.cancel()
        with suppress(CacheError):
            await cache.release_lease(namespace, lease)
        raise
    finally:
        keeper.cancel()


@contextmanager
def _kept(cache: Cache, namespace: str, lease: str | None, lease_s: float) -> Iterator[None]:
    """The same without an event loop: a thread extends the lease."""
    if lease is None:
        yield
        return
    is_over = threading.Event()

    def extend() -> None:
        is_held = True
        while is_held and not is_over.wait(lease_s / 2):
            with suppress(CacheError):
                is_held = cache.extend_lease(namespace, lease, extend_s=lease_s)

    # Never joined: it may be in the middle of its retries, and what it says then of a lease that is over is harmless.
    threading.Thread(target=extend, name="toolcache-lease", daemon=True).start()
    try:
        yield
    except BaseException:
        is_over.set()
        with suppress(CacheError):
            cache.release_lease(namespace, lease)
        raise
    finally:
        is_over.set()
