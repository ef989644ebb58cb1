"""R = a * R_answer + b * R_process, where `a` falls with the trust in the tool answers a rollout was given.

A wrong answer after a guessed tool result says little about the policy, so it should cost little. `a` comes from
the tiers of the answered calls (table 0.60 exact, 0.30 similar, 0.10 approximate: arXiv:2606.14179) or from their
trust, by the worst call or the mean over the calls.

`b` is a choice. "process" is the paper's formula, b = 1 - a: what the answer loses, good form gains. It pays a
wrong guess in good form 0.9, and an honest failure on exact answers 0.4. "none" keeps b = 1 - a_exact: weight
taken from the answer is paid to nobody, and steering towards guesses is never worth it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal, assert_never

from cacherl.rollout.rollout import AnswerTier, CallRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TierWeights:
    """Weight of R_answer by tier. Live answers weigh like exact ones."""

    exact: float = 0.60
    similar: float = 0.30
    approximate: float = 0.10
    miss: float = 0.0
    """The model read an error in place of a result: the answer cannot be held against it, nor for it."""

    def __post_init__(self) -> None:
        weights = (self.exact, self.similar, self.approximate, self.miss)
        if not all(0.0 <= weight <= 1.0 for weight in weights):
            raise ValueError(f"tier weights {weights} must lie in 0..1")

    def of(self, tier: AnswerTier) -> float:
        """Weight of one tier."""
        match tier:
            case "live" | "exact":
                return self.exact
            case "similar":
                return self.similar
            case "approximate":
                return self.approximate
            case "miss":
                return self.miss
            case _:
                assert_never(tier)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A reward and what it is made of."""

    total: float
    answer: float
    """R_answer, 0..1."""
    process: float
    """R_process, 0..1."""
    answer_weight: float
    process_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TierAwareReward:
    """The reward used in training; validation has a formula of its own (validation.py)."""

    weights: TierWeights = field(default_factory=TierWeights)
    by: Literal["tier", "trust"] = "tier"
    """What weighs a call: the table, or weights.exact * its trust (then the other weights are not asked)."""
    over: Literal["worst", "mean"] = "worst"
    """How the calls of a rollout are taken together."""
    freed_weight: Literal["process", "none"] = "none"
    """Who gets what a lower tier takes from the answer: R_process (the paper), or nobody."""

    def __call__(self, answer: float, process: float, calls: Sequence[CallRecord]) -> Reward:
        """Combine R_answer and R_process, both 0..1, for a rollout with these calls."""
        a = self.answer_weight(calls)
        b = 1.0 - (a if self.freed_weight == "process" else self.weights.exact)
        return Reward(total=a * answer + b * process, answer=answer, process=process, answer_weight=a, process_weight=b)

    def answer_weight(self, calls: Sequence[CallRecord]) -> float:
        """`a`. Calls nobody answered are left aside; without any answered call nothing was guessed: a = exact."""
        weighed = [self._call_weight(call.tier, call.trust) for call in calls if call.tier is not None]
        if not weighed:
            return self.weights.exact
        return min(weighed) if self.over == "worst" else fmean(weighed)

    def _call_weight(self, tier: AnswerTier, trust: float) -> float:
        return self.weights.of(tier) if self.by == "tier" else self.weights.exact * trust
