"""A rollout, its reward, and what the update step makes of both."""

from collections.abc import Sequence
from dataclasses import dataclass

from cacherl.reward.answer import AnswerJudge
from cacherl.reward.process import ProcessWeights, process_reward
from cacherl.reward.tier_aware import Reward, TierAwareReward
from cacherl.rollout.credit import token_credit
from cacherl.rollout.rollout import Rollout, StopReason
from cacherl.train.advantages import group_advantages
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.worlds.world import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout and its reward; None for void ones."""

    rollout: Rollout
    reward: Reward | None
    is_replaced: bool = False
    """Played, but its group taught nothing and another one is trained in its place."""


class Scorer:
    """Gives a rollout its reward. Called from several threads at once, so a judge must bear that."""

    def __init__(self, judge: AnswerJudge, reward: TierAwareReward, process_weights: ProcessWeights) -> None:
        self._judge = judge
        self._reward = reward
        self._process_weights = process_weights

    def score(self, rollout: Rollout, task: Task) -> ScoredRollout:
        """Void rollouts stay unscored: what broke was not the model."""
        if rollout.stop.is_void:
            return ScoredRollout(rollout=rollout, reward=None)
        answer = self._judge.score(rollout, task)
        process = process_reward(rollout, self._process_weights)
        return ScoredRollout(rollout=rollout, reward=self._reward(answer, process, rollout.calls))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """One rollout as the update step needs it. The sequences but the prompt have equal length, at least 1."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    logprobs: Sequence[float]
    """The engine's, nats; 0.0 where the policy did not sample."""
    credit: Sequence[float]
    """Factor on each token's advantage, 0..1; 0 where the token is not trained."""
    reward: float | None
    """None: void or cut by time, no part in the baseline."""

    @property
    def mask(self) -> list[int]:
        """1 where the token is trained."""
        return [int(credit > 0) for credit in self.credit]


def training_row(scored: ScoredRollout, settings: GrpoSettings, filler_id: int) -> TrainingRow:
    """A scored rollout as it is trained; void and (if so set) overlong ones with no token to train.

    One that was cut by time is trained as if it were void, whatever the setting: time runs out for a slow engine or
    sandbox as well, and a reward for that would move the baseline of the others.

    A rollout that ended before its first token gets one masked filler, as an empty completion is not allowed.
    """
    rollout = scored.rollout
    begin = rollout.prompt_length
    ids, logprobs = rollout.ids[begin:], rollout.logprobs[begin:]
    if not ids:
        ids, logprobs = (filler_id,), (0.0,)
    reward = None if rollout.stop is StopReason.TIME_BUDGET or scored.reward is None else scored.reward.total
    if reward is None or (settings.overlong == "mask" and rollout.stop.is_overlong):
        credit: tuple[float, ...] = (0.0,) * len(ids)
    else:
        credit = token_credit(rollout, by=settings.credit, void_turns=settings.void_turns)[begin:]
    return TrainingRow(
        prompt_ids=rollout.prompt_ids,
        completion_ids=ids,
        logprobs=logprobs,
        credit=credit,
        reward=reward,
    )


def taught(rows_G: Sequence[TrainingRow]) -> list[bool]:
    """For each row of one group, whether the update learns from it: an advantage, and a token to lay it on."""
    advantages = group_advantages([row.reward for row in rows_G])
    return [advantage != 0.0 and any(row.credit) for advantage, row in zip(advantages, rows_G, strict=True)]
