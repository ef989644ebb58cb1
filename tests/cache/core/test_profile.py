"""What recordings teach: irrelevant arguments, evidence of repetitions; and what of it holds under today's policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from toolcache.core.calls import Call, entry_key
from toolcache.core.entries import Entry, Result
from toolcache.core.profile import (
    Profile,
    exact_evidence,
    irrelevant_arguments,
    learned_roles,
    similar_reason,
    unlearned,
)
from toolcache.core.tools import Effect, Mask, Role, Tool
from toolcache.core.trust import Evidence, Reason, kind, wilson_lower

FLIGHTS = Tool(
    name="flights",
    parameters={"type": "object", "properties": {"to": {"type": "string"}, "sort": {"type": "string"}}},
    effect=Effect.READ,
)


def entry(content: str, *, scope: str = "s", is_error: bool = False, seen: int = 1, **arguments: Any) -> Entry:
    call = Call.of("flights", arguments)
    result = Result(content=content, is_error=is_error)
    return Entry(
        key=entry_key(scope, call),
        scope=scope,
        environment="e",
        tool="flights",
        arguments=arguments,
        canonical=call.canonical,
        result=result,
        result_digest=result.digest(),
        seen=seen,
    )


def pairs(count: int, content: str = "[{n}]", **more: Any) -> list[Entry]:
    """So many pairs of entries that differ in `sort` alone; `to` matters."""
    return ordered(
        [
            entry(content.replace("{n}", str(n + 1)), to=f"R{n}", sort=sort, **more)
            for n in range(count)
            for sort in ("up", "down")
        ]
    )


def ordered(entries: list[Entry]) -> list[Entry]:
    return [replace(each, order=order) for order, each in enumerate(entries, start=1)]


def irrelevant(entries: list[Entry], tool: Tool = FLIGHTS) -> frozenset[str]:
    return irrelevant_arguments(tool, ordered(entries))


def test_five_agreeing_pairs_make_an_argument_irrelevant_and_four_do_not() -> None:
    assert irrelevant(pairs(5)) == {"sort"}
    assert irrelevant(pairs(4)) == set()


def test_a_group_of_six_counts_as_five_pairs() -> None:
    assert irrelevant([entry("[1]", to="R", sort=f"s{n}") for n in range(6)]) == {"sort"}
    assert irrelevant([entry("[1]", to="R", sort=f"s{n}") for n in range(5)]) == set()


def test_the_same_two_calls_in_five_states_are_one_pair() -> None:
    def states(count: int, content: str) -> list[Entry]:
        return [entry(content.format(n), scope=f"s{n}", to="R", sort=s) for n in range(count) for s in ("up", "down")]

    assert irrelevant(states(50, "[1]")) == set()
    assert irrelevant(states(5, "[{}, 1]")) == {"sort"}


def test_an_absent_argument_is_another_value() -> None:
    assert irrelevant([entry(f"[{n}]", to=f"R{n}", **more) for n in range(1, 6) for more in ({}, {"sort": "up"})]) == {
        "sort"
    }


def test_one_disagreement_among_hundreds_kills_it() -> None:
    wrong = [entry("[1]", to="X", sort="up"), entry("[2]", to="X", sort="down")]
    assert irrelevant(pairs(300) + wrong) == set()


def test_an_error_where_others_succeed_is_a_disagreement() -> None:
    wrong = [entry("[1]", to="X", sort="up"), entry("Error: no", to="X", sort="down", is_error=True)]
    assert irrelevant(pairs(9) + wrong) == set()


@pytest.mark.parametrize("content", ["[]", "{}", "null", '""', " [] ", "[ ]", '{"hits": [], "total": 0}', "[[], {}]"])
def test_empty_results_are_no_evidence(content: str) -> None:
    assert irrelevant(pairs(9, content)) == set()


def test_errors_are_no_evidence() -> None:
    assert irrelevant(pairs(9, "Error: no such city", is_error=True)) == set()


def test_empty_text_is_evidence_only_of_a_tool_that_never_says_anything() -> None:
    assert irrelevant(pairs(5, "")) == {"sort", "to"}
    assert irrelevant([*pairs(5, ""), entry("Error: too long", to="Y", is_error=True)]) == {"sort", "to"}
    assert irrelevant([*pairs(5, ""), entry("found", to="Y")]) == set()


def test_entries_of_different_states_are_never_compared() -> None:
    apart = [entry(f"[{n}]", to=f"R{n}", sort=sort, scope=sort) for n in range(9) for sort in ("up", "down")]
    assert irrelevant(apart) == set()


def test_a_write_has_no_irrelevant_arguments() -> None:
    write = Tool(name="flights", parameters=FLIGHTS.parameters, effect=Effect.WRITE)
    assert irrelevant(pairs(9), write) == set()


def test_results_that_are_equal_as_json_agree() -> None:
    texts = ('{"a": 1, "b": %d}', '{"b":%d.0,"a":1}')
    same = [entry(text % n, to=f"R{n}", sort=text) for n in range(5) for text in texts]
    assert irrelevant(same) == {"sort"}


def test_learned_roles_hold_schema_data_and_irrelevance() -> None:
    assert learned_roles(FLIGHTS, pairs(5)) == {"to": Role.IDENTITY, "sort": Role.IRRELEVANT}
    assert unlearned(FLIGHTS).roles == {"to": Role.IDENTITY, "sort": Role.IDENTITY}


def test_exact_evidence_counts_repetitions_only() -> None:
    once = [entry("[1]", to=f"R{n}") for n in range(1000)]
    thrice = [entry("[1]", to="T", seen=3)]
    torn = [entry("[1]", to="X", seen=4), entry("[2]", to="X", seen=1)]
    assert exact_evidence(once) == Evidence()
    assert exact_evidence([*once, *thrice]) == Evidence(right=2, served=2)
    # T was repeated 2 times and agreed 2 times; X was repeated 4 times and agreed 3 times.
    assert exact_evidence([*once, *thrice, *torn]) == Evidence(right=5, served=6)
    assert exact_evidence([*once, entry("[1]", to="Y"), entry("[2]", to="Y")]) == Evidence(right=0, served=1)


def test_entries_that_a_mask_made_one_are_repetitions_of_each_other() -> None:
    """Two of a key and a result, as they are before the store has joined them."""
    assert exact_evidence([entry("[1]", to="T"), entry("[1]", to="T", seen=2)]) == Evidence(right=2, served=2)


def test_the_reason_of_a_similar_answer_is_wording_if_any_wording_differs() -> None:
    known = {"query": Role.FREE_TEXT, "page": Role.IRRELEVANT}
    assert similar_reason({"query": "a", "page": 1}, {"query": "b", "page": 2}, known) is Reason.FREE_TEXT
    assert similar_reason({"query": "a", "page": 1}, {"query": "a", "page": 2}, known) is Reason.IRRELEVANT
    assert similar_reason({"query": "a"}, {"query": "a", "page": 2}, known) is Reason.IRRELEVANT


# -- the profile under today's policy ----------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {name: {"type": "string"} for name in ("to", "sort", "query")}}
LEARNED = Profile(
    roles={"to": Role.IDENTITY, "sort": Role.IRRELEVANT, "query": Role.FREE_TEXT},
    evidence={
        "recorded": Evidence(right=8, served=9),
        "irrelevant": Evidence(right=98, served=98),
        "free_text@0.70": Evidence(right=1, served=98),
        "free_text@0.80": Evidence(right=97, served=98),
        "free_text@0.95": Evidence(right=98, served=98),
        "nearest@0.80": Evidence(right=0, served=95),
    },
    similar_threshold=0.8,
)
FLOOR = 0.9


def tool(*masks: Mask, **operator: Role) -> Tool:
    return Tool(name="flights", parameters=SCHEMA, effect=Effect.READ, roles=operator, masks=masks)


def test_a_lesson_holds_while_the_operator_says_nothing_else() -> None:
    assert LEARNED.under(tool(), 0.8) is LEARNED
    assert LEARNED.under(tool(sort=Role.IRRELEVANT), 0.8) is LEARNED
    assert LEARNED.with_shadows({}) is LEARNED


def test_a_role_the_operator_gives_later_wins_at_once_and_evidence_under_the_old_one_is_gone() -> None:
    now = LEARNED.under(tool(sort=Role.IDENTITY), 0.8)
    assert now.roles["sort"] is Role.IDENTITY
    assert (now.trust(Reason.IRRELEVANT), now.trust(Reason.FREE_TEXT, 0.99)) == (0.5, 0.5)
    assert (now.trust(Reason.RECORDED), now.trust(Reason.NEAREST, 0.8)) == (9 / 11, 0.01)


def test_under_other_masks_similar_answers_are_unproven_and_contradictions_are_kept() -> None:
    proposed = (Mask(argument="sort"), Mask(argument="to", pattern="x"))
    now = replace(LEARNED, proposed_masks=proposed).under(tool(Mask(argument="sort")), 0.8)
    assert not now.serves(Reason.IRRELEVANT, None, FLOOR)
    assert not now.may_reword(FLOOR, 0.8)
    assert now.trust(Reason.RECORDED) == 9 / 11
    assert now.proposed_masks == proposed[1:]
    assert now.under(tool(Mask(argument="sort")), 0.8) is now


def test_a_lower_threshold_brings_in_what_is_known_of_less_similar_answers() -> None:
    at_80, at_70 = LEARNED, LEARNED.under(tool(), 0.7)
    assert at_80.trust(Reason.FREE_TEXT, 0.81) == 98 / 100
    assert not at_70.serves(Reason.FREE_TEXT, 0.75, FLOOR)
    assert at_70.serves(Reason.FREE_TEXT, 0.81, FLOOR)
    assert at_80.evidence == at_70.evidence


def test_a_band_that_the_threshold_divides_counts_whole() -> None:
    assert LEARNED.under(tool(), 0.83).trust(Reason.FREE_TEXT, 0.84) == 98 / 100


def test_a_band_without_evidence_has_the_trust_of_the_one_below() -> None:
    assert LEARNED.trust(Reason.FREE_TEXT, 0.90) == LEARNED.trust(Reason.FREE_TEXT, 0.80) == 98 / 100
    assert LEARNED.trust(Reason.FREE_TEXT, 0.99) == LEARNED.trust(Reason.FREE_TEXT, 0.95) == 99 / 100


@pytest.mark.parametrize("reason", [Reason.FREE_TEXT, Reason.SIMULATED])
def test_the_encoder_need_not_be_asked_unless_some_similarity_is_proven(reason: Reason) -> None:
    def profile(right: int, served: int) -> Profile:
        evidence = {kind(reason, 0.95): Evidence(right=right, served=served)}
        return Profile(roles={"query": Role.FREE_TEXT}, evidence=evidence, similar_threshold=0.8)

    assert profile(35, 35).may_reword(FLOOR, 0.8)
    assert not profile(34, 34).may_reword(FLOOR, 0.8)
    assert profile(34, 34).may_reword(0.89, 0.8)
    assert not replace(profile(35, 35), roles={"query": Role.IDENTITY}).may_reword(FLOOR, 0.8)
    assert Profile(roles={"query": Role.FREE_TEXT}).may_reword(0.0, 0.8)


def test_the_encoder_is_asked_where_only_the_most_similar_answers_are_refuted() -> None:
    evidence = {"free_text@0.80": Evidence(right=98, served=98), "free_text@0.98": Evidence(right=0, served=9)}
    profile = Profile(roles={"query": Role.FREE_TEXT}, evidence=evidence, similar_threshold=0.8)
    assert not profile.serves(Reason.FREE_TEXT, 0.99, FLOOR)
    assert profile.may_reword(FLOOR, 0.8)


def test_guesses_have_no_threshold() -> None:
    """What is nearer than all that is known is no worse."""
    evidence = {"nearest@0.60": Evidence(right=19, served=19)}
    profile = Profile(evidence=evidence, similar_threshold=0.8)
    assert profile.trust(Reason.NEAREST, 0.99) == profile.trust(Reason.NEAREST, 0.6) == 20 / 24


def test_shadow_executions_take_a_kind_away_and_give_it_back() -> None:
    wrong = LEARNED.with_shadows({"irrelevant": Evidence(right=3, served=9)})
    assert LEARNED.serves(Reason.IRRELEVANT, None, FLOOR)
    assert not wrong.serves(Reason.IRRELEVANT, None, FLOOR)
    assert wrong.trust(Reason.IRRELEVANT) == 102 / 109
    assert wrong.trust(Reason.FREE_TEXT, 0.99) == LEARNED.trust(Reason.FREE_TEXT, 0.99)
    again = LEARNED.with_shadows({"irrelevant": Evidence(right=93, served=99)})
    assert again.serves(Reason.IRRELEVANT, None, FLOOR)


def test_shadow_executions_lower_the_trust_of_exact_answers() -> None:
    sure = Profile(evidence={"recorded": Evidence(right=40, served=40)})
    assert sure.recorded_trust == 1.0
    assert sure.with_shadows({"recorded": Evidence(right=9, served=10)}).recorded_trust == 50 / 52


def test_what_is_proven_is_told_by_kind() -> None:
    assert LEARNED.proven(Reason.IRRELEVANT) == wilson_lower(98, 98)
    assert LEARNED.trusts() == {
        "recorded": 9 / 11,
        "irrelevant": 99 / 100,
        "free_text@0.70": 2 / 100,
        "free_text@0.80": 98 / 100,
        "free_text@0.95": 99 / 100,
        "nearest@0.80": 1 / 100,
    }
    assert unlearned(tool()).trusts() == {"recorded": 1.0}


def test_a_profile_survives_its_way_through_the_store() -> None:
    kept = replace(LEARNED, proposed_masks=(Mask(argument="sort"),), masks=(Mask(argument="to", pattern="x"),))
    assert kept.trust(Reason.IRRELEVANT) == 0.99  # what was worked out meanwhile is not stored
    assert msgspec.json.decode(msgspec.json.encode(kept), type=Profile) == kept


def test_proofs_of_all_kinds_are_told_and_less_similar_answers_prove_for_more_similar_ones() -> None:
    evidence = {"free_text@0.85": Evidence(right=30, served=30), "free_text@0.95": Evidence(right=10, served=10)}
    proofs = Profile(evidence=evidence, shadows={"irrelevant": Evidence(right=35, served=35)}).proofs()
    # n right of n prove n / (n + 1.96^2): of 30, of 40 (with the band below), of 35.
    assert {kind: round(proven, 3) for kind, proven in proofs.items()} == {
        "free_text@0.85": 0.886,
        "free_text@0.95": 0.912,
        "irrelevant": 0.901,
    }
