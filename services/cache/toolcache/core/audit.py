"""How right is the cache, on recordings whose truth is known?

A fresh cache is seeded with some trajectories; the others are replayed against it, every call in the state that its
own recorded history led to. Wrong is an answer whose result differs (as JSON) from the recorded one. Nothing is
recorded during the replay, so each number is that of a cache which never saw these runs.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolcache.core.cache import Answered, Ask, ToolCache
from toolcache.core.importing import Placed, placed
from toolcache.core.tiers import Guess, Hit, Miss
from toolcache.core.tools import Namespace, Tier
from toolcache.core.trajectories import Trajectory
from toolcache.core.trust import Reason

BINS = 10
"""Bins of equal width between trust 0 and 1."""


@dataclass(slots=True, kw_only=True)
class Answers:
    """Answers that belong together (of one tier, of one bin of trust), and how many of them were right."""

    served: int = 0
    right: int = 0
    trust_sum: float = 0.0

    def add(self, *, right: bool, trust: float) -> None:
        self.served += 1
        self.right += right
        self.trust_sum += trust

    @property
    def precision(self) -> float | None:
        return self.right / self.served if self.served else None

    @property
    def mean_trust(self) -> float | None:
        return self.trust_sum / self.served if self.served else None

    def as_json(self, calls: int) -> dict[str, Any]:
        return {
            "served": self.served,
            "right": self.right,
            "share": self.served / calls if calls else 0.0,
            "precision": self.precision,
            "mean_trust": self.mean_trust,
        }


@dataclass(slots=True, kw_only=True)
class ToolAudit:
    calls: int = 0
    tiers: dict[Tier, Answers] = field(default_factory=lambda: defaultdict(Answers))

    @property
    def served(self) -> int:
        return sum(each.served for each in self.tiers.values())

    @property
    def wrong(self) -> int:
        return sum(each.served - each.right for each in self.tiers.values())


@dataclass(slots=True, kw_only=True)
class Audit:
    """What a replay found. `tiers` has the tiers that serve; `misses` counts the rest by reason.

    A call that cannot be asked, or whose recording ends before its result, is a miss: what is true of it is not known.
    A sample of a stochastic tool is one draw of many, which another draw neither proves nor refutes: it is counted in
    `sampled` and nowhere else.
    """

    namespace: str
    rollouts: int = 0
    calls: int = 0
    contaminated_rollouts: int = 0
    """Rollouts with at least one wrong answer."""
    sampled: int = 0
    tiers: dict[Tier, Answers] = field(default_factory=lambda: {tier: Answers() for tier in Tier if tier != Tier.MISS})
    tools: dict[str, ToolAudit] = field(default_factory=lambda: defaultdict(ToolAudit))
    reasons: dict[str, Answers] = field(default_factory=lambda: defaultdict(Answers))
    """Answers by their reason."""
    bins: list[Answers] = field(default_factory=lambda: [Answers() for _ in range(BINS)])
    """Answers by their trust: bin i has those with i / 10 <= trust < (i + 1) / 10, the last one trust 1 as well."""
    misses: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def served(self) -> int:
        return sum(tier.served for tier in self.tiers.values())

    @property
    def wrong(self) -> int:
        return sum(tier.served - tier.right for tier in self.tiers.values())

    @property
    def calibration_error(self) -> float | None:
        return expected_calibration_error(self.bins)

    def add(self, tool: str, answer: Hit | Guess, *, right: bool) -> None:
        own = self.tools[tool]
        bin_ = self.bins[min(BINS - 1, int(answer.trust * BINS))]
        for each in (self.tiers[answer.tier], own.tiers[answer.tier], self.reasons[answer.reason.value], bin_):
            each.add(right=right, trust=answer.trust)

    def as_json(self) -> dict[str, Any]:
        """The document that `toolcache audit --json` writes."""
        return {
            "namespace": self.namespace,
            "rollouts": self.rollouts,
            "calls": self.calls,
            "wrong_per_1000": 1000 * self.wrong / self.calls if self.calls else 0.0,
            "contaminated_rollouts": self.contaminated_rollouts,
            "expected_calibration_error": self.calibration_error,
            "tiers": {tier.value: answers.as_json(self.calls) for tier, answers in self.tiers.items()},
            "reasons": {reason: answers.as_json(self.calls) for reason, answers in sorted(self.reasons.items())},
            "reliability": [
                {"trust_from": i / BINS, "trust_to": (i + 1) / BINS} | answers.as_json(self.calls)
                for i, answers in enumerate(self.bins)
            ],
            "sampled": self.sampled,
            "misses": dict(sorted(self.misses.items())),
            "tools": {
                name: {"calls": tool.calls}
                | {tier.value: each.as_json(tool.calls) for tier, each in tool.tiers.items()}
                for name, tool in sorted(self.tools.items())
            },
        }


def expected_calibration_error(bins: Iterable[Answers]) -> float | None:
    """How far stated trust is from the truth: the sum over bins of (share of all answers) x |precision - mean trust|.

    Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015, with
    bins of equal width as in Guo et al., arXiv:1706.04599, equation 3. None where nothing was served.

    >>> sure, unsure = Answers(served=9, right=9, trust_sum=9.0), Answers(served=1, right=1, trust_sum=0.5)
    >>> expected_calibration_error([sure, unsure])  # 0.9 * |1 - 1| + 0.1 * |1 - 0.5|
    0.05
    """
    filled = [each for each in bins if each.served]
    answers = sum(each.served for each in filled)
    return sum(abs(each.right - each.trust_sum) for each in filled) / answers if answers else None


def is_held_out(uid: str, share: float) -> bool:
    """Whether a run is among those that are replayed, by a hash of its name: the same runs every time, in any order.

    >>> sum(is_held_out(f"run {n}", 0.3) for n in range(1000))
    306
    """
    return int.from_bytes(hashlib.sha256(uid.encode("utf-8", "surrogatepass")).digest()[:8], "big") < share * 2**64


async def audit(
    cache: ToolCache,
    namespace: Namespace,
    replayed: Sequence[Trajectory],
    progress: Callable[[], None] = lambda: None,
) -> Audit:
    """Replay trajectories against a seeded cache. `progress` is called once a trajectory."""
    found = Audit(namespace=namespace.name)
    for recorded in replayed:
        found.rollouts += 1
        calls = list(placed(namespace, recorded))
        answers = await cache.lookup(namespace.name, [_question(recorded, one) for one in calls if not one.reason])
        wrong = _tally(found, calls, answers)
        found.contaminated_rollouts += wrong > 0
        progress()
    return found


def _question(recorded: Trajectory, one: Placed) -> Ask:
    return Ask(
        tool=one.step.tool,
        arguments=one.step.arguments or {},
        environment=recorded.environment,
        state=one.state,
    )


def _tally(found: Audit, calls: Sequence[Placed], answers: Iterable[Answered]) -> int:
    """Add one rollout's answers; returns how many were wrong."""
    remaining = iter(answers)
    before = found.wrong
    for one in calls:
        found.calls += 1
        found.tools[one.step.tool].calls += 1
        answer = None if one.reason else next(remaining).answer
        if answer is None:
            found.misses[one.reason] += 1
        elif isinstance(answer, Miss):
            found.misses[answer.reason.value] += 1
        elif answer.reason is Reason.SAMPLED:
            found.sampled += 1
        else:
            right = one.step.result is not None and answer.result.digest() == one.step.result.digest()
            found.add(one.step.tool, answer, right=right)
    return found.wrong - before
