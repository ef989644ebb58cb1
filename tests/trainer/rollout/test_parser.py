import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.errors import ToolSchemaInvalid
from cacherl.rollout import parser as parser_module
from cacherl.rollout.chat_format import MARKS, ChatFormat, completion_text
from cacherl.rollout.parser import MAX_DEPTH, CallStatus, Parser, spans_in_tokens
from tests.trainer.rollout.templates import newline_tokenizer

GOOD = '<tool_call>\n{"name": "look", "arguments": {"place": "attic"}}\n</tool_call>'
LOOK = '<tool_call>{"name": "look", "arguments": %s}</tool_call>'


def said(after_thinking: str, thinking: str = "hm") -> str:
    return f"{thinking}\n</think>\n\n{after_thinking}<|im_end|>"


def free(**parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "look", "parameters": {"type": "object", **parameters}}}


def test_thinking_text_and_calls_are_taken_apart(parser: Parser) -> None:
    completion = parser.parse(said(f"First.\n{GOOD}\n{GOOD}"))
    assert (completion.thinking, completion.text, completion.thinking_closed) == ("hm", "First.", True)
    assert [call.arguments for call in completion.calls] == [{"place": "attic"}] * 2
    assert all(call.status is CallStatus.OK and call.error == "" for call in completion.calls)


@pytest.mark.parametrize(
    ("block", "status", "told"),
    [
        ("<tool_call>{nope</tool_call>", CallStatus.INVALID_JSON, "not valid JSON: Expecting property name"),
        ("<tool_call></tool_call>", CallStatus.INVALID_JSON, "not valid JSON: Expecting value"),
        ("<tool_call>[1]</tool_call>", CallStatus.INVALID_JSON, 'not a JSON object; write {"name": <tool>, "arg'),
        (LOOK % '{"place": NaN}', CallStatus.INVALID_JSON, "NaN is not JSON"),
        (LOOK % '{"place": -Infinity}', CallStatus.INVALID_JSON, "-Infinity is not JSON"),
        (LOOK % '{"place": 1e400}', CallStatus.INVALID_JSON, "not JSON compliant"),
        (LOOK % '{"place": "\\ud800"}', CallStatus.INVALID_JSON, "surrogates not allowed"),
        (LOOK % '{"place": "a", "place": "b"}', CallStatus.INVALID_JSON, 'the key "place" comes twice'),
        ('<tool_call>{"name": "put", "name": "look"}</tool_call>', CallStatus.INVALID_JSON, 'key "name" comes twice'),
        (LOOK % ('{"place": ' + "9" * 5000 + "}"), CallStatus.INVALID_JSON, "4300 digits"),
        ('<tool_call>{"name": "look"', CallStatus.UNCLOSED, "not closed with </tool_call>"),
        ('<tool_call>{"arguments": {}}</tool_call>', CallStatus.MISSING_NAME, 'no "name"; write {"name": <tool>'),
        ('<tool_call>{"name": 5}</tool_call>', CallStatus.MISSING_NAME, 'no "name"'),
        (
            '<tool_call>{"name": "fly", "arguments": {}}</tool_call>',
            CallStatus.UNKNOWN_TOOL,
            "no tool fly; the tools are: look, put",
        ),
        (LOOK % '"attic"', CallStatus.SCHEMA_VIOLATION, '"arguments" of look is not an object; write {"name"'),
        (
            '<tool_call>{"name": "look", "parameters": {"place": "attic"}}</tool_call>',
            CallStatus.SCHEMA_VIOLATION,
            'the tool call of look has no "arguments"; write {"name"',
        ),
        ('<tool_call>{"name": "look"}</tool_call>', CallStatus.SCHEMA_VIOLATION, "'place' is a required property"),
        (
            '<tool_call>{"name": "put", "arguments": {"item": "x", "count": "2"}}</tool_call>',
            CallStatus.SCHEMA_VIOLATION,
            "at count: '2' is not of type 'integer'",
        ),
        (
            LOOK % '{"place": "attic", "light": true}',
            CallStatus.SCHEMA_VIOLATION,
            "('light' was unexpected); the properties are: place",
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
    assert said(block)[call.start : call.end] == block


def test_several_violations_are_told_at_once_and_each_with_its_path(parser: Parser) -> None:
    [call] = parser.parse(said('<tool_call>{"name": "put", "arguments": {"count": []}}</tool_call>')).calls
    assert "at count: [] is not of type 'integer'" in call.error
    assert "'item' is a required property" in call.error


def test_of_alternatives_the_one_that_was_nearly_met_is_told() -> None:
    place = {"anyOf": [{"type": "object", "properties": {"room": {"enum": ["attic", "cellar"]}}}, {"type": "null"}]}
    [call] = Parser([free(properties={"place": place})]).parse(said(LOOK % '{"place": {"room": "barn"}}')).calls
    assert "at place/room: 'barn' is not one of ['attic', 'cellar']" in call.error


def test_arguments_nest_as_deep_as_the_cache_takes_them() -> None:
    parser = Parser([free()])

    def status(depth: int) -> CallStatus:
        [call] = parser.parse(said(LOOK % ('{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"))).calls
        assert call.status is CallStatus.OK or f"nested deeper than {MAX_DEPTH} levels" in call.error
        return call.status

    assert status(MAX_DEPTH) is CallStatus.OK
    assert {status(MAX_DEPTH + 1), status(100_000)} == {CallStatus.INVALID_JSON}


def test_an_error_text_is_short_however_much_was_wrong(parser: Parser) -> None:
    huge = "x" * 100_000
    blocks = [
        f'<tool_call>{{"name": "{huge}"}}</tool_call>',
        LOOK % json.dumps([huge]),
        LOOK % json.dumps({"place": [huge]}),
        LOOK % f'{{"{huge}": 1, "{huge}": 2}}',
        LOOK % json.dumps({f"{huge}{i}": i for i in range(9)}),
    ]
    for call in parser.parse(said("".join(blocks))).calls:
        assert call.status is not CallStatus.OK
        assert len(call.error) < 1000


def test_of_many_tools_those_with_a_name_like_the_unknown_one_are_told() -> None:
    tools = [{"type": "function", "function": {"name": f"tool_{i}"}} for i in range(500)]
    tools.append({"type": "function", "function": {"name": "get_weather"}})
    [call] = Parser(tools).parse(said('<tool_call>{"name": "getweather"}</tool_call>')).calls
    assert call.error == "Error: there is no tool getweather; the tools are: get_weather and others"
    [call] = Parser(tools).parse(said('<tool_call>{"name": "?"}</tool_call>')).calls
    assert call.error.endswith("tool_18, tool_19 and others")


def test_a_bad_call_does_not_take_its_neighbours_with_it(parser: Parser) -> None:
    calls = parser.parse(said(f"{GOOD}\n<tool_call>{{\n{GOOD}")).calls
    assert [call.status for call in calls] == [CallStatus.OK, CallStatus.UNCLOSED, CallStatus.OK]


def test_of_nested_marks_the_inner_pair_is_the_call(parser: Parser) -> None:
    completion = parser.parse(said(f"<tool_call>{GOOD}</tool_call>"))
    assert [call.status for call in completion.calls] == [CallStatus.UNCLOSED, CallStatus.OK]
    assert completion.text == "</tool_call>"


def test_a_call_inside_closed_thinking_is_a_thought(parser: Parser) -> None:
    completion = parser.parse(said("No.", thinking=f"maybe {GOOD}"))
    assert (completion.calls, completion.text) == ((), "No.")
    assert GOOD in completion.thinking


def test_calls_inside_thinking_that_was_never_closed_count_and_what_is_open_does_not(parser: Parser) -> None:
    text = f"I use <tool_call> so: {GOOD}\nthen\n<tool_call>{{nope</tool_call> and <tool_call>{{"
    completion = parser.parse(text + "<|im_end|>")
    assert [call.status for call in completion.calls] == [CallStatus.OK, CallStatus.INVALID_JSON]
    assert (completion.text, completion.thinking_closed) == ("", False)
    assert completion.thinking == "I use <tool_call> so:\nthen\nand <tool_call>{"


def test_unclosed_thinking_without_a_whole_call_says_nothing(parser: Parser) -> None:
    completion = parser.parse('maybe <tool_call>{"name": "look"<|im_end|>')
    assert (completion.calls, completion.text, completion.thinking_closed) == ((), "", False)
    assert completion.thinking == 'maybe <tool_call>{"name": "look"'


THOUGHT = f"<think>\nhm\n</think>\n\nYes.{GOOD}"


@pytest.mark.parametrize(
    ("chat", "text", "thinking", "visible", "calls"),
    [
        (ChatFormat.QWEN3_THINKING, f"hm\n</think>\n\nYes.{GOOD}", "hm", "Yes.", 1),
        (ChatFormat.QWEN3_THINKING, THOUGHT, "hm", "Yes.", 1),
        (ChatFormat.QWEN3_HYBRID, THOUGHT, "hm", "Yes.", 1),
        (ChatFormat.QWEN3_HYBRID, f"\n{THOUGHT}", "hm", "Yes.", 1),
        (ChatFormat.QWEN3_HYBRID, f"Yes.{GOOD}", "", "Yes.", 1),
        (ChatFormat.QWEN3_HYBRID, "Yes. </think> No.", "", "Yes. </think> No.", 0),
        (ChatFormat.QWEN3_HYBRID, "<think>hm", "hm", "", 0),
        (ChatFormat.QWEN3_HYBRID_QUIET, f"Yes.{GOOD}", "", "Yes.", 1),
        (ChatFormat.QWEN3_INSTRUCT, f"Yes.{GOOD}", "", "Yes.", 1),
        (ChatFormat.QWEN3_INSTRUCT, THOUGHT, "", "<think>\nhm\n</think>\n\nYes.", 1),
    ],
)
def test_where_thinking_begins_is_the_formats_affair(
    tools: list[dict[str, Any]], chat: ChatFormat, text: str, thinking: str, visible: str, calls: int
) -> None:
    completion = Parser(tools, chat=chat).parse(text)
    assert (completion.thinking, completion.text, len(completion.calls)) == (thinking, visible, calls)
    assert completion.thinking_closed is (text != "<think>hm")


unmarked = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), max_size=8)
arguments = st.dictionaries(unmarked, unmarked | st.integers() | st.lists(st.none() | st.booleans(), max_size=2))


@given(unmarked, unmarked, st.lists(arguments, max_size=3), st.sampled_from(ChatFormat))
def test_what_the_renderer_says_for_a_message_is_read_back(
    thinking: str, content: str, calls: list[dict[str, Any]], chat: ChatFormat
) -> None:
    message = {
        "role": "assistant",
        "reasoning_content": thinking,
        "content": content,
        "tool_calls": [{"function": {"name": "look", "arguments": call}} for call in calls],
    }
    completion = Parser([free()], chat=chat).parse(completion_text(message, chat) + "<|im_end|>")
    thinks = chat in (ChatFormat.QWEN3_THINKING, ChatFormat.QWEN3_HYBRID)
    assert completion.thinking == (thinking.strip() if thinks else "")
    assert completion.text == content.strip()
    assert [call.arguments for call in completion.calls] == calls
    assert all(call.status is CallStatus.OK for call in completion.calls)


@given(st.lists(st.sampled_from([GOOD, "<tool_call>", "</tool_call>", "{}", " text ", "é"])))
def test_spans_cut_the_blocks_out_of_the_text(pieces: list[str]) -> None:
    text = said("".join(pieces))
    calls = Parser([]).parse(text).calls
    assert len(calls) == text.count("<tool_call>")
    assert all(text[call.start : call.end].startswith("<tool_call>") for call in calls)
    assert all(a.end <= b.start for a, b in pairwise(calls))


BYTES = HFTokenizer(make_byte_tokenizer())
sampled = st.lists(
    st.sampled_from([GOOD, "</think>", "日本", "🙂", "\n", "words", *MARKS]).flatmap(
        # A model may spell a mark in bytes, and may sample bytes that are no text.
        lambda piece: st.sampled_from(
            [BYTES.encode(piece), [BYTES.encode(letter)[0] for letter in piece], [94, 163], [163] * 9]
        )
    ),
    max_size=8,
).map(lambda pieces: [token for piece in pieces for token in piece])


@settings(deadline=None)
@given(sampled, st.sampled_from(ChatFormat))
def test_the_tokens_of_a_call_are_those_that_decode_to_it(ids: list[int], chat: ChatFormat) -> None:
    text = BYTES.decode(ids)
    calls = Parser([], chat=chat).parse(text).calls
    spans = spans_in_tokens([(call.start, call.end) for call in calls], ids, BYTES.decode)
    assert len(spans) == len(calls)
    for call, (start, end) in zip(calls, spans, strict=True):
        covered = BYTES.decode(ids[start:end])
        assert text[call.start : call.end] in covered
        # Bytes that are no text belong to the tokens around them; nothing else does.
        assert covered.replace("\ufffd", "") == text[call.start : call.end].replace("\ufffd", "")


def test_a_token_that_reaches_over_the_edge_of_a_call_belongs_to_it() -> None:
    tokenizer = HFTokenizer(newline_tokenizer())
    ids = [token for piece in ("<think>", ".\n", "日", "<tool_call>", "{", ".\n") for token in tokenizer.encode(piece)]
    text = tokenizer.decode(ids)
    start = text.index("{")
    [(first, last)] = spans_in_tokens([(start, start + 2)], ids, tokenizer.decode)  # half of the token ".\n"
    assert tokenizer.decode(ids[first:last]) == "{.\n"


def test_a_character_of_several_tokens_is_covered_by_all_of_them() -> None:
    ids = BYTES.encode("a日🙂b")
    assert spans_in_tokens([(0, 1), (1, 2), (2, 3)], ids, BYTES.decode) == [(0, 1), (1, 4), (4, 8)]


def test_no_token_is_decoded_more_than_a_few_times_to_find_a_span() -> None:
    decoded = 0

    def counted(ids: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return BYTES.decode(ids)

    ids = [*BYTES.encode("日本" * 100), *[163] * 500, *BYTES.encode("<tool_call>")]  # 163: a byte that is no text
    start = len(BYTES.decode(ids)) - len("<tool_call>")
    assert spans_in_tokens([(start, start + len("<tool_call>"))], ids, counted) == [(len(ids) - 1, len(ids))]
    assert decoded < 4 * len(ids)


class Work:
    """Counts what is done: calls of functions, Python's and C's, and characters given to the JSON reader."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.characters = 0
        loads = json.loads

        def counted(text: str, **options: Any) -> Any:
            self.characters += len(text)
            return loads(text, **options)

        monkeypatch.setattr(parser_module.json, "loads", counted)

    def of(self, parser: Parser, text: str) -> tuple[int, int]:
        self.calls = self.characters = 0

        def seen(frame: FrameType, event: str, argument: Any) -> None:
            self.calls += event in ("call", "c_call")

        sys.setprofile(seen)
        try:
            parser.parse(text)
        finally:
            sys.setprofile(None)
        return self.calls, self.characters


@pytest.mark.parametrize(
    "garbage",
    [
        "<tool_call>",
        "</tool_call>",
        '<tool_call>{"',
        '<tool_call>{"a": 1, </tool_call>',
        "<tool_call>[[[[</tool_call>",
        "<think>",
        "</think><tool_call>",
        '\\"',
    ],
)
def test_twice_the_garbage_is_twice_the_work(monkeypatch: pytest.MonkeyPatch, garbage: str) -> None:
    parser, work = Parser([]), Work(monkeypatch)
    once, twice = (said(garbage * (count // len(garbage))) for count in (20_000, 40_000))
    calls_once, _ = work.of(parser, once)
    calls_twice, characters_twice = work.of(parser, twice)
    assert calls_twice <= 2.1 * calls_once
    assert characters_twice <= len(twice)


def test_a_megabyte_of_garbage_is_parsed(parser: Parser) -> None:
    completion = parser.parse(said('<tool_call>{"a": "' * 60_000))
    assert len(completion.calls) == 60_000
    assert {call.status for call in completion.calls} == {CallStatus.UNCLOSED}


def test_a_broken_tool_schema_is_named() -> None:
    broken: dict[str, Any] = {"type": "function", "function": {"name": "bad", "parameters": {"type": 7}}}
    with pytest.raises(ToolSchemaInvalid, match="tool bad"):
        Parser([broken])


@pytest.mark.parametrize("schema", [{"$ref": "#/none"}, {"$ref": "#"}])
def test_a_schema_that_leads_nowhere_is_named_when_it_is_used(schema: dict[str, str]) -> None:
    with pytest.raises(ToolSchemaInvalid, match="tool look: "):
        Parser([free(allOf=[schema])]).parse(said(LOOK % "{}"))


def test_a_schema_is_not_fetched_from_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "schema.json"
    elsewhere.write_text("{}", encoding="utf-8")
    with pytest.raises(ToolSchemaInvalid, match="tool look: "):
        Parser([free(allOf=[{"$ref": elsewhere.as_uri()}])]).parse(said(LOOK % "{}"))
