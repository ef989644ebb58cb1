"""Plays the groups of one step and scores them; a group that teaches nothing makes way for another task's.

There is no barrier: every rollout starts as soon as the concurrency allows it, a rollout is scored when it ends, and a
replacement starts when its group is over, while the other groups still play.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from cacherl.rollout.lookups import LookupBatcher
from cacherl.rollout.loop import CacheAgentLoop, Episode, Progress, opening, settle_garbage
from cacherl.rollout.rollout import Rollout, StopReason
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
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.scoring import ScoredRollout, Scorer, taught, training_row
from cacherl.worlds.world import Task, World
from toolcache_client.messages import Tier

JUDGE_PATIENCE_S = 300.0
"""Seconds a judge has for one rollout, those it waits for a thread included; then the rollout is void. A language model
answers in seconds and a client's retries end within minutes: whatever takes longer would hold up the step for good. The
judge's thread goes on, as nobody can stop it."""

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True, kw_only=True)
class FromCache:
    """Tool calls are answered by a cache; the world is executed only where a policy says so."""

    open_cache: Callable[[], AbstractAsyncContextManager[CacheLookup]]
    """Called once a process, inside the run's event loop: `lambda: AsyncCacheClient(url, job="my-run")`."""
    namespace: str
    on_miss: MissPolicy = field(default_factory=ExecuteLive)
    on_outage: OutagePolicy = field(default_factory=Drop)
    tiers: tuple[Tier, ...] | None = None
    """Tiers accepted; None is the namespace's policy."""
    outage_patience_s: float = 60.0
    """Seconds a rollout waits for a cache that is away before `on_outage` applies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FromWorld:
    """Every call is executed live: the control run."""


ToolSource = FromCache | FromWorld


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
        self.tasks = tasks
        self._source = source
        self._scorer = scorer
        self._settings = settings
        self._progress = progress
        self._setup: CacheSetup | None = None
        self._cache: AbstractAsyncContextManager[CacheLookup] | None = None
        self._attempt = secrets.token_hex(4)  # a replayed step, or another job, draws anew from a stochastic tool
        self._opening = asyncio.Lock()
        self._is_settled = False
        self._judges = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="judge")  # gone when this is
        self._gate = asyncio.Semaphore(settings.concurrency)
        self._done = self._planned = 0

    async def collect(
        self,
        task_indices: Sequence[int],
        step: int,
        *,
        first_place: int = 0,
        stand_ins: Sequence[Sequence[int]] = (),
    ) -> list[ScoredRollout]:
        """One scored rollout for each index, in their order; after them those that were played and replaced.

        Whole groups stand together in `task_indices`; `first_place` is the step's place of the first of them (not 0
        where other processes play the places before). `stand_ins` names, group by group, the tasks that may replace
        it. Raises what a rollout raised, such as CacheRefused for a namespace that is not there.
        """
        await self._open()
        if not self._is_settled:
            settle_garbage()
            self._is_settled = True
        size = self._settings.group_size
        groups = [task_indices[begin : begin + size] for begin in range(0, len(task_indices), size)]
        self._done, self._planned = 0, len(task_indices)
        played = await _all(
            self._place(step, first_place + number, group, stand_ins[number] if stand_ins else ())
            for number, group in enumerate(groups)
        )
        return [one for kept, _ in played for one in kept] + [one for _, replaced in played for one in replaced]

    async def aclose(self) -> None:
        """Close the cache client, if one was opened."""
        if self._cache is not None:
            await self._cache.__aexit__(None, None, None)
            self._cache = None

    async def _open(self) -> None:
        async with self._opening:
            match self._source:
                case FromCache() as source if self._setup is None:
                    self._cache = source.open_cache()
                    self._setup = CacheSetup(
                        cache=LookupBatcher(await self._cache.__aenter__()),
                        namespace=source.namespace,
                        writes=writing_tools(self._world.tools),
                        on_miss=source.on_miss,
                        on_outage=source.on_outage,
                        tiers=source.tiers,
                        outage_patience_s=source.outage_patience_s,
                        outage_log=self.outage_log,
                    )

    async def _place(
        self, step: int, place: int, task_indices: Sequence[int], stand_ins: Sequence[int]
    ) -> tuple[list[ScoredRollout], list[ScoredRollout]]:
        """The group to train at one place of the step, and the rollouts of those it replaced."""
        replaced: list[ScoredRollout] = []
        group = await self._group(task_indices, step, place)
        for attempt, stand_in in enumerate(stand_ins, start=1):
            if self._teaches(group):
                break
            replaced += [replace(one, is_replaced=True) for one in group]
            self._planned += len(group)
            # As if it stood in a further round of places: no seed is used twice.
            group = await self._group([stand_in] * len(group), step, place + attempt * self._settings.prompts_per_step)
        return group, replaced

    async def _group(self, task_indices: Sequence[int], step: int, place: int) -> list[ScoredRollout]:
        tasks = [self.tasks[index] for index in task_indices]
        first = place * self._settings.group_size
        return await _all(self._rollout(task, step, first + member) for member, task in enumerate(tasks))

    async def _rollout(self, task: Task, step: int, number: int) -> ScoredRollout:
        """Play and score one; `number` counts the rollouts of a step."""
        async with self._gate:
            rollout = await self._loop.play(self._episode(task, step, number))
        scored = await self._scored(rollout, task, self._name(task, step, number))
        self._done += 1
        if self._progress is not None:
            self._progress(scored.rollout, self._done, self._planned)
        return scored

    async def _scored(self, rollout: Rollout, task: Task, name: str) -> ScoredRollout:
        """In a thread: a judge may take seconds (a language model), and the other rollouts must not wait for it."""
        try:
            async with asyncio.timeout(JUDGE_PATIENCE_S) as clock:
                return await asyncio.get_running_loop().run_in_executor(self._judges, self._scorer.score, rollout, task)
        except Exception as error:
            if not (isinstance(error, TimeoutError) and clock.expired()):
                error.add_note(f"task {task.id}, rollout {name}: judging it failed")
                raise
        why = f"the judge gave no score in {JUDGE_PATIENCE_S:g} s"
        return ScoredRollout(rollout=replace(rollout, stop=StopReason.INFRASTRUCTURE, why=why, answer=""), reward=None)

    def _teaches(self, group: Sequence[ScoredRollout]) -> bool:
        return any(taught([training_row(one, self._settings, filler_id=0) for one in group]))

    def _group_name(self, task: Task, step: int) -> str:
        return f"{self._attempt}/{step}/{task.id}"

    def _name(self, task: Task, step: int, number: int) -> str:
        return f"{self._group_name(task, step)}/{number}"

    def _episode(self, task: Task, step: int, number: int) -> Episode:
        group, name = self._group_name(task, step), self._name(task, step, number)

        def open_tools() -> ToolAnswerer:
            if self._setup is None:
                return LiveTools(self._world.open(task))
            return CacheTools(
                self._setup,
                lambda: self._world.open(task),
                environment=task.environment,
                rollout=name,
                group=group,
            )

        return Episode(
            task_id=task.id,
            messages=opening(self._world.system_prompt, task.prompt),
            open_tools=open_tools,
            group=group,
            rollout=name,
            seed=(self._settings.seed * 1_000_003 + step) * 65_537 + number,
        )


async def _all(asked: Iterable[Coroutine[Any, Any, _R]]) -> list[_R]:
    """The results, in order. Where one fails the others are cancelled, and its own error is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(each) for each in asked]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return [task.result() for task in started]
