"""What is recorded: results of calls, in the state in which they were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from toolcache.core.canonical import canonical_text, digest

MOST_SECONDS = 1e9
"""Longest duration of a call that is believed, 32 years: sums of them stay finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the tool returned, and the seconds it took."""

    content: str
    is_error: bool = False
    took_s: float = 0.0

    def digest(self) -> str:
        """Equal for results that say the same: JSON compared as JSON, `took_s` left out."""
        return digest("toolcache/result/1", "error" if self.is_error else "ok", canonical_text(self.content))


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
    guard: str = ""
    """Digest of all that must be equal for a similar answer (roles.guard); empty: never a donor."""
    call_digest: str = ""
    """Digest of environment and call without the state (calls.call_digest)."""
    recorded_at_s: float = 0.0
    seen: int = 1
    order: int = 0

    @property
    def id(self) -> str:
        """Names the entry in answers (`donor`): 16 hex digits of the key, 8 of the result."""
        return f"{self.key[:16]}-{self.result_digest[:8]}"


class Outcome(StrEnum):
    """What recording did."""

    STORED = "stored"
    KNOWN = "known"
    CONFLICT = "conflict"
