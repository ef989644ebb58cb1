"""What recordings teach: irrelevant arguments, evidence of repetitions, and when a lesson is out of date."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
from toolcache.core.tools import Effect, Role, Tool
from toolcache.core.trust import Evidence, Reason

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


def test_without_a_disagreement_there_is_no_evidence_against_exact_answers() -> None:
    assert exact_evidence([entry("[1]", to="R", seen=9), entry("[2]", to="S")]) == Evidence()


def test_exact_evidence_counts_repetitions_only() -> None:
    once = [entry("[1]", to=f"R{n}") for n in range(1000)]
    thrice = [entry("[1]", to="T", seen=3)]
    torn = [entry("[1]", to="X", seen=4), entry("[2]", to="X", seen=1)]
    # T was repeated 2 times and agreed 2 times; X was repeated 4 times and agreed 3 times.
    assert exact_evidence([*once, *thrice, *torn]) == Evidence(right=5, served=6)
    assert exact_evidence([*once, entry("[1]", to="Y"), entry("[2]", to="Y")]) == Evidence(right=0, served=1)


def test_the_reason_of_a_similar_answer_is_wording_if_any_wording_differs() -> None:
    known = {"query": Role.FREE_TEXT, "page": Role.IRRELEVANT}
    assert similar_reason({"query": "a", "page": 1}, {"query": "b", "page": 2}, known) is Reason.FREE_TEXT
    assert similar_reason({"query": "a", "page": 1}, {"query": "a", "page": 2}, known) is Reason.IRRELEVANT
    assert similar_reason({"query": "a"}, {"query": "a", "page": 2}, known) is Reason.IRRELEVANT


LEARNED = Profile(
    roles={"to": Role.IDENTITY, "sort": Role.IRRELEVANT, "query": Role.FREE_TEXT},
    evidence={
        reason: Evidence(right=98, served=98) for reason in (Reason.FREE_TEXT, Reason.IRRELEVANT, Reason.NEAREST)
    },
    similar_threshold=0.8,
)


def test_a_lesson_holds_while_the_operator_says_nothing_else() -> None:
    assert LEARNED.under({"sort": Role.IRRELEVANT}, 0.8) is LEARNED
    assert LEARNED.under({}, 0.9) is LEARNED


def test_a_role_the_operator_gives_later_wins_at_once_and_evidence_under_the_old_one_is_gone() -> None:
    now = LEARNED.under({"sort": Role.IDENTITY}, 0.8)
    assert now.roles["sort"] is Role.IDENTITY
    assert (now.trust(Reason.IRRELEVANT), now.trust(Reason.FREE_TEXT)) == (0.5, 0.5)
    assert now.trust(Reason.NEAREST) == 99 / 103


def test_trust_measured_at_a_higher_threshold_says_nothing_about_a_lower_one() -> None:
    now = LEARNED.under({}, 0.7)
    assert (now.trust(Reason.IRRELEVANT), now.trust(Reason.FREE_TEXT)) == (0.99, 0.5)
    assert LEARNED.serves_rewordings
    assert not now.serves_rewordings


def test_only_free_text_needs_vectors() -> None:
    assert not Profile(roles={"sort": Role.IRRELEVANT}, evidence=LEARNED.evidence).serves_rewordings
