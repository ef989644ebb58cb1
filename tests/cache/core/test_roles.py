"""Roles of arguments: schema, then data, then operator; and the guard made of them."""

from __future__ import annotations

from typing import Any

import pytest

from toolcache.core.calls import Call, call_digest
from toolcache.core.entries import Place
from toolcache.core.roles import (
    Placing,
    can_be_similar,
    data_role,
    equal,
    guard,
    guard_contents,
    place,
    roles,
    schema_role,
    text_of,
)
from toolcache.core.tools import Effect, Mask, Role, Tool

IDENTITY, FREE_TEXT, IRRELEVANT = Role.IDENTITY, Role.FREE_TEXT, Role.IRRELEVANT
SENTENCES = [
    f"how do people return {thing} they bought" for thing in "lamps desks chairs pens cups hats bags mats".split()
]
TRACE = Mask(argument="trace")
WORDS = {"query": FREE_TEXT, "page": IRRELEVANT, "city": IDENTITY}


@pytest.mark.parametrize(
    ("name", "schema", "role"),
    [
        ("query", {"type": "string"}, FREE_TEXT),
        ("Query", {"type": "string"}, FREE_TEXT),
        ("order_id", {"type": "string"}, IDENTITY),
        ("query", {"type": "integer"}, IDENTITY),
        ("query", {"type": ["string", "null"]}, IDENTITY),
        ("query", {"type": "string", "enum": ["a"]}, IDENTITY),
        ("query", {"type": "string", "const": "a"}, IDENTITY),
        ("query", {"type": "string", "format": "date"}, IDENTITY),
        ("query", {"type": "string", "pattern": "^a"}, IDENTITY),
        ("query", {}, IDENTITY),
        ("query", True, IDENTITY),
    ],
)
def test_the_schema_gives_free_text_only_to_plain_strings_with_telling_names(
    name: str, schema: Any, role: Role
) -> None:
    assert schema_role(name, schema) is role


def test_eight_different_sentences_are_free_text_and_seven_say_nothing() -> None:
    assert data_role(SENTENCES) is FREE_TEXT
    assert data_role(SENTENCES[:7] * 3) is None


@pytest.mark.parametrize(
    "values",
    [
        [f"#W{n}" for n in range(8)],
        [f"{n} + {n} * 2 - 7 / {n}" for n in range(8)],
        ["Mia Li", "Noah Ito", "Eva Roy", "Ann Lee", "Tom Fox", "Ida Ray", "Uma Das", "Leo Kim"],
        [f"2024-05-0{n}" for n in range(1, 9)],
    ],
)
def test_identifiers_expressions_names_and_dates_are_identity(values: list[str]) -> None:
    assert data_role(values) is IDENTITY


def tool(**operator: Role) -> Tool:
    schema = {"type": "object", "properties": {"query": {"type": "string"}, "place": {"type": "string"}, "any": True}}
    return Tool(name="find", parameters=schema, effect=Effect.READ, roles=operator)


def test_the_data_overrule_the_schema_and_the_operator_overrules_both() -> None:
    names = {"query": [f"#W{n}" for n in range(8)], "place": SENTENCES}
    assert roles(tool(), {}) == {"query": FREE_TEXT, "place": IDENTITY, "any": IDENTITY}
    assert roles(tool(), names) == {"query": IDENTITY, "place": FREE_TEXT, "any": IDENTITY}
    assert roles(tool(), names, frozenset({"place"}))["place"] is IRRELEVANT
    said = roles(tool(place=IDENTITY, query=IRRELEVANT), names, frozenset({"place"}))
    assert said == {"query": IRRELEVANT, "place": IDENTITY, "any": IDENTITY}


def same_guard(one: dict[str, Any], other: dict[str, Any], *, scopes: tuple[str, str] = ("s", "s")) -> bool:
    return guard(scopes[0], "find", one, WORDS) == guard(scopes[1], "find", other, WORDS)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"query": "how do I return it"}, {"query": "can I return it"}),
        ({"query": "lamps", "page": 1}, {"query": "lamps", "page": 2}),
        ({"query": "lamps", "page": 1}, {"query": "lamps"}),
        ({"city": "Rome", "query": "a bar"}, {"query": "some bars", "city": "Rome"}),
    ],
)
def test_the_guard_ignores_wording_and_irrelevant_arguments(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert same_guard(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"city": "Rome"}, {"city": "Oslo"}),
        ({"city": "Rome"}, {}),
        ({"city": "Rome"}, {"city": None}),
        ({"city": 1}, {"city": True}),
        ({"city": 1}, {"city": "1"}),
        ({"new": 1}, {"new": 2}),
        ({"query": "not lamps"}, {"query": "lamps"}),
        ({"query": "lamps"}, {}),
        ({"query": 5}, {"query": 6}),
        ({"query": ["a b"]}, {"query": ["b a"]}),
        ({"query": "lamps from Rome to Oslo"}, {"query": "lamps from Oslo to Rome"}),
    ],
)
def test_the_guard_keeps_everything_else(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert not same_guard(one, other)


def test_the_guard_keeps_scope_and_tool() -> None:
    assert not same_guard({}, {}, scopes=("s", "t"))
    assert guard("s", "find", {}, WORDS) != guard("s", "search", {}, WORDS)


def test_the_contents_of_a_guard_decide_it() -> None:
    call = {"city": "Rome", "query": "not a Fiat", "page": 2, "new": [1]}
    kept = {"city": {"is": "Rome"}, "query": {"words": ["not", "Fiat"]}, "new": {"is": [1]}}
    assert guard_contents(call, WORDS) == kept
    assert guard_contents({"query": ["a"]}, WORDS) == {"query": {"is": ["a"]}}


def test_calls_that_are_equal_where_it_matters_share_their_digest_whatever_the_irrelevant_arguments() -> None:
    def digest(arguments: dict[str, Any], scope: str = "s", tool_name: str = "find") -> str:
        return equal(scope, tool_name, arguments, WORDS)

    asked = digest({"city": "Rome", "query": "a lamp", "page": 1})
    assert (
        asked == digest({"query": "a lamp", "city": "Rome", "page": 2}) == digest({"query": "a lamp", "city": "Rome"})
    )
    others = [
        digest({"city": "Rome", "query": "lamps", "page": 1}),
        digest({"city": "Oslo", "query": "a lamp", "page": 1}),
        digest({"city": "Rome", "query": "a lamp", "new": 1}),
        digest({"city": "Rome", "query": "a lamp"}, scope="t"),
        digest({"city": "Rome", "query": "a lamp"}, tool_name="search"),
    ]
    assert len({asked, *others}) == 6


def test_without_an_irrelevant_argument_nothing_is_equal_but_the_same() -> None:
    assert equal("s", "find", {"city": "Rome"}, {"city": IDENTITY, "query": FREE_TEXT}) == ""


# -- the place of an entry ---------------------------------------------------------------------------------------------


def placed(arguments: dict[str, Any], **more: Any) -> Place:
    schema = {"type": "object", "properties": {"query": {"type": "string"}, "page": {"type": "integer"}, "city": {}}}
    made = Tool(name="find", parameters=schema, **({"effect": Effect.READ} | more))
    return place(made, "s", "e", Call.of("find", arguments, made.masks), WORDS)


def test_a_place_holds_the_digests_of_the_call() -> None:
    call = {"query": "a lamp", "page": 1}
    assert placed(call) == Place(
        guard=guard("s", "find", call, WORDS),
        equal=equal("s", "find", call, WORDS),
        call=call_digest("e", Call.of("find", call)),
    )


@pytest.mark.parametrize(
    ("arguments", "more", "is_donor"),
    [
        ({"query": "a"}, {}, True),
        ({"query": "a"}, {"effect": Effect.PURE}, True),
        ({"query": 1}, {}, False),
        ({"query": "a"}, {"effect": Effect.WRITE}, False),
        ({"query": "a"}, {"effect": Effect.WRITE, "simulate_writes": True}, True),
        ({"query": 1}, {"effect": Effect.WRITE, "simulate_writes": True}, False),
    ],
)
def test_only_valid_calls_that_may_answer_others_are_donors(
    arguments: dict[str, Any], more: dict[str, Any], is_donor: bool
) -> None:
    found = placed(arguments, **more)
    assert (found.guard != "", found.equal != "", found.call != "") == (is_donor, is_donor, True)


def test_places_of_many_entries_are_those_of_each() -> None:
    schema = {"type": "object", "properties": {"query": {"type": "string"}, "page": {"type": "integer"}, "city": {}}}
    calls = [
        {"query": "a lamp", "page": 1},
        {"query": "a lamp", "page": 2},
        {"query": 5},
        {"query": "a lamp", "city": "Rome"},
    ]
    for masks in ((), (Mask(argument="city"),)):
        made = Tool(name="find", parameters=schema, effect=Effect.READ, masks=masks)
        placing = Placing(made, WORDS)
        for where in ("s", "t"):
            for arguments in calls * 2:
                call = Call.of("find", arguments, masks)
                assert placing.place(where, "e", call) == place(made, where, "e", call, WORDS)


def test_a_masked_argument_against_the_schema_keeps_a_call_from_being_a_donor() -> None:
    schema = {"type": "object", "properties": {"query": {"type": "string"}, "trace": {"type": "string"}}}
    placing = Placing(Tool(name="find", parameters=schema, effect=Effect.READ, masks=(TRACE,)), WORDS)
    places = [placing.place("s", "e", Call.of("find", {"query": "a", "trace": trace}, (TRACE,))) for trace in ("x", 5)]
    assert [each.guard != "" for each in places] == [True, False]


def test_what_is_masked_is_in_no_digest_of_a_place() -> None:
    masks = (Mask(argument="city"), Mask(argument="query", pattern="req-[0-9]+"))
    one, other = {"query": "Rome req-1", "city": "a"}, {"query": "Rome req-22", "city": "b"}
    assert placed(one, masks=masks) == placed(other, masks=masks)
    assert placed(one) != placed(other)
    assert placed(one, masks=masks[:1]).guard != placed(other, masks=masks[:1]).guard
    assert placed(one, masks=masks[1:]).guard != placed(other, masks=masks[1:]).guard


def test_a_tool_of_identity_arguments_only_can_never_be_similar() -> None:
    assert not can_be_similar({"city": IDENTITY})
    assert not can_be_similar({})
    assert can_be_similar({"city": IDENTITY, "page": IRRELEVANT})
    assert can_be_similar({"query": FREE_TEXT})


def test_the_embedded_text_does_not_depend_on_the_order_of_arguments() -> None:
    text = "find n: 1; query: a lamp; tags: [1,2]"
    assert text_of("find", {"query": "a lamp", "tags": [1, 2.0], "n": 1.0}) == text
    assert text_of("find", {"n": 1, "tags": [1, 2], "query": "a lamp"}) == text
