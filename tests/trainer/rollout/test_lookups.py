import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacherl.adapters.memory_cache import MemoryCache
from cacherl.rollout.lookups import MOST_ITEMS, LookupBatcher
from cacherl.rollout.tools import CacheSetup, CacheTools, Drop, ExecuteLive, OutageLog, ToolReply, ToolRequest
from tests.cache.http.service import made, serving
from toolcache.settings import Limits
from toolcache_client import AsyncCacheClient, CacheClient
from toolcache_client.errors import CacheRefused, CacheReplyMalformed, CacheUnavailable
from toolcache_client.messages import Answer, LookupItem, NamespaceSpec, ToolResult, ToolSpec


class Naming(MemoryCache):
    """Answers each item with its own arguments, under a lease where one is asked for."""

    def __init__(self) -> None:
        super().__init__(frozenset())
        self.terms: list[Mapping[str, Any]] = []
        self.released: list[str] = []

    async def lookup(self, namespace: str, items: Sequence[LookupItem], **terms: Any) -> list[Answer]:
        self.lookups.append(tuple(items))
        self.terms.append(terms)
        await asyncio.sleep(0)
        lease = "lease of {}" if terms["on_miss"] == "lease" else None
        return [
            Answer(
                tier="exact",
                trust=1.0,
                reason="recorded",
                result=ToolResult(content=str(item.arguments["n"])),
                lease=lease and lease.format(item.arguments["n"]),
            )
            for item in items
        ]

    async def release_lease(self, namespace: str, lease_id: str) -> bool:
        self.released.append(lease_id)
        return True


def item(n: int, **more: Any) -> LookupItem:
    return LookupItem(tool="look", arguments={"n": n}, environment="v1", **more)


def chain(*numbers: int) -> list[LookupItem]:
    return [item(n, follows=place > 0) for place, n in enumerate(numbers)]


def contents(answers: Sequence[Answer]) -> list[int]:
    return [int(answer.result.content) for answer in answers if answer.result]


async def test_what_is_asked_within_a_turn_of_the_event_loop_is_one_request() -> None:
    cache = Naming()
    batcher = LookupBatcher(cache)
    got = await asyncio.gather(*(batcher.lookup("n", [item(n), item(n + 100)]) for n in range(10)))
    assert [contents(answers) for answers in got] == [[n, n + 100] for n in range(10)]
    assert [len(batch) for batch in cache.lookups] == [20]
    await batcher.lookup("n", [item(5)])
    assert [len(batch) for batch in cache.lookups] == [20, 1]


@settings(deadline=None, max_examples=50)
@given(asked=st.lists(st.tuples(st.integers(1, 2 * MOST_ITEMS), st.booleans(), st.sampled_from(["fail", "lease"]))))
def test_everyone_gets_the_answers_to_what_it_asked_whatever_is_merged(asked: list[tuple[int, bool, Any]]) -> None:
    cache = Naming()

    async def ask() -> list[list[Answer]]:
        batcher = LookupBatcher(cache)
        starts = [sum(count for count, *_ in asked[:place]) for place in range(len(asked))]
        work = [
            batcher.lookup("n", (chain if follows else plain)(*range(start, start + count)), on_miss=on_miss)
            for start, (count, follows, on_miss) in zip(starts, asked, strict=True)
        ]
        return await asyncio.gather(*work)

    numbers = [n for answers in asyncio.run(ask()) for n in contents(answers)]
    assert numbers == list(range(sum(count for count, *_ in asked)))
    own = [count for count, *_ in asked]
    assert all(len(batch) <= MOST_ITEMS or len(batch) in own for batch in cache.lookups)
    assert all(not batch[0].follows for batch in cache.lookups)


def plain(*numbers: int) -> list[LookupItem]:
    return [item(n) for n in numbers]


async def test_a_chain_stays_together_and_is_not_sent_with_what_the_cache_answers_quickly() -> None:
    cache = Naming()
    batcher = LookupBatcher(cache)
    await asyncio.gather(*(batcher.lookup("n", items) for items in (plain(1), chain(2, 3), plain(4), chain(5, 6))))
    assert sorted([each.arguments["n"] for each in batch] for batch in cache.lookups) == [[1, 4], [2, 3, 5, 6]]


async def test_lookups_on_different_terms_are_different_requests() -> None:
    cache = Naming()
    batcher = LookupBatcher(cache)
    await asyncio.gather(
        batcher.lookup("n", [item(1)]),
        batcher.lookup("m", [item(2)]),
        batcher.lookup("n", [item(3)], on_miss="lease"),
        batcher.lookup("n", [item(4)], on_miss="lease", lease_s=5.0),
        batcher.lookup("n", [item(5)], on_miss="lease"),
    )
    assert sorted([each.arguments["n"] for each in batch] for batch in cache.lookups) == [[1], [2], [3, 5], [4]]


async def test_who_is_willing_to_wait_makes_nobody_else_wait() -> None:
    cache = Naming()
    batcher = LookupBatcher(cache)
    await asyncio.gather(
        batcher.lookup("n", [item(1)], on_miss="wait", wait_s=5.0), batcher.lookup("n", [item(2)], on_miss="wait")
    )
    assert [terms["wait_s"] for terms in cache.terms] == [5.0, 0.0]


async def test_an_item_that_follows_nobody_s_is_not_put_behind_somebody_else_s() -> None:
    cache = Naming()
    batcher = LookupBatcher(cache)
    await asyncio.gather(batcher.lookup("n", chain(1, 2)), batcher.lookup("n", [item(3, follows=True)]))
    assert sorted([each.arguments["n"] for each in batch] for batch in cache.lookups) == [[1, 2], [3]]


class Failing(Naming):
    """Fails whenever an item of this number is in a request."""

    def __init__(self, error: Exception, number: int) -> None:
        super().__init__()
        self._error = error
        self._number = number

    async def lookup(self, namespace: str, items: Sequence[LookupItem], **terms: Any) -> list[Answer]:
        found = await super().lookup(namespace, items, **terms)
        if any(each.arguments["n"] == self._number for each in items):
            raise self._error
        return found


async def outcomes(batcher: LookupBatcher, *asked: Sequence[LookupItem]) -> list[list[int] | str]:
    work = (batcher.lookup("n", items) for items in asked)
    got = await asyncio.gather(*work, return_exceptions=True)
    return [type(each).__name__ if isinstance(each, BaseException) else contents(each) for each in got]


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_request_that_is_refused_for_one_caller_s_items_costs_only_that_caller(status: int) -> None:
    cache = Failing(CacheRefused(status=status, code="too_large", detail=""), 2)
    got = await outcomes(LookupBatcher(cache), [item(1)], [item(2), item(3)], [item(4)])
    assert got == [[1], "CacheRefused", [4]]
    assert [len(batch) for batch in cache.lookups] == [4, 1, 2, 1]


@pytest.mark.parametrize(
    "error",
    [
        CacheRefused(status=404, code="unknown_namespace", detail=""),
        CacheUnavailable("no answer"),
        RuntimeError("a defect"),
    ],
)
async def test_any_other_failure_is_everyone_s_and_not_asked_again(error: Exception) -> None:
    cache = Failing(error, 2)
    got = await outcomes(LookupBatcher(cache), [item(1)], [item(2)])
    assert got == [type(error).__name__] * 2
    assert len(cache.lookups) == 1


async def test_a_reply_with_too_few_answers_is_malformed_and_leaves_nobody_waiting() -> None:
    class Short(Naming):
        async def lookup(self, namespace: str, items: Sequence[LookupItem], **terms: Any) -> list[Answer]:
            return (await super().lookup(namespace, items, **terms))[:-1]

    assert await outcomes(LookupBatcher(Short()), [item(1)], [item(2)]) == [CacheReplyMalformed.__name__] * 2


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if is_so():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never was")


@pytest.mark.parametrize("has_arrived", [False, True])
async def test_a_caller_who_is_cancelled_cancels_nobody_and_its_leases_are_given_back(has_arrived: bool) -> None:
    cache = Naming()
    batcher = LookupBatcher(cache)
    one, other = (asyncio.ensure_future(batcher.lookup("n", [item(n)], on_miss="lease")) for n in (1, 2))
    await until(lambda: bool(cache.lookups))
    if has_arrived:  # the answers are there, the caller has not been woken yet
        await asyncio.sleep(0)
    one.cancel()
    assert contents(await other) == [2]
    with pytest.raises(asyncio.CancelledError):
        await one
    await until(lambda: bool(cache.released))
    assert cache.released == ["lease of 1"]
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


# -- against the real service ------------------------------------------------------------------------------------------

SPEC = NamespaceSpec(tools=(ToolSpec(name="look", effect="read"), ToolSpec(name="put", effect="write")))


class Shelf:
    """A live session: counts what was put on a shelf."""

    def __init__(self, executed: list[str]) -> None:
        self._executed = executed
        self._items: list[str] = []

    def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        self._executed.append(f"{tool} {sorted(arguments.values())} {self._items}")
        if tool == "put":
            self._items.append(arguments["item"])
            return ToolResult(content="put")
        return ToolResult(content=",".join(self._items) or "empty")


def look(place: str) -> ToolRequest:
    return ToolRequest(tool="look", arguments={"place": place})


PUT = ToolRequest(tool="put", arguments={"item": "mug"})
Play = Callable[[AsyncCacheClient, LookupBatcher], Awaitable[None]]


def with_service(play: Play) -> None:
    async def connected(url: str) -> None:
        async with AsyncCacheClient(url, timeout_s=30.0) as client:
            await play(client, LookupBatcher(client))

    with serving(made(limits=Limits()).app) as url:
        with CacheClient(url) as client:
            client.put_namespace("shelf", SPEC)
        asyncio.run(connected(url))


def tools_on(cache: LookupBatcher, open_session: Callable[[], Shelf], rollout: int) -> CacheTools:
    setup = CacheSetup(
        cache=cache,
        namespace="shelf",
        writes=frozenset({"put"}),
        on_miss=ExecuteLive(),
        on_outage=Drop(),
        outage_log=OutageLog(),
    )
    return CacheTools(setup, open_session, environment="v1", rollout=str(rollout), group="g")


def test_a_group_that_plays_the_same_calls_in_other_orders_executes_each_once_and_leaves_no_lease() -> None:
    executed: list[str] = []
    reads = [look("attic"), look("cellar"), look("hall")]

    async def play(client: AsyncCacheClient, batcher: LookupBatcher) -> None:
        async def rollout(n: int) -> list[list[ToolReply]]:
            tools = tools_on(batcher, lambda: Shelf(executed), n)
            turns = [[*reads[n % 3 :], *reads[: n % 3]], [PUT, look("attic")], [look("hall"), look("hall")]]
            got = [await tools.answer(turn) for turn in turns]
            return [replies for replies in got if isinstance(replies, list)]

        async with asyncio.timeout(30):
            played = await asyncio.gather(*(rollout(n) for n in range(12)))
        for turns in played:
            read = [[r.content for r in replies] for replies in turns]
            assert read == [["empty"] * 3, ["put", "mug"], ["mug", "mug"]]
        recorded = [line for line in executed if line not in replayed]
        assert sorted(recorded) == sorted(set(recorded))
        items = [LookupItem(tool="look", arguments=dict(each.arguments), environment="v1") for each in reads]
        assert [a.tier for a in await client.lookup("shelf", items, on_miss="lease")] == ["exact"] * 3

    replayed = {"put ['mug'] []"}  # a session that executes what comes after it must have done it too
    with_service(play)


class Telling(LookupBatcher):
    """Tells when it has answered."""

    def __init__(self, cache: AsyncCacheClient) -> None:
        super().__init__(cache)
        self.has_answered = asyncio.Event()

    async def lookup(self, *arguments: Any, **terms: Any) -> list[Answer]:
        answers = await super().lookup(*arguments, **terms)
        self.has_answered.set()
        return answers


def test_a_rollout_that_is_cancelled_leaves_its_calls_to_others_at_once() -> None:
    may_end = threading.Event()

    class Stuck(Shelf):
        def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
            assert may_end.wait(20.0)
            return super().execute(tool, arguments)

    async def play(client: AsyncCacheClient, batcher: LookupBatcher) -> None:
        cache = Telling(client)
        task = asyncio.create_task(tools_on(cache, lambda: Stuck([]), 0).answer([look("attic"), look("hall")]))
        await cache.has_answered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        items = [LookupItem(tool="look", arguments={"place": place}, environment="v1") for place in ("attic", "hall")]
        answers = await batcher.lookup("shelf", items, on_miss="lease")
        assert all(answer.lease for answer in answers)

    with_service(play)
    may_end.set()
