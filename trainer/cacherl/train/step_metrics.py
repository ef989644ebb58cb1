"""The metrics of a GRPO step: their names, units and meanings (METRICS), and how they come about.

One object a step goes to grpo.jsonl. Reward and its relatives are over every rollout that was played, replaced ones
included: those that are trained were chosen for differing rewards, so their mean says nothing about the policy.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Final, Literal

from cacherl.reward.validation import validation_reward
from cacherl.rollout.parser import CallStatus
from cacherl.rollout.rollout import TIERS, AnswerTier, Rollout, tier_mix
from cacherl.train.scoring import ScoredRollout
from cacherl.train.token_sums import TokenSums


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What one number of a step's line is."""

    unit: str
    meaning: str


METRICS: Final[Mapping[str, Metric]] = {
    name: Metric(unit=unit, meaning=meaning)
    for name, unit, meaning in (
        ("step", "count", "Optimizer steps made, this one included."),
        # -- how good
        ("reward", "0..1", "Mean reward of the scored rollouts: what training is paid by."),
        ("reward_answer", "0..1", "Mean R_answer: is what was done and said right?"),
        ("reward_process", "0..1", "Mean R_process: is the form good?"),
        ("answer_weight", "0..1", "Mean weight of R_answer, which falls with the trust in the tool answers read."),
        ("validation_reward", "0..1", "The same rollouts by the one fixed formula, whatever training is paid by."),
        ("reward_by_worst_tier", "0..1", "Count and mean reward by the least trustworthy tier a rollout was served."),
        # -- what was played
        ("rollouts", "count", "Rollouts played, replaced ones included."),
        ("trained_rollouts", "count", "Rollouts the update learned from: an advantage, and a token to lay it on."),
        ("trained_tokens", "count", "Tokens the loss was taken over."),
        ("groups_replaced", "count", "Groups that taught nothing and made way for another task's."),
        ("zero_variance_groups", "count", "Groups in the update that teach nothing: equal rewards, or all masked."),
        ("void", "count", "Rollouts that infrastructure or time ended or a miss dropped: neither scored nor trained."),
        ("overlong", "count", "Rollouts cut by a token or time budget."),
        ("replays", "count", "Times the step was played before: too much was void for any group to teach."),
        ("void_turns", "count", "Turns with neither a usable call nor visible text."),
        ("stops", "count", "Rollouts by stop reason."),
        ("turns", "count", "Mean turns a rollout."),
        ("sampled_tokens", "tokens", "Tokens the policy sampled."),
        ("entropy", "nats", "Mean entropy of the policy at the trained tokens."),
        # -- the tools
        ("calls", "count", "Calls the model made, unusable ones included."),
        ("call_statuses", "count", "Calls by parse status."),
        ("unusable_calls", "count", "Calls that do not parse or do not fit the tool: nobody was asked."),
        ("live_calls", "count", "Calls that a live tool executed."),
        ("tier_mix", "count", "Answered calls by who answered."),
        ("trust", "0..1", "Mean trust of the answers; a miss counts 0."),
        ("outages", "count", "Times a rollout found the cache away."),
        ("tool_seconds_p50", "s", "Median wait of a rollout for one answer."),
        ("tool_seconds_p99", "s", "99th percentile of the same."),
        ("tool_seconds_sum", "s", "Waits for answers, over all rollouts; they run side by side."),
        ("saved_seconds_sum", "s", "What the served results took when they were executed live."),
        ("cache_seconds_share", "0..1", "Share of the rollouts' wall time that went into asking the cache."),
        # -- the engine and its likeness to the trainer
        ("generate_seconds_sum", "s", "Time in generation, over all rollouts; they run side by side."),
        ("tokens_per_second", "tokens/s", "Sampled tokens per second of the rollout phase, over all processes."),
        ("engine_idle_share", "0..1", "Share of the rollout phase in which no request was in a process's engine."),
        ("weight_version_spread", "steps", "Oldest to newest weights that sampled a turn; 0 on-policy."),
        ("mismatch_k1", "nats", "Mean of engine minus trainer logprob at trained tokens: KL(engine, trainer)."),
        ("mismatch_k3", "nats", "Mean of r - 1 - log r, r = trainer / engine: the same KL, never below 0, less noisy."),
        ("mismatch_max", "nats", "Largest difference of the two logprobs at a trained token."),
        ("correction_ratio", "ratio", "Mean r before it is truncated; 1 where both agree."),
        ("correction_truncated", "0..1", "Share of trained tokens whose r exceeds the cap."),
        # -- the update
        ("loss", "1", "The objective. On-policy its level says little: only its gradient is used."),
        ("kl", "nats", "k3 divergence from the starting weights, mean over the passes; null without a KL term."),
        ("grad_norm", "1", "Norm of the gradient before it is clipped."),
        ("learning_rate", "1", "Of this step."),
        ("skipped_updates", "0..1", "1 where the weights were left alone: the gradient was zero, or not finite."),
        # -- where the time goes
        ("follow_seconds", "s", "The engine taking over the weights; the slowest process."),
        ("rollout_seconds", "s", "Playing and scoring; the slowest process."),
        ("update_seconds", "s", "From the rollouts' end to the optimizer's."),
        ("step_seconds", "s", "The whole step; the first with the set-up, one after a checkpoint with its writing."),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one process knows of a step."""

    scored: Sequence[ScoredRollout]
    trained_rollouts: int
    trained_tokens: int
    zero_variance_groups: int
    follow_seconds: float
    rollout_seconds: float
    busy_seconds: float
    """Of the rollout phase, with a request in the engine."""
    tokens: TokenSums = field(default_factory=TokenSums)
    """Of the update, once it is made."""
    replays: int = 0
    """Times that the whole step had been played in vain before."""

    def lightened(self) -> "Share":
        """Without ids and texts, which no metric reads: it goes to the other processes."""
        return replace(self, scored=[replace(one, rollout=_lightened(one.rollout)) for one in self.scored])


def step_metrics(shares: Sequence[Share]) -> dict[str, Any]:
    """What the rollouts of one step say, over all processes; METRICS tells what each number is.

    Means are null where there is nothing to take them over.
    """
    scored = [one for share in shares for one in share.scored]
    rollouts = [one.rollout for one in scored]
    return {
        **_reward_metrics(scored),
        **_rollout_metrics(scored),
        **_tool_metrics(rollouts),
        **_engine_metrics(rollouts, shares),
        "trained_rollouts": sum(share.trained_rollouts for share in shares),
        "trained_tokens": sum(share.trained_tokens for share in shares),
        "zero_variance_groups": sum(share.zero_variance_groups for share in shares),
        "replays": max(share.replays for share in shares),
        "follow_seconds": max(share.follow_seconds for share in shares),
        "rollout_seconds": max(share.rollout_seconds for share in shares),
    }


def reward_by_worst_tier(scored: Sequence[ScoredRollout]) -> dict[AnswerTier | Literal["none"], dict[str, float]]:
    """Count and mean reward of the scored rollouts by their worst tier; "none" made no answered call.

    Watch it: a policy that is paid for steering to cheap tiers shows here first.
    """
    rewards: dict[AnswerTier | Literal["none"], list[float]] = {}
    for one in scored:
        if one.reward is not None:
            rewards.setdefault(one.rollout.worst_tier or "none", []).append(one.reward.total)
    order: tuple[AnswerTier | Literal["none"], ...] = (*TIERS, "none")
    return {tier: {"count": len(rewards[tier]), "mean": fmean(rewards[tier])} for tier in order if tier in rewards}


def _reward_metrics(scored: Sequence[ScoredRollout]) -> dict[str, Any]:
    rewards = [one.reward for one in scored if one.reward is not None]
    return {
        "reward": _mean([reward.total for reward in rewards]),
        "reward_answer": _mean([reward.answer for reward in rewards]),
        "reward_process": _mean([reward.process for reward in rewards]),
        "answer_weight": _mean([reward.answer_weight for reward in rewards]),
        "validation_reward": _mean([validation_reward(reward.answer, reward.process) for reward in rewards]),
        "reward_by_worst_tier": reward_by_worst_tier(scored),
    }


def _rollout_metrics(scored: Sequence[ScoredRollout]) -> dict[str, Any]:
    rollouts = [one.rollout for one in scored]
    return {
        "rollouts": len(rollouts),
        "groups_replaced": len({one.rollout.group for one in scored if one.is_replaced}),
        "void": sum(one.reward is None for one in scored),
        "overlong": sum(rollout.stop.is_overlong for rollout in rollouts),
        "void_turns": sum(turn.is_void for rollout in rollouts for turn in rollout.turns),
        "stops": dict(Counter(rollout.stop.value for rollout in rollouts)),
        "turns": _mean([float(len(rollout.turns)) for rollout in rollouts]),
        "sampled_tokens": _sampled_tokens(rollouts),
    }


def _tool_metrics(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    calls = [call for rollout in rollouts for call in rollout.calls]
    answered = [call for call in calls if call.tier is not None]
    seconds = sorted(call.seconds for call in answered)
    wall = sum(rollout.seconds for rollout in rollouts)
    return {
        "calls": len(calls),
        "call_statuses": dict(Counter(call.status.value for call in calls)),
        "unusable_calls": sum(call.status is not CallStatus.OK for call in calls),
        "live_calls": sum(call.tier == "live" for call in calls),
        "tier_mix": tier_mix(calls),
        "trust": _mean([call.trust for call in answered]),
        "outages": sum(rollout.outages for rollout in rollouts),
        "tool_seconds_p50": _quantile(seconds, 0.50),
        "tool_seconds_p99": _quantile(seconds, 0.99),
        "tool_seconds_sum": sum(rollout.tool_seconds for rollout in rollouts),
        "saved_seconds_sum": sum(call.saved_seconds for call in calls),
        "cache_seconds_share": sum(rollout.cache_seconds for rollout in rollouts) / wall if wall else None,
    }


def _engine_metrics(rollouts: Sequence[Rollout], shares: Sequence[Share]) -> dict[str, Any]:
    phase = max(share.rollout_seconds for share in shares)
    tokens = sum((share.tokens for share in shares), TokenSums())
    versions = [turn.weight_version for rollout in rollouts for turn in rollout.turns]
    return {
        "generate_seconds_sum": sum(rollout.generate_seconds for rollout in rollouts),
        "tokens_per_second": _sampled_tokens(rollouts) / phase if phase else None,
        # Against the slowest process: an engine that waits for another one's rollouts is idle as well.
        "engine_idle_share": 1.0 - fmean(share.busy_seconds for share in shares) / phase if phase else None,
        "weight_version_spread": max(versions) - min(versions) if versions else None,
        **tokens.metrics(),
    }


def _lightened(rollout: Rollout) -> Rollout:
    return replace(
        rollout,
        ids=(),
        loss_mask=(),
        logprobs=(),
        prompt_length=0,
        turns=tuple(replace(turn, thinking="", text="") for turn in rollout.turns),
        calls=tuple(replace(call, arguments=None, result="") for call in rollout.calls),
        answer="",
    )


def _sampled_tokens(rollouts: Sequence[Rollout]) -> int:
    return sum(turn.end - turn.start for rollout in rollouts for turn in rollout.turns)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
