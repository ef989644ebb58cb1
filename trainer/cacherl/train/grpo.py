"""GRPO on cached (or live) tool answers: play groups of rollouts, score them, hand them to the update step.

What is here knows no training framework; adapters/trl_grpo.py is the update step. One line of metrics a step.

Not covered: several machines; resuming in the middle; replacing groups whose rewards are all equal (counted as
`zero_variance_groups`); a KL term.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from cacherl.reward.answer import AnswerJudge
from cacherl.reward.process import ProcessWeights, process_reward
from cacherl.reward.tier_aware import Reward, TierAwareReward
from cacherl.reward.validation import validation_reward
from cacherl.rollout.loop import CacheAgentLoop, Episode, Progress, opening
from cacherl.rollout.parser import CallStatus, Parser
from cacherl.rollout.renderer import Renderer
from cacherl.rollout.rollout import TIERS, AnswerTier, Rollout, StopReason, tier_mix
from cacherl.rollout.tools import (
    CacheLookup,
    CacheSetup,
    CacheTools,
    Drop,
    ExecuteLive,
    LiveTools,
    MissPolicy,
    OutageLog,
    OutagePolicy,
    ToolAnswerer,
    writing_tools,
)
from cacherl.train.advantages import group_advantages
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.metrics_log import MetricsLog
from cacherl.worlds.world import Task, World
from toolcache_client.messages import Tier

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cacherl.adapters.trl_grpo import TrainingRow


@dataclass(frozen=True, slots=True, kw_only=True)
class FromCache:
    """Tool calls are answered by a cache; the world is executed only where a policy says so."""

    open_cache: Callable[[], AbstractAsyncContextManager[CacheLookup]]
    """Called once, inside the run's event loop: `lambda: AsyncCacheClient(url)`."""
    namespace: str
    on_miss: MissPolicy = field(default_factory=ExecuteLive)
    on_outage: OutagePolicy = field(default_factory=Drop)
    tiers: tuple[Tier, ...] | None = None
    """Tiers accepted; None is the namespace's policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FromWorld:
    """Every call is executed live: the control run."""


ToolSource = FromCache | FromWorld


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout and its reward; None for void ones."""

    rollout: Rollout
    reward: Reward | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoReport:
    """The metrics of all steps, as written to the log."""

    steps: tuple[Mapping[str, Any], ...]
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
    reward: TierAwareReward | None = None,
    process_weights: ProcessWeights | None = None,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
    rollout_progress: Progress | None = None,
) -> GrpoReport:
    """Train the model in place; metrics go to `output_dir`/grpo.jsonl and, step by step, to `progress`.

    Must not be called inside a running event loop: it runs its own, one for all steps, so that the cache's
    connections stay open. Raises RunMisconfigured, CacheRefused (a namespace that is not there).
    """
    from cacherl.adapters.hf_engine import HFEngine
    from cacherl.adapters.hf_tokenizer import HFTokenizer
    from cacherl.adapters.trl_grpo import UpdateSettings, run_grpo

    began = time.perf_counter()
    renderer = Renderer(HFTokenizer(tokenizer), tools=world.tools if settings.tools_in_prompt else None)
    with (
        asyncio.Runner() as runner,
        MetricsLog(output_dir / "grpo.jsonl") as log,
        HFEngine(model, max_rows=settings.concurrency) as engine,
    ):
        loop = CacheAgentLoop(
            engine, renderer, Parser(world.tools), budgets=settings.budgets, temperature=settings.temperature
        )
        scorer = Scorer(judge, reward or TierAwareReward(), process_weights or ProcessWeights())
        collector = Collector(loop, world, tasks, source, scorer, settings, rollout_progress)
        steps = _StepLog(collector, log, progress)

        def collect(task_indices: Sequence[int], step: int) -> "list[TrainingRow]":
            engine.weight_version = step
            scored = runner.run(collector.collect(task_indices, step))
            steps.played(step, scored, settings.group_size)
            return [training_row(one, renderer.end_of_turn_id, settings.overlong) for one in scored]

        try:
            run_grpo(
                model=model,
                tokenizer=tokenizer,
                prompts=[task.prompt for task in tasks],
                settings=UpdateSettings(
                    steps=settings.steps,
                    prompts_per_step=settings.prompts_per_step,
                    group_size=settings.group_size,
                    micro_batch=settings.micro_batch,
                    learning_rate=settings.learning_rate,
                    warmup_steps=settings.warmup_steps,
                    clip_low=settings.clip_low,
                    clip_high=settings.clip_high,
                    temperature=settings.temperature,
                    max_grad_norm=settings.max_grad_norm,
                    gradient_checkpointing=settings.gradient_checkpointing,
                    seed=settings.seed,
                ),
                collect=collect,
                on_step=steps.updated,
                output_dir=output_dir,
            )
        finally:
            runner.run(collector.aclose())
    return GrpoReport(steps=tuple(steps.lines), seconds=time.perf_counter() - began)


class Scorer:
    """Gives a rollout its reward."""

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


class Collector:
    """Plays the rollouts of one step and scores them."""

    def __init__(
        self,
        loop: CacheAgentLoop,
        world: World,
        tasks: Sequence[Task],
        source: ToolSource,
        scorer: Scorer,
        settings: GrpoSettings,
        progress: Progress | None = None,
    ) -> None:
        self.outage_log = OutageLog()
        self._loop = loop
        self._world = world
        self._tasks = tasks
        self._source = source
        self._scorer = scorer
        self._settings = settings
        self._progress = progress
        self._setup: CacheSetup | None = None
        self._cache: AbstractAsyncContextManager[CacheLookup] | None = None

    async def collect(self, task_indices: Sequence[int], step: int) -> list[ScoredRollout]:
        """One scored rollout for each index, in their order."""
        await self._open()
        tasks = [self._tasks[index] for index in task_indices]
        episodes = [self._episode(task, step, place) for place, task in enumerate(tasks)]
        rollouts = await self._loop.play_all(episodes, concurrency=self._settings.concurrency, progress=self._progress)
        return [self._scorer.score(rollout, task) for rollout, task in zip(rollouts, tasks, strict=True)]

    async def aclose(self) -> None:
        """Close the cache client, if one was opened."""
        if self._cache is not None:
            await self._cache.__aexit__(None, None, None)
            self._cache = None

    async def _open(self) -> None:
        match self._source:
            case FromCache() as source if self._setup is None:
                self._cache = source.open_cache()
                self._setup = CacheSetup(
                    cache=await self._cache.__aenter__(),
                    namespace=source.namespace,
                    writes=writing_tools(self._world.tools),
                    on_miss=source.on_miss,
                    on_outage=source.on_outage,
                    tiers=source.tiers,
                    outage_log=self.outage_log,
                )

    def _episode(self, task: Task, step: int, place: int) -> Episode:
        group = f"{step}/{task.id}"

        def open_tools() -> ToolAnswerer:
            if self._setup is None:
                return LiveTools(self._world.open(task))
            return CacheTools(
                self._setup,
                lambda: self._world.open(task),
                environment=task.environment,
                rollout=f"{group}/{place}",
                group=group,
            )

        return Episode(
            task_id=task.id,
            messages=opening(self._world.system_prompt, task.prompt),
            open_tools=open_tools,
            group=group,
            seed=(self._settings.seed * 1_000_003 + step) * 65_537 + place,
        )


def training_row(scored: ScoredRollout, filler_id: int, overlong: Literal["mask", "score"]) -> "TrainingRow":
    """A scored rollout as the update step takes it: void and (if so set) overlong ones with a mask of zeros.

    A rollout that ended before its first token gets one masked filler token, as an empty completion is not allowed.
    """
    from cacherl.adapters.trl_grpo import TrainingRow

    rollout = scored.rollout
    begin = rollout.prompt_length
    ids, mask, logprobs = rollout.ids[begin:], rollout.loss_mask[begin:], rollout.logprobs[begin:]
    if not ids:
        ids, mask, logprobs = (filler_id,), (0,), (0.0,)
    # Time runs out for a slow cache or engine as well: never a reason to train, whatever the setting.
    is_cut = rollout.stop is StopReason.TIME_BUDGET or (overlong == "mask" and rollout.stop.is_overlong)
    if scored.reward is None or is_cut:
        mask = (0,) * len(ids)
    return TrainingRow(
        prompt_ids=rollout.prompt_ids,
        completion_ids=ids,
        logprobs=logprobs,
        env_mask=mask,
        reward=None if scored.reward is None else scored.reward.total,
    )


def step_metrics(scored: Sequence[ScoredRollout], group_size: int) -> dict[str, Any]:
    """What one step's rollouts say, as one flat object but for the counts by tier and by stop reason.

    Means are over scored rollouts, null without any; seconds are summed over rollouts, which run side by side.
    """
    kept = [(one.rollout, one.reward) for one in scored if one.reward is not None]
    calls = [call for one in scored for call in one.rollout.calls]
    answered = [call for call in calls if call.tier is not None]
    seconds = sorted(call.seconds for call in answered)
    return {
        "rollouts": len(scored),
        "void": len(scored) - len(kept),
        "reward": _mean([reward.total for _, reward in kept]),
        "reward_answer": _mean([reward.answer for _, reward in kept]),
        "reward_process": _mean([reward.process for _, reward in kept]),
        "answer_weight": _mean([reward.answer_weight for _, reward in kept]),
        "validation_reward": _mean([validation_reward(reward.answer, reward.process) for _, reward in kept]),
        "reward_by_worst_tier": reward_by_worst_tier(scored),
        "zero_variance_groups": _zero_variance_groups(scored, group_size),
        "tier_mix": tier_mix(calls),
        "trust": _mean([call.trust for call in answered]),
        "stops": dict(Counter(one.rollout.stop.value for one in scored)),
        "calls": len(calls),
        "live_calls": sum(call.tier == "live" for call in calls),
        "unusable_calls": sum(call.status is not CallStatus.OK for call in calls),
        "outages": sum(one.rollout.outages for one in scored),
        "turns": _mean([float(len(one.rollout.turns)) for one in scored]),
        "sampled_tokens": sum(one.rollout.sampled_count for one in scored),
        "generate_seconds_sum": sum(one.rollout.generate_seconds for one in scored),
        "tool_seconds_sum": sum(one.rollout.tool_seconds for one in scored),
        "tool_seconds_p50": _quantile(seconds, 0.50),
        "tool_seconds_p99": _quantile(seconds, 0.99),
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


class _StepLog:
    """Joins what a step's rollouts say with what its update says, once both are known."""

    def __init__(
        self, collector: Collector, log: MetricsLog, progress: Callable[[Mapping[str, Any]], None] | None
    ) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self._log = log
        self._progress = progress
        self._began = time.perf_counter()
        self._played = self._began
        self._pending: dict[str, Any] = {}

    def played(self, step: int, scored: Sequence[ScoredRollout], group_size: int) -> None:
        self._played = time.perf_counter()
        self._pending = {
            "step": step + 1,
            **step_metrics(scored, group_size),
            "rollout_seconds": self._played - self._began,
        }

    def updated(self, trl: Mapping[str, float]) -> None:
        now = time.perf_counter()
        line = {
            **self._pending,
            "loss": trl.get("loss"),
            "entropy": trl.get("entropy"),
            "grad_norm": trl.get("grad_norm"),
            "learning_rate": trl.get("learning_rate"),
            "update_seconds": now - self._played,
        }
        self._began = now
        self.lines.append(line)
        self._log.write(line)
        if self._progress is not None:
            self._progress(line)


def _zero_variance_groups(scored: Sequence[ScoredRollout], group_size: int) -> int:
    """Groups whose rewards are all equal: they teach nothing."""
    totals = [None if one.reward is None else one.reward.total for one in scored]
    groups = (totals[begin : begin + group_size] for begin in range(0, len(totals), group_size))
    return sum(not any(group_advantages(rewards_G)) for rewards_G in groups)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
