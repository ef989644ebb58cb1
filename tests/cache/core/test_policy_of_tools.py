"""What an operator can say of a tool and a namespace, and what follows: time, masks, quotas, shadows, simulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from toolcache.core.cache import Ask, MissPolicy, Recording, Served, ToolCache
from toolcache.core.entries import Result
from toolcache.core.ports import Filter, Once
from toolcache.core.state import initial_state, split_lineage
from toolcache.core.tiers import Miss
from toolcache.core.tools import Mask, Namespace, Role, Tier
from toolcache.core.trust import Evidence, Reason


def told(answered: Any) -> str | Reason:
    return answered.answer.reason if isinstance(answered.answer, Miss) else answered.answer.result.content


async def changed(cache: ToolCache, shop: Namespace, name: str, **policy: Any) -> None:
    await cache.put_namespace(replace(shop, tools={**shop.tools, name: replace(shop.tools[name], **policy)}))


# -- time --------------------------------------------------------------------------------------------------------------


async def test_a_volatile_result_is_served_until_its_time_is_over(
    cache: ToolCache, shop: Namespace, tell: Any, ask: Any, clock: Any
) -> None:
    await changed(cache, shop, "get_order", ttl_s=60.0)
    await tell("get_order", "pending", order_id="#W1")
    clock.now_s += 59.9
    assert told(await ask("get_order", order_id="#W1")) == "pending"
    clock.now_s += 0.1
    assert told(await ask("get_order", order_id="#W1")) is Reason.EXPIRED


async def test_an_expired_result_is_executed_anew_and_contradicts_nothing(
    cache: ToolCache, shop: Namespace, tell: Any, ask: Any, clock: Any
) -> None:
    await changed(cache, shop, "get_order", ttl_s=60.0)
    await tell("get_order", "pending", order_id="#W1")
    clock.now_s += 61.0
    missed = await ask("get_order", order_id="#W1", miss=MissPolicy(action="lease"))
    assert (told(missed), bool(missed.lease)) == (Reason.EXPIRED, True)
    await tell("get_order", "shipped", order_id="#W1", lease=missed.lease)
    renewed = await ask("get_order", order_id="#W1")
    assert (told(renewed), renewed.answer.reason) == ("shipped", Reason.RECORDED)


async def test_a_stricter_time_to_live_holds_for_what_was_recorded_before_and_a_longer_one_renews_nothing(
    cache: ToolCache, shop: Namespace, tell: Any, ask: Any, clock: Any
) -> None:
    await tell("get_order", "pending", order_id="#W1")
    await changed(cache, shop, "get_order", ttl_s=60.0)
    clock.now_s += 60.0
    assert told(await ask("get_order", order_id="#W1")) is Reason.EXPIRED
    await tell("get_order", "pending", order_id="#W2")
    await cache.put_namespace(shop)
    clock.now_s += 60.0
    assert told(await ask("get_order", order_id="#W2")) is Reason.EXPIRED
    assert told(await ask("get_order", order_id="#W1")) == "pending"


async def test_a_result_from_before_the_clock_was_set_back_is_not_taken_for_fresh(
    cache: ToolCache, shop: Namespace, tell: Any, ask: Any, clock: Any
) -> None:
    await changed(cache, shop, "get_order", ttl_s=60.0)
    await tell("get_order", "pending", order_id="#W1")
    clock.now_s -= 600.0
    assert told(await ask("get_order", order_id="#W1")) is Reason.EXPIRED


async def test_expired_entries_are_swept(cache: ToolCache, shop: Namespace, tell: Any, clock: Any) -> None:
    await changed(cache, shop, "get_order", ttl_s=60.0)
    await tell("get_order", "pending", order_id="#W1")
    await tell("search_help", "[]", query="stays")
    clock.now_s += 60.0
    await cache.settle()
    assert ((await cache.report("shop")).entries, cache.expired) == (1, 1)


# -- masks -------------------------------------------------------------------------------------------------------------


async def test_what_is_masked_does_not_matter_and_the_rest_does(
    cache: ToolCache, shop: Namespace, tell: Any, ask: Any
) -> None:
    await changed(cache, shop, "search_help", masks=(Mask(argument="query", pattern=r"req-\d+"),))
    await tell("search_help", "found", query="lamps req-17")
    assert told(await ask("search_help", query="lamps req-18")) == "found"
    assert told(await ask("search_help", query="chairs req-17")) is Reason.NOT_RECORDED


async def test_a_masked_write_leads_to_one_state(cache: ToolCache, shop: Namespace, tell: Any, ask: Any) -> None:
    await changed(cache, shop, "cancel_order", masks=(Mask(argument="comment"),))
    write = await tell("cancel_order", "done", order_id="#W1", comment="nonce 1")
    other = await ask("cancel_order", order_id="#W1", comment="nonce 2")
    assert (told(other), other.state_after) == ("done", write.state_after)


async def test_a_mask_confirmed_later_holds_for_what_was_recorded_before(
    cache: ToolCache, shop: Namespace, tell: Any, ask: Any
) -> None:
    await tell("search_help", "found", query="lamps req-17")
    await tell("search_help", "found", query="lamps req-18")
    await changed(cache, shop, "search_help", masks=(Mask(argument="query", pattern=r"req-\d+"),))
    await cache.calibrate("shop")
    again = await ask("search_help", query="lamps req-19")
    assert (told(again), again.answer.tier) == ("found", Tier.EXACT)
    assert (await cache.report("shop")).entries == 1


async def test_what_was_recorded_under_a_mask_answers_no_call_once_the_mask_is_gone(
    cache: ToolCache, shop: Namespace, tell: Any, ask: Any
) -> None:
    await changed(cache, shop, "search_help", masks=(Mask(argument="limit"),))
    await tell("search_help", "page 7", query="lamps", limit=7)
    await cache.put_namespace(shop)
    assert told(await ask("search_help", query="lamps")) is Reason.NOT_RECORDED
    await cache.calibrate("shop")
    assert told(await ask("search_help", query="lamps", limit=7)) == "page 7"
    assert told(await ask("search_help", query="lamps")) is Reason.NOT_RECORDED


async def test_an_answer_whose_donor_may_have_differed_under_a_mask_says_so(
    cache: ToolCache, shop: Namespace, tell: Any, ask: Any
) -> None:
    await changed(cache, shop, "search_help", masks=(Mask(argument="limit"),))
    await tell("search_help", "page 7", query="lamps", limit=7)
    assert (await ask("search_help", query="lamps")).answer.reason is Reason.MASKED


async def test_a_pattern_that_takes_for_ever_in_other_engines_stops_nobody(
    cache: ToolCache, shop: Namespace, ask: Any
) -> None:
    parameters = {"type": "object", "properties": {"order_id": {"type": "string", "pattern": "^(a+)+$"}}}
    await changed(cache, shop, "get_order", parameters=parameters, masks=(Mask(argument="order_id", pattern="(a+)+$"),))
    assert told(await ask("get_order", order_id="a" * 5000 + "!")) is Reason.INVALID_ARGUMENTS
    assert told(await ask("get_order", order_id="a" * 5000)) is Reason.NOT_RECORDED


# -- quotas ------------------------------------------------------------------------------------------------------------


async def test_a_namespace_keeps_its_quota_and_loses_what_was_used_longest_ago(
    cache: ToolCache, shop: Namespace, tell: Any, ask: Any, clock: Any
) -> None:
    await cache.put_namespace(replace(shop, max_bytes=8_000))
    for n in range(1, 8):
        clock.now_s += 1
        await tell("get_order", "x" * 400, order_id=f"#W{n}")
    assert cache.evicted == 0
    clock.now_s += 1
    await ask("get_order", order_id="#W1")
    clock.now_s += 1
    for n in (8, 9):
        await tell("get_order", "x" * 400, order_id=f"#W{n}")
    assert cache.evicted > 0
    assert (await cache.report("shop")).size_bytes <= 8_000
    assert told(await ask("get_order", order_id="#W1")) == "x" * 400
    assert told(await ask("get_order", order_id="#W2")) is Reason.NOT_RECORDED


async def test_an_entry_under_lease_is_never_evicted(
    cache: ToolCache, shop: Namespace, tell: Any, ask: Any, clock: Any
) -> None:
    """A settled lease counts for some seconds: who waited for the result must still find it."""
    await cache.put_namespace(replace(shop, max_bytes=1))
    first = await ask("get_order", order_id="#W1", miss=MissPolicy(action="lease"))
    await tell("get_order", "pending", order_id="#W1", lease=first.lease)
    assert told(await ask("get_order", order_id="#W1")) == "pending"
    await tell("get_order", "pending", order_id="#W2")
    assert told(await ask("get_order", order_id="#W2")) is Reason.NOT_RECORDED


# -- invalidation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "left"),
    [
        (Filter(tool="get_order"), {"b"}),
        (Filter(tag="nightly"), {"a"}),
        (Filter(environment="shop@2"), {"a", "b"}),
        (Filter(recorded_before_s=1500.0), {"b", "c"}),
        (Filter(tool="get_order", tag="nightly"), {"a", "b"}),
    ],
)
async def test_entries_are_invalidated_by_tool_tag_environment_and_age(
    cache: ToolCache, tell: Any, clock: Any, which: Filter, left: set[str]
) -> None:
    await tell("get_order", "a", order_id="#W1")
    clock.now_s = 2000.0
    await tell("search_help", "b", query="lamps", tags=("nightly",))
    await tell("get_order", "c", order_id="#W1", environment="shop@2", tags=("nightly", "slow"))
    assert await cache.remove_where("shop", which) == 3 - len(left)
    assert {each.result.content for each in await cache.browse("shop", None, 0, 10)} == left


# -- shadows -----------------------------------------------------------------------------------------------------------


async def test_a_share_of_the_answers_asks_for_a_shadow_execution(make_cache: Any, shop: Namespace) -> None:
    chances = iter([0.1, 0.9, 0.1, 0.9])
    cache: ToolCache = make_cache(chance=lambda: next(chances))
    await cache.put_namespace(replace(shop, shadow_share=0.5))
    await cache.record("shop", [Recording(tool="get_order", arguments={}, environment="e", result=Result(content="x"))])
    question = Ask(tool="get_order", arguments={}, environment="e")
    answers = await cache.lookup("shop", [question] * 4)
    assert [each.shadow for each in answers] == [True, False, True, False]


async def test_shadow_executions_that_disagree_lower_the_trust_of_the_next_answer(
    cache: ToolCache, tell: Any, ask: Any
) -> None:
    await tell("get_order", "pending", order_id="#W1")
    assert (await ask("get_order", order_id="#W1")).answer.trust == 1.0
    served = Served(reason="recorded", result=Result(content="pending"))
    await tell("get_order", "shipped", order_id="#W2", served=served)
    await tell("get_order", "pending", order_id="#W3", served=served)
    assert (await ask("get_order", order_id="#W1")).answer.trust == 0.5  # 1 right of 2: (1 + 1) / (2 + 2)


async def test_shadow_evidence_that_is_sent_again_counts_once(cache: ToolCache) -> None:
    served = Served(reason="recorded", result=Result(content="a"))
    recording = Recording(tool="get_order", arguments={}, environment="e", result=Result(content="b"), served=served)
    for _ in range(3):
        await cache.record("shop", [recording], once=Once(name="r1"))
    (tool,) = [each for each in (await cache.report("shop")).tools if each.tool.name == "get_order"]
    assert tool.profile.shadows == {"recorded": Evidence(right=0, served=1)}


async def test_shadow_evidence_does_not_outlive_the_rules_it_was_found_under(
    cache: ToolCache, shop: Namespace, tell: Any
) -> None:
    await tell("search_help", "b", query="x", served=Served(reason="irrelevant", result=Result(content="b")))
    strict = replace(shop.tools["search_help"], roles={"query": Role.IDENTITY})
    without = {name: tool for name, tool in shop.tools.items() if name != "search_help"}
    await cache.put_namespace(replace(shop, tools=without))
    await cache.put_namespace(replace(shop, tools={**without, "search_help": strict}))
    (tool,) = [each for each in (await cache.report("shop")).tools if each.tool.name == "search_help"]
    assert tool.profile.shadows == {}


# -- simulated writes --------------------------------------------------------------------------------------------------

NOTES = ("it is broken", "it is really broken", "sorry but it is broken", "well it is broken", "it is broken again")


async def test_nothing_after_a_simulated_write_is_exact_and_trust_never_exceeds_the_lineage(
    cache: ToolCache, shop: Namespace, tell: Any, ask: Any
) -> None:
    await changed(cache, shop, "cancel_order", simulate_writes=True, similar_floor=0.0)
    for order in range(8):
        for note in NOTES:
            await tell("cancel_order", f"cancelled {order}", order_id=f"#W{order}", comment=note)
    await cache.calibrate("shop")
    simulated = await ask("cancel_order", order_id="#W3", comment="oh it is broken")
    assert (told(simulated), simulated.answer.tier, simulated.answer.reason) == (
        "cancelled 3",
        Tier.SIMILAR,
        Reason.SIMULATED,
    )
    digest, lineage = split_lineage(simulated.state_after)
    assert 0 < lineage < 1 and abs(lineage - simulated.answer.trust) < 1e-5
    assert digest != initial_state("shop@1")

    await tell("get_order", "gone", order_id="#W3", state=digest)
    after = await ask("get_order", order_id="#W3", state=simulated.state_after)
    assert (told(after), after.answer.tier, after.answer.reason) == ("gone", Tier.SIMILAR, Reason.LINEAGE)
    assert after.answer.trust == after.lineage == lineage
    assert split_lineage(after.state_after) == (digest, lineage)


async def test_what_was_executed_after_a_simulated_write_is_no_knowledge_of_the_true_state(
    cache: ToolCache, tell: Any, ask: Any
) -> None:
    """The write never happened there, so the result is that of another world."""
    state = "a" * 64
    refused = await tell("get_order", "pending", order_id="#W1", state=f"{state}~0.5")
    assert refused.outcome is None and "simulated write" in refused.refused
    assert told(await ask("get_order", order_id="#W1", state=state)) is Reason.NOT_RECORDED
    assert (await tell("convert", "3.28", amount=1, state=f"{state}~0.5")).outcome is not None  # pure: of no state


async def test_a_state_that_a_caller_made_up_has_no_lineage(tell: Any, ask: Any) -> None:
    await tell("get_order", "pending", order_id="#W1", state="world~0")
    assert told(await ask("get_order", order_id="#W1", state="world")) is Reason.NOT_RECORDED
    assert told(await ask("get_order", order_id="#W1", state="world~0")) == "pending"


async def test_a_write_is_simulated_only_where_the_operator_says_so(cache: ToolCache, tell: Any, ask: Any) -> None:
    for note in NOTES:
        await tell("cancel_order", "cancelled", order_id="#W1", comment=note)
    await cache.calibrate("shop")
    assert told(await ask("cancel_order", order_id="#W1", comment="oh it is broken")) is Reason.WRITE


# -- explanations ------------------------------------------------------------------------------------------------------


async def test_every_answer_can_be_explained(cache: ToolCache, tell: Any, ask: Any) -> None:
    recorded = await tell("get_order", "pending", order_id="#W1")
    hit = (await ask("get_order", order_id="#W1", explain=True)).explanation
    assert hit.canonical == '{"order_id":"#W1"}'
    assert [(each.donor, each.verdict) for each in hit.candidates] == [(recorded.entry, "served (recorded 1 times)")]
    missed = (await ask("search_help", query="order #W1 from Rome", limit=3, explain=True)).explanation
    assert missed.guard == {"limit": {"is": 3}, "query": {"words": ["#W1", "from", "Rome"]}}
    assert any("nothing is recorded" in step for step in missed.steps)
    assert (missed.threshold, missed.floor) == (0.8, 0.8)
    assert (await ask("get_order", order_id="#W1")).explanation is None
