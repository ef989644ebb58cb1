"""The cache over real parts: what it serves, what it must never serve, and why it says what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from toolcache.adapters.hash_embedder import HashEmbedder
from toolcache.adapters.memory_store import MemoryStore
from toolcache.core.cache import Ask, Recording, ToolCache, UnknownNamespace
from toolcache.core.entries import Outcome, Result
from toolcache.core.ports import EmbedderUnavailable, Vector
from toolcache.core.state import initial_state
from toolcache.core.tiers import Guess, Hit, Miss
from toolcache.core.tools import Effect, Namespace, Role, Tier
from toolcache.core.trust import Reason

EXACT, SIMILAR, APPROXIMATE = Tier.EXACT, Tier.SIMILAR, Tier.APPROXIMATE
TOPICS = (
    "replacing broken window panes",
    "cleaning dusty kitchen shelves",
    "growing tomatoes with greenhouses",
    "painting wooden garden fences",
    "repairing flat bicycle tyres",
    "baking sourdough bread loaves",
    "tuning acoustic guitar strings",
    "folding paper crane figures",
)
FORMS = ("{}", "{} please", "kindly {}", "{} thanks", "hello {}", "{} soon", "{} dear", "well {}", "{} again", "so {}")
"""Of a group of n wordings n - 1 have an earlier one to be answered from, so 8 topics make 72 facts."""
REWORDED = "replacing broken window panes cheers"
"""Another wording of the first topic; the hash embedder sees wordings as near that share most letters."""


class CountingEmbedder(HashEmbedder):
    """Counts the texts it is asked for, and can be away."""

    def __init__(self) -> None:
        self.texts = 0
        self.is_away = False

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Vector]:
        if self.is_away:
            raise EmbedderUnavailable("away")
        self.texts += len(texts)
        return await super().embed(texts, tenant=tenant)


@pytest.fixture
def embedder() -> CountingEmbedder:
    return CountingEmbedder()


@pytest.fixture
async def cache(shop: Namespace, embedder: CountingEmbedder, make_cache: Any) -> ToolCache:
    made: ToolCache = make_cache(embedder=embedder)
    await made.put_namespace(shop)
    return made


@pytest.fixture
async def learned(cache: ToolCache, tell: Any) -> ToolCache:
    """The cache after it saw that rewordings of a search have the same result: trust 0.96 from 24 pairs of 24."""
    for topic in TOPICS:
        for form in FORMS:
            await tell("search_help", f'["{topic}"]', query=form.format(topic))
    await cache.calibrate("shop")
    return cache


def served(answered: Any) -> str | None:
    return None if isinstance(answered.answer, Miss) else answered.answer.result.content


def reason(answered: Any) -> Reason:
    return answered.answer.reason


# -- exact ------------------------------------------------------------------------------------------------------------


async def test_a_recorded_call_is_answered_exactly_in_any_order_of_arguments(tell: Any, ask: Any) -> None:
    recorded = await tell("search_help", '["x"]', query="a lamp", limit=3)
    again = await ask("search_help", limit=3.0, query="a lamp")
    assert (again.answer.tier, again.answer.trust, reason(again)) == (EXACT, 1.0, Reason.RECORDED)
    assert again.answer.donor == recorded.entry


@pytest.mark.parametrize(
    "other", [{"order_id": "#W2"}, {"order_id": "#w1"}, {"order_id": "#W1 "}, {"order_id": "W1"}, {}]
)
async def test_another_argument_is_another_call(tell: Any, ask: Any, other: dict[str, Any]) -> None:
    await tell("get_order", "pending", order_id="#W1")
    assert served(await ask("get_order", **other)) is None


async def test_large_identifiers_are_told_apart_to_the_last_digit(tell: Any, ask: Any) -> None:
    await tell("convert", "x", amount=2**53)
    assert served(await ask("convert", amount=2**53 + 1)) is None
    assert served(await ask("convert", amount=2.0**53)) == "x"


async def test_a_read_after_a_write_is_not_served_from_before_it(tell: Any, ask: Any) -> None:
    await tell("get_order", "pending", order_id="#W1")
    write = await tell("cancel_order", "done", order_id="#W1")
    after = await ask("get_order", order_id="#W1", state=write.state_after)
    assert (served(after), reason(after)) == (None, Reason.NOT_RECORDED)
    assert after.state == after.state_after == write.state_after
    assert served(await ask("get_order", order_id="#W1")) == "pending"


async def test_a_failed_write_leads_back_to_the_same_state(tell: Any, ask: Any) -> None:
    write = await tell("cancel_order", "Error: gone", order_id="#W1", is_error=True)
    assert write.state_after == initial_state("shop@1")
    again = await ask("cancel_order", order_id="#W1")
    assert (served(again), again.state_after) == ("Error: gone", initial_state("shop@1"))


async def test_an_errors_change_state_tool_moves_the_state_by_a_failed_write(
    cache: ToolCache, shop: Namespace, tell: Any
) -> None:
    halfway = replace(shop.tools["cancel_order"], errors_change_state=True)
    await cache.put_namespace(replace(shop, tools={**shop.tools, "cancel_order": halfway}))
    write = await tell("cancel_order", "Error: gone", order_id="#W1", is_error=True)
    assert write.state_after != initial_state("shop@1")


async def test_recording_and_serving_a_write_lead_to_the_same_state(tell: Any, ask: Any) -> None:
    recorded = await tell("cancel_order", "done", order_id="#W1")
    assert (await ask("cancel_order", order_id="#W1")).state_after == recorded.state_after
    missed = await ask("cancel_order", order_id="#W2")
    assert (reason(missed), missed.state_after) == (Reason.WRITE, "")


async def test_a_pure_tool_is_served_in_every_state_of_its_environment_only(tell: Any, ask: Any) -> None:
    await tell("convert", "3.28", amount=1, unit="ft")
    write = await tell("cancel_order", "done", order_id="#W1")
    assert served(await ask("convert", amount=1, unit="ft", state=write.state_after)) == "3.28"
    assert served(await ask("convert", amount=1, unit="ft", environment="shop@2")) is None


async def test_environments_are_isolated_even_under_one_state(tell: Any, ask: Any) -> None:
    await tell("get_order", "pending", order_id="#W1")
    await tell("get_order", "shipped", order_id="#W1", state="mine")
    assert served(await ask("get_order", order_id="#W1", environment="shop@2")) is None
    assert served(await ask("get_order", order_id="#W1", environment="shop@2", state="mine")) is None
    assert served(await ask("get_order", order_id="#W1", environment="shop@2", state=initial_state("shop@1"))) is None
    assert served(await ask("get_order", order_id="#W1", state="mine")) == "shipped"


async def test_namespaces_are_isolated(cache: ToolCache, shop: Namespace, tell: Any, ask: Any) -> None:
    await cache.put_namespace(replace(shop, name="other", tiers=frozenset({EXACT, SIMILAR, APPROXIMATE})))
    await tell("get_order", "pending", order_id="#W1")
    assert served(await ask("get_order", order_id="#W1", namespace="other")) is None
    assert await cache.namespaces() == ["other", "shop"]


async def test_an_unknown_namespace_is_named_with_the_way_to_make_it(cache: ToolCache, ask: Any) -> None:
    with pytest.raises(UnknownNamespace, match=r"'shpo'; create it with PUT /v1/namespaces/shpo"):
        await ask("get_order", namespace="shpo")


async def test_results_that_contradict_each_other_are_kept_and_served_by_counts(
    cache: ToolCache, tell: Any, ask: Any
) -> None:
    outcomes = [(await tell("get_order", text, order_id="#W1")).outcome for text in ("a", "b", "a", "b", "b")]
    assert outcomes == [Outcome.STORED, Outcome.CONFLICT, Outcome.KNOWN, Outcome.KNOWN, Outcome.KNOWN]
    torn = await ask("get_order", order_id="#W1")
    assert (served(torn), reason(torn), torn.answer.trust) == ("b", Reason.CONFLICT, 0.6)
    await tell("get_order", "c", order_id="#W2")
    await cache.calibrate("shop")  # 4 repetitions, of which 2 agreed with the most frequent result: 3 / 6
    other = await ask("get_order", order_id="#W2")
    assert (reason(other), other.answer.trust) == (Reason.RECORDED, 0.5)
    (tool,) = [each for each in (await cache.report("shop")).tools if each.tool.name == "get_order"]
    assert (tool.entries, tool.conflicts) == (3, 1)


async def test_results_equal_as_json_are_no_conflict_and_the_first_is_served(tell: Any, ask: Any) -> None:
    await tell("get_order", '{"a": 1, "b": 2}', order_id="#W1")
    assert (await tell("get_order", '{"b":2,"a":1.0}', order_id="#W1")).outcome is Outcome.KNOWN
    assert served(await ask("get_order", order_id="#W1")) == '{"a": 1, "b": 2}'


# -- batches that follow -----------------------------------------------------------------------------------------------


def question(tool: str, *, follows: bool = False, state: str = "", **arguments: Any) -> Ask:
    return Ask(tool=tool, arguments=arguments, environment="shop@1", state=state, follows=follows)


async def test_follows_chains_the_states_of_a_batch(cache: ToolCache, tell: Any) -> None:
    write = await tell("cancel_order", "done", order_id="#W1")
    await tell("get_order", "pending", order_id="#W1")
    await tell("get_order", "cancelled", order_id="#W1", state=write.state_after)
    batch = [
        question("get_order", order_id="#W1"),
        question("cancel_order", order_id="#W1", follows=True),
        question("get_order", order_id="#W1", follows=True),
        question("get_order", order_id="#W1"),
        question("get_order", order_id="#W1", state=write.state_after),
    ]
    answers = await cache.lookup("shop", batch)
    assert [served(one) for one in answers] == ["pending", "done", "cancelled", "pending", "cancelled"]
    assert answers[2].state == write.state_after


async def test_nothing_is_known_after_a_missed_write_until_a_question_starts_anew(cache: ToolCache, tell: Any) -> None:
    await tell("get_order", "pending", order_id="#W1")
    batch = [
        question("cancel_order", order_id="#W1"),
        question("get_order", order_id="#W1", follows=True),
        question("get_order", order_id="#W1", follows=True),
        question("get_order", order_id="#W1"),
    ]
    answers = await cache.lookup("shop", batch)
    assert [reason(one) for one in answers] == [
        Reason.WRITE,
        Reason.STATE_UNKNOWN,
        Reason.STATE_UNKNOWN,
        Reason.RECORDED,
    ]
    assert [one.state_after for one in answers[:3]] == ["", "", ""]


async def test_a_missed_read_does_not_lose_the_state(cache: ToolCache, tell: Any) -> None:
    await tell("get_order", "pending", order_id="#W1")
    answers = await cache.lookup(
        "shop", [question("get_order", order_id="#W9"), question("get_order", order_id="#W1", follows=True)]
    )
    assert [served(one) for one in answers] == [None, "pending"]


async def test_the_first_of_a_batch_that_follows_something_is_answered_by_nothing(cache: ToolCache, tell: Any) -> None:
    await tell("get_order", "pending", order_id="#W1")
    (one,) = await cache.lookup("shop", [question("get_order", order_id="#W1", follows=True)])
    assert reason(one) is Reason.STATE_UNKNOWN


async def test_a_batch_answers_in_its_order(cache: ToolCache, tell: Any) -> None:
    for n in range(20):
        await tell("get_order", f"order {n}", order_id=f"#W{n}")
    order = [13, 2, 19, 2, 0, 99]
    answers = await cache.lookup("shop", [question("get_order", order_id=f"#W{n}") for n in order])
    assert [served(one) for one in answers] == ["order 13", "order 2", "order 19", "order 2", "order 0", None]


# -- similar ----------------------------------------------------------------------------------------------------------


async def test_a_rewording_is_served_once_the_tool_has_earned_it(learned: ToolCache, ask: Any) -> None:
    answer = (await ask("search_help", query=REWORDED)).answer
    assert isinstance(answer, Hit)
    assert (answer.tier, answer.reason, answer.result.content) == (
        SIMILAR,
        Reason.FREE_TEXT,
        '["replacing broken window panes"]',
    )
    assert answer.trust > 0.95
    assert 0.8 <= (answer.score or 0) < 1.0


async def test_a_rewording_is_not_served_before_anything_was_measured(
    cache: ToolCache, tell: Any, ask: Any, embedder: CountingEmbedder
) -> None:
    await tell("search_help", '["replacing broken window panes"]', query=TOPICS[0])
    missed = await ask("search_help", query=REWORDED)
    assert (served(missed), reason(missed)) == (None, Reason.NOT_RECORDED)
    assert "proven" in missed.answer.detail
    assert embedder.texts == 0


@pytest.mark.parametrize(
    ("recorded", "asked"),
    [
        ("where is the parcel of order #W1", "where is the parcel of order #W2"),
        ("is this lamp still available here", "is this lamp not still available here"),
        ("the price of 2 lamps with bulbs", "the price of 3 lamps with bulbs"),
        ("a hotel room for two adults", "a hotel room for three adults"),
        ("trains from Rome to Oslo by night", "trains from Oslo to Rome by night"),
    ],
)
async def test_no_other_identity_hides_in_a_rewording(
    learned: ToolCache, tell: Any, ask: Any, recorded: str, asked: str
) -> None:
    await tell("search_help", '["right"]', query=recorded)
    missed = await ask("search_help", query=asked)
    assert (served(missed), reason(missed)) == (None, Reason.NOT_RECORDED)


async def test_an_identity_argument_beside_the_wording_must_be_equal(learned: ToolCache, ask: Any) -> None:
    assert served(await ask("search_help", query=REWORDED, limit=3)) is None


async def test_far_wordings_are_below_the_threshold(learned: ToolCache, ask: Any) -> None:
    assert reason(await ask("search_help", query="zebra crossing rules")) is Reason.BELOW_THRESHOLD


async def test_a_rewording_is_not_served_in_another_state_or_environment(
    learned: ToolCache, tell: Any, ask: Any
) -> None:
    write = await tell("cancel_order", "done", order_id="#W1")
    words = {"query": REWORDED}
    assert served(await ask("search_help", **words, state=write.state_after)) is None
    assert served(await ask("search_help", **words, environment="shop@2")) is None


async def test_an_error_is_never_served_as_similar(learned: ToolCache, tell: Any, ask: Any) -> None:
    await tell("search_help", "Error: busy", query="please show me every single zebra crossing", is_error=True)
    assert served(await ask("search_help", query="please show us every single zebra crossing")) != "Error: busy"
    exact = await ask("search_help", query="please show me every single zebra crossing")
    assert (served(exact), exact.answer.result.is_error) == ("Error: busy", True)


async def test_a_write_is_never_fuzzy(cache: ToolCache, shop: Namespace, tell: Any, ask: Any) -> None:
    await cache.put_namespace(replace(shop, tiers=frozenset({EXACT, SIMILAR, APPROXIMATE}), similar_threshold=0.0))
    for topic in TOPICS:
        for form in FORMS:
            await tell("cancel_order", "done", comment=form.format(topic))
    await cache.calibrate("shop")
    missed = await ask("cancel_order", comment=REWORDED)
    assert (served(missed), reason(missed), missed.state_after) == (None, Reason.WRITE, "")


async def test_a_tool_whose_rewordings_were_wrong_loses_the_tier_by_itself(learned: ToolCache, tell: Any) -> None:
    for n, topic in enumerate(TOPICS):
        for form in FORMS:
            await tell("search_help", f'["{n}", "{form}"]', query=form.format(f"{topic} gladly"))
    await learned.calibrate("shop")
    (answer,) = await learned.lookup("shop", [question("search_help", query=REWORDED)])
    assert served(answer) is None


async def test_arguments_learned_to_be_irrelevant_may_differ(
    cache: ToolCache, tell: Any, ask: Any, embedder: CountingEmbedder
) -> None:
    for n in range(36):
        for limit in (1, 2):
            await tell("search_help", f'["{n}"]', query=f"#{n}", limit=limit)
    await cache.calibrate("shop")
    before = embedder.texts
    answer = (await ask("search_help", query="#3", limit=9)).answer
    assert isinstance(answer, Hit)
    # 36 entries that an earlier one could have answered, all rightly: (36 + 1) / (36 + 2).
    assert (answer.result.content, answer.reason, answer.trust) == ('["3"]', Reason.IRRELEVANT, 37 / 38)
    assert (answer.score, embedder.texts) == (None, before)


async def test_the_operators_word_wins_at_once_over_what_was_learned(
    learned: ToolCache, shop: Namespace, ask: Any
) -> None:
    strict = replace(shop.tools["search_help"], roles={"query": Role.IDENTITY})
    await learned.put_namespace(replace(shop, tools={**shop.tools, "search_help": strict}))
    assert served(await ask("search_help", query=REWORDED)) is None


async def test_a_lower_threshold_is_not_trusted_before_it_was_measured(
    learned: ToolCache, shop: Namespace, ask: Any
) -> None:
    await learned.put_namespace(replace(shop, similar_threshold=0.1))
    assert reason(await ask("search_help", query="zebra crossing rules")) is Reason.BELOW_FLOOR


async def test_entries_recorded_after_calibrating_are_candidates_too(learned: ToolCache, tell: Any, ask: Any) -> None:
    await tell("search_help", '["zebras"]', query="please show me every single zebra crossing")
    await learned.settle()
    found = await ask("search_help", query="please show us every single zebra crossing")
    assert served(found) == '["zebras"]'


async def test_tools_without_free_text_never_ask_the_embedder(
    cache: ToolCache, tell: Any, ask: Any, embedder: CountingEmbedder
) -> None:
    for n in range(9):
        await tell("get_order", "pending", order_id=f"#W{n}")
    await cache.calibrate("shop")
    await tell("get_order", "pending", order_id="#W10")
    await ask("get_order", order_id="#W11")
    assert embedder.texts == 0


# -- approximate ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def guessing(cache: ToolCache, shop: Namespace) -> ToolCache:
    await cache.put_namespace(replace(shop, tiers=frozenset({EXACT, SIMILAR, APPROXIMATE})))
    return cache


async def test_guesses_are_served_by_policy_only(cache: ToolCache, tell: Any, ask: Any) -> None:
    await tell("get_order", "pending", order_id="#W1")
    assert served(await ask("get_order", order_id="#W2")) is None


async def test_the_same_call_of_another_state_is_a_guess_with_low_trust(
    guessing: ToolCache, tell: Any, ask: Any
) -> None:
    await tell("get_order", "pending", order_id="#W1")
    await tell("get_order", "Error: busy", order_id="#W1", state="s", is_error=True)
    answer = (await ask("get_order", order_id="#W1", state="t")).answer
    assert isinstance(answer, Guess)
    assert (answer.result.content, answer.reason, answer.trust) == ("pending", Reason.OTHER_STATE, 0.2)


async def test_the_nearest_call_is_a_guess_with_low_trust(guessing: ToolCache, tell: Any, ask: Any) -> None:
    await tell("get_order", "pending", order_id="#W123456")
    await tell("get_order", "shipped", order_id="zebra")
    await tell("get_order", "Error: none", order_id="#W123457", is_error=True)
    await guessing.settle()
    answer = (await ask("get_order", order_id="#W123458")).answer
    assert isinstance(answer, Guess)
    assert (answer.result.content, answer.reason, answer.trust) == ("pending", Reason.NEAREST, 0.2)
    assert 0 < (answer.score or 0) < 1


async def test_the_trust_of_guesses_is_measured(guessing: ToolCache, tell: Any, ask: Any) -> None:
    for n in range(4):
        await tell("get_order", "the same" if n < 2 else f"other {n}", order_id="#W1", state=f"s{n}")
    await guessing.calibrate("shop")
    # The newest before s1 is right, before s2 and s3 it is wrong: (1 + 1) / (3 + 5).
    assert (await ask("get_order", order_id="#W1", state="t")).answer.trust == 0.25


async def test_a_call_against_its_schema_is_never_guessed(guessing: ToolCache, tell: Any, ask: Any) -> None:
    await tell("get_order", "pending", order_id="#W1")
    missed = await ask("get_order", order_id=5)
    assert (served(missed), reason(missed)) == (None, Reason.INVALID_ARGUMENTS)


# -- what the caller accepts ------------------------------------------------------------------------------------------


async def test_a_caller_can_narrow_the_policy(learned: ToolCache, ask: Any) -> None:
    recorded, reworded = TOPICS[0], REWORDED
    assert served(await ask("search_help", query=reworded, tiers=frozenset({EXACT}))) is None
    assert served(await ask("search_help", query=recorded, tiers=frozenset())) is None
    only_similar = await ask("search_help", query=reworded, tiers=frozenset({SIMILAR}))
    assert only_similar.answer.tier is SIMILAR


async def test_a_caller_cannot_widen_the_policy(learned: ToolCache, shop: Namespace, ask: Any) -> None:
    await learned.put_namespace(replace(shop, tiers=frozenset({EXACT})))
    words = REWORDED
    assert served(await ask("search_help", query=words, tiers=frozenset(Tier))) is None


# -- reasons of misses ------------------------------------------------------------------------------------------------


async def test_an_unknown_tool_is_named_with_those_that_exist(ask: Any) -> None:
    missed = await ask("get_odrer", order_id="#W1")
    assert (reason(missed), missed.state_after) == (Reason.UNKNOWN_TOOL, "")
    assert "get_order" in missed.answer.detail


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
async def test_arguments_without_a_canonical_form_are_a_miss_that_says_so(ask: Any, value: Any) -> None:
    missed = await ask("get_order", order_id=value)
    assert (reason(missed), missed.state_after) == (Reason.NOT_CANONICAL, "")


async def test_invalid_arguments_say_what_is_wrong_unless_their_result_was_recorded(tell: Any, ask: Any) -> None:
    missed = await ask("get_order", order_id=5)
    assert reason(missed) is Reason.INVALID_ARGUMENTS
    assert missed.answer.detail == "arguments.order_id: 5 is not of type 'string'"
    await tell("get_order", "Error: bad id", order_id=5, is_error=True)
    assert served(await ask("get_order", order_id=5)) == "Error: bad id"


async def test_without_the_embedder_exact_answers_go_on_and_misses_say_no_vectors(
    learned: ToolCache, tell: Any, ask: Any, embedder: CountingEmbedder
) -> None:
    embedder.is_away = True
    recorded = await tell("search_help", '["late"]', query="polishing tarnished silver spoons")
    assert recorded.outcome is Outcome.STORED
    assert served(await ask("search_help", query="polishing tarnished silver spoons")) == '["late"]'
    assert reason(await ask("search_help", query=REWORDED)) is Reason.NO_VECTORS
    await learned.calibrate("shop")
    embedder.is_away = False
    await learned.calibrate("shop")
    assert served(await ask("search_help", query="polishing tarnished silver spoons thanks")) == '["late"]'


# -- recording --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"tool": "teleport"}, "no tool 'teleport'"),
        ({"arguments": {"order_id": float("nan")}}, "get_order"),
        ({"result": Result(content="\ud800")}, "not Unicode"),
        ({"environment": "\ud800"}, "not Unicode"),
        ({"result": Result(content="x", took_s=float("nan"))}, "took_s"),
        ({"result": Result(content="x", took_s=-1.0)}, "took_s"),
        ({"result": Result(content="x", took_s=float("inf"))}, "took_s"),
    ],
)
async def test_a_poison_recording_is_refused_and_the_rest_of_its_batch_stored(
    cache: ToolCache, ask: Any, changed: dict[str, Any], told: str
) -> None:
    good = Recording(
        tool="get_order", arguments={"order_id": "#W1"}, environment="shop@1", result=Result(content="pending")
    )
    done = await cache.record("shop", [msgspec.structs.replace(good, **changed), good])
    assert [each.outcome for each in done] == [None, Outcome.STORED]
    assert told in done[0].refused
    assert (done[0].entry, done[0].state_after) == ("", "")
    assert served(await ask("get_order", order_id="#W1")) == "pending"


async def test_one_batch_can_hold_the_same_result_twice_and_a_contradiction(cache: ToolCache) -> None:
    one = Recording(tool="get_order", arguments={}, environment="e", result=Result(content="a"))
    done = await cache.record("shop", [one, one, msgspec.structs.replace(one, result=Result(content="b"))])
    assert [each.outcome for each in done] == [Outcome.STORED, Outcome.KNOWN, Outcome.CONFLICT]


# -- reports ----------------------------------------------------------------------------------------------------------


async def test_a_report_counts_what_was_answered_and_saved(cache: ToolCache, tell: Any, ask: Any) -> None:
    await tell("get_order", "pending", order_id="#W1", took_s=0.25)
    await tell("get_order", "pending", order_id="#W1", environment="shop@2")
    for name in ("#W1", "#W1", "#W2"):
        await ask("get_order", order_id=name)
    await ask("teleport")
    report = await cache.report("shop")
    assert (report.entries, report.environments, report.seconds_saved) == (2, 2, 0.5)
    assert (report.answers[EXACT], report.answers[Tier.MISS], report.answers[SIMILAR]) == (2, 2, 0)
    (tool,) = [each for each in report.tools if each.tool.name == "get_order"]
    assert (tool.entries, tool.answers[EXACT], tool.answers[Tier.MISS]) == (2, 2, 1)


async def test_calibrating_tells_its_progress_by_tool(cache: ToolCache) -> None:
    told: list[tuple[str, int, int]] = []
    await cache.calibrate("shop", lambda *step: told.append(step))
    assert told == [("get_order", 0, 4), ("search_help", 1, 4), ("convert", 2, 4), ("cancel_order", 3, 4)]


async def test_two_caches_over_one_store_agree(make_cache: Any, shop: Namespace) -> None:
    store = MemoryStore()
    cache, other = make_cache(store), make_cache(store)
    await cache.put_namespace(shop)
    assert await other.namespaces() == ["shop"]
    for topic in TOPICS:
        for form in FORMS:
            await cache.record("shop", [found(f'["{topic}"]', form.format(topic))])
    await cache.calibrate("shop")
    (answer,) = await other.lookup("shop", [question("search_help", query=REWORDED)])
    assert served(answer) == '["replacing broken window panes"]'


def found(content: str, query: str) -> Recording:
    return Recording(
        tool="search_help", arguments={"query": query}, environment="shop@1", result=Result(content=content)
    )


async def test_many_lookups_and_records_at_once_get_their_own_answers(cache: ToolCache, tell: Any, ask: Any) -> None:
    await asyncio.gather(*(tell("get_order", f"order {n}", order_id=f"#W{n}") for n in range(50)))
    answers = await asyncio.gather(*(ask("get_order", order_id=f"#W{n}") for n in range(50)))
    assert [served(one) for one in answers] == [f"order {n}" for n in range(50)]


def test_every_effect_is_among_the_tools_of_these_tests(shop: Namespace) -> None:
    assert {tool.effect for tool in shop.tools.values()} == set(Effect)


async def test_upkeep_that_fails_is_told_and_begins_anew(
    cache: ToolCache, shop: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolcache.core.cache.UPKEEP_S", 0.0)
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    settled = asyncio.Event()
    tries = 0

    async def settle() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise RuntimeError("a defect")
        settled.set()

    monkeypatch.setattr(cache, "settle", settle)
    await cache.start()
    async with asyncio.timeout(10):
        await settled.wait()
    assert told == ["upkeep of the cache failed and begins anew"]
    await cache.close()


async def test_a_tool_that_has_grown_is_learned_anew_by_itself(
    cache: ToolCache, tell: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolcache.core.cache.UPKEEP_S", 0.0)
    for topic in TOPICS:
        for form in FORMS:
            await tell("search_help", f'["{topic}"]', query=form.format(topic))
    assert served(await ask("search_help", query=REWORDED)) is None
    await cache.start()
    async with asyncio.timeout(10):
        while served(await ask("search_help", query=REWORDED)) is None:  # noqa: ASYNC110 - asked as a caller asks
            await asyncio.sleep(0)
    await cache.close()
