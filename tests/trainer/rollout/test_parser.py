from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacherl.errors import ToolSchemaInvalid
from cacherl.rollout.parser import CallStatus, Parser

GOOD = '<tool_call>\n{"name": "look", "arguments": {"place": "attic"}}\n</tool_call>'


def said(after_thinking: str, thinking: str = "hm") -> str:
    return f"{thinking}\n</think>\n\n{after_thinking}<|im_end|>"


def test_thinking_text_and_calls_are_taken_apart(parser: Parser) -> None:
    completion = parser.parse(said(f"First.\n{GOOD}\n{GOOD}"))
    assert (completion.thinking, completion.text, completion.thinking_closed) == ("hm", "First.", True)
    assert [call.arguments for call in completion.calls] == [{"place": "attic"}] * 2
    assert all(call.status is CallStatus.OK and call.error == "" for call in completion.calls)


@pytest.mark.parametrize(
    ("block", "status", "told"),
    [
        ("<tool_call>{nope</tool_call>", CallStatus.INVALID_JSON, "not valid JSON"),
        ("<tool_call>[1]</tool_call>", CallStatus.INVALID_JSON, "not a JSON object"),
        (
            '<tool_call>{"name": "put", "arguments": {"count": NaN}}</tool_call>',
            CallStatus.INVALID_JSON,
            "not JSON compliant",
        ),
        (
            '<tool_call>{"name": "put", "arguments": {"count": 1e400}}</tool_call>',
            CallStatus.INVALID_JSON,
            "not JSON compliant",
        ),
        (
            '<tool_call>{"name": "put", "arguments": {"item": "\\ud800"}}</tool_call>',
            CallStatus.INVALID_JSON,
            "surrogates not allowed",
        ),
        ('<tool_call>{"name": "look"', CallStatus.UNCLOSED, "not closed with </tool_call>"),
        ('<tool_call>{"arguments": {}}</tool_call>', CallStatus.MISSING_NAME, 'no "name"'),
        (
            '<tool_call>{"name": "fly", "arguments": {}}</tool_call>',
            CallStatus.UNKNOWN_TOOL,
            "no tool fly; the tools are: look, put",
        ),
        (
            '<tool_call>{"name": "look", "arguments": "attic"}</tool_call>',
            CallStatus.SCHEMA_VIOLATION,
            "not an object",
        ),
        ('<tool_call>{"name": "look"}</tool_call>', CallStatus.SCHEMA_VIOLATION, "'place' is a required property"),
        (
            '<tool_call>{"name": "put", "arguments": {"item": "x", "count": "2"}}</tool_call>',
            CallStatus.SCHEMA_VIOLATION,
            "at count: '2' is not of type 'integer'",
        ),
    ],
)
def test_each_way_to_get_a_call_wrong_has_its_status_and_its_text(
    parser: Parser, block: str, status: CallStatus, told: str
) -> None:
    [call] = parser.parse(said(block)).calls
    assert call.status is status
    assert call.error.startswith("Error: ")
    assert told in call.error


def test_a_bad_call_does_not_take_its_neighbours_with_it(parser: Parser) -> None:
    calls = parser.parse(said(f"{GOOD}\n<tool_call>{{\n{GOOD}")).calls
    assert [call.status for call in calls] == [CallStatus.OK, CallStatus.UNCLOSED, CallStatus.OK]


def test_a_call_inside_the_thinking_is_a_thought(parser: Parser) -> None:
    assert parser.parse(said("No.", thinking=f"maybe {GOOD}")).calls == ()
    unclosed = parser.parse(f"maybe {GOOD}")
    assert (unclosed.calls, unclosed.text, unclosed.thinking_closed) == ((), "", False)


@given(st.lists(st.sampled_from([GOOD, "<tool_call>", "</tool_call>", "{}", " text ", "é"])))
def test_spans_cut_the_blocks_out_of_the_text(pieces: list[str]) -> None:
    text = said("".join(pieces))
    calls = Parser([]).parse(text).calls
    assert len(calls) == text.count("<tool_call>")
    assert all(text[call.start : call.end].startswith("<tool_call>") for call in calls)
    assert all(a.end <= b.start for a, b in pairwise(calls))


def test_a_broken_tool_schema_is_named() -> None:
    broken: dict[str, Any] = {"type": "function", "function": {"name": "bad", "parameters": {"type": 7}}}
    with pytest.raises(ToolSchemaInvalid, match="tool bad"):
        Parser([broken])
