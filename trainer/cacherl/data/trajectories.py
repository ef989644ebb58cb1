"""Recorded trajectories: NDJSON (gzipped where the name ends in .gz), one OpenAI-format conversation a line.

A line that cannot be used is reported with its number and the rest is kept; the usual one is the last line of a
recording that was cut off while it was written.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cacherl.errors import TrajectoriesUnreadable

ROLES = frozenset({"system", "user", "assistant", "tool"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One recorded conversation."""

    uid: str
    task_id: str
    domain: str
    environment: str
    model: str
    reward: float
    """0..1 as recorded; 0 where the recording does not say."""
    messages: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedLine:
    """A line that is not a usable trajectory."""

    line: int
    """From 1."""
    why: str
    was_cut_off: bool
    """It is the last line and has no newline: the writer stopped in the middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a file holds."""

    trajectories: tuple[Trajectory, ...]
    rejected: tuple[RejectedLine, ...]


def read_trajectories(path: Path) -> Recording:
    """Read a recording. Raises TrajectoriesUnreadable when the file cannot be opened or no line of it is usable."""
    kept: list[Trajectory] = []
    rejected: list[RejectedLine] = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            kept.append(_trajectory(json.loads(line)))
        except (ValueError, OverflowError, RecursionError) as error:
            rejected.append(RejectedLine(line=number, why=str(error), was_cut_off=not line.endswith(b"\n")))
    if not kept:
        first = f"; line {rejected[0].line}: {rejected[0].why}" if rejected else ""
        raise TrajectoriesUnreadable(f"{path}: no usable trajectory in it{first}")
    return Recording(trajectories=tuple(kept), rejected=tuple(rejected))


def texts(trajectories: Iterable[Trajectory]) -> Iterator[str]:
    """Everything that was said and called, which a tokenizer can be made from."""
    for trajectory in trajectories:
        for message in trajectory.messages:
            yield message.get("content") or ""
            for call in message.get("tool_calls") or ():
                yield json.dumps({"name": call["function"]["name"], "arguments": call["function"]["arguments"]})


def _lines(path: Path) -> Iterator[bytes]:
    """Lines with their newlines; of a gzip stream that ends too early, the part before the cut."""
    try:
        raw = path.read_bytes()
        text = _unzipped(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise TrajectoriesUnreadable(f"{path}: {error}") from error
    # Split at "\n" only: splitlines would also split at a carriage return, which is white space to JSON.
    yield from (line + b"\n" for line in text.split(b"\n")[:-1])
    yield text.rpartition(b"\n")[2]


def _unzipped(raw: bytes) -> bytes:
    pieces: list[bytes] = []
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
        try:
            while piece := stream.read1(1 << 16):
                pieces.append(piece)
        except EOFError:
            if not pieces:
                raise
    return b"".join(pieces)


def _trajectory(record: Any) -> Trajectory:
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        raise ValueError('not an object with a "messages" list')
    messages = tuple(_message(message, place) for place, message in enumerate(record["messages"]))
    reward = record.get("reward", 0.0)
    if isinstance(reward, bool) or not isinstance(reward, (int, float)):
        raise ValueError(f'"reward" is {type(reward).__name__}, not a number')
    return Trajectory(
        uid=str(record.get("uid", "")),
        task_id=str(record.get("task_id", "")),
        domain=str(record.get("domain", "")),
        environment=str(record.get("environment", "")),
        model=str(record.get("model", "")),
        reward=float(reward),
        messages=messages,
    )


def _message(message: Any, place: int) -> Mapping[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or message["role"] not in ROLES:
        raise ValueError(f"message {place} has no role of {', '.join(sorted(ROLES))}")
    if message["role"] != "assistant" and not isinstance(message.get("content"), str):
        raise ValueError(f"message {place} ({message['role']}) has no text content")
    if message["role"] == "assistant" and not isinstance(message.get("content") or "", str):
        raise ValueError(f"message {place} (assistant) has content that is not text")
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise ValueError(f"message {place} has tool_calls that are no list")
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not {"name", "arguments"} <= function.keys():
            raise ValueError(f"message {place} has a tool call without name or arguments")
        if not isinstance(function["name"], str):
            raise ValueError(f"message {place} has a tool call whose name is no text")
    return message
