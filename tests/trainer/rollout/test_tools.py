import logging
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
    writing_tools,
)
from toolcache_client.errors import CacheRefused, CacheUnavailable
from toolcache_client.messages import Answer, LookupItem, Recorded, RecordItem, ToolResult

WRITES = frozenset({"put"})


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


class Down:
    """A cache that is away, from the first call or from the first record on."""

    def __init__(self, inner: MemoryCache | None = None) -> None:
        self._inner = inner

    async def lookup(self, namespace: str, items: Sequence[LookupItem]) -> list[Answer]:
        if self._inner is None:
            raise CacheUnavailable("no answer in 2 s")
        return await self._inner.lookup(namespace, items)

    async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
        raise CacheUnavailable("no answer in 2 s")


def put(item: str) -> ToolRequest:
    return ToolRequest(tool="put", arguments={"item": item})


LOOK = ToolRequest(tool="look", arguments={})


def cache_tools(
    cache: Any,
    on_miss: MissPolicy,
    on_outage: OutagePolicy | None = None,
    open_session: Callable[[], Any] | None = None,
    log: OutageLog | None = None,
) -> CacheTools:
    setup = CacheSetup(
        cache=cache,
        namespace="shelf",
        writes=WRITES,
        on_miss=on_miss,
        on_outage=on_outage or Drop(),
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
    assert [(item.state, item.follows) for item in cache.lookups[-1]] == [("", False), ("", True), ("", True)]


async def test_after_a_miss_the_rest_of_the_turn_is_looked_up_under_the_new_state() -> None:
    cache = MemoryCache(WRITES)
    await replies(cache_tools(cache, ExecuteLive(), open_session=Shelf), put("mug"), LOOK)
    before = len(cache.lookups)
    tools = cache_tools(cache, ExecuteLive(), open_session=Shelf)
    got = await replies(tools, LOOK, put("mug"), LOOK)
    assert [(r.content, r.tier) for r in got] == [("empty", "live"), ("put", "exact"), ("mug", "exact")]
    assert [len(batch) for batch in cache.lookups[before:]] == [3, 2]


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


async def test_an_outage_may_be_bridged_live() -> None:
    tools = cache_tools(Down(), Drop(), ExecuteLive(), open_session=Shelf)
    got = await replies(tools, put("mug"), LOOK)
    assert [(r.content, r.tier, r.reason) for r in got] == [
        ("put", "live", "cache_unavailable"),
        ("mug", "live", "state_unknown"),
    ]


async def test_when_a_live_write_could_not_be_recorded_the_state_is_lost_and_never_called_initial() -> None:
    inner = MemoryCache(WRITES)
    await replies(cache_tools(inner, ExecuteLive(), open_session=Shelf), LOOK)  # "empty" is known for the initial state
    shelf = Shelf()
    tools = cache_tools(Down(inner), ExecuteLive(), open_session=lambda: shelf)
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
        async def lookup(self, namespace: str, items: Sequence[LookupItem]) -> list[Answer]:
            self.lookups.append(tuple(items))
            guess = ToolResult(content="a guess")
            return [Answer(tier="approximate", trust=0.1, reason="any", state="s0", result=guess) for _ in items]

    cache = Unsure(WRITES)
    got = await replies(cache_tools(cache, ToolError()), put("mug"), LOOK)
    assert [(r.tier, r.reason) for r in got] == [("approximate", "any"), ("miss", "state_unknown")]
    assert len(cache.lookups) == 1


async def test_a_call_after_a_guessed_write_is_not_recorded() -> None:
    recorded: list[RecordItem] = []

    class Guessing(MemoryCache):
        async def lookup(self, namespace: str, items: Sequence[LookupItem]) -> list[Answer]:
            guess = ToolResult(content="put")
            return [
                Answer(tier="approximate", trust=0.2, reason="simulated", state="s0", state_after="s1", result=guess)
                if item.tool == "put"
                else Answer(tier="miss", trust=0.0, reason="not_recorded", state="s1", state_after="s1")
                for item in items
            ]

        async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
            recorded.extend(items)
            return await super().record(namespace, items)

    tools = cache_tools(Guessing(WRITES), ExecuteLive(), open_session=Shelf)
    got = await replies(tools, put("mug"), LOOK)
    assert [(r.content, r.tier) for r in got] == [("put", "approximate"), ("mug", "live")]
    assert recorded == []


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
