"""What a played trajectory is: token ids with mask and logprobs, turns, calls, and why it stopped.

Plain data; deciding its reward is elsewhere (reward/), playing it too (loop.py).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from cacherl.rollout.parser import CallStatus

AnswerTier = Literal["live", "exact", "similar", "approximate", "miss"]
"""Who answered a call: a live tool, a tier of the cache, or nobody (the model read an error instead)."""

TIERS: tuple[AnswerTier, ...] = ("live", "exact", "similar", "approximate", "miss")
"""All tiers, from the most to the least trustworthy."""


class StopReason(StrEnum):
    """Why a rollout ended."""

    ANSWERED = "answered"
    """The model ended a turn without a call."""
    TURN_BUDGET = "turn_budget"
    CALL_BUDGET = "call_budget"
    TOKEN_BUDGET = "token_budget"
    """Cut: a turn hit its token limit, or the rollout its own or the context's."""
    TIME_BUDGET = "time_budget"
    MISS_DROPPED = "miss_dropped"
    """The cache had no answer and the run's policy is to void the rollout."""
    INFRASTRUCTURE = "infrastructure"
    """Cache, engine or live tool failed. Says nothing about the model."""

    @property
    def is_void(self) -> bool:
        """Whether the rollout must not be scored: no reward, out of its group's baseline, no gradient."""
        return self in (StopReason.MISS_DROPPED, StopReason.INFRASTRUCTURE)

    @property
    def is_overlong(self) -> bool:
        """Whether the rollout was cut in the middle, so that its end says little about the policy."""
        return self in (StopReason.TOKEN_BUDGET, StopReason.TIME_BUDGET)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One tool call of a rollout and its answer."""

    turn: int
    status: CallStatus
    name: str
    arguments: Mapping[str, Any] | None
    span: tuple[int, int] | None
    """Half-open token span in the rollout's ids; None where it is not known."""
    tier: AnswerTier | None
    """None: nobody was asked, because the call was unusable or the rollout ended first."""
    trust: float
    """Probability that the result equals a live one; 0 where nobody answered."""
    reason: str
    """One word of the cache, "live", "parse", or "not_executed"."""
    result: str
    """What the model read."""
    is_error: bool
    seconds: float
    """Wall time the rollout waited for this answer, wherever it came from."""
    cache_seconds: float = 0.0
    """The part of `seconds` that was spent asking the cache, not executing the tool nor waiting for another's
    execution of it."""
    saved_seconds: float = 0.0
    """Seconds the served result took when it was executed live; 0 where it was executed for this rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One stretch of sampled tokens, `ids[start:end]` of the rollout."""

    start: int
    end: int
    thinking: str
    text: str
    call_count: int
    finish_reason: Literal["stop", "length"]
    weight_version: int
    """Version of the weights that sampled it, as the engine counts them."""
    seconds: float
    is_void: bool = False
    """It has neither a usable call nor visible text: the model only thought, or called what cannot be called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One played trajectory. ids, loss_mask and logprobs have equal length T; mask 1 iff the policy sampled it."""

    task_id: str
    group: str
    """Rollouts of one task in one step share it."""
    ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Nats, of the sampled token at the sampling temperature; 0.0 where the mask is 0."""
    prompt_length: int
    """Number of leading ids that came before the first sampled token."""
    turns: tuple[Turn, ...]
    calls: tuple[CallRecord, ...]
    stop: StopReason
    why: str = ""
    """Free text behind `stop` for void rollouts: which border broke."""
    answer: str
    """Visible text of the last turn when the model answered, else empty."""
    seconds: float
    generate_seconds: float
    tool_seconds: float
    """Wall time between turns, waiting for answers."""
    cache_seconds: float = 0.0
    """The part of `tool_seconds` that was spent asking the cache."""
    outages: int = 0
    """Times the cache was away while this rollout asked it."""

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.loss_mask) == len(self.logprobs):
            lengths = f"{len(self.ids)} ids, {len(self.loss_mask)} mask values, {len(self.logprobs)} logprobs"
            raise ValueError(f"rollout of {self.task_id}: {lengths}")
        if any(self.loss_mask[: self.prompt_length]):
            raise ValueError(f"rollout of {self.task_id}: a prompt token is marked as sampled")

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.ids[: self.prompt_length]

    @property
    def completion_ids(self) -> tuple[int, ...]:
        """Everything after the prompt: sampled tokens and tool deltas."""
        return self.ids[self.prompt_length :]

    @property
    def sampled_count(self) -> int:
        return sum(self.loss_mask)

    @property
    def answered_calls(self) -> tuple[CallRecord, ...]:
        """Calls that were put to the cache or a tool, a miss included."""
        return tuple(call for call in self.calls if call.tier is not None)

    @property
    def tier_mix(self) -> dict[AnswerTier, int]:
        """Number of answered calls by tier; every tier is present."""
        return tier_mix(self.calls)

    @property
    def worst_tier(self) -> AnswerTier | None:
        """The least trustworthy tier among the answered calls; None without any."""
        present = [call.tier for call in self.calls if call.tier is not None]
        return max(present, key=TIERS.index, default=None)

    @property
    def thought(self) -> bool:
        """Whether any turn has thinking in it."""
        return any(turn.thinking for turn in self.turns)


def tier_mix(calls: Sequence[CallRecord]) -> dict[AnswerTier, int]:
    """Number of answered calls by tier; every tier is present, unasked calls are not counted."""
    counts = Counter(call.tier for call in calls)
    return {tier: counts[tier] for tier in TIERS}
