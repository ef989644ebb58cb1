"""Why an answer is what it is: keys, guards, thresholds, candidates. Made only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from toolcache.core.tools import Role


class LookedAt(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that was a candidate, and what became of it."""

    donor: str
    arguments: Mapping[str, Any]
    verdict: str
    differs: tuple[str, ...] = ()
    score: float | None = None
    age_s: float = 0.0


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What decided an answer."""

    key: str
    state: str
    canonical: str
    roles: Mapping[str, Role]
    masked: tuple[str, ...]
    guard: Mapping[str, Any]
    threshold: float
    floor: float
    trust: Mapping[str, float]
    steps: tuple[str, ...]
    candidates: tuple[LookedAt, ...]


class Notes:
    """What the tiers write down while they decide, for one question."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.candidates: list[LookedAt] = []

    def step(self, text: str) -> None:
        self.steps.append(text)
