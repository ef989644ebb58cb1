"""Canonical text: one for values that mean the same, never one for values that do not."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from toolcache.core.canonical import MAX_DEPTH, NotCanonical, canonical_json, canonical_text, digest

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**53 - 3, max_value=2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(min_value=2**53, max_value=10**22).map(float)
    | texts
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))


def same_value(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: numbers by their exact value, and a truth value is no number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_value(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    return type(one) is type(other) and one == other if isinstance(one, str) or isinstance(other, str) else one == other


@given(st.dictionaries(texts, values, min_size=2), st.randoms())
def test_the_order_of_arguments_never_changes_the_text(arguments: dict[str, Any], chance: Any) -> None:
    names = list(arguments)
    chance.shuffle(names)
    assert canonical_json({name: arguments[name] for name in names}) == canonical_json(arguments)


@given(values, values)
def test_equal_texts_are_equal_values(one: Any, other: Any) -> None:
    if canonical_json(one) == canonical_json(other):
        assert same_value(one, other)


@given(st.integers(min_value=2**53 - 5, max_value=10**21))
def test_a_large_integer_shares_its_text_with_no_float_but_its_equal(number: int) -> None:
    near = float(number)
    shown = int(rfc8785.dumps(near)) if near < 1e21 else number  # the digits RFC 8785 would give the float
    assert canonical_json(number) == str(number)
    for integer in (number, shown):
        assert (canonical_json(near) == canonical_json(integer)) == (near == integer) or near >= 1e21


@given(values)
def test_the_text_reads_back_to_a_value_with_the_same_text(value: Any) -> None:
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text


small = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | texts | st.floats(-(2.0**53), 2.0**53)


@given(st.recursive(small, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)))
def test_the_text_is_that_of_rfc_8785_wherever_that_is_exact(value: Any) -> None:
    assert canonical_json(value) == rfc8785.dumps(value).decode()


def test_the_example_of_rfc_8785_section_3_2_2_is_reproduced() -> None:
    given_text = r"""{
      "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
      "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
      "literals": [null, true, false]
    }"""
    assert canonical_json(json.loads(given_text)) == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def test_the_keys_of_rfc_8785_section_3_2_3_are_sorted_by_utf_16() -> None:
    document = {
        "€": "Euro Sign",
        "\r": "Carriage Return",
        "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One",
        "\U0001f600": "Emoji: Grinning Face",
        "\x80": "Control",
        "ö": "Latin Small Letter O With Diaeresis",
    }
    names = list(json.loads(canonical_json(document)).values())
    assert names == [
        "Carriage Return",
        "One",
        "Control",
        "Latin Small Letter O With Diaeresis",
        "Euro Sign",
        "Emoji: Grinning Face",
        "Hebrew Letter Dalet With Dagesh",
    ]


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555554", "333333333.33333325"),
        ("41b3de4355555557", "333333333.33333343"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_the_number_samples_of_rfc_8785_appendix_b_are_reproduced(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(number) == text


@pytest.mark.parametrize(
    ("bits", "padded", "exact"),
    [
        ("4430000000000000", "295147905179352830000", "295147905179352825856"),
        ("444b1ae4d6e2ef4e", "999999999999999700000", "999999999999999737856"),
        ("444b1ae4d6e2ef4f", "999999999999999900000", "999999999999999868928"),
    ],
)
def test_where_rfc_8785_pads_digits_with_zeros_the_exact_ones_are_written(bits: str, padded: str, exact: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(number) == exact
    assert canonical_json(int(padded)) != canonical_json(number)


def test_integers_that_a_double_confuses_have_texts_of_their_own() -> None:
    assert canonical_json(2**53 + 1) == "9007199254740993"
    assert canonical_json(2**53 + 1) != canonical_json(2**53)
    assert canonical_json({"id": 10**40 + 1}) == '{"id":' + "1" + "0" * 39 + "1}"


def test_a_whole_float_is_the_integer_and_a_truth_value_is_not() -> None:
    assert canonical_json(1.0) == canonical_json(1) == canonical_json(1e0) == "1"
    assert canonical_json(-0.0) == "0"
    assert canonical_json(True) != canonical_json(1)
    assert canonical_json("1") != canonical_json(1)
    assert canonical_json(None) != canonical_json("null")


def test_one_letter_written_in_two_ways_is_two_texts() -> None:
    assert canonical_json("\u00e9") != canonical_json("e\u0301")


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), float("-inf"), "\ud800", {"\udfff": 1}, {"a": ["\ud800"]}, {"a": object()}]
)
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(NotCanonical):
        canonical_json({"value": value})


def test_nesting_is_refused_just_beyond_the_deepest_level() -> None:
    def nested(levels: int) -> Any:
        return [] if levels == 0 else [nested(levels - 1)]

    assert canonical_json(nested(MAX_DEPTH)) == "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)
    with pytest.raises(NotCanonical, match="64"):
        canonical_json(nested(MAX_DEPTH + 1))


def test_results_are_compared_as_json_and_other_texts_as_they_stand() -> None:
    assert canonical_text('{"b": 1, "a": 2.0}') == canonical_text('{"a":2,"b":1}')
    assert canonical_text("no order #W1") == "no order #W1"
    assert canonical_text("[NaN]") == "[NaN]"
    assert canonical_text("[" * 5000) == "[" * 5000
    assert canonical_text("1" * 5000) == "1" * 5000
    assert canonical_text('"a"') != canonical_text("a")


def test_digests_do_not_confuse_where_a_part_ends() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.booleans() | st.none(), max_size=6))
def test_the_short_way_for_plain_objects_writes_what_the_long_way_writes(value: dict[str, Any]) -> None:
    assert canonical_json(value) == canonical_json([value])[1:-1]
