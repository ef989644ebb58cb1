"""What one rollout says in numbers, for trainers that ask for them rollout by rollout.

A step's metrics are another thing (step_metrics.py); names that are in both mean the same there.
"""

from statistics import fmean

from cacherl.reward.tier_aware import Reward
from cacherl.reward.validation import validation_reward
from cacherl.rollout.parser import CallStatus
from cacherl.rollout.rollout import TIERS, Rollout, StopReason


def rollout_numbers(rollout: Rollout, reward: Reward | None) -> dict[str, float]:
    """Numbers under the same names for every rollout, so that means can be taken of each.

    Hence a stop reason is 1 or 0 under its own name, trust is 1 where nothing was asked, and the rewards of a void
    rollout (`reward` None) are 0: leave it out of their means.
    """
    answered = rollout.answered_calls
    trusts = [call.trust for call in answered]
    numbers = {
        "reward_answer": reward.answer if reward else 0,
        "reward_process": reward.process if reward else 0,
        "answer_weight": reward.answer_weight if reward else 0,
        "validation_reward": validation_reward(reward.answer, reward.process) if reward else 0,
        "turns": len(rollout.turns),
        "void_turns": sum(turn.is_void for turn in rollout.turns),
        "sampled_tokens": rollout.sampled_count,
        **{f"stop_{stop.value}": rollout.stop is stop for stop in StopReason},
        "calls": len(rollout.calls),
        "unusable_calls": sum(call.status is not CallStatus.OK for call in rollout.calls),
        **{f"tier_{tier}": rollout.tier_mix[tier] for tier in TIERS},
        "trust": fmean(trusts) if trusts else 1,
        "least_trust": min(trusts, default=1),
        "outages": rollout.outages,
        "seconds": rollout.seconds,
        "generate_seconds": rollout.generate_seconds,
        "tool_seconds": rollout.tool_seconds,
        "cache_seconds": rollout.cache_seconds,
        "saved_seconds": sum(call.saved_seconds for call in answered),
    }
    return {name: float(value) for name, value in numbers.items()}
