"""Completion text to thinking, visible text and tool calls, each call with a typed status.

The same parser serves training and evaluation. A call that cannot be used is not dropped: it keeps its place, its
span and the error text which is fed back to the model, and it is never looked up in the cache. Time is linear in the
length of the completion, whatever stands in it.

Not covered: a mark inside a string of the arguments ends or opens a call as it does anywhere else.
"""

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from itertools import islice, pairwise
from typing import Any, Final, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from cacherl.errors import ToolSchemaInvalid
from cacherl.rollout.chat_format import CALL_CLOSE, CALL_OPEN, END_OF_TURN, THINK_CLOSE, THINK_OPEN, ChatFormat

MAX_DEPTH: Final = 64
"""Deepest nesting of arguments; the cache takes no deeper ones."""
TOLD_TOOLS: Final = 20
"""Most tool names that one error text lists."""
TOLD_VIOLATIONS: Final = 3
"""Most violations of a schema that one error text lists: each one told saves the model a turn."""
TOLD_CHARACTERS: Final = 200
"""Most characters of anything the model wrote, or a schema says, that are told back to it in one piece."""
_NO_TEXT: Final = "\ufffd"
_CHARACTER_TOKENS: Final = 4
"""Most tokens that one character can be: UTF-8 has no more bytes for it. A longer run is no text at all."""
_FORM: Final = '{"name": <tool>, "arguments": {...}}'


class CallStatus(StrEnum):
    """What became of one `<tool_call>` block."""

    OK = "ok"
    INVALID_JSON = "invalid_json"
    """The block is not a JSON object, or one that no request can carry: NaN, half a surrogate pair, a key twice."""
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
    """What the model is told: what is wrong, and what would be right. Empty exactly when the status is ok."""
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
    """False when thinking began and `</think>` never came. Then there is no text, and the calls are the closed
    `<tool_call>` blocks inside the thinking, which count as meant; where there is none, the turn says nothing."""


class Parser:
    """Parses completions of one chat format against a fixed set of OpenAI tool objects.

    Keeps no state, so that threads may share it. Raises ToolSchemaInvalid for a bad schema.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]], *, chat: ChatFormat = ChatFormat.QWEN3_THINKING) -> None:
        self._chat = chat
        self._validators = {tool["function"]["name"]: _validator(tool["function"]) for tool in tools}

    def parse(self, text: str) -> Completion:
        """Take a completion apart, from the model's first token to its `<|im_end|>`, which may be missing."""
        text = text.removesuffix(END_OF_TURN)
        start = self._thinking_start(text)
        if start is None:
            return self._completion(text, thinking="", begin=0)
        end = text.find(THINK_CLOSE, start)
        if end < 0:
            return self._never_closed(text, start)
        return self._completion(text, thinking=text[start:end].strip(), begin=end + len(THINK_CLOSE))

    def _thinking_start(self, text: str) -> int | None:
        """Where thinking begins; None where the turn has none."""
        match self._chat:
            case ChatFormat.QWEN3_INSTRUCT | ChatFormat.QWEN3_HYBRID_QUIET:
                return None
            case ChatFormat.QWEN3_THINKING | ChatFormat.QWEN3_HYBRID:
                said = re.match(rf"\s*{THINK_OPEN}", text)
                if said is not None:
                    return said.end()
                return 0 if self._chat is ChatFormat.QWEN3_THINKING else None

    def _completion(self, text: str, *, thinking: str, begin: int) -> Completion:
        spans = list(_call_spans(text, begin))
        return Completion(
            thinking=thinking,
            text=_outside(text, begin, spans),
            calls=tuple(self._call(text, start, end) for start, end in spans),
            thinking_closed=True,
        )

    def _never_closed(self, text: str, begin: int) -> Completion:
        # An open block is no call here: a thought may well name the mark.
        spans = [span for span in _call_spans(text, begin) if text.endswith(CALL_CLOSE, *span)]
        return Completion(
            thinking=_outside(text, begin, spans),
            text="",
            calls=tuple(self._call(text, start, end) for start, end in spans),
            thinking_closed=False,
        )

    def _call(self, text: str, start: int, end: int) -> ParsedCall:
        block = text[start:end]
        if not block.endswith(CALL_CLOSE):
            return _bad(CallStatus.UNCLOSED, f"the tool call is not closed with {CALL_CLOSE}", start, end)
        try:
            call = _json(block[len(CALL_OPEN) : -len(CALL_CLOSE)])
        except ValueError as error:
            why = f"the tool call is not valid JSON: {_short(str(error))}; write {_FORM}"
            return _bad(CallStatus.INVALID_JSON, why, start, end)
        if not isinstance(call, dict):
            return _bad(CallStatus.INVALID_JSON, f"the tool call is not a JSON object; write {_FORM}", start, end)
        return self._checked(call, start, end)

    def _checked(self, call: Mapping[str, Any], start: int, end: int) -> ParsedCall:
        name, arguments = call.get("name"), call.get("arguments", {})
        if not isinstance(name, str) or not name:
            return _bad(CallStatus.MISSING_NAME, f'the tool call has no "name"; write {_FORM}', start, end)
        if name not in self._validators:
            return _bad(CallStatus.UNKNOWN_TOOL, self._unknown(name), start, end, name)
        if "arguments" not in call and len(call) > 1:
            why = f'the tool call of {name} has no "arguments"; write {_FORM}'
            return _bad(CallStatus.SCHEMA_VIOLATION, why, start, end, name)
        if not isinstance(arguments, dict):
            why = f'"arguments" of {name} is not an object; write {_FORM}'
            return _bad(CallStatus.SCHEMA_VIOLATION, why, start, end, name)
        wrong = self._violations(name, arguments)
        if wrong:
            why = f"arguments of {name} do not fit its schema: {'; '.join(wrong)}"
            return _bad(CallStatus.SCHEMA_VIOLATION, why, start, end, name, arguments)
        return ParsedCall(status=CallStatus.OK, name=name, arguments=arguments, start=start, end=end)

    def _unknown(self, name: str) -> str:
        names = list(self._validators)
        if len(names) > TOLD_TOOLS:
            names = get_close_matches(_short(name), names, n=TOLD_TOOLS) or names[:TOLD_TOOLS]
        listed = ", ".join(names) if len(names) == len(self._validators) else f"{', '.join(names)} and others"
        return f"there is no tool {_short(name)}; the tools are: {listed}"

    def _violations(self, name: str, arguments: Mapping[str, Any]) -> list[str]:
        try:
            errors = list(islice(self._validators[name].iter_errors(arguments), TOLD_VIOLATIONS))
        except (Unresolvable, RecursionError) as error:
            raise ToolSchemaInvalid(f"tool {name}: {error}") from error
        return [_short(_violation(error)) for error in errors]


def spans_in_tokens(
    spans: Sequence[tuple[int, int]], ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> list[tuple[int, int]]:
    """For each half-open span of characters in `decode(ids)`, the tokens that cover it, half-open.

    Holds for any split of the text into tokens, a mark that the model spelled in several included. A run of bytes
    that are no text counts as one. `decode` must treat a piece as it does inside the whole: byte-level tokenizers do.

    >>> spans_in_tokens([(1, 3)], [7, 8, 9], lambda ids: "".join({7: "a", 8: "bc", 9: "d"}[i] for i in ids))
    [(1, 2)]
    """
    if not spans:
        return []
    starts = _token_starts(ids, decode)
    covering = []
    for start, end in spans:
        first = bisect_right(starts, start) - 1
        # Tokens that only together make a character share one start.
        covering.append((bisect_left(starts, starts[first]), bisect_left(starts, end)))
    return covering


def _token_starts(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """The character at which each token begins, and last the length of the text."""
    alone = [decode([token]) for token in ids]
    starts: list[int] = []
    at = place = 0
    while place < len(ids):
        end, text = place + 1, alone[place]
        # A character of several bytes may be several tokens; alone, each of them decodes to a replacement character.
        while text.endswith(_NO_TEXT) and end < len(ids) and alone[end].startswith(_NO_TEXT):
            end = end + 1 if end - place < _CHARACTER_TOKENS else _next_text(alone, end)
            text = decode(ids[place:end])
        starts += [at] * (end - place)
        at += len(text)
        place = end
    return [*starts, at]


def _next_text(alone: Sequence[str], place: int) -> int:
    """The first token from here on that begins with a character of its own."""
    return next((i for i in range(place, len(alone)) if not alone[i].startswith(_NO_TEXT)), len(alone))


def _call_spans(text: str, begin: int) -> Iterator[tuple[int, int]]:
    starts = [match.start() for match in re.compile(CALL_OPEN).finditer(text, begin)]
    for start, limit in pairwise([*starts, len(text)]):
        close = text.find(CALL_CLOSE, start, limit)
        yield start, limit if close < 0 else close + len(CALL_CLOSE)


def _outside(text: str, begin: int, spans: Sequence[tuple[int, int]]) -> str:
    edges = [begin, *(edge for span in spans for edge in span), len(text)]
    pieces = (text[edges[i] : edges[i + 1]].strip() for i in range(0, len(edges), 2))
    return "\n".join(filter(None, pieces))


def _json(text: str) -> Any:
    """Read JSON that a request can carry. Raises ValueError."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    if _is_deeper(value, MAX_DEPTH + 1):  # the call itself is a level above its arguments
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    # Python also reads 1e400 and half a surrogate pair.
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, each in pairs:
        if key in value:
            raise ValueError(f"the key {json.dumps(key)} comes twice")
        value[key] = each
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inside)


def _violation(error: ValidationError) -> str:
    wrong = best_match([error]) or error  # of several alternatives, the one that was nearly met
    where = "/".join(str(step) for step in wrong.absolute_path)
    said = f"at {where}: {wrong.message}" if where else str(wrong.message)
    if wrong.validator == "additionalProperties":
        said += f"; the properties are: {', '.join(wrong.schema.get('properties', {})) or 'none'}"
    return said


def _short(text: str) -> str:
    """The text, its middle left out where it is long: what is wrong stands at either end of a message."""
    half = TOLD_CHARACTERS // 2
    return text if len(text) <= TOLD_CHARACTERS else f"{text[:half]} ... {text[-half:]}"


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
    return Draft202012Validator(schema, registry=Registry())  # one of our own: the default fetches what $ref names
