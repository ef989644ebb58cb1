"""GRPO on cached (or live) tool answers: play groups of rollouts, score them, hand them to the update step.

What is here knows no training framework; adapters/trl_grpo.py is the update step. One line of metrics a step, whose
names step_metrics.py explains. With several processes (accelerate launch) each plays its share of every step, against
an engine and a cache client of its own.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cacherl.errors import RunMisconfigured, RunStopped
from cacherl.reward.answer import AnswerJudge
from cacherl.reward.process import ProcessWeights
from cacherl.reward.tier_aware import TierAwareReward
from cacherl.rollout.chat_format import ChatFormat
from cacherl.rollout.loop import CacheAgentLoop, Progress
from cacherl.rollout.parser import Parser
from cacherl.rollout.renderer import Renderer
from cacherl.train.checkpoints import checkpoint_step, last_checkpoint
from cacherl.train.collector import Collector, FromCache, FromWorld, ToolSource
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.metrics_log import MetricsLog
from cacherl.train.occupancy import WatchedEngine
from cacherl.train.policy_engine import PolicyEngine
from cacherl.train.processes import is_main_process, launched_processes
from cacherl.train.scoring import ScoredRollout, Scorer, TrainingRow, taught, training_row
from cacherl.train.step_log import StepLog
from cacherl.train.step_metrics import Share
from cacherl.train.task_order import stand_ins, task_order
from cacherl.worlds.world import Task, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cacherl.adapters.hf_engine import HFEngine
    from cacherl.adapters.trl_grpo import Asked

LOG_NAME = "grpo.jsonl"
PLAYS = 10
"""Times a step is played whose rollouts all but fail before the run gives up."""
PAUSE_S = 30.0
"""Between two of these."""

_logger = logging.getLogger(__name__)

__all__ = [
    "Collector",
    "FromCache",
    "FromWorld",
    "GrpoReport",
    "ScoredRollout",
    "Scorer",
    "ToolSource",
    "train_grpo",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoReport:
    """The metrics of all steps, as written to the log; those before a resumption included."""

    steps: tuple[Mapping[str, Any], ...]
    """Empty in all processes but the main one."""
    seconds: float


def train_grpo(
    *,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    world: World,
    tasks: Sequence[Task],
    source: ToolSource,
    judge: AnswerJudge,
    settings: GrpoSettings,
    output_dir: Path,
    engine: PolicyEngine | None = None,
    chat: ChatFormat = ChatFormat.QWEN3_THINKING,
    reward: TierAwareReward | None = None,
    process_weights: ProcessWeights | None = None,
    resume: bool = False,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
    rollout_progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> GrpoReport:
    """Train the model in place; metrics go to `output_dir`/grpo.jsonl and, step by step, to `progress`.

    `engine` None samples from the model itself; one that is given is closed by the caller. With `resume` the run goes
    on from its last whole checkpoint in `output_dir`, or begins where there is none; model, tasks and settings must be
    those it began with. `progress` and `rollout_progress` are called in the main process only, the latter for the
    rollouts which that process plays.

    Must not be called inside a running event loop: it runs its own, one for all steps, so that the cache's
    connections stay open. A step whose rollouts are void is played again after a while (`sleep`) before the weights
    are touched. Raises RunMisconfigured, CacheRefused (a namespace that is not there), EngineFailed (the engine could
    not take over the weights, or gives no numbers), RunStopped (a step stays void, or the gradient not finite).
    """
    began = time.perf_counter()
    _check(settings, tasks)
    checkpoint = _start(output_dir, resume=resume)

    from cacherl.adapters.hf_tokenizer import HFTokenizer
    from cacherl.adapters.trl_grpo import gather, run_grpo

    renderer = Renderer(HFTokenizer(tokenizer), tools=world.tools if settings.tools_in_prompt else None, chat=chat)
    parser = Parser(world.tools, chat=chat)
    scorer = Scorer(judge, reward or TierAwareReward(), process_weights or ProcessWeights())
    with ExitStack() as stack:
        chosen = engine if engine is not None else stack.enter_context(_own_engine(model, settings))
        watched = WatchedEngine(chosen)
        loop = CacheAgentLoop(watched, renderer, parser, budgets=settings.budgets, temperature=settings.temperature)
        shown = rollout_progress if is_main_process() else None
        collector = Collector(loop, world, tasks, source, scorer, settings, shown)
        runner = stack.enter_context(asyncio.Runner())
        stack.callback(lambda: runner.run(collector.aclose()))
        steps = StepLog(stack.enter_context(_log(output_dir, checkpoint)), gather, progress)
        order = task_order(
            len(tasks), steps=settings.steps, prompts_per_step=settings.prompts_per_step, seed=settings.seed
        )
        player = _Player(
            runner=runner,
            collector=collector,
            engine=chosen,
            watched=watched,
            order=order,
            settings=settings,
            filler_id=renderer.end_of_turn_id,
            steps=steps,
            gather=gather,
            sleep=sleep,
        )
        run_grpo(
            model=model,
            tokenizer=tokenizer,
            prompts=[task.prompt for task in tasks],
            order=order,
            settings=settings,
            engine_is_the_model=chosen.is_the_model,
            play=player.play,
            on_step=steps.updated,
            output_dir=output_dir,
            checkpoint=checkpoint,
        )
    lines = _lines(output_dir / LOG_NAME) if is_main_process() else ()
    return GrpoReport(steps=tuple(lines), seconds=time.perf_counter() - began)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Player:
    """Plays one process's share of each step, with weights brought up to date."""

    runner: asyncio.Runner
    collector: Collector
    engine: PolicyEngine
    watched: WatchedEngine
    order: Sequence[int]
    settings: GrpoSettings
    filler_id: int
    steps: StepLog
    gather: Callable[[list[bool]], list[bool]]
    sleep: Callable[[float], None]

    def play(self, asked: "Asked") -> list[TrainingRow]:
        """The rows to train, one for each task index asked for. Raises RunStopped where infrastructure stays broken.

        All processes play again, or none: else they would wait for each other at different places.
        """
        for replays in range(PLAYS):
            if replays:
                _logger.warning("step %d is played again in %g s: next to all was void", asked.step + 1, PAUSE_S)
                self.sleep(PAUSE_S)
            rows, share = self._play(asked)
            if any(self.gather([_can_teach(rows, self.settings.group_size)])):
                self.steps.played(asked.step, replace(share, replays=replays))
                return rows
        raise RunStopped(
            f"step {asked.step + 1} was played {PLAYS} times and no group had two rollouts to compare; of the last "
            f"{len(share.scored)} {_commonest_end(share.scored)}: see that cache, engine and tools are up, then go on "
            "with --resume"
        )

    def _play(self, asked: "Asked") -> tuple[list[TrainingRow], Share]:
        began = time.perf_counter()
        self.engine.follow(asked.model, asked.step)
        followed, busy_before = time.perf_counter(), self.watched.busy_seconds
        scored = self.runner.run(self._collect(asked))
        ended = time.perf_counter()
        rows = [training_row(one, self.settings, self.filler_id) for one in scored if not one.is_replaced]
        size = self.settings.group_size
        learned = [taught(rows[first : first + size]) for first in range(0, len(rows), size)]
        share = Share(
            scored=scored,
            trained_rollouts=sum(map(sum, learned)),
            trained_tokens=sum(sum(row.mask) for row in rows),
            zero_variance_groups=sum(not any(group) for group in learned),
            follow_seconds=followed - began,
            rollout_seconds=ended - followed,
            busy_seconds=self.watched.busy_seconds - busy_before,
        )
        return rows, share

    async def _collect(self, asked: "Asked") -> list[ScoredRollout]:
        count, settings = self.settings.prompts_per_step, self.settings
        own = self.order[asked.step * count :][:count]
        tries = stand_ins(
            len(self.collector.tasks), own, share=settings.extra_groups, step=asked.step, seed=settings.seed
        )
        return await self.collector.collect(
            asked.task_indices,
            asked.step,
            first_place=asked.first_place,
            stand_ins=tries[asked.first_place :],
        )


def _can_teach(rows: Sequence[TrainingRow], group_size: int) -> bool:
    """Whether enough was scored for some group to have rewards that differ, be they equal this time."""
    groups = (rows[first : first + group_size] for first in range(0, len(rows), group_size))
    return any(sum(row.reward is not None for row in group) >= 2 for group in groups)


def _commonest_end(scored: Sequence[ScoredRollout]) -> str:
    """Of the void ones: how many, why."""
    ends = Counter((one.rollout.stop.value, one.rollout.why) for one in scored if one.reward is None)
    (stop, why), count = ends.most_common(1)[0]
    return f"{count} ended by {stop}" + (f" ({why})" if why else "")


def _check(settings: GrpoSettings, tasks: Sequence[Task]) -> None:
    """Raise RunMisconfigured, before anything is built, for a run that cannot be cut into steps and shares."""
    settings.share(launched_processes())
    if len(tasks) < settings.prompts_per_step:
        raise RunMisconfigured(f"{len(tasks)} tasks are fewer than prompts_per_step = {settings.prompts_per_step}")


def _start(output_dir: Path, *, resume: bool) -> Path | None:
    """The checkpoint to go on from, if any. Raises RunMisconfigured where another run's would be in the way."""
    checkpoint = last_checkpoint(output_dir)
    if checkpoint is not None and not resume:
        raise RunMisconfigured(
            f"{output_dir} holds {checkpoint.name} of an earlier run: resume that one, or take another folder"
        )
    return checkpoint


def _own_engine(model: "PreTrainedModel", settings: GrpoSettings) -> "HFEngine":
    from cacherl.adapters.hf_engine import HFEngine

    return HFEngine(model, max_rows=settings.concurrency)


def _log(output_dir: Path, checkpoint: Path | None) -> AbstractContextManager[MetricsLog | None]:
    """The log of the run, in the main process; without what a killed run wrote after its checkpoint."""
    if not is_main_process():
        return nullcontext()
    return MetricsLog(output_dir / LOG_NAME, after_step=0 if checkpoint is None else checkpoint_step(checkpoint))


def _lines(path: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
