"""Completion text to thinking, visible text and tool calls, each call with a typed status.

The same parser serves training and evaluation. A call that cannot be used is not dropped: it keeps its place, its
span and the error text which is fed back to the model, and it is never looked up in the cache.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match

from cacherl.errors import ToolSchemaInvalid
from cacherl.rollout.renderer import CALL_CLOSE, CALL_OPEN, END_OF_TURN, THINK_CLOSE


class CallStatus(StrEnum):
    """What became of one `<tool_call>` block."""

    OK = "ok"
    INVALID_JSON = "invalid_json"
    """The block is not a JSON object."""
    UNCLOSED = "unclosed"
    """`</tool_call>` is missing."""
    MISSING_NAME = "missing_name"
    UNKNOWN_TOOL = "unknown_tool"
    SCHEMA_VIOLATION = "schema_violation"
    """The arguments do not fit the tool's JSON schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedCall:
    """One `<tool_call>` block of a completion."""

    status: CallStatus
    name: str = ""
    arguments: Mapping[str, Any] | None = None
    """Parsed arguments where there are any, even if they violate the schema."""
    error: str = ""
    """What the model is told; empty exactly when the status is ok."""
    start: int
    end: int
    """Half-open span in characters of the completion, marks included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One turn of the model, taken apart."""

    thinking: str
    text: str
    """What the user would see: outside thinking and calls, stripped."""
    calls: tuple[ParsedCall, ...]
    thinking_closed: bool
    """False when `</think>` never came: then everything is thinking, and there is neither text nor call."""


class Parser:
    """Parses completions against a fixed set of OpenAI tool objects. Raises ToolSchemaInvalid for a bad schema."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._validators = {tool["function"]["name"]: _validator(tool["function"]) for tool in tools}

    def parse(self, text: str) -> Completion:
        """Take a completion apart; the text starts inside the thinking block, as the prompt leaves it."""
        text = text.removesuffix(END_OF_TURN)
        thinking, closed, _ = text.partition(THINK_CLOSE)
        if not closed:
            return Completion(thinking=thinking.strip(), text="", calls=(), thinking_closed=False)
        begin = len(thinking) + len(closed)
        spans = list(_call_spans(text, begin))
        return Completion(
            thinking=thinking.strip(),
            text=_outside(text, begin, spans),
            calls=tuple(self._call(text, start, end) for start, end in spans),
            thinking_closed=True,
        )

    def _call(self, text: str, start: int, end: int) -> ParsedCall:
        block = text[start:end]
        if not block.endswith(CALL_CLOSE):
            return _bad(CallStatus.UNCLOSED, f"the tool call is not closed with {CALL_CLOSE}", start, end)
        try:
            call = json.loads(block[len(CALL_OPEN) : -len(CALL_CLOSE)])
            # Python reads what no request can carry: NaN, 1e400, half a surrogate pair.
            json.dumps(call, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            return _bad(CallStatus.INVALID_JSON, f"the tool call is not valid JSON: {error}", start, end)
        if not isinstance(call, dict):
            return _bad(CallStatus.INVALID_JSON, "the tool call is not a JSON object", start, end)
        return self._checked(call, start, end)

    def _checked(self, call: Mapping[str, Any], start: int, end: int) -> ParsedCall:
        name, arguments = call.get("name"), call.get("arguments", {})
        if not isinstance(name, str) or not name:
            return _bad(CallStatus.MISSING_NAME, 'the tool call has no "name"', start, end)
        if name not in self._validators:
            known = ", ".join(self._validators)
            return _bad(CallStatus.UNKNOWN_TOOL, f"there is no tool {name}; the tools are: {known}", start, end, name)
        if not isinstance(arguments, dict):
            return _bad(CallStatus.SCHEMA_VIOLATION, f'"arguments" of {name} is not an object', start, end, name)
        wrong = best_match(self._validators[name].iter_errors(arguments))
        if wrong is not None:
            where = "/".join(str(step) for step in wrong.absolute_path)
            said = f"arguments of {name} do not fit its schema{' at ' + where if where else ''}: {wrong.message}"
            return _bad(CallStatus.SCHEMA_VIOLATION, said, start, end, name, arguments)
        return ParsedCall(status=CallStatus.OK, name=name, arguments=arguments, start=start, end=end)


def token_spans(ids: Sequence[int], open_id: int, close_id: int, think_close_id: int) -> list[tuple[int, int]]:
    """Half-open token spans of the call blocks after `</think>`; an unclosed one ends where the next one opens.

    >>> token_spans([7, 1, 0, 7, 5, 8, 7, 6], open_id=7, close_id=8, think_close_id=0)
    [(3, 6), (6, 8)]
    """
    begin = ids.index(think_close_id) + 1 if think_close_id in ids else len(ids)
    starts = [i for i in range(begin, len(ids)) if ids[i] == open_id]
    return [
        (start, next((i + 1 for i in range(start, limit) if ids[i] == close_id), limit))
        for start, limit in pairwise([*starts, len(ids)])
    ]


def _call_spans(text: str, begin: int) -> Iterator[tuple[int, int]]:
    starts = [match.start() for match in re.finditer(re.escape(CALL_OPEN), text[begin:])]
    for start, limit in pairwise([*starts, len(text) - begin]):
        close = text.find(CALL_CLOSE, begin + start, begin + limit)
        yield begin + start, begin + limit if close < 0 else close + len(CALL_CLOSE)


def _outside(text: str, begin: int, spans: Sequence[tuple[int, int]]) -> str:
    edges = [begin, *(edge for span in spans for edge in span), len(text)]
    pieces = (text[edges[i] : edges[i + 1]].strip() for i in range(0, len(edges), 2))
    return "\n".join(filter(None, pieces))


def _bad(
    status: CallStatus, why: str, start: int, end: int, name: str = "", arguments: Mapping[str, Any] | None = None
) -> ParsedCall:
    return ParsedCall(status=status, name=name, arguments=arguments, error=f"Error: {why}", start=start, end=end)


def _validator(function: Mapping[str, Any]) -> Draft202012Validator:
    schema = function.get("parameters") or {"type": "object"}
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ToolSchemaInvalid(f"tool {function['name']}: {error.message}") from error
    return Draft202012Validator(schema)
