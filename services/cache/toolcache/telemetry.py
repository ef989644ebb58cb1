"""What the service says about itself: one JSON object an event, on standard error. Numbers are metrics (metrics.py).

Never an argument value or a result: both can hold what users of a tool said in confidence. Silent until `say_aloud`,
which only `toolcache serve` calls: the other commands talk to people.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

Field = str | int | float | bool | Sequence[str]

_events = logging.getLogger("toolcache.events")
_events.propagate = False
_FRAMES_TOLD = 8
PAUSE_S = 1.0
_told_at: dict[tuple[str, str], tuple[float, int]] = {}
"""When an event of a kind was last told, and how many were not since."""


class _AsEvents(logging.Handler):
    """What the web server and the event loop have to say, as events like the others."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        told = {} if error is None else told_of(error)
        message = record.getMessage()
        if record.name == "asyncio":  # after its first line stands what a task failed with, in its own words
            message = message.partition("\n")[0]
        log_sparingly("server", message, level=record.levelname.lower(), message=message, **told)


def say_aloud() -> None:
    """Write events to standard error from now on, those of the web server and the event loop too."""
    _events.setLevel(logging.INFO)
    _events.addHandler(logging.StreamHandler(sys.stderr))
    for name in ("uvicorn.error", "asyncio"):
        others = logging.getLogger(name)
        others.setLevel(logging.WARNING)
        others.propagate = False
        others.addHandler(_AsEvents())


def log(event: str, **fields: Field) -> None:
    """Tell one event with its fields."""
    if _events.isEnabledFor(logging.INFO):
        _events.info(json.dumps({"at": _now(), "event": event, **fields}))


def log_sparingly(event: str, kind: str, **fields: Field) -> None:
    """Tell an event that may come with every request: of one kind at most one a second.

    `untold` says how many of its like were passed over since the one before.
    """
    now_s, key = time.monotonic(), (event, kind)
    told_at_s, untold = _told_at.get(key, (-PAUSE_S, 0))
    if now_s - told_at_s < PAUSE_S:
        _told_at[key] = (told_at_s, untold + 1)
        return
    _told_at[key] = (now_s, 0)
    log(event, untold=untold, **fields)


def told_of(error: BaseException) -> dict[str, Field]:
    """What may be told of a defect: its kind, and where it happened. Its message may hold an argument."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_TOLD:]
    return {
        "error": type(error).__name__,
        "trace": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames],
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
