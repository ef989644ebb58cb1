"""R_process: does a rollout have good form? Deterministic, 0..1, blind to whether the answer is true.

Weights as in CacheRL (arXiv:2606.14179): valid tool names 40 %, a non-empty answer 25 %, thinking 15 %, tool
diversity 10 %; the last 10 %, unnamed there, are arguments that fit the tool's schema here.
"""

from dataclasses import dataclass

from cacherl.rollout.parser import CallStatus
from cacherl.rollout.rollout import Rollout

DIVERSE_TOOLS = 2
"""Distinct tools that count as fully diverse. Low, so that nobody is paid for calling tools a task does not need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessWeights:
    """Shares of the parts; they sum to 1."""

    valid_names: float = 0.40
    answered: float = 0.25
    thought: float = 0.15
    diversity: float = 0.10
    valid_arguments: float = 0.10

    def __post_init__(self) -> None:
        total = self.valid_names + self.answered + self.thought + self.diversity + self.valid_arguments
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"process weights sum to {total}, not 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessParts:
    """The parts before weighting, each 0..1. A rollout without any call has 0 in the three that speak of calls."""

    valid_names: float
    """Share of the calls that name an existing tool."""
    answered: float
    thought: float
    diversity: float
    """Distinct existing tools called / DIVERSE_TOOLS, at most 1."""
    valid_arguments: float
    """Share of the calls that are fully usable: JSON, name and schema."""

    def total(self, weights: ProcessWeights) -> float:
        """The weighted sum, 0..1."""
        return (
            weights.valid_names * self.valid_names
            + weights.answered * self.answered
            + weights.thought * self.thought
            + weights.diversity * self.diversity
            + weights.valid_arguments * self.valid_arguments
        )


def process_parts(rollout: Rollout) -> ProcessParts:
    """Measure the form of a rollout."""
    named = [call for call in rollout.calls if call.status in (CallStatus.OK, CallStatus.SCHEMA_VIOLATION)]
    usable = [call for call in named if call.status is CallStatus.OK]
    count = max(1, len(rollout.calls))
    return ProcessParts(
        valid_names=len(named) / count,
        answered=float(bool(rollout.answer)),
        thought=float(rollout.thought),
        diversity=min(1.0, len({call.name for call in named}) / DIVERSE_TOOLS),
        valid_arguments=len(usable) / count,
    )


def process_reward(rollout: Rollout, weights: ProcessWeights | None = None) -> float:
    """R_process of a rollout, 0..1."""
    return process_parts(rollout).total(weights or ProcessWeights())
