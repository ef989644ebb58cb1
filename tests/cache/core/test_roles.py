"""Roles of arguments: schema, then data, then operator; and the guard made of them."""

from __future__ import annotations

from typing import Any

import pytest

from toolcache.core.roles import can_be_similar, data_role, guard, roles, schema_role, text_of
from toolcache.core.tools import Effect, Role, Tool

IDENTITY, FREE_TEXT, IRRELEVANT = Role.IDENTITY, Role.FREE_TEXT, Role.IRRELEVANT
SENTENCES = [
    f"how do people return {thing} they bought" for thing in "lamps desks chairs pens cups hats bags mats".split()
]
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


def test_a_tool_of_identity_arguments_only_can_never_be_similar() -> None:
    assert not can_be_similar({"city": IDENTITY})
    assert not can_be_similar({})
    assert can_be_similar({"city": IDENTITY, "page": IRRELEVANT})
    assert can_be_similar({"query": FREE_TEXT})


def test_the_embedded_text_does_not_depend_on_the_order_of_arguments() -> None:
    text = "find n: 1; query: a lamp; tags: [1,2]"
    assert text_of("find", {"query": "a lamp", "tags": [1, 2.0], "n": 1.0}) == text
    assert text_of("find", {"n": 1, "tags": [1, 2], "query": "a lamp"}) == text
