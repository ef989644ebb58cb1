"""What is recorded: results of calls, in the state in which they were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from toolcache.core.canonical import canonical_text, digest

OVERHEAD_BYTES = 512
"""What an entry takes beside its texts: keys, digests, index rows (measured 400 to 600 in SQLite)."""
CLOCK_SKEW_S = 5.0
"""Seconds by which the clocks of replicas may differ."""
MOST_RESULTS = 64
"""Different results that are kept of one key: a tool that tells the time would otherwise fill a key for ever."""
MOST_SECONDS = 1e9
"""Longest duration of a call that is believed, 32 years: sums of them stay finite."""


class Result(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the tool returned, and the seconds it took."""

    content: str
    is_error: bool = False
    took_s: float = 0.0

    def digest(self) -> str:
        """Equal for results that say the same: JSON compared as JSON, `took_s` left out."""
        return digest("toolcache/result/1", "error" if self.is_error else "ok", canonical_text(self.content))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The digests under which an entry is found by calls that are not its own; derived from policy and profile."""

    guard: str = ""
    """Of all that must be equal for an answer that is worded differently (roles.guard); empty: never a donor."""
    equal: str = ""
    """Of all but the irrelevant arguments: calls that share it ask the same; empty: never a donor."""
    call: str = ""
    """Of environment and call without the state (calls.call_digest)."""


NOWHERE = Place()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One recorded result of one call in one scope.

    A key has one entry per different result. `seen` counts how often it was recorded; `order` is the store's own
    count of entries, so that what is newer than a known entry can be asked for.
    """

    key: str
    scope: str
    environment: str
    tool: str
    arguments: Mapping[str, Any]
    canonical: str
    result: Result
    result_digest: str
    place: Place = NOWHERE
    recorded_at_s: float = 0.0
    """Wall clock of the service that recorded it, seconds since 1970; a result recorded again is as new as the last."""
    expires_at_s: float = 0.0
    """0: never."""
    tags: tuple[str, ...] = ()
    seen: int = 1
    order: int = 0

    @property
    def id(self) -> str:
        return donor_id(self.key, self.result_digest)

    @property
    def size_bytes(self) -> int:
        """What it counts towards the namespace's quota: its texts, and a flat share for keys and indexes."""
        return len(self.result.content.encode()) + len(self.canonical.encode()) + OVERHEAD_BYTES

    def is_fresh(self, now_s: float) -> bool:
        return is_fresh(now_s, recorded_at_s=self.recorded_at_s, expires_at_s=self.expires_at_s)


class Sample(msgspec.Struct, frozen=True, gc=False):
    """One recorded result of a key: as much of an entry as an exact answer needs, and cheap to make."""

    result_digest: str
    content: str
    is_error: bool
    took_s: float
    seen: int
    order: int
    recorded_at_s: float
    expires_at_s: float

    def is_fresh(self, now_s: float) -> bool:
        return is_fresh(now_s, recorded_at_s=self.recorded_at_s, expires_at_s=self.expires_at_s)

    @property
    def result(self) -> Result:
        return Result(content=self.content, is_error=self.is_error, took_s=self.took_s)


def donor_id(key: str, result_digest: str) -> str:
    """Names an entry in answers: 16 hex digits of its key, 8 of its result."""
    return f"{key[:16]}-{result_digest[:8]}"


def is_fresh(now_s: float, *, recorded_at_s: float, expires_at_s: float) -> bool:
    """Whether a result may still be served.

    One that expires is not trusted before it was recorded either: the clock was set back since, and how old it really
    is cannot be told.

    >>> is_fresh(5.0, recorded_at_s=0.0, expires_at_s=5.0), is_fresh(4.9, recorded_at_s=0.0, expires_at_s=5.0)
    (False, True)
    >>> is_fresh(100.0, recorded_at_s=1000.0, expires_at_s=1060.0), is_fresh(9e9, recorded_at_s=0.0, expires_at_s=0.0)
    (False, True)
    """
    return not expires_at_s or recorded_at_s - CLOCK_SKEW_S <= now_s < expires_at_s


class Outcome(StrEnum):
    """What recording did."""

    STORED = "stored"
    KNOWN = "known"
    CONFLICT = "conflict"
