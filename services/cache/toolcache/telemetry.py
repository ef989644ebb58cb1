"""What the service says about itself: one JSON object an event, on standard error.

Never an argument value or a result: both can hold what users of a tool said in confidence. Silent until `say_aloud`,
which only `toolcache serve` calls: the other commands talk to people.
"""

from __future__ import annotations

import json
import logging
import sys
import time

_events = logging.getLogger("toolcache.events")
_events.propagate = False


def say_aloud() -> None:
    """Write events to standard error from now on."""
    _events.setLevel(logging.INFO)
    _events.addHandler(logging.StreamHandler(sys.stderr))


def log(event: str, **fields: str | int | float) -> None:
    """Tell one event with its fields."""
    _events.info(json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **fields}))
