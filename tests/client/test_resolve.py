"""One call resolved: what is asked, executed, recorded and given back, against a cache that follows a script."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from toolcache_client import CacheError, CacheUnavailable, RecordRefused, Resolved
from toolcache_client.messages import Answer, LookupItem, OnMiss, Recorded, RecordItem, Served, ToolResult
from toolcache_client.resolve import resolve, resolve_async

ITEM = LookupItem(tool="get", arguments={"id": 1}, environment="e", state="s0", rollout="r1")
RESULT = ToolResult(content="fresh", took_s=2.0)
HIT = Answer(tier="exact", trust=0.97, reason="recorded", state_after="s1", result=ToolResult(content="known"))
LEASE = Answer(tier="miss", trust=0.0, reason="not_recorded", lease="k.1")
LEASED = Answer(tier="miss", trust=0.0, reason="leased")
WITHOUT_LEASE = Answer(tier="miss", trust=0.0, reason="unknown_tool")
TIMEOUT_S = 20.0
"""Never reached where a test passes."""


class Script:
    """A cache that gives these answers in turn, the last one for ever, and notes what it was told."""

    def __init__(self, *answers: Answer | CacheError) -> None:
        self._answers = answers
        self.waits_s: list[float] = []
        self.recorded: list[RecordItem] = []
        self.released: list[str] = []
        self.extended: list[float] = []
        self.was_extended = threading.Semaphore(0)
        self.extensions: list[bool | CacheError] = []
        """What extending answers, in turn; True when they are used up."""
        self.refusal: CacheError | None = None

    def lookup(
        self, namespace: str, items: Sequence[LookupItem], *, on_miss: OnMiss, wait_s: float, lease_s: float
    ) -> list[Answer]:
        assert (namespace, list(items), on_miss) == ("n", [ITEM], "lease")
        self.waits_s.append(wait_s)
        answer = self._answers[min(len(self.waits_s), len(self._answers)) - 1]
        if isinstance(answer, CacheError):
            raise answer
        return [answer]

    def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
        self.recorded += items
        if self.refusal is not None:
            raise self.refusal
        return [Recorded(outcome="stored", entry="e1", state_after="s2")]

    def extend_lease(self, namespace: str, lease_id: str, *, extend_s: float) -> bool:
        assert lease_id == "k.1"
        self.extended.append(extend_s)
        self.was_extended.release()
        said = self.extensions.pop(0) if self.extensions else True
        if isinstance(said, CacheError):
            raise said
        return said

    def release_lease(self, namespace: str, lease_id: str) -> bool:
        self.released.append(lease_id)
        return True


class AsyncScript:
    """The same for coroutines."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def lookup(self, *arguments: Any, **keywords: Any) -> list[Answer]:
        await asyncio.sleep(0)
        return self._script.lookup(*arguments, **keywords)

    async def record(self, *arguments: Any) -> list[Recorded]:
        return await asyncio.to_thread(self._script.record, *arguments)

    async def extend_lease(self, *arguments: Any, **keywords: Any) -> bool:
        return self._script.extend_lease(*arguments, **keywords)

    async def release_lease(self, *arguments: Any) -> bool:
        return self._script.release_lease(*arguments)


Resolve = Callable[..., Resolved]


@pytest.fixture(params=["sync", "async"])
def resolved(request: pytest.FixtureRequest) -> Resolve:
    """resolved(script, execute, item=..., lease_s=..., wait_s=...): one call resolved, in either way."""

    def synchronous(
        script: Script, execute: Callable[[], ToolResult], item: LookupItem = ITEM, **more: Any
    ) -> Resolved:
        options: dict[str, Any] = {"lease_s": 60.0, "wait_s": 0.0, "tags": ()} | more
        return resolve(script, "n", item, execute, **options)

    def asynchronous(
        script: Script, execute: Callable[[], ToolResult], item: LookupItem = ITEM, **more: Any
    ) -> Resolved:
        async def in_a_thread() -> ToolResult:
            return await asyncio.to_thread(execute)

        options: dict[str, Any] = {"lease_s": 60.0, "wait_s": 0.0, "tags": ()} | more
        return asyncio.run(resolve_async(AsyncScript(script), "n", item, in_a_thread, **options))

    return synchronous if request.param == "sync" else asynchronous


def never() -> ToolResult:
    raise AssertionError("executed, though the cache had an answer")


def test_what_the_cache_has_is_not_executed(resolved: Resolve) -> None:
    script = Script(HIT)
    found = resolved(script, never)
    assert (found.tier, found.trust, found.result, found.reason) == ("exact", 0.97, HIT.result, "recorded")
    assert (found.state_after, found.answer, script.recorded) == ("s1", HIT, [])


def test_the_holder_of_the_lease_executes_and_records_under_it(resolved: Resolve) -> None:
    script = Script(LEASE)
    found = resolved(script, lambda: RESULT, tags=["v2"])
    assert (found.tier, found.trust, found.result, found.reason) == ("live", 1.0, RESULT, "not_recorded")
    assert (found.state_after, found.unrecorded) == ("s2", None)
    assert script.recorded == [
        RecordItem(
            tool="get",
            arguments={"id": 1},
            environment="e",
            result=RESULT,
            state="s0",
            rollout="r1",
            lease="k.1",
            tags=("v2",),
        )
    ]
    assert (script.released, script.extended) == ([], [])


def test_the_seconds_it_took_are_measured_where_the_executor_does_not_tell_them(resolved: Resolve) -> None:
    script = Script(LEASE)
    found = resolved(script, lambda: ToolResult(content="x"))
    assert 0.0 < found.result.took_s < TIMEOUT_S
    assert script.recorded[0].result == found.result


def test_who_finds_the_call_leased_asks_again_until_the_result_is_there(resolved: Resolve) -> None:
    script = Script(LEASED, LEASED, HIT)
    assert resolved(script, never, wait_s=100.0).result == HIT.result
    assert [round(wait_s) for wait_s in script.waits_s] == [20, 20, 20]


def test_a_lease_that_passes_on_to_a_waiter_makes_it_execute(resolved: Resolve) -> None:
    script = Script(LEASED, LEASE)
    assert resolved(script, lambda: RESULT, wait_s=100.0).tier == "live"
    assert script.recorded[0].lease == "k.1"


@pytest.mark.parametrize("answer", [LEASED, WITHOUT_LEASE])
def test_who_gets_neither_result_nor_lease_in_time_executes_all_the_same(resolved: Resolve, answer: Answer) -> None:
    script = Script(answer)
    found = resolved(script, lambda: RESULT)
    assert (found.tier, found.reason, script.waits_s) == ("live", answer.reason, [0.0])
    assert [item.lease for item in script.recorded] == [""]


def test_an_execution_that_fails_gives_the_lease_back_and_records_nothing(resolved: Resolve) -> None:
    def fail() -> ToolResult:
        raise OSError("the sandbox is gone")

    script = Script(LEASE)
    with pytest.raises(OSError, match="the sandbox is gone"):
        resolved(script, fail)
    assert (script.released, script.recorded) == (["k.1"], [])


async def test_an_execution_that_is_cancelled_gives_the_lease_back() -> None:
    script = Script(LEASE)
    has_begun = asyncio.Event()

    async def hang() -> ToolResult:
        has_begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    options: dict[str, Any] = {"lease_s": 60.0, "wait_s": 0.0, "tags": ()}
    task = asyncio.create_task(resolve_async(AsyncScript(script), "n", ITEM, hang, **options))
    await has_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (script.released, script.recorded) == (["k.1"], [])


def test_a_lease_is_extended_while_the_call_takes_longer_than_half_of_it(resolved: Resolve) -> None:
    script = Script(LEASE)
    script.extensions = [True, CacheUnavailable("a hiccup"), True]

    def slow() -> ToolResult:
        for _ in range(4):
            assert script.was_extended.acquire(timeout=TIMEOUT_S)
        return RESULT

    assert resolved(script, slow, lease_s=0.01).result == RESULT
    assert script.extended[:4] == [0.01] * 4


def keepers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "toolcache-lease"]


def test_a_lease_that_has_passed_on_is_extended_no_more_and_the_result_is_recorded() -> None:
    script = Script(LEASE)
    script.extensions = [False]

    def slow() -> ToolResult:
        for keeper in keepers():
            keeper.join(TIMEOUT_S)
        assert keepers() == []
        return RESULT

    assert resolve(script, "n", ITEM, slow, lease_s=0.01, wait_s=0.0, tags=()).unrecorded is None
    assert (script.extended, len(script.recorded)) == ([0.01], 1)


async def test_nor_is_one_in_an_event_loop() -> None:
    script = Script(LEASE)
    script.extensions = [False]

    async def slow() -> ToolResult:
        await asyncio.to_thread(script.was_extended.acquire, timeout=TIMEOUT_S)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return RESULT

    found = await resolve_async(AsyncScript(script), "n", ITEM, slow, lease_s=0.01, wait_s=0.0, tags=())
    assert (found.unrecorded, script.extended, len(script.recorded)) == (None, [0.01], 1)


async def test_nothing_goes_on_extending_once_the_call_is_resolved() -> None:
    async def execute() -> ToolResult:
        return RESULT

    resolve(Script(LEASE), "n", ITEM, lambda: RESULT, lease_s=60.0, wait_s=0.0, tags=())
    for keeper in keepers():
        keeper.join(TIMEOUT_S)
    assert keepers() == []
    await resolve_async(AsyncScript(Script(LEASE)), "n", ITEM, execute, lease_s=60.0, wait_s=0.0, tags=())
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("refusal", [CacheUnavailable("away"), RecordRefused({0: "too large"})])
def test_a_result_that_cannot_be_recorded_is_not_lost_but_its_state_is(resolved: Resolve, refusal: CacheError) -> None:
    script = Script(LEASE)
    script.refusal = refusal
    found = resolved(script, lambda: RESULT)
    assert (found.tier, found.result, found.state_after, found.unrecorded) == ("live", RESULT, None, refusal)
    assert script.released == ["k.1"]


def test_the_cache_s_own_error_from_an_execution_comes_through(resolved: Resolve) -> None:
    def fail() -> ToolResult:
        raise CacheUnavailable("another cache")

    script = Script(LEASE)
    with pytest.raises(CacheUnavailable, match="another cache"):
        resolved(script, fail)
    assert (script.released, script.recorded) == (["k.1"], [])


def test_a_lease_is_extended_while_its_result_is_recorded(resolved: Resolve) -> None:
    class Slow(Script):
        def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
            assert self.was_extended.acquire(timeout=TIMEOUT_S)
            return super().record(namespace, items)

    script = Slow(LEASE)
    assert resolved(script, lambda: RESULT, lease_s=0.01).unrecorded is None
    assert (len(script.recorded), script.released) == (1, [])


async def test_a_recording_that_is_cancelled_gives_the_lease_back() -> None:
    is_recording = asyncio.Event()

    class Hanging(AsyncScript):
        async def record(self, *arguments: Any) -> list[Recorded]:
            is_recording.set()
            await asyncio.Event().wait()
            raise AssertionError

    async def execute() -> ToolResult:
        return RESULT

    script = Script(LEASE)
    options: dict[str, Any] = {"lease_s": 60.0, "wait_s": 0.0, "tags": ()}
    task = asyncio.create_task(resolve_async(Hanging(script), "n", ITEM, execute, **options))
    await is_recording.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert script.released == ["k.1"]


def test_a_hit_that_asks_for_a_shadow_execution_is_executed_and_compared(resolved: Resolve) -> None:
    shadow = Answer(
        tier="similar",
        trust=0.9,
        reason="free_text",
        score=0.93,
        state_after="s1",
        result=ToolResult(content="known"),
        shadow=True,
    )
    script = Script(shadow)
    found = resolved(script, lambda: RESULT)
    assert (found.tier, found.result, found.reason) == ("live", RESULT, "shadow")
    served = Served(reason="free_text", result=ToolResult(content="known"), score=0.93)
    assert [(item.served, item.lease) for item in script.recorded] == [(served, "")]


def test_a_cache_that_is_away_is_the_caller_s_to_deal_with(resolved: Resolve) -> None:
    with pytest.raises(CacheUnavailable, match="away"):
        resolved(Script(CacheUnavailable("away")), never)


def test_an_answer_that_the_caller_has_already_is_not_asked_for_again(resolved: Resolve) -> None:
    script = Script(WITHOUT_LEASE)
    assert resolved(script, never, answer=HIT).result == HIT.result
    found = resolved(script, lambda: RESULT, answer=LEASE)
    assert (found.tier, found.answer, script.waits_s) == ("live", LEASE, [])
    assert [item.lease for item in script.recorded] == ["k.1"]


def test_a_lease_in_an_answer_that_the_caller_has_is_given_back_where_the_execution_fails(resolved: Resolve) -> None:
    def fail() -> ToolResult:
        raise OSError("the sandbox is gone")

    script = Script(WITHOUT_LEASE)
    with pytest.raises(OSError, match="the sandbox is gone"):
        resolved(script, fail, answer=LEASE)
    assert (script.released, script.waits_s) == (["k.1"], [])


def test_a_caller_who_was_told_that_the_call_is_leased_asks_and_waits(resolved: Resolve) -> None:
    script = Script(HIT)
    assert resolved(script, never, answer=LEASED, wait_s=100.0).result == HIT.result
    assert [round(wait_s) for wait_s in script.waits_s] == [20]


def test_a_caller_who_was_told_so_and_will_not_wait_executes_at_once(resolved: Resolve) -> None:
    script = Script(HIT)
    assert resolved(script, lambda: RESULT, answer=LEASED, wait_s=0.0).tier == "live"
    assert script.waits_s == []


def test_an_item_of_a_batch_is_refused_for_its_state_would_be_another(resolved: Resolve) -> None:
    follower = LookupItem(tool="get", arguments={"id": 1}, environment="e", follows=True)
    script = Script(HIT)
    with pytest.raises(ValueError, match="follows"):
        resolved(script, never, follower)
    assert script.waits_s == []
