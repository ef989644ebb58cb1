"""Lines of a file of recordings, plain or gzip, with the bytes read so far for a progress bar.

Every line comes as a trajectory in OpenAI's chat format (core/trajectories.py). Recordings in the multi-turn format of
the Berkeley Function Calling Leaderboard, whose ground-truth calls carry the results they had, are put into it here.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolcache.core.canonical import canonical_json, digest

BFCL = "bfcl"
"""Domain of BFCL's recordings."""
BFCL_VERSION = "4"
"""Of the leaderboard whose backends computed the results."""


class RecordingsUnreadable(Exception):
    """The file cannot be opened, or its compression is damaged. The message says how far it could be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    number: int
    """1-based."""
    text: bytes
    read_bytes: int
    """Bytes of the file (compressed where it is) consumed so far."""


def lines(path: Path) -> Iterator[Line]:
    """The file's lines that are not blank. Raises RecordingsUnreadable, after the lines that could be read."""
    number = 0
    try:
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield Line(number=number, text=in_chat_format(text), read_bytes=raw.tell())
    except (OSError, EOFError, zlib.error) as error:
        raise RecordingsUnreadable(f"{path}: unreadable after line {number} ({error})") from error


def size_bytes(path: Path) -> int:
    """Raises RecordingsUnreadable."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise RecordingsUnreadable(f"{path}: cannot be read ({error})") from error


def in_chat_format(line: bytes) -> bytes:
    """The line as a chat trajectory if it is one of BFCL's recordings, else the very line."""
    if b'"ground_truth"' not in line:  # asked first: lines are long, and parsing them twice is dear
        return line
    try:
        record = json.loads(line)
        return json.dumps(_trajectory(record)).encode() if _is_bfcl(record) else line
    except (ValueError, KeyError, TypeError, RecursionError):
        return line  # whoever reads it says what is wrong with it


def _is_bfcl(record: Any) -> bool:
    return isinstance(record, dict) and {"ground_truth", "initial_config"} <= set(record) and "messages" not in record


def _trajectory(record: Mapping[str, Any]) -> dict[str, Any]:
    """One assistant message a turn, with its calls, and their results after it."""
    messages: list[dict[str, Any]] = []
    for turn, calls in enumerate(record["ground_truth"]):
        ids = [f"{turn}.{i}" for i in range(len(calls))]
        messages.append(
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": id_, "function": {"name": call["name"], "arguments": call["arguments"]}}
                    for id_, call in zip(ids, calls, strict=True)
                ],
            }
        )
        messages += [
            {"role": "tool", "tool_call_id": id_, "content": call["result"], "is_error": bool(call.get("error"))}
            for id_, call in zip(ids, calls, strict=True)
        ]
    return {
        "uid": record["id"],
        "domain": BFCL,
        "environment": _environment(record),
        "model": "ground_truth",
        "messages": messages,
    }


def _environment(record: Mapping[str, Any]) -> str:
    """Involved classes, initial configuration, and whether the long context was added to it.

    The long-context tasks carry the same `initial_config` as the base ones, and their backends then fill it up: without
    that flag 292 of 1,283 questions of the recorded runs have two answers.
    """
    is_long = "long_context" in record.get("category", record["id"])
    world = canonical_json([sorted(record["involved_classes"]), record["initial_config"]])
    return f"bfcl-v{BFCL_VERSION}/{digest('bfcl', world)[:16]}{'/long_context' if is_long else ''}"
