import asyncio
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from cacherl.adapters.memory_cache import MemoryCache
from cacherl.errors import ToolUnavailable
from cacherl.rollout.rollout import StopReason
from cacherl.rollout.tools import (
    MISS_TEXT,
    CacheSetup,
    CacheTools,
    Drop,
    ExecuteLive,
    LiveTools,
    MissPolicy,
    OutageLog,
    OutagePolicy,
    ToolError,
    ToolReply,
    ToolRequest,
    Void,
    Wait,
    writing_tools,
)
from toolcache_client.errors import CacheError, CacheRefused, CacheReplyMalformed, CacheUnavailable
from toolcache_client.messages import Answer, LookupItem, Recorded, RecordItem, Served, ToolResult

WRITES = frozenset({"put"})
TIMEOUT_S = 20.0
"""Never reached where a test passes."""


class Shelf:
    """A live session: counts what was put on a shelf."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self.executed: list[str] = []

    def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        self.executed.append(tool)
        if tool == "put":
            self.items.append(arguments["item"])
            return ToolResult(content="put")
        return ToolResult(content=",".join(self.items) or "empty")


class Down(MemoryCache):
    """A cache that is away for so many lookups, and at every record, or at none."""

    def __init__(self, lookups: float = math.inf, *, records: bool = True, error: CacheError | None = None) -> None:
        super().__init__(WRITES)
        self.asked = 0
        self._failing = lookups
        self._fails_to_record = records
        self._error = error or CacheUnavailable("no answer in 2 s")

    async def lookup(self, namespace: str, items: Sequence[LookupItem], **terms: Any) -> list[Answer]:
        self.asked += 1
        if self._failing > 0:
            self._failing -= 1
            raise self._error
        return await super().lookup(namespace, items, **terms)

    async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
        if self._fails_to_record:
            raise self._error
        return await super().record(namespace, items)


class Watched(MemoryCache):
    """Tells when a lookup waits for what others execute."""

    def __init__(self) -> None:
        super().__init__(WRITES)
        self.has_waiting = threading.Event()

    async def lookup(self, namespace: str, items: Sequence[LookupItem], **terms: Any) -> list[Answer]:
        if terms.get("wait_s"):
            self.has_waiting.set()
        return await super().lookup(namespace, items, **terms)


class Slow(Shelf):
    """Executes when it is let."""

    def __init__(self, may_end: threading.Event) -> None:
        super().__init__()
        self.has_begun = threading.Event()
        self._may_end = may_end

    def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        self.has_begun.set()
        assert self._may_end.wait(TIMEOUT_S)
        return super().execute(tool, arguments)


def put(item: str) -> ToolRequest:
    return ToolRequest(tool="put", arguments={"item": item})


def look(place: str) -> ToolRequest:
    return ToolRequest(tool="look", arguments={"place": place})


LOOK = ToolRequest(tool="look", arguments={})


def cache_tools(
    cache: Any,
    on_miss: MissPolicy,
    on_outage: OutagePolicy | None = None,
    open_session: Callable[[], Any] | None = None,
    log: OutageLog | None = None,
    patience_s: float = 0.0,
) -> CacheTools:
    setup = CacheSetup(
        cache=cache,
        namespace="shelf",
        writes=WRITES,
        on_miss=on_miss,
        on_outage=on_outage or Drop(),
        outage_patience_s=patience_s,
        outage_log=log or OutageLog(),
    )
    return CacheTools(setup, open_session, environment="v1", rollout="r", group="g")


async def replies(tools: CacheTools | LiveTools, *requests: ToolRequest) -> list[ToolReply]:
    got = await tools.answer(requests)
    assert not isinstance(got, Void)
    return got


async def test_a_second_rollout_is_answered_by_the_first_ones_recordings() -> None:
    cache = MemoryCache(WRITES)
    live = cache_tools(cache, ExecuteLive(), open_session=Shelf)
    first = await replies(live, LOOK, put("mug"), LOOK)
    assert [(r.content, r.tier, r.trust) for r in first] == [
        ("empty", "live", 1.0),
        ("put", "live", 1.0),
        ("mug", "live", 1.0),
    ]
    cached = cache_tools(cache, Drop())
    assert [(r.content, r.tier) for r in await replies(cached, LOOK, put("mug"), LOOK)] == [
        ("empty", "exact"),
        ("put", "exact"),
        ("mug", "exact"),
    ]
    assert [(item.state, item.follows) for item in cache.lookups[-1]] == [("", False), ("", False), ("", True)]


async def test_after_a_missed_read_the_other_answers_of_the_turn_still_hold() -> None:
    cache = MemoryCache(WRITES)
    await replies(cache_tools(cache, ExecuteLive(), open_session=Shelf), put("mug"), LOOK)
    before = len(cache.lookups)
    got = await replies(cache_tools(cache, ExecuteLive(), open_session=Shelf), LOOK, put("mug"), LOOK)
    assert [(r.content, r.tier) for r in got] == [("empty", "live"), ("put", "exact"), ("mug", "exact")]
    assert [len(batch) for batch in cache.lookups[before:]] == [3]


async def test_after_a_missed_write_the_rest_of_the_turn_is_looked_up_under_the_new_state() -> None:
    cache = MemoryCache(WRITES)
    await replies(cache_tools(cache, ExecuteLive(), open_session=Shelf), LOOK)
    before = len(cache.lookups)
    got = await replies(cache_tools(cache, ExecuteLive(), open_session=Shelf), put("mug"), LOOK)
    assert [(r.content, r.tier) for r in got] == [("put", "live"), ("mug", "live")]
    assert [len(batch) for batch in cache.lookups[before:]] == [2, 1]


async def test_a_tool_that_the_cache_alone_knows_for_a_write_is_followed_too() -> None:
    cache = MemoryCache(frozenset({"put", "mend"}))
    mend = ToolRequest(tool="mend", arguments={})
    await replies(cache_tools(cache, ExecuteLive(), open_session=Shelf), mend)
    got = await replies(cache_tools(cache, ExecuteLive(), open_session=Shelf), LOOK, mend, LOOK)
    assert [(r.tier, r.reason) for r in got] == [
        ("live", "not_recorded"),
        ("exact", "recorded"),
        ("live", "not_recorded"),
    ]
    assert len({record.state for record in cache.records if record.tool == "look"}) == 2


async def test_served_writes_are_replayed_before_the_first_live_call_and_only_once() -> None:
    cache = MemoryCache(WRITES)
    await replies(cache_tools(cache, ExecuteLive(), open_session=Shelf), put("mug"), put("hat"))
    shelf = Shelf()
    tools = cache_tools(cache, ExecuteLive(), open_session=lambda: shelf)
    await replies(tools, put("mug"), put("hat"))
    assert shelf.executed == []
    assert [r.content for r in await replies(tools, LOOK, put("pen"), LOOK)] == ["mug,hat", "put", "mug,hat,pen"]
    assert shelf.executed == ["put", "put", "look", "put", "look"]


async def test_a_miss_answered_with_an_error_leaves_the_state_as_it_was() -> None:
    cache = MemoryCache(WRITES)
    await replies(cache_tools(cache, ExecuteLive(), open_session=Shelf), put("mug"), LOOK)
    tools = cache_tools(cache, ToolError())
    got = await replies(tools, put("mug"), put("hat"), LOOK)
    assert [(r.content, r.tier, r.is_error, r.trust) for r in got] == [
        ("put", "exact", False, 1.0),
        (MISS_TEXT, "miss", True, 0.0),
        ("mug", "exact", False, 1.0),
    ]


async def test_a_dropped_miss_voids_the_rollout() -> None:
    assert await cache_tools(MemoryCache(WRITES), Drop()).answer([LOOK]) == Void(
        stop=StopReason.MISS_DROPPED, why="look: not_recorded"
    )


async def test_an_outage_is_infrastructure_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    log = OutageLog()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            tools = cache_tools(Down(), ExecuteLive(), Drop(), open_session=Shelf, log=log)
            assert await tools.answer([LOOK]) == Void(stop=StopReason.INFRASTRUCTURE, why="no answer in 2 s")
            assert tools.outages == 1
    assert log.count == 3
    assert len(caplog.records) == 1


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacherl.rollout.tools.OUTAGE_PAUSE_S", 0.0)


@pytest.mark.usefixtures("no_pause")
async def test_a_cache_that_comes_back_in_time_costs_a_rollout_nothing_but_time() -> None:
    log = OutageLog()
    tools = cache_tools(Down(lookups=3, records=False), ToolError(), log=log, patience_s=TIMEOUT_S)
    assert [r.tier for r in await replies(tools, LOOK)] == ["miss"]
    assert (tools.outages, log.count) == (1, 1)  # one fall, however often it is asked meanwhile
    assert 0.0 < tools.away_seconds < TIMEOUT_S


@pytest.mark.parametrize(
    "error",
    [
        CacheUnavailable("held back", retry_in_s=TIMEOUT_S + 1),
        CacheReplyMalformed("a page of some other server"),
    ],
)
async def test_what_waiting_cannot_help_is_not_waited_for(error: CacheError) -> None:
    cache = Down(error=error)
    tools = cache_tools(cache, ToolError(), patience_s=TIMEOUT_S)
    assert await tools.answer([LOOK]) == Void(stop=StopReason.INFRASTRUCTURE, why=str(error))
    assert (tools.outages, cache.asked) == (1, 1)


async def test_patience_lasts_for_all_outages_of_a_rollout_together() -> None:
    tools = cache_tools(Down(), ToolError(), patience_s=TIMEOUT_S)
    tools.away_seconds = TIMEOUT_S  # lost to an earlier one
    assert isinstance(await tools.answer([LOOK]), Void)


async def test_what_a_turn_had_answered_before_the_cache_went_away_stays_answered() -> None:
    class AwayForWaiters(MemoryCache):
        async def lookup(self, namespace: str, items: Sequence[LookupItem], **terms: Any) -> list[Answer]:
            if terms.get("wait_s"):
                raise CacheUnavailable("no answer in 20 s")
            return await super().lookup(namespace, items, **terms)

    cache, shelf = AwayForWaiters(WRITES), Shelf()
    [wrote] = await replies(cache_tools(cache, ExecuteLive(), open_session=Shelf), put("mug"))
    after = cache.records[0]
    [answer] = await cache.lookup("shelf", [LookupItem(tool="put", arguments=after.arguments, environment="v1")])
    other = LookupItem(tool="look", arguments={}, environment="v1", state=answer.state_after or "")
    await cache.lookup("shelf", [other], on_miss="lease")  # somebody executes it, and is never heard of again
    tools = cache_tools(cache, ExecuteLive(), ExecuteLive(), open_session=lambda: shelf)
    got = await replies(tools, put("mug"), LOOK)
    assert [(r.content, r.tier, r.reason) for r in got] == [
        (wrote.content, "exact", "recorded"),
        ("mug", "live", "cache_unavailable"),
    ]
    assert shelf.executed == ["put", "look"]


async def test_time_lost_to_a_silent_cache_is_known_though_the_rollout_is_cancelled() -> None:
    is_asked = asyncio.Event()

    class Silent(MemoryCache):
        async def lookup(self, *arguments: Any, **terms: Any) -> list[Answer]:
            is_asked.set()
            await asyncio.Event().wait()
            raise AssertionError

    tools = cache_tools(Silent(WRITES), ToolError())
    task = asyncio.create_task(tools.answer([LOOK]))
    await is_asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tools.away_seconds > 0.0


@pytest.mark.usefixtures("no_pause")
async def test_waiting_for_what_another_rollout_executes_uses_up_no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("cacherl.rollout.tools.time.perf_counter", lambda: now_s)

    class LongPollThenBlip(MemoryCache):
        """Polled for 0.7 s in vain, then away for 0.3 s, then it answers."""

        polls = 0

        async def lookup(self, namespace: str, items: Sequence[LookupItem], **terms: Any) -> list[Answer]:
            nonlocal now_s
            if terms.get("wait_s"):
                self.polls += 1
                if self.polls == 1:
                    now_s += 0.7
                elif self.polls == 2:
                    now_s += terms["wait_s"] + 0.3
                    raise CacheUnavailable("connection reset")
                else:
                    [answer] = await super().lookup(namespace, items)
                    return [answer]
            return [Answer(reason="leased", tier="miss", trust=0.0, state="s", state_after=None)]

    cache = LongPollThenBlip(WRITES)
    tools = cache_tools(cache, ExecuteLive(), open_session=Shelf, patience_s=0.5)
    assert [r.tier for r in await replies(tools, LOOK)] == ["live"]
    assert (cache.polls, tools.outages) == (3, 1)
    assert tools.away_seconds == pytest.approx(0.3)


async def test_an_outage_may_be_bridged_live() -> None:
    tools = cache_tools(Down(), Drop(), ExecuteLive(), open_session=Shelf)
    got = await replies(tools, put("mug"), LOOK)
    assert [(r.content, r.tier, r.reason) for r in got] == [
        ("put", "live", "cache_unavailable"),
        ("mug", "live", "state_unknown"),
    ]


async def test_when_a_live_write_could_not_be_recorded_the_state_is_lost_and_never_called_initial() -> None:
    cache = Down(lookups=0)
    known = RecordItem(tool="look", arguments={}, environment="v1", result=ToolResult(content="empty"))
    await MemoryCache.record(cache, "shelf", [known])
    tools = cache_tools(cache, ExecuteLive(), open_session=Shelf)
    got = await replies(tools, put("mug"), LOOK)
    assert [(r.content, r.tier, r.reason) for r in got] == [
        ("put", "live", "not_recorded"),
        ("mug", "live", "state_unknown"),
    ]


class Refusing(MemoryCache):
    """A cache that refuses every record with a status."""

    def __init__(self, status: int) -> None:
        super().__init__(WRITES)
        self._status = status

    async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
        raise CacheRefused(status=self._status, code="refused", detail="not this one")


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_live_result_that_cannot_be_sent_is_used_and_the_state_after_it_is_lost(status: int) -> None:
    tools = cache_tools(Refusing(status), ExecuteLive(), open_session=Shelf)
    got = await replies(tools, LOOK, put("mug"), LOOK)
    assert [(r.content, r.reason) for r in got] == [
        ("empty", "not_recorded"),
        ("put", "not_recorded"),
        ("mug", "state_unknown"),
    ]
    assert tools.outages == 0


@pytest.mark.parametrize("status", [401, 404])
async def test_a_record_that_is_refused_for_the_run_s_own_mistake_ends_the_run(status: int) -> None:
    with pytest.raises(CacheRefused):
        await cache_tools(Refusing(status), ExecuteLive(), open_session=Shelf).answer([LOOK])


async def test_a_state_the_cache_does_not_know_is_never_sent_back_as_the_initial_one() -> None:
    class Unsure(MemoryCache):
        async def lookup(self, namespace: str, items: Sequence[LookupItem], **terms: Any) -> list[Answer]:
            self.lookups.append(tuple(items))
            guess = ToolResult(content="a guess")
            return [Answer(tier="approximate", trust=0.1, reason="any", state="s0", result=guess) for _ in items]

    cache = Unsure(WRITES)
    got = await replies(cache_tools(cache, ToolError()), put("mug"), LOOK)
    assert [(r.tier, r.reason) for r in got] == [("approximate", "any"), ("miss", "state_unknown")]
    assert len(cache.lookups) == 1


async def test_a_call_after_a_guessed_write_is_not_recorded() -> None:
    asked: list[str] = []

    class Guessing(MemoryCache):
        async def lookup(self, namespace: str, items: Sequence[LookupItem], **terms: Any) -> list[Answer]:
            asked.append(terms["on_miss"])
            guess = ToolResult(content="put")
            return [
                Answer(tier="approximate", trust=0.2, reason="simulated", state="s0", state_after="s1", result=guess)
                if item.tool == "put"
                else Answer(tier="miss", trust=0.0, reason="not_recorded", state="s1", state_after="s1")
                for item in items
            ]

    cache = Guessing(WRITES)
    tools = cache_tools(cache, ExecuteLive(), open_session=Shelf)
    got = [*await replies(tools, put("mug"), LOOK), *await replies(tools, LOOK)]
    assert [(r.content, r.tier) for r in got] == [("put", "approximate"), ("mug", "live"), ("mug", "live")]
    assert (cache.records, asked) == ([], ["lease", "fail"])  # nobody is to wait for what will not be recorded


async def test_a_live_tool_that_is_gone_voids_the_rollout() -> None:
    class Gone(Shelf):
        def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
            raise ToolUnavailable("sandbox died")

    assert await LiveTools(Gone()).answer([LOOK]) == Void(stop=StopReason.INFRASTRUCTURE, why="sandbox died")


async def test_live_tools_answer_in_order_with_full_trust() -> None:
    got = await replies(LiveTools(Shelf()), LOOK, put("mug"), LOOK)
    assert [(r.content, r.tier, r.trust) for r in got] == [("empty", "live", 1), ("put", "live", 1), ("mug", "live", 1)]


def test_an_unannotated_tool_is_a_write() -> None:
    tools = [{"function": {"name": "a"}}, {"function": {"name": "b"}, "effect": "read"}]
    assert writing_tools(tools) == {"a"}


def test_a_live_policy_without_a_session_is_refused() -> None:
    with pytest.raises(ValueError, match="open_session"):
        cache_tools(MemoryCache(WRITES), ExecuteLive())


# -- leases ------------------------------------------------------------------------------------------------------------


async def test_a_missed_call_is_executed_under_its_lease_which_ends_with_the_record() -> None:
    class NeverReleased(MemoryCache):
        async def release_lease(self, namespace: str, lease_id: str) -> bool:
            raise AssertionError("a record ends it; that would be one more request")

    cache = NeverReleased(WRITES)
    await replies(cache_tools(cache, ExecuteLive(), open_session=Shelf), look("attic"), look("cellar"), put("mug"))
    assert all(record.lease for record in cache.records)
    assert len({record.lease for record in cache.records}) == 3
    assert cache.leases == {}


async def test_of_two_rollouts_that_miss_the_same_call_one_executes_and_the_other_waits() -> None:
    cache = Watched()
    shelf = Slow(cache.has_waiting)
    first = asyncio.create_task(replies(cache_tools(cache, ExecuteLive(), open_session=lambda: shelf), LOOK))
    await asyncio.to_thread(shelf.has_begun.wait, TIMEOUT_S)
    never = Shelf()
    second = await replies(cache_tools(cache, ExecuteLive(), open_session=lambda: never), LOOK)
    assert [(r.content, r.tier) for r in [*await first, *second]] == [("empty", "live"), ("empty", "exact")]
    assert never.executed == []


async def test_a_call_that_comes_twice_in_a_turn_is_executed_once() -> None:
    cache, shelf = MemoryCache(WRITES), Shelf()
    got = await replies(cache_tools(cache, ExecuteLive(), open_session=lambda: shelf), LOOK, LOOK, look("attic"))
    assert [r.tier for r in got] == ["live", "exact", "live"]
    assert (shelf.executed, cache.leases) == (["look", "look"], {})


async def test_who_waits_for_another_s_call_holds_no_lease_meanwhile() -> None:
    class Other(MemoryCache):
        """Somebody executes the attic; the record comes when it is waited for."""

        async def lookup(self, namespace: str, items: Sequence[LookupItem], **terms: Any) -> list[Answer]:
            if terms.get("wait_s"):
                held.append(len(self.leases))
                item = RecordItem(tool="look", arguments={"place": "attic"}, environment="v1", result=DUST, lease=lease)
                await self.record(namespace, [item])
            return await super().lookup(namespace, items, **terms)

    held: list[int] = []
    cache = Other(WRITES)
    attic = LookupItem(tool="look", arguments={"place": "attic"}, environment="v1")
    [answer] = await cache.lookup("shelf", [attic], on_miss="lease")
    lease = answer.lease or ""
    got = await replies(cache_tools(cache, ExecuteLive(), open_session=Shelf), look("attic"), look("cellar"))
    assert [(r.content, r.tier) for r in got] == [("dust", "exact"), ("empty", "live")]
    assert (held, cache.leases) == ([1], {})  # the other's own
    asked = [item.arguments["place"] for batch in cache.lookups for item in batch]
    assert asked.count("cellar") == 2  # its lease was given back, so another one is needed


DUST = ToolResult(content="dust", took_s=2.5)


async def test_a_rollout_that_is_cancelled_while_it_executes_gives_all_its_leases_back() -> None:
    cache, may_end = MemoryCache(WRITES), threading.Event()
    shelf = Slow(may_end)
    tools = cache_tools(cache, ExecuteLive(), open_session=lambda: shelf)
    task = asyncio.create_task(tools.answer([look("attic"), look("cellar")]))
    await asyncio.to_thread(shelf.has_begun.wait, TIMEOUT_S)
    assert len(cache.leases) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_end.set()
    assert (cache.leases, cache.records, tools.away_seconds) == ({}, [], 0.0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_rollout_whose_live_tool_is_gone_gives_all_its_leases_back() -> None:
    class Gone(Shelf):
        def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
            raise ToolUnavailable("sandbox died")

    cache = MemoryCache(WRITES)
    tools = cache_tools(cache, ExecuteLive(), open_session=Gone)
    assert await tools.answer([LOOK, look("attic")]) == Void(stop=StopReason.INFRASTRUCTURE, why="sandbox died")
    assert cache.leases == {}


class Shadowing(MemoryCache):
    """Has a similar answer to everything, and asks for it to be checked."""

    async def lookup(self, namespace: str, items: Sequence[LookupItem], **terms: Any) -> list[Answer]:
        return [
            Answer(
                tier="similar",
                trust=0.9,
                reason="free_text",
                score=0.93,
                state="s0",
                state_after="s0",
                result=DUST,
                shadow=True,
            )
            for _ in items
        ]


async def test_an_answer_to_be_checked_is_executed_and_recorded_with_what_was_served() -> None:
    cache = Shadowing(WRITES)
    got = await replies(cache_tools(cache, ExecuteLive(), open_session=Shelf), LOOK)
    assert [(r.content, r.tier, r.trust, r.reason) for r in got] == [("empty", "live", 1.0, "shadow")]
    assert [record.served for record in cache.records] == [Served(reason="free_text", result=DUST, score=0.93)]


async def test_where_nothing_is_executed_an_answer_to_be_checked_is_served() -> None:
    got = await replies(cache_tools(Shadowing(WRITES), ToolError()), LOOK)
    assert [(r.content, r.tier, r.trust) for r in got] == [("dust", "similar", 0.9)]


# -- waiting for others ------------------------------------------------------------------------------------------------


async def test_a_run_that_executes_nothing_may_wait_for_one_that_does() -> None:
    cache = Watched()
    shelf = Slow(cache.has_waiting)
    live = asyncio.create_task(replies(cache_tools(cache, ExecuteLive(), open_session=lambda: shelf), LOOK))
    await asyncio.to_thread(shelf.has_begun.wait, TIMEOUT_S)
    got = await replies(cache_tools(cache, Wait(wait_s=TIMEOUT_S)), LOOK)
    assert [(r.content, r.tier) for r in [*await live, *got]] == [("empty", "live"), ("empty", "exact")]


@pytest.mark.parametrize("is_leased", [False, True])
async def test_what_nobody_executes_in_time_is_a_miss_after_all(is_leased: bool) -> None:
    cache = MemoryCache(WRITES)
    if is_leased:
        await cache.lookup("shelf", [LookupItem(tool="look", arguments={}, environment="v1")], on_miss="lease")
    reason = "leased" if is_leased else "not_recorded"
    [reply] = await replies(cache_tools(cache, Wait(wait_s=0.01, then=ToolError())), LOOK)
    assert (reply.content, reply.tier, reply.trust, reply.reason) == (MISS_TEXT, "miss", 0.0, reason)
    dropped = await cache_tools(cache, Wait(wait_s=0.01)).answer([LOOK])
    assert dropped == Void(stop=StopReason.MISS_DROPPED, why=f"look: {reason}")
    assert len(cache.leases) == is_leased


# -- seconds -----------------------------------------------------------------------------------------------------------


class Clock:
    """Stands still but for what is told to take time."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


class Timed(MemoryCache):
    """A lookup takes 3 s, a record 2 s."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(WRITES)
        self._clock = clock

    async def lookup(self, namespace: str, items: Sequence[LookupItem], **terms: Any) -> list[Answer]:
        self._clock.now_s += 3.0
        return await super().lookup(namespace, items, **terms)

    async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
        self._clock.now_s += 2.0
        return await super().record(namespace, items)


async def test_seconds_are_told_apart_by_what_they_were_spent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("cacherl.rollout.tools.time", clock)

    class Working(Shelf):
        """A call takes 7 s."""

        def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
            clock.now_s += 7.0
            return super().execute(tool, arguments)

    cache = Timed(clock)
    calls = [look("attic"), look("cellar"), look("attic")]
    live = await replies(cache_tools(cache, ExecuteLive(), open_session=Working), *calls[:2])
    assert [(r.seconds, r.cache_seconds, r.saved_seconds) for r in live] == [(1.5 + 7.0 + 2.0, 1.5 + 2.0, 0.0)] * 2
    served = await replies(cache_tools(cache, Drop()), *calls)
    assert [(r.seconds, r.cache_seconds, r.saved_seconds) for r in served] == [(1.0, 1.0, 7.0)] * 3


async def test_a_live_call_is_said_to_take_what_the_tool_took_not_the_way_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("cacherl.rollout.tools.time", clock)

    def open_slowly() -> Shelf:
        clock.now_s += 100.0
        return Shelf()

    class Looking(Shelf):
        def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
            clock.now_s += 7.0
            return super().execute(tool, arguments)

    def open_looking() -> Shelf:
        open_slowly()
        return Looking()

    cache = MemoryCache(WRITES)
    await replies(cache_tools(cache, ExecuteLive(), open_session=open_looking), LOOK)
    assert [record.result.took_s for record in cache.records] == [7.0]


# -- what is asked -----------------------------------------------------------------------------------------------------


async def test_every_lookup_names_the_rollout_its_group_and_the_tiers_it_accepts() -> None:
    cache = MemoryCache(WRITES)
    await replies(cache_tools(cache, ToolError()), LOOK, put("mug"))
    assert {(item.rollout, item.group, item.environment, item.tiers) for item in cache.lookups[0]} == {
        ("r", "g", "v1", None)
    }


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_lookup_that_is_refused_for_its_own_sake_voids_the_rollout_only(status: int) -> None:
    error = CacheRefused(status=status, code="refused", detail="not this one")
    got = await cache_tools(Down(error=error), ToolError()).answer([LOOK])
    assert got == Void(stop=StopReason.INFRASTRUCTURE, why=str(error))


async def test_a_namespace_that_is_not_there_ends_the_run() -> None:
    with pytest.raises(CacheRefused):
        error = CacheRefused(status=404, code="unknown_namespace", detail="shelf")
        await cache_tools(Down(error=error), ToolError()).answer([LOOK])


# ---- the session: closed once, after all else


class Closable(Shelf):
    """Tells what happened to it, in order."""

    def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        result = super().execute(tool, arguments)
        assert "closed" not in self.executed
        return result

    def close(self) -> None:
        self.executed.append("closed")


async def test_a_session_is_closed_with_the_tools_that_opened_it() -> None:
    live, opened = LiveTools(shelf := Closable()), Closable()
    cached = cache_tools(MemoryCache(WRITES), ExecuteLive(), open_session=lambda: opened)
    for tools in (live, cached):
        await replies(tools, LOOK)
        tools.close()
    assert shelf.executed == opened.executed == ["look", "closed"]


async def test_a_session_that_no_call_needed_is_closed_where_it_is_open_and_else_never_opened() -> None:
    LiveTools(shelf := Closable()).close()
    assert shelf.executed == ["closed"]
    opened: list[Closable] = []
    cache_tools(MemoryCache(WRITES), ExecuteLive(), open_session=lambda: opened.append(Closable())).close()
    cache_tools(MemoryCache(WRITES), Drop()).close()
    assert opened == []


async def test_a_session_without_a_close_or_with_one_that_fails_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Leaving(Shelf):
        def close(self) -> None:
            raise RuntimeError("the container is gone")

    LiveTools(Shelf()).close()
    assert not caplog.records
    LiveTools(Leaving()).close()
    assert "could not be closed" in caplog.text


@pytest.mark.parametrize("is_opening", [True, False])
async def test_a_session_that_is_still_at_work_when_its_rollout_is_over_is_closed_after_that(is_opening: bool) -> None:
    has_begun, may_end, is_closed = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        has_begun.set()
        assert may_end.wait(TIMEOUT_S)

    class Held(Closable):
        def __init__(self) -> None:
            super().__init__()
            if is_opening:
                hold()

        def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
            if not is_opening:
                hold()
            return super().execute(tool, arguments)

        def close(self) -> None:
            assert self.executed == ["look"]
            is_closed.set()

    tools = cache_tools(MemoryCache(WRITES), ExecuteLive(), open_session=Held)
    task = asyncio.create_task(tools.answer([LOOK]))
    await asyncio.to_thread(has_begun.wait, TIMEOUT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    tools.close()
    assert not is_closed.is_set()
    may_end.set()
    assert await asyncio.to_thread(is_closed.wait, TIMEOUT_S)


# ---- what a world raises


class Raising(Shelf):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        raise self._error


@pytest.mark.parametrize("error", [ConnectionResetError("by peer"), TimeoutError("by peer")])
async def test_a_tool_that_cannot_be_reached_voids_the_rollout_whichever_way_it_says_so(error: OSError) -> None:
    void = Void(stop=StopReason.INFRASTRUCTURE, why=f"tool look: {type(error).__name__}: by peer")

    def refused() -> Shelf:
        raise error

    assert await LiveTools(Raising(error)).answer([LOOK]) == void
    for open_session in (lambda: Raising(error), refused):
        for policies in ((ExecuteLive(), Drop()), (Drop(), ExecuteLive())):  # under a lease, and past a lost cache
            cache = MemoryCache(WRITES) if isinstance(policies[0], ExecuteLive) else Down()
            assert await cache_tools(cache, *policies, open_session=open_session).answer([LOOK]) == void


async def test_what_a_world_did_not_foresee_flies_and_names_the_tool() -> None:
    cached = cache_tools(MemoryCache(WRITES), ExecuteLive(), open_session=lambda: Raising(KeyError("shelf")))
    for tools in (LiveTools(Raising(KeyError("shelf"))), cached):
        with pytest.raises(KeyError) as raised:
            await tools.answer([LOOK])
        assert raised.value.__notes__ == ["tool look"]
