"""What is asked of the cache and what it answers, as values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, Protocol

import msgspec

from toolcache.core.entries import Outcome, Result
from toolcache.core.explaining import Explanation
from toolcache.core.tiers import Guess, Hit, Miss

LEASE_S = 60.0
"""Longer than most tools take; who needs more extends the lease."""


class Question(Protocol):
    """One call to answer. The wire's message fits as it is, so that no lookup pays for a copy."""

    @property
    def tool(self) -> str: ...
    @property
    def arguments(self) -> Mapping[str, Any]: ...
    @property
    def environment(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def follows(self) -> bool: ...
    @property
    def tiers(self) -> Collection[str] | None: ...
    @property
    def group(self) -> str: ...


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A Question made by hand."""

    tool: str
    arguments: Mapping[str, Any]
    environment: str
    state: str = ""
    follows: bool = False
    tiers: Collection[str] | None = None
    group: str = ""


class MissPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What to do about misses."""

    action: Literal["fail", "lease", "wait"] = "fail"
    wait_s: float = 0.0
    lease_s: float = LEASE_S


TELL = MissPolicy()
"""Misses are told, and nothing more."""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, the state in which the call was asked and the one it leads to ("" where unknown)."""

    answer: Hit | Guess | Miss
    state: str
    state_after: str
    lineage: float = 1.0
    lease: str | None = None
    shared: bool = False
    shadow: bool = False
    explanation: Explanation | None = None


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What the cache had answered to a call that was executed all the same."""

    reason: str
    result: Result
    score: float | None = None


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """One executed call."""

    tool: str
    arguments: Mapping[str, Any]
    environment: str
    result: Result
    state: str = ""
    lease: str = ""
    tags: tuple[str, ...] = ()
    served: Served | None = None


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a recording; a refused one says why and has neither entry nor state."""

    outcome: Outcome | None
    entry: str = ""
    state_after: str = ""
    refused: str = ""
