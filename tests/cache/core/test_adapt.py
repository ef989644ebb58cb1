"""Echoes of the donor's wording are replaced, content never."""

from __future__ import annotations

import json

import pytest

from toolcache.core.adapt import adapted
from toolcache.core.tools import Role

ROLES = {"query": Role.FREE_TEXT, "note": Role.FREE_TEXT, "sort": Role.IRRELEVANT, "city": Role.IDENTITY}


def reworded(content: str, donor: str = "lost parcel", asked: str = "parcel that got lost") -> str | None:
    return adapted(content, {"query": donor}, {"query": asked}, ROLES)


def test_a_whole_echo_under_its_own_name_is_replaced_at_any_depth() -> None:
    content = json.dumps({"query": "lost parcel", "log": [{"query": ["lost parcel", 1.5, None]}], "n": 2})
    assert json.loads(reworded(content) or "") == {
        "query": "parcel that got lost",
        "log": [{"query": ["parcel that got lost", 1.5, None]}],
        "n": 2,
    }


@pytest.mark.parametrize(
    "content",
    [
        '{"answer": "all about a lost parcel"}',
        '{"lost parcel": 1}',
        "lost parcel",
        "Found: lost parcel",
        '["Lost parcel"]',
        "[" * 3000,
        "",
    ],
)
def test_what_is_no_whole_json_string_is_left_alone(content: str) -> None:
    assert reworded(content) is None


def test_an_equal_text_under_another_name_is_content() -> None:
    content = '{"query": "pending", "status": "pending", "titles": ["pending"]}'
    assert reworded(content, "pending", "waiting") == '{"query": "waiting", "status": "pending", "titles": ["pending"]}'
    assert reworded('["lost parcel"]') is None


def test_an_empty_argument_is_not_found_in_every_empty_string() -> None:
    assert reworded('{"name": "", "next": [""]}', "", "lamps") is None


def test_an_argument_that_is_no_free_text_is_never_echoed() -> None:
    assert adapted('{"sort": "price"}', {"sort": "price"}, {"sort": "name"}, ROLES) is None
    assert adapted('{"city": "Rome"}', {"city": "Rome"}, {"city": "Oslo"}, ROLES) is None


def test_each_argument_is_replaced_by_its_own_successor() -> None:
    donor, asked = {"query": "same", "note": "same"}, {"query": "a b", "note": "c d"}
    assert adapted('{"note": "same", "query": "same"}', donor, asked, ROLES) == '{"note": "c d", "query": "a b"}'
    assert adapted('{"query": "same"}', {"query": "same"}, {"query": 5}, ROLES) is None


def test_letters_of_other_scripts_stay_as_they_are() -> None:
    assert reworded('{"query": "lost parcel", "in": "Zürich"}') == '{"query": "parcel that got lost", "in": "Zürich"}'
