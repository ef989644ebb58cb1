"""Recorded trajectories in OpenAI's chat format, as executed calls with their results.

One JSON object a line: `messages`, where assistant messages carry `tool_calls` (several for parallel calls) and each
tool message answers one by `tool_call_id`; beside it `environment`, and optionally `domain`, `uid`, `model`, `task_id`.
Roles other than assistant and tool are passed over.

A tool message has no error flag in this format: a result is an error if it carries `is_error: true` or if its text
starts with one of ERROR_PREFIXES.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolcache.core.entries import MOST_SECONDS, Result

ERROR_PREFIXES = ("Error:", "error:", "Error executing", "Traceback (most recent call last)")
"""How tools of recorded benchmarks begin an error. A result taken for an error is at worst not used."""


class TrajectoryInvalid(ValueError):
    """A line that is no trajectory: not JSON (often cut off while being written), or without messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One recorded call, in the order of execution. Exactly one of `arguments` and `unparsable` is set.

    `result` is None where the recording ends before the tool answered.
    """

    tool: str
    arguments: Mapping[str, Any] | None
    unparsable: str
    result: Result | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """The calls of one recorded rollout, and what is known about it."""

    uid: str
    domain: str
    environment: str
    model: str
    steps: tuple[Step, ...]


def trajectory(line: str | bytes) -> Trajectory:
    """Read one line. Raises TrajectoryInvalid."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TrajectoryInvalid(f"not JSON ({error}); was the line cut off?") from error
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        raise TrajectoryInvalid("no object with a list of `messages`")
    try:
        return Trajectory(
            uid=_text(record, "uid"),
            domain=_text(record, "domain"),
            environment=_text(record, "environment"),
            model=_text(record, "model"),
            steps=tuple(_steps(record["messages"])),
        )
    except RecursionError as error:
        raise TrajectoryInvalid("nested too deeply") from error


def parsed_arguments(raw: Any) -> dict[str, Any]:
    """Arguments as the format carries them: JSON text, or already an object. Raises ValueError saying what is wrong.

    >>> parsed_arguments('{"order_id": "#W1"}')
    {'order_id': '#W1'}
    """
    try:
        value = json.loads(raw) if isinstance(raw, str) else raw
    except (ValueError, RecursionError) as error:
        raise ValueError(f"arguments are not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"arguments are no JSON object but {type(value).__name__}")
    return value


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return "" if value is None else str(value)


def _steps(messages: Sequence[Any]) -> Iterator[Step]:
    results = _results(messages)
    position = 0
    for message in messages:
        if not isinstance(message, dict) or message.get("role") != "assistant":
            continue
        for call in _calls(message):
            yield _step(call, position, results)
            position += 1


def _calls(message: Mapping[str, Any]) -> list[Any]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise TrajectoryInvalid(f"`tool_calls` is no list but {type(calls).__name__}")
    return calls


def _step(call: Any, position: int, results: Mapping[tuple[int, str], Result]) -> Step:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise TrajectoryInvalid(f"tool call {position} is no object with a `function`")
    function = call["function"]
    arguments, unparsable = None, ""
    try:
        arguments = parsed_arguments(function.get("arguments"))
    except ValueError as error:
        unparsable = str(error)
    return Step(
        tool=_text(function, "name"),
        arguments=arguments,
        unparsable=unparsable,
        result=results.get((position, _text(call, "id"))),
    )


def _results(messages: Sequence[Any]) -> dict[tuple[int, str], Result]:
    """Results by position and id of their call.

    Ids may repeat: a result belongs to the latest message that has its id, and in there to the first call with that
    id that has no result yet.
    """
    waiting: dict[str, list[int]] = {}
    results: dict[tuple[int, str], Result] = {}
    position = 0
    for message in messages:
        if not isinstance(message, dict):
            raise TrajectoryInvalid("a message is no object")
        if message.get("role") == "assistant":
            asked: dict[str, list[int]] = {}
            for call in _calls(message):
                asked.setdefault(_text(call, "id") if isinstance(call, dict) else "", []).append(position)
                position += 1
            waiting |= asked
        elif message.get("role") == "tool":
            key = _text(message, "tool_call_id")
            if waiting.get(key):
                results[waiting[key].pop(0), key] = _result(message)
    return results


def _result(message: Mapping[str, Any]) -> Result:
    content = message.get("content")
    text = content if isinstance(content, str) else _joined(content)
    is_error = message.get("is_error")
    return Result(
        content=text,
        is_error=is_error if isinstance(is_error, bool) else text.startswith(ERROR_PREFIXES),
        took_s=_seconds(message.get("took_s")),
    )


def _seconds(value: Any) -> float:
    """A duration as recorded; 0 where it is none, so that a slip in a log costs no result."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= MOST_SECONDS else 0.0


def _joined(content: Any) -> str:
    """Text of a content list ([{"type": "text", "text": ...}]); any other value as JSON."""
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        return "".join(str(part["text"]) for part in content)
    return json.dumps(content, ensure_ascii=False)
