"""The short way gives what the long way gives: same tier, trust, reason, states, result, donor, and the same counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolcache.core.cache import Answered, Ask, MissPolicy, Recording, ToolCache
from toolcache.core.entries import Result
from toolcache.core.quick import QuickHit
from toolcache.core.tiers import Miss
from toolcache.core.tools import Mask, Namespace, Tier

NUMBERS = st.integers(0, 3)
VALUES = st.one_of(NUMBERS, st.floats(allow_nan=False), st.sampled_from(["#W1", "é", "\ud800", None, True, [1]]))
ARGUMENTS = st.dictionaries(st.sampled_from(["order_id", "query", "limit", "é"]), VALUES, max_size=3)
TOOLS = st.sampled_from(["get_order", "search_help", "convert", "cancel_order", "teleport"])
STATES = st.sampled_from(["", "s", "s~0.5"])
RECORDINGS = st.builds(
    Recording,
    tool=TOOLS,
    arguments=ARGUMENTS,
    environment=st.sampled_from(["e", "f"]),
    state=STATES,
    result=st.builds(Result, content=st.sampled_from(["a", "b", '{"c": 1}']), is_error=st.booleans()),
)
QUESTIONS = st.builds(
    Ask,
    tool=TOOLS,
    arguments=ARGUMENTS,
    environment=st.sampled_from(["e", "f"]),
    state=STATES,
    tiers=st.sampled_from([None, ("exact",), ("similar",), ()]),
    follows=st.booleans(),
)


def seen(answered: QuickHit | Answered) -> tuple[Any, ...]:
    if isinstance(answered, QuickHit):
        return (
            answered.tier,
            answered.trust,
            answered.reason,
            answered.state,
            answered.state_after,
            answered.result,
            answered.donor,
        )
    answer = answered.answer
    if isinstance(answer, Miss):
        return "miss", answer.reason, answer.detail, answered.state, answered.state_after, answered.lease
    return (
        answer.tier,
        answer.trust,
        answer.reason,
        answered.state,
        answered.state_after,
        answer.result,
        answer.donor,
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example makes a cache of its own
@given(
    recordings=st.lists(RECORDINGS, max_size=12), questions=st.lists(QUESTIONS, max_size=12), calibrates=st.booleans()
)
async def test_the_short_way_answers_as_the_long_way(
    make_cache: Any, shop: Namespace, recordings: Sequence[Recording], questions: Sequence[Ask], calibrates: bool
) -> None:
    cache: ToolCache = make_cache()
    await cache.put_namespace(shop)
    await cache.record("shop", recordings)
    if calibrates:
        await cache.calibrate("shop")
    # Those that were recorded are asked too, or hardly anything would ever hit.
    asked = [*questions, *(Ask(tool=r.tool, arguments=r.arguments, environment=r.environment) for r in recordings)]
    short = (await cache.lookup_quickly("shop", asked)).items
    counted = dict((await cache.report("shop")).answers)
    long = await cache.lookup("shop", asked)
    assert [seen(each) for each in short] == [seen(each) for each in long]
    assert {tier: 2 * count for tier, count in counted.items()} == (await cache.report("shop")).answers


def order(n: int) -> Ask:
    return Ask(tool="get_order", arguments={"order_id": f"#W{n}"}, environment="shop@1")


async def test_a_plain_recorded_call_does_go_the_short_way(cache: ToolCache, tell: Any) -> None:
    await tell("get_order", "pending", order_id="#W1")
    (answered,) = (await cache.lookup_quickly("shop", [order(1)])).items
    assert isinstance(answered, QuickHit)


@pytest.mark.parametrize(
    "policy", [{"ttl_s": 60.0}, {"samples": 2}, {"masks": (Mask(argument="x"),)}], ids=["ttl", "samples", "masks"]
)
async def test_what_is_not_plain_goes_the_long_way(
    cache: ToolCache, shop: Namespace, tell: Any, policy: dict[str, Any]
) -> None:
    changed = replace(shop.tools["get_order"], **policy)
    await cache.put_namespace(replace(shop, tools={**shop.tools, "get_order": changed}))
    await tell("get_order", "pending", order_id="#W1")
    (answered,) = (await cache.lookup_quickly("shop", [order(1)])).items
    assert isinstance(answered, Answered) and not isinstance(answered.answer, Miss)


async def test_answers_of_both_ways_come_in_the_order_of_their_questions(cache: ToolCache, tell: Any) -> None:
    for n in (1, 2, 3):
        await tell("get_order", str(n), order_id=f"#W{n}")
    await tell("cancel_order", "done", order_id="#W1")
    write = Ask(tool="cancel_order", arguments={"order_id": "#W1"}, environment="shop@1")
    asked = [order(9), order(2), write, order(1), order(8), order(3)]
    answers = (await cache.lookup_quickly("shop", asked)).items
    assert [seen(each)[0] for each in answers] == ["miss", "exact", "exact", "exact", "miss", "exact"]
    contents = [seen(each)[5].content for each in answers if seen(each)[0] == "exact"]
    assert contents == ["2", "done", "1", "3"]


async def test_misses_of_a_batch_get_their_leases(cache: ToolCache, tell: Any) -> None:
    await tell("get_order", "1", order_id="#W1")
    both = await cache.lookup_quickly("shop", [order(1), order(2)], miss=MissPolicy(action="lease"))
    hit, missed = both.items
    assert isinstance(hit, QuickHit)
    assert isinstance(missed, Answered) and missed.lease


async def test_a_changed_policy_is_seen_by_the_very_next_lookup(
    make_cache: Any, cache: ToolCache, shop: Namespace, tell: Any
) -> None:
    await tell("get_order", "1", order_id="#W1")
    assert isinstance((await cache.lookup_quickly("shop", [order(1)])).items[0], QuickHit)
    # Past this cache, as another process does.
    await cache._store.put_namespace(replace(shop, tiers=frozenset({Tier.SIMILAR})))
    (answered,) = (await cache.lookup_quickly("shop", [order(1)])).items
    assert isinstance(answered, Answered) and isinstance(answered.answer, Miss)
