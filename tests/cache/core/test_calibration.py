"""Calibrating equals a count by brute force: every entry is asked for as it came, by the same rules as a lookup."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from toolcache.adapters.hash_embedder import HashEmbedder
from toolcache.core import calibration
from toolcache.core.calibration import Lesson, lesson, measured, wants_vectors
from toolcache.core.calls import Call, entry_key, scope
from toolcache.core.entries import Entry, Result
from toolcache.core.profile import Profile, unlearned
from toolcache.core.roles import place, text_of
from toolcache.core.tools import Effect, Mask, Namespace, Role, Tier, Tool
from toolcache.core.trust import Evidence, Reason, kind

SCHEMA = {
    "type": "object",
    "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}, "trace": {"type": "string"}},
}
SEARCH = Tool(name="search_help", parameters=SCHEMA, effect=Effect.READ)
WORDED = replace(SEARCH, roles={"query": Role.FREE_TEXT})
"""By the operator's word: five rewordings with one result would make the query irrelevant."""
NAMESPACE = Namespace(name="shop", tools={SEARCH.name: SEARCH})
GUESSING = replace(NAMESPACE, tiers=frozenset({Tier.EXACT, Tier.SIMILAR, Tier.APPROXIMATE}))
RECORDED = [
    # query, limit, state, content
    ("repairing flat bicycle tyres", 1, "", '["tyres"]'),
    ("repairing flat bicycle tyres please", 1, "", '["tyres"]'),
    ("kindly repairing flat bicycle tyres", 1, "", '["tyres"]'),
    ("repairing flat bicycle tyres dear", 1, "", '["dear tyres"]'),
    ("repairing flat bicycle tyres gladly", 2, "", '["two"]'),
    ("baking sourdough bread loaves", 1, "", '["bread"]'),
    ("baking sourdough bread loaves slowly", 1, "", '["bread"]'),
    ("baking sourdough bread loaves", 1, "later", '["stale bread"]'),
    ("baking sourdough bread loaves please", 1, "later", '["stale bread"]'),
    ("tuning acoustic guitar strings", 1, "", "Error: busy"),
    ("tuning acoustic guitar strings please", 1, "", '["strings"]'),
    ("zebra crossing", 1, "", '["zebra"]'),
    ("baking sourdough bread not loaves", 1, "", '["flat"]'),
]
CRITICAL = {"baking sourdough bread not loaves": ["not"]}


def recorded(
    content: str, *, tool: Tool = SEARCH, state: str = "", at_s: float = 0.0, seen: int = 1, **arguments: Any
) -> Entry:
    """An entry as it is recorded before anything was learned."""
    call = Call.of(tool.name, arguments, tool.masks)
    where = scope(tool, "shop@1", state)
    result = Result(content=content, is_error=content.startswith("Error"))
    return Entry(
        key=entry_key(where, call),
        scope=where,
        environment="shop@1",
        tool=tool.name,
        arguments=arguments,
        canonical=call.canonical,
        result=result,
        result_digest=result.digest(),
        place=place(tool, where, "shop@1", call, unlearned(tool).roles),
        recorded_at_s=at_s,
        expires_at_s=0.0 if tool.ttl_s is None else at_s + tool.ttl_s,
        seen=seen,
    )


def ordered(entries: Sequence[Entry]) -> list[Entry]:
    return [replace(each, order=order) for order, each in enumerate(entries, start=1)]


async def calibrated(entries: Sequence[Entry], namespace: Namespace = NAMESPACE, tool: Tool = SEARCH) -> Profile:
    learned = lesson(tool, entries)
    texts = {entry.order: text_of(tool.name, entry.arguments) for entry in entries}
    vectors = await HashEmbedder().embed(list(texts.values()), tenant="t")
    return measured(learned, namespace, dict(zip(texts, vectors, strict=True)))


def of_reason(profile: Profile, reason: Reason) -> Evidence:
    found = [each for name, each in profile.evidence.items() if name.partition("@")[0] == reason]
    return sum(found, Evidence())


def table() -> list[Entry]:
    return [recorded(content, state=state, query=query, limit=limit) for query, limit, state, content in RECORDED]


async def by_hand(rows: Sequence[tuple[str, int, str, str]]) -> dict[str, Evidence]:
    """The evidence by plain loops over the table above, without the cache's code for guards, tiers and indexes."""
    texts = {(q, n): text_of("search_help", {"query": q, "limit": n}) for q, n, _, _ in rows}
    made = await HashEmbedder().embed(list(texts.values()), tenant="t")
    vectors = {key: np.frombuffer(row, dtype="<f4") for key, row in zip(texts, made, strict=True)}
    told: dict[str, list[tuple[bool, Any]]] = defaultdict(list)
    for i, (query, limit, state, content) in enumerate(rows):
        near = [
            (float(vectors[query, limit] @ vectors[q, n]), -j, q, text)
            for j, (q, n, s, text) in enumerate(rows[:i])
            if (n, s) == (limit, state)
            and q != query
            and not text.startswith("Error")
            and CRITICAL.get(q, []) == CRITICAL.get(query, [])
        ]
        if near:
            score, _, q, text = max(near)
            told[kind(Reason.FREE_TEXT, score)].append((text == content, (query, q, content, text)))
        elsewhere = [
            text
            for q, n, s, text in rows[:i]
            if (q, n) == (query, limit) and s != state and not text.startswith("Error")
        ]
        if elsewhere:
            told[kind(Reason.OTHER_STATE)].append((elsewhere[-1] == content, i))
    return {name: counted(each) for name, each in told.items()}


def counted(told: Sequence[tuple[bool, Any]]) -> Evidence:
    facts = len({fact for _, fact in told})
    return Evidence(right=int(sum(right for right, _ in told) / len(told) * facts), served=facts)


@pytest.mark.parametrize("seed", range(12))
async def test_evidence_equals_the_count_by_brute_force(seed: int) -> None:
    rows = RECORDED * 2 if seed else RECORDED
    rows = [(q, n, state + ("" if i < len(RECORDED) else " again"), text) for i, (q, n, state, text) in enumerate(rows)]
    random.Random(seed).shuffle(rows)
    entries = [recorded(content, state=state, query=query, limit=limit) for query, limit, state, content in rows]
    profile = await calibrated(ordered(entries))
    assert profile.evidence == await by_hand(rows)
    assert (profile.entries, profile.similar_threshold) == (len(rows), 0.8)


async def test_the_evidence_is_what_a_person_counts() -> None:
    profile = await calibrated(ordered(table()))
    # Asked after what they could have been answered with: three tyres, of which the "dear" one has a result of its own;
    # one bread, one stale bread; and "strings please" finds nothing but an error, "not loaves" nothing that passes.
    # The zebra crossing is far from everything, but would have been answered all the same: at its similarity.
    worded = {name: each for name, each in profile.evidence.items() if name.startswith("free_text")}
    near = [each for name, each in worded.items() if float(name.partition("@")[2]) >= 0.7]
    assert sum(near, Evidence()) == Evidence(right=4, served=5)
    assert profile.evidence[kind(Reason.OTHER_STATE)] == Evidence(right=0, served=1)
    assert "recorded" not in profile.evidence


# -- one piece of evidence ---------------------------------------------------------------------------------------------


async def test_a_group_of_one_result_counts_once_less_than_it_has_members() -> None:
    group = [recorded('["same"]', query=f"mending a torn coat {word}") for word in ("kindly", "please", "dear")]
    assert of_reason(await calibrated(ordered(group)), Reason.FREE_TEXT) == Evidence(right=2, served=2)


async def test_the_same_wordings_with_the_same_results_in_another_state_are_no_new_evidence() -> None:
    def pairs(count: int, results: str) -> list[Entry]:
        return [
            recorded(results.format(n), state=f"state {n}", query=query)
            for n in range(count)
            for query in ("mending a torn coat", "mending a torn coat please")
        ]

    assert of_reason(await calibrated(ordered(pairs(50, '["same"]'))), Reason.FREE_TEXT) == Evidence(right=1, served=1)
    other = await calibrated(ordered(pairs(50, '["result {}"]')), tool=WORDED)
    assert of_reason(other, Reason.FREE_TEXT) == Evidence(right=50, served=50)


async def test_a_wrong_answer_that_repeats_weighs_in_the_share_as_often_as_it_would_be_given() -> None:
    """Ten facts, one of them wrong, but wrong in 91 of a hundred states: nine right of a hundred, and ten facts."""
    entries = [
        recorded(content, state=f"wrong {n}", query=query)
        for n in range(91)
        for query, content in (("mending a torn coat", '["coat"]'), ("mending a torn coat please", '["please"]'))
    ]
    entries += [
        recorded(f'["{n}"]', state=f"right {n}", query=query)
        for n in range(9)
        for query in ("mending a torn coat", "mending a torn coat please")
    ]
    assert of_reason(await calibrated(ordered(entries)), Reason.FREE_TEXT) == Evidence(right=0, served=10)
    mostly_right = await calibrated(ordered([*entries[: 2 * 10], *entries[2 * 91 :]]))
    assert of_reason(mostly_right, Reason.FREE_TEXT) == Evidence(right=4, served=10)  # 9 of 19, of 10 facts: 4.7


async def test_what_came_later_answers_nothing() -> None:
    first, second = ordered([recorded('["a"]', query="mending a coat"), recorded("Error: b", query="mending coats")])
    assert of_reason(await calibrated([first, second]), Reason.FREE_TEXT) == Evidence(right=0, served=1)
    error_first = [replace(first, order=2), replace(second, order=1)]
    assert of_reason(await calibrated(error_first), Reason.FREE_TEXT) == Evidence()


async def test_an_expired_entry_answers_nothing() -> None:
    short = replace(SEARCH, ttl_s=60.0)

    def pair(age_s: float) -> list[Entry]:
        old = recorded('["a"]', tool=short, query="mending a coat", at_s=1000.0)
        return ordered([old, recorded('["a"]', tool=short, query="mending coats", at_s=1000.0 + age_s)])

    assert of_reason(await calibrated(pair(59.0), tool=short), Reason.FREE_TEXT) == Evidence(right=1, served=1)
    assert of_reason(await calibrated(pair(60.0), tool=short), Reason.FREE_TEXT) == Evidence()


async def test_an_echo_that_would_have_been_adapted_is_right() -> None:
    echoing = [recorded(f'{{"query": "{q}", "hits": 2}}', query=q) for q in ("mending a coat", "mending coats")]
    assert of_reason(await calibrated(ordered(echoing)), Reason.FREE_TEXT) == Evidence(right=1, served=1)


async def test_entries_without_a_vector_are_left_out() -> None:
    entries = ordered(table())
    assert of_reason(measured(lesson(SEARCH, entries), NAMESPACE, {}), Reason.FREE_TEXT) == Evidence()


async def test_irrelevant_arguments_are_measured_without_vectors() -> None:
    pairs = [recorded(f'["{n}"]', query=f"topic{n}", trace=trace) for n in range(6) for trace in ("a", "b", "c")]
    odd = [recorded("Error: busy", query="topic9", trace="a"), recorded("Error: busy", query="topic9", trace="b")]
    profile = measured(lesson(SEARCH, ordered([*pairs, *odd])), NAMESPACE, {})
    assert profile.roles["trace"] is Role.IRRELEVANT
    assert profile.evidence["irrelevant"] == Evidence(right=12, served=12)


# -- exact -------------------------------------------------------------------------------------------------------------


async def test_repetitions_are_counted_for_writes_too() -> None:
    write = Tool(name="search_help", parameters=SCHEMA)
    entries = [recorded("done", tool=write, query="a coat", seen=3), recorded("no", tool=write, query="a coat")]
    profile = await calibrated(ordered(entries), tool=write)
    assert profile.evidence == {"recorded": Evidence(right=2, served=3)}


async def test_a_stochastic_tool_contradicts_nothing() -> None:
    dice = replace(SEARCH, samples=4)
    entries = [recorded(str(n), tool=dice, query="roll") for n in range(4)]
    profile = await calibrated(ordered(entries), tool=dice)
    assert profile.evidence == {"sampled": Evidence(right=0, served=3)}
    assert profile.recorded_trust == profile.trust(Reason.SAMPLED) == 1.0


# -- simulated writes --------------------------------------------------------------------------------------------------


async def test_writes_are_asked_for_only_where_they_may_be_simulated() -> None:
    for may, evidence in ((False, {}), (True, {kind(Reason.SIMULATED, 0.9): Evidence(right=1, served=2)})):
        write = Tool(name="search_help", parameters=SCHEMA, simulate_writes=may)
        entries = [
            recorded("done", tool=write, query="baking sourdough bread loaves"),
            recorded("done", tool=write, query="baking sourdough bread loaves please"),
            recorded("refused", tool=write, query="kindly baking sourdough bread loaves"),
            recorded("done", tool=write, query="baking sourdough bread loaves", limit=2),
        ]
        learned = lesson(write, ordered(entries))
        rows = {entry.order: np.array([1.0, 0.0], dtype="<f4").tobytes() for entry in learned.entries}
        rows[2] = rows[3] = np.array([0.92, np.sqrt(1 - 0.92**2)], dtype="<f4").tobytes()
        found = measured(learned, NAMESPACE, rows)
        assert {name: each for name, each in found.evidence.items() if "@0.98" not in name} == (
            {kind(Reason.SIMULATED, 0.9): Evidence(right=1, served=1)} if may else evidence
        )


# -- guesses -----------------------------------------------------------------------------------------------------------


async def test_the_nearest_guess_is_measured_where_guesses_are_allowed() -> None:
    tool = Tool(name="get_order", parameters={"properties": {"id": {"type": "string"}}}, effect=Effect.READ)
    entries = [
        recorded(content, tool=tool, id=name)
        for name, content in (("#W1", "a"), ("#W12", "a"), ("#W123", "a"), ("zebra", "b"), ("zebras", "c"))
    ]
    entries.append(recorded("Error: none", tool=tool, id="#W1234"))
    assert (await calibrated(ordered(entries), tool=tool)).evidence == {}
    profile = await calibrated(ordered(entries), GUESSING, tool)
    # Right: #W12, #W123. Wrong: both zebras, and the error, for which "a" would have been served. #W1 came first.
    assert of_reason(profile, Reason.NEAREST) == Evidence(right=2, served=5)


async def test_of_the_same_call_in_other_states_the_newest_that_came_before_is_guessed() -> None:
    contents = ("a", "Error: x", "a", "b", "b")
    entries = [recorded(content, state=str(n), limit=1) for n, content in enumerate(contents)]
    # The error is asked for too (a: wrong), then a (a: right, past the error), b (a: wrong), b (b: right).
    assert (await calibrated(ordered(entries))).evidence == {"other_state": Evidence(right=2, served=4)}


# -- places, keys, masks -----------------------------------------------------------------------------------------------


def applied(learned: Lesson) -> list[Entry]:
    return list(learned.entries)


def test_what_follows_from_new_roles_is_told_once() -> None:
    entries = ordered([recorded(f'["{n}"]', query=f"#Q{n}", trace=trace) for n in range(8) for trace in ("a", "b")])
    learned = lesson(SEARCH, entries)
    assert learned.profile.roles == {"query": Role.IDENTITY, "limit": Role.IDENTITY, "trace": Role.IRRELEVANT}
    assert learned.rekeyed.keys() == {entry.order for entry in entries}
    for old, new in zip(entries, learned.entries, strict=True):
        assert learned.rekeyed[new.order] == (old.key, old.canonical, new.place)
        assert (old.place.equal, old.place.call) == ("", new.place.call)
        assert new.place.equal
    again = lesson(SEARCH, applied(learned))
    assert again.rekeyed == {}
    assert again.entries == learned.entries


def test_a_mask_the_operator_sets_gives_readers_other_keys_and_writers_none() -> None:
    entries = ordered([recorded("[1]", query="a", trace=trace, seen=2) for trace in ("x", "y")])
    tool = replace(SEARCH, masks=(Mask(argument="trace"),))
    learned = lesson(tool, entries)
    assert {canonical for _, canonical, _ in learned.rekeyed.values()} == {'{"query":"a"}'}
    assert len({key for key, _, _ in learned.rekeyed.values()}) == 1
    assert learned.entries[0].key == entry_key(entries[0].scope, Call.of("search_help", {"query": "a"}, tool.masks))
    assert learned.entries[0].arguments == entries[0].arguments
    assert measured(learned, NAMESPACE, {}).evidence == {"masked": Evidence(right=3, served=3)}
    assert lesson(SEARCH, applied(learned)).entries == tuple(entries)  # the mask is taken back
    write = Tool(name="search_help", parameters=SCHEMA, masks=tool.masks, simulate_writes=True)
    kept = lesson(write, ordered([recorded("done", tool=replace(write, masks=()), query="a", trace=t) for t in "xy"]))
    assert [entry.canonical for entry in kept.entries] == ['{"query":"a","trace":"x"}', '{"query":"a","trace":"y"}']
    assert kept.entries[0].place.guard == kept.entries[1].place.guard
    assert {key for key, _, _ in kept.rekeyed.values()} == {entry.key for entry in kept.entries}


def test_what_a_mask_had_hidden_and_cannot_be_asked_for_without_it_is_left_out() -> None:
    hidden = replace(SEARCH, masks=(Mask(argument="trace"),))
    entries = ordered([recorded("[1]", tool=hidden, query="a", trace=float("nan")), recorded("[2]", query="b")])
    assert [entry.order for entry in lesson(hidden, entries).entries] == [1, 2]
    assert [entry.order for entry in lesson(SEARCH, entries).entries] == [2]


def test_a_mask_that_was_wrong_shows_as_a_contradiction() -> None:
    tool = replace(SEARCH, masks=(Mask(argument="limit"),))
    entries = ordered([recorded(f"[{n}]", query="a", limit=n) for n in range(3)])
    profile = measured(lesson(tool, entries), NAMESPACE, {})
    assert profile.evidence == {"masked": Evidence(right=0, served=2)}
    assert profile.trust(Reason.MASKED) == 0.25
    assert profile.masks == tool.masks


def test_a_call_against_the_schema_has_no_place_among_donors() -> None:
    (found,) = lesson(SEARCH, ordered([recorded("Error: no", query=5)])).entries
    assert (found.place.guard, found.place.equal) == ("", "")


# -- bounds ------------------------------------------------------------------------------------------------------------


async def test_of_very_many_entries_an_even_sample_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOST_QUESTIONS", 4)
    entries = [recorded('["same"]', query=f"baking sourdough bread loaves {'x' * n}".strip()) for n in range(9)]
    profile = await calibrated(ordered(entries), tool=WORDED)
    assert of_reason(profile, Reason.FREE_TEXT) == Evidence(right=4, served=4)


async def test_of_very_many_rows_an_even_sample_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are equally near, so that each of eleven is compared with the one that is left: the oldest."""
    contents = ["[0]", *(f"[{n}]" for n in range(1, 11)), "[0]"]
    entries = [recorded(each, query=f"mending coats {'very' * n}".strip()) for n, each in enumerate(contents)]
    rows = {n: np.array([1.0, 0.0], dtype="<f4").tobytes() for n in range(1, 13)}
    monkeypatch.setattr(calibration, "MOST_ROWS", 1)
    found = measured(lesson(WORDED, ordered(entries)), NAMESPACE, rows)
    assert of_reason(found, Reason.FREE_TEXT) == Evidence(right=1, served=11)


@pytest.mark.parametrize(
    ("tool", "tiers", "roles", "wanted"),
    [
        (SEARCH, {Tier.SIMILAR}, {"query": Role.FREE_TEXT}, True),
        (SEARCH, {Tier.SIMILAR}, {"query": Role.IRRELEVANT}, False),
        (SEARCH, {Tier.EXACT}, {"query": Role.FREE_TEXT}, False),
        (SEARCH, {Tier.APPROXIMATE}, {"query": Role.IDENTITY}, True),
        (Tool(name="w"), {Tier.APPROXIMATE, Tier.SIMILAR}, {"query": Role.FREE_TEXT}, False),
        (Tool(name="w", simulate_writes=True), {Tier.SIMILAR}, {"query": Role.FREE_TEXT}, True),
        (Tool(name="w", simulate_writes=True), {Tier.APPROXIMATE}, {"query": Role.FREE_TEXT}, False),
    ],
)
def test_vectors_are_wanted_where_an_answer_can_depend_on_them(
    tool: Tool, tiers: set[Tier], roles: dict[str, Role], wanted: bool
) -> None:
    assert wants_vectors(replace(NAMESPACE, tiers=frozenset(tiers)), tool, Profile(roles=roles)) is wanted


def test_results_are_compared_as_results() -> None:
    assert Result(content="a").digest() != Result(content="a", is_error=True).digest()
    assert Result(content='{"a":1}', took_s=1.0).digest() == Result(content='{"a": 1.0}', took_s=2.0).digest()
