"""How right is the cache, on recordings whose truth is known?

A fresh cache is seeded with some trajectories; the others are replayed against it, every call in the state that its
own recorded history led to. Wrong is an answer whose result differs (as JSON) from the recorded one. Nothing is
recorded during the replay, so each number is that of a cache which never saw these runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolcache.core.cache import Answered, Question, ToolCache
from toolcache.core.importing import Placed, placed
from toolcache.core.tiers import Guess, Hit, Miss
from toolcache.core.tools import Namespace, Tier
from toolcache.core.trajectories import Trajectory


@dataclass(slots=True, kw_only=True)
class TierAudit:
    """Answers of one tier."""

    served: int = 0
    right: int = 0
    trust_sum: float = 0.0

    def as_json(self, calls: int) -> dict[str, Any]:
        served = self.served
        return {
            "served": served,
            "right": self.right,
            "share": served / calls if calls else 0.0,
            "precision": self.right / served if served else None,
            "mean_trust": self.trust_sum / served if served else None,
        }


@dataclass(slots=True, kw_only=True)
class ToolAudit:
    calls: int = 0
    tiers: dict[Tier, TierAudit] = field(default_factory=lambda: defaultdict(TierAudit))


@dataclass(slots=True, kw_only=True)
class Audit:
    """What a replay found. `tiers` has the tiers that serve; `misses` counts the rest by reason.

    A call that cannot be asked, or whose recording ends before its result, is a miss: what is true of it is not known.
    """

    namespace: str
    rollouts: int = 0
    calls: int = 0
    contaminated_rollouts: int = 0
    """Rollouts with at least one wrong answer."""
    tiers: dict[Tier, TierAudit] = field(default_factory=dict)
    tools: dict[str, ToolAudit] = field(default_factory=lambda: defaultdict(ToolAudit))
    misses: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def wrong(self) -> int:
        return sum(tier.served - tier.right for tier in self.tiers.values())

    def as_json(self) -> dict[str, Any]:
        """The document that `toolcache audit --json` writes."""
        return {
            "namespace": self.namespace,
            "rollouts": self.rollouts,
            "calls": self.calls,
            "wrong_per_1000": 1000 * self.wrong / self.calls if self.calls else 0.0,
            "contaminated_rollouts": self.contaminated_rollouts,
            "tiers": {tier.value: audit.as_json(self.calls) for tier, audit in self.tiers.items()},
            "misses": dict(sorted(self.misses.items())),
            "tools": {
                name: {"calls": tool.calls}
                | {tier.value: each.as_json(tool.calls) for tier, each in tool.tiers.items()}
                for name, tool in sorted(self.tools.items())
            },
        }


async def audit(
    cache: ToolCache,
    namespace: Namespace,
    replayed: Sequence[Trajectory],
    progress: Callable[[], None] = lambda: None,
) -> Audit:
    """Replay trajectories against a seeded cache. `progress` is called once a trajectory."""
    found = Audit(namespace=namespace.name, tiers={tier: TierAudit() for tier in Tier if tier is not Tier.MISS})
    for recorded in replayed:
        found.rollouts += 1
        calls = list(placed(namespace, recorded))
        answers = await cache.lookup(namespace.name, [_question(recorded, one) for one in calls if not one.reason])
        wrong = _tally(found, calls, iter(answers))
        found.contaminated_rollouts += wrong > 0
        progress()
    return found


def _question(recorded: Trajectory, one: Placed) -> Question:
    return Question(
        tool=one.step.tool,
        arguments=one.step.arguments or {},
        environment=recorded.environment,
        state=one.state,
    )


def _tally(found: Audit, calls: Sequence[Placed], answers: Iterable[Answered]) -> int:
    """Add one rollout's answers; returns how many were wrong."""
    remaining = iter(answers)
    wrong = 0
    for one in calls:
        found.calls += 1
        tool = found.tools[one.step.tool]
        tool.calls += 1
        answer = None if one.reason else next(remaining).answer
        match answer:
            case None:
                found.misses[one.reason] += 1
            case Miss():
                found.misses[answer.reason.value] += 1
            case Hit() | Guess():
                tier = answer.tier if isinstance(answer, Hit) else Tier.APPROXIMATE
                right = one.step.result is not None and answer.result.digest() == one.step.result.digest()
                wrong += not right
                for each in (found.tiers[tier], tool.tiers[tier]):
                    each.served += 1
                    each.right += right
                    each.trust_sum += answer.trust
    return wrong
