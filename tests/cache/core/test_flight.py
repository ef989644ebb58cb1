"""Single flight: a missing call is executed once; whoever else wants it waits, bounded, and gets the same result."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from toolcache.adapters.memory_leases import MemoryLeases
from toolcache.adapters.memory_store import MemoryStore
from toolcache.core.cache import Ask, MissPolicy, Recording, ToolCache
from toolcache.core.entries import Result
from toolcache.core.ports import Filter
from toolcache.core.tiers import Hit, Miss
from toolcache.core.tools import Namespace, Tier
from toolcache.core.trust import Reason

TAKE = MissPolicy(action="lease", wait_s=5.0, lease_s=30.0)
TAKE_OR_LEAVE = MissPolicy(action="lease", wait_s=0.0, lease_s=30.0)
ONLY_WAIT = MissPolicy(action="wait", wait_s=5.0)


def order(n: int = 1) -> Ask:
    return Ask(tool="get_order", arguments={"order_id": f"#W{n}"}, environment="shop@1")


def told(answered: Any) -> str | Reason:
    return answered.answer.reason if isinstance(answered.answer, Miss) else answered.answer.result.content


async def test_without_a_policy_for_misses_no_lease_is_given(ask: Any) -> None:
    assert (await ask("get_order", order_id="#W1")).lease is None


async def test_the_first_to_miss_gets_the_lease_and_the_next_is_told_so(ask: Any) -> None:
    first = await ask("get_order", order_id="#W1", miss=TAKE_OR_LEAVE)
    second = await ask("get_order", order_id="#W1", miss=TAKE_OR_LEAVE)
    other = await ask("get_order", order_id="#W2", miss=TAKE_OR_LEAVE)
    assert (told(first), told(second), told(other)) == (Reason.NOT_RECORDED, Reason.LEASED, Reason.NOT_RECORDED)
    assert first.lease and other.lease and second.lease is None


async def test_a_hit_takes_no_lease(ask: Any, tell: Any) -> None:
    await tell("get_order", "pending", order_id="#W1")
    answered = await ask("get_order", order_id="#W1", miss=TAKE)
    assert (told(answered), answered.lease) == ("pending", None)


@pytest.mark.parametrize("unknowable", [{"tool": "teleport"}, {"arguments": {"order_id": float("nan")}}])
async def test_what_cannot_be_recorded_is_not_leased(cache: ToolCache, unknowable: dict[str, Any]) -> None:
    question = Ask(**{"tool": "get_order", "arguments": {}, "environment": "shop@1"} | unknowable)
    (answered,) = await cache.lookup("shop", [question], miss=TAKE)
    assert answered.lease is None


async def test_who_waits_gets_the_result_once_it_is_recorded(ask: Any, tell: Any) -> None:
    first = await ask("get_order", order_id="#W1", miss=TAKE)
    waiting = [asyncio.ensure_future(ask("get_order", order_id="#W1", miss=each)) for each in (TAKE, ONLY_WAIT)]
    await asyncio.sleep(0.01)
    assert not any(each.done() for each in waiting)
    await tell("get_order", "pending", order_id="#W1", lease=first.lease)
    answers = await asyncio.gather(*waiting)
    assert [(told(each), each.answer.tier, each.lease) for each in answers] == [("pending", Tier.EXACT, None)] * 2


async def test_a_released_lease_passes_on_to_who_waits_for_it(cache: ToolCache, ask: Any) -> None:
    first = await ask("get_order", order_id="#W1", miss=TAKE)
    waiting = asyncio.ensure_future(ask("get_order", order_id="#W1", miss=TAKE))
    await asyncio.sleep(0)
    assert await cache.release_lease("shop", first.lease)
    second = await waiting
    assert second.lease and second.lease != first.lease
    assert not await cache.release_lease("shop", first.lease)


async def test_an_expired_lease_passes_on_and_can_no_longer_be_extended(cache: ToolCache, ask: Any) -> None:
    short = MissPolicy(action="lease", lease_s=0.02)
    first = await ask("get_order", order_id="#W1", miss=short)
    second = await ask("get_order", order_id="#W1", miss=TAKE)
    assert second.lease
    assert not await cache.extend_lease("shop", first.lease, 10.0)
    assert await cache.extend_lease("shop", second.lease, 10.0)


async def test_who_only_waits_is_told_at_once_that_nobody_executes(ask: Any) -> None:
    assert told(await ask("get_order", order_id="#W1", miss=ONLY_WAIT)) is Reason.NOT_RECORDED


async def test_who_only_waits_is_told_when_the_holder_gives_up(cache: ToolCache, ask: Any) -> None:
    first = await ask("get_order", order_id="#W1", miss=TAKE)
    waiting = asyncio.ensure_future(ask("get_order", order_id="#W1", miss=ONLY_WAIT))
    await asyncio.sleep(0)
    await cache.release_lease("shop", first.lease)
    answered = await waiting
    assert (told(answered), answered.lease) == (Reason.NOT_RECORDED, None)


async def test_the_wait_is_bounded(ask: Any) -> None:
    await ask("get_order", order_id="#W1", miss=TAKE)
    bounded = MissPolicy(action="lease", wait_s=0.02)
    assert told(await ask("get_order", order_id="#W1", miss=bounded)) is Reason.LEASED


async def test_a_request_that_got_a_lease_does_not_wait_for_others(cache: ToolCache) -> None:
    """Two that hold what the other waits for would both wait in vain."""
    await cache.lookup("shop", [order(1)], miss=TAKE)
    mine, theirs = await cache.lookup("shop", [order(2), order(1)], miss=TAKE)
    assert mine.lease
    assert told(theirs) is Reason.LEASED


async def test_one_call_twice_in_a_request_is_leased_once(cache: ToolCache) -> None:
    first, second = await cache.lookup("shop", [order(), order()], miss=TAKE)
    assert first.lease and second.lease is None


async def test_a_lease_whose_result_was_refused_passes_on(ask: Any, tell: Any) -> None:
    first = await ask("get_order", order_id="#W1", miss=TAKE)
    await tell("get_order", "\ud800", order_id="#W1", lease=first.lease)
    assert (await ask("get_order", order_id="#W1", miss=TAKE_OR_LEAVE)).lease


async def test_sixty_four_who_miss_the_same_call_on_two_replicas_execute_it_once(
    make_cache: Any, shop: Namespace
) -> None:
    store, leases = MemoryStore(), MemoryLeases(asyncio.get_running_loop().time)
    replicas = [make_cache(store, leases=leases), make_cache(store, leases=leases)]
    await replicas[0].put_namespace(shop)
    executed = 0

    async def play(n: int) -> str:
        nonlocal executed
        cache = replicas[n % 2]
        (answered,) = await cache.lookup("shop", [order()], miss=TAKE)
        if isinstance(answered.answer, Hit):
            return answered.answer.result.content
        assert answered.lease
        executed += 1
        await asyncio.sleep(0.01)
        question = order()
        recording = Recording(
            tool=question.tool,
            arguments=question.arguments,
            environment=question.environment,
            result=Result(content="pending"),
            lease=answered.lease,
        )
        await cache.record("shop", [recording])
        return "pending"

    assert await asyncio.gather(*(play(n) for n in range(64))) == ["pending"] * 64
    assert executed == 1


# -- stochastic tools --------------------------------------------------------------------------------------------------


@pytest.fixture
async def dice(cache: ToolCache, shop: Namespace) -> ToolCache:
    """The cache with a get_order of which three samples are kept."""
    stochastic = replace(shop.tools["get_order"], samples=3)
    await cache.put_namespace(replace(shop, tools={**shop.tools, "get_order": stochastic}))
    return cache


async def test_each_rollout_of_a_group_gets_another_sample_until_none_is_left(
    dice: ToolCache, tell: Any, ask: Any
) -> None:
    for content in ("one", "two", "two"):
        await tell("get_order", content, order_id="#W1")
    answers = [await ask("get_order", order_id="#W1", group="g") for _ in range(5)]
    assert sorted(str(told(each)) for each in answers[:3]) == ["one", "two", "two"]
    assert [each.shared for each in answers] == [False, False, False, True, True]
    assert {each.answer.reason for each in answers} == {Reason.SAMPLED}
    assert {told(await ask("get_order", order_id="#W1", group="h")) for _ in range(3)} == {"one", "two"}


async def test_rollouts_of_a_group_execute_side_by_side_until_enough_samples_are_there(
    dice: ToolCache, ask: Any, tell: Any
) -> None:
    first = await ask("get_order", order_id="#W1", group="g", miss=TAKE)
    second = await ask("get_order", order_id="#W1", group="g", miss=TAKE)
    assert first.lease and second.lease
    await tell("get_order", "one", order_id="#W1", lease=first.lease)
    third = await ask("get_order", order_id="#W1", group="g", miss=TAKE)
    assert (told(third), bool(third.lease)) == (Reason.SAMPLES_EXHAUSTED, True)
    fourth = await ask("get_order", order_id="#W1", group="g", miss=TAKE)
    assert (told(fourth), fourth.shared) == ("one", True)


async def test_a_sample_that_a_group_executed_itself_is_not_drawn_by_its_other_rollouts(
    dice: ToolCache, ask: Any, tell: Any
) -> None:
    await tell("get_order", "before", order_id="#W1")
    assert told(await ask("get_order", order_id="#W1", group="g")) == "before"
    own = await ask("get_order", order_id="#W1", group="g", miss=TAKE)
    await tell("get_order", "own", order_id="#W1", lease=own.lease)
    await tell("get_order", "another group's", order_id="#W1")
    assert told(await ask("get_order", order_id="#W1", group="g")) is Reason.SAMPLES_EXHAUSTED


async def test_without_a_group_any_sample_is_as_good(dice: ToolCache, ask: Any, tell: Any) -> None:
    await tell("get_order", "one", order_id="#W1")
    answered = await ask("get_order", order_id="#W1")
    assert (told(answered), answered.answer.trust, answered.shared) == ("one", 1.0, False)


async def test_samples_that_are_gone_since_the_group_began_are_executed_anew(
    dice: ToolCache, ask: Any, tell: Any
) -> None:
    await tell("get_order", "one", order_id="#W1")
    await tell("get_order", "two", order_id="#W1")
    await ask("get_order", order_id="#W1", group="g")
    await dice.remove_where("shop", Filter(tool="get_order"))
    assert told(await ask("get_order", order_id="#W1", group="g", miss=TAKE)) is Reason.NOT_RECORDED


async def test_a_sample_that_is_recorded_again_moves_no_other_out_of_its_turn(
    dice: ToolCache, ask: Any, tell: Any
) -> None:
    await tell("get_order", "one", order_id="#W1")
    await tell("get_order", "two", order_id="#W1")
    first = await ask("get_order", order_id="#W1", group="g")
    await tell("get_order", "one", order_id="#W1")
    second = await ask("get_order", order_id="#W1", group="g")
    assert (told(first), told(second)) == ("one", "two")
