"""Success and process accuracy on tasks, with their intervals.

`evaluate` plays live, with the cache off; success is the world's word: the final state is the true one and the answer
says what is true. Where there is nothing live, `judged` measures rollouts that were played on recordings; success is
then the judge's full marks, and a guess by the cache counts like the truth. An Evaluation says which it is. Rollouts
that an infrastructure failure voided are counted and left out of every share.

Not covered: pass^k; intervals treat the samples of one task as independent, which makes them a little too narrow
when `samples_per_task` is above 1.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cacherl.evaluate.intervals import Estimate, bootstrap_mean, wilson
from cacherl.evaluate.milestones import FreeText, MilestoneMatch, match_milestones
from cacherl.reward.answer import AnswerJudge
from cacherl.reward.process import process_reward
from cacherl.reward.validation import validation_reward
from cacherl.rollout.loop import CacheAgentLoop, Episode, Progress, opening, settle_garbage
from cacherl.rollout.parser import CallStatus
from cacherl.rollout.rollout import Rollout, StopReason
from cacherl.rollout.tools import LiveTools
from cacherl.train.scoring import ScoredRollout
from cacherl.worlds.world import Task, World, WorldSession

FULL_MARKS = 1.0 - 1e-9
"""Least judge's score of a success; weights that sum to 1 may miss it by rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One played task."""

    rollout: Rollout
    succeeded: bool
    milestones: MilestoneMatch
    validation_reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was measured over all scored rollouts."""

    tools: Literal["live", "cache"]
    """Who answered the calls: the world, or recordings."""
    success: Estimate
    """live: share whose final state and answer are right. cache: share with the judge's full marks. Wilson interval."""
    process_accuracy: Estimate
    """Mean ordered milestone recall; bootstrap interval."""
    call_precision: Estimate
    """Mean of matched milestones / calls."""
    validation_reward: Estimate
    """Mean of the fixed formula (reward/validation.py)."""
    calls: int
    unusable_calls: int
    """Calls with a parse status other than ok."""
    void: int
    stops: dict[str, int]
    """Rollouts by stop reason, void ones included."""
    outcomes: tuple[Outcome, ...]
    """The scored ones, in the order of the tasks."""


async def evaluate(
    loop: CacheAgentLoop,
    world: World,
    tasks: Sequence[Task],
    judge: AnswerJudge,
    *,
    samples_per_task: int = 1,
    free_text: FreeText = frozenset(),
    concurrency: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Play every task `samples_per_task` times at the loop's temperature (0 is greedy) against live sessions."""
    settle_garbage()
    played = [_LivePlay(world, task) for task in tasks for _ in range(samples_per_task)]
    episodes = [
        Episode(
            task_id=play.task.id,
            messages=opening(world.system_prompt, play.task.prompt),
            open_tools=play.open_tools,
            group=play.task.id,
            seed=seed * 1_000_003 + place,
            examine=play.examine,
        )
        for place, play in enumerate(played)
    ]
    rollouts = await loop.play_all(episodes, concurrency=concurrency, progress=progress)
    outcomes = [
        _outcome(rollout, play, judge, free_text)
        for rollout, play in zip(rollouts, played, strict=True)
        if not rollout.stop.is_void
    ]
    return _summary(rollouts, outcomes, "live")


def judged(scored: Sequence[ScoredRollout], tasks: Sequence[Task], *, free_text: FreeText = frozenset()) -> Evaluation:
    """The same measures of rollouts that were played on cached answers; `tasks` are theirs, in their order."""
    outcomes = [
        Outcome(
            rollout=one.rollout,
            succeeded=one.rollout.stop is StopReason.ANSWERED and one.reward.answer >= FULL_MARKS,
            milestones=match_milestones(one.rollout.answered_calls, task.milestones, free_text),
            validation_reward=validation_reward(one.reward.answer, one.reward.process),
        )
        for one, task in zip(scored, tasks, strict=True)
        if one.reward is not None
    ]
    return _summary([one.rollout for one in scored], outcomes, "cache")


class _LivePlay:
    """One play of a task: its session opens with the rollout, and is asked for the outcome before it is closed."""

    def __init__(self, world: World, task: Task) -> None:
        self.task = task
        self.succeeded = False
        self._world = world
        self._session: WorldSession | None = None

    def open_tools(self) -> LiveTools:
        self._session = self._world.open(self.task)
        return LiveTools(self._session)

    def examine(self, rollout: Rollout) -> None:
        answered = rollout.stop is StopReason.ANSWERED
        self.succeeded = answered and self._session is not None and self._session.succeeded(rollout.answer)
        self._session = None


def _outcome(rollout: Rollout, play: _LivePlay, judge: AnswerJudge, free_text: FreeText) -> Outcome:
    return Outcome(
        rollout=rollout,
        succeeded=play.succeeded,
        milestones=match_milestones(rollout.answered_calls, play.task.milestones, free_text),
        validation_reward=validation_reward(judge.score(rollout, play.task), process_reward(rollout)),
    )


def _summary(rollouts: Sequence[Rollout], outcomes: Sequence[Outcome], tools: Literal["live", "cache"]) -> Evaluation:
    calls = [call for outcome in outcomes for call in outcome.rollout.calls]
    return Evaluation(
        tools=tools,
        success=wilson(sum(outcome.succeeded for outcome in outcomes), len(outcomes)),
        process_accuracy=bootstrap_mean([outcome.milestones.recall for outcome in outcomes]),
        call_precision=bootstrap_mean([outcome.milestones.precision for outcome in outcomes]),
        validation_reward=bootstrap_mean([outcome.validation_reward for outcome in outcomes]),
        calls=len(calls),
        unusable_calls=sum(call.status is not CallStatus.OK for call in calls),
        void=len(rollouts) - len(outcomes),
        stops=dict(Counter(rollout.stop.value for rollout in rollouts)),
        outcomes=tuple(outcomes),
    )
