"""Rollouts for TRL's AsyncGRPOTrainer: groups are played while the trainer updates, on a server that has its own GPUs.

    worker = CacheRolloutWorker(loop=loop, world=world, tasks=tasks, source=source, scorer=scorer, settings=settings)
    AsyncGRPOTrainer(model_path, args=AsyncGRPOConfig(...), train_dataset=prompts, rollout_worker=worker).train()

where `loop` plays on the very vLLM server that the trainer streams its weights to. A model with adapters is streamed
merged, which needs a server without `--enable-lora`: on one that has it TRL would publish adapters of ever new names,
and rollouts would go on with the model below them, so that is refused. TRL counts epochs in
`train_dataset`; what is played are the worker's tasks. It relies on trl 1.16 internals (RolloutSample, what the trainer
does with it). Beside trl_grpo.py the only file that imports trl.

TRL's own worker divides advantages by their standard deviation, and hands over rollouts without a reward, which then
count in the loss's mean. Here an advantage is reward minus the group's mean, and what has no gradient is not handed
over: void rollouts, those that ran out of time (a slow server's as well), cut ones where the settings mask them, groups
whose rewards are all equal (as many as `extra_groups` allows).

A sample has one advantage for all its tokens. Where credit differs from turn to turn, a rollout becomes a sample for
each value, with the same tokens and masks that do not overlap: the loss is a mean over tokens and does not notice, and
TRL forwards tokens that samples share once.

Covered: one trainer of one or many processes; samples tagged with the oldest weights that may have made them. Not
covered: an importance correction beyond TRL's clipping, which is taken against the sampling log-probabilities; resuming
with the same tasks; the loop's engine shares the trainer's process, so their Python takes turns.
"""

from __future__ import annotations

import asyncio
import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import pstdev
from typing import Any

import numpy as np
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

from cacherl.adapters.vllm_server_engine import VllmServerEngine
from cacherl.errors import EngineFailed, RunMisconfigured
from cacherl.rollout.loop import CacheAgentLoop
from cacherl.rollout.rollout import Rollout, StopReason
from cacherl.train.advantages import group_advantages
from cacherl.train.collector import Collector, ToolSource
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.rollout_numbers import rollout_numbers
from cacherl.train.scoring import ScoredRollout, Scorer, TrainingRow, taught, training_row
from cacherl.worlds.world import Task, World

METRICS_KEPT = 4096
"""Groups whose metrics wait for the trainer; beyond, they are forgotten rather than waited for."""
PAUSE_S = 0.05
"""Between two looks at a full buffer."""
BEAT_S = 1.0
"""Between two signs of life of the event loop."""
STOP_S = 30.0
"""Seconds in which the thread is over after `stop`."""


class CacheRolloutWorker:
    """TRL's RolloutWorkerProtocol: plays groups in a thread of its own from `start` to `stop`.

    `max_staleness` is AsyncGRPOConfig's: a group that is older when it is over is not handed over. The buffer holds one
    optimizer step's rollouts, so that those that wait do not grow old either.
    """

    def __init__(
        self,
        *,
        loop: CacheAgentLoop,
        world: World,
        tasks: Sequence[Task],
        source: ToolSource,
        scorer: Scorer,
        settings: GrpoSettings,
        max_staleness: int = 4,
    ) -> None:
        if not tasks:
            raise RunMisconfigured("there are no tasks to play")
        self.rollout_buffer: queue.Queue[RolloutSample] = queue.Queue(settings.prompts_per_step * settings.group_size)
        self.metrics_queue: queue.Queue[dict[str, Any]] = queue.Queue(METRICS_KEPT)
        self._order = _task_stream(len(tasks), settings.seed)
        self._settings = settings
        self._max_staleness = max_staleness
        self._engine = loop.engine
        self._filler_id = loop.renderer.end_of_turn_id
        self._collector = Collector(loop, world, tasks, source, scorer, settings, self._one_is_over)
        # A slot a rollout, not a group: the next group starts while the stragglers of others still play.
        self._slots = asyncio.Semaphore(max(settings.concurrency, settings.group_size))
        self._version = 0
        self._handed_over = self._replaced = 0
        self._thread: threading.Thread | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._playing: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._is_stopping = False
        self._beat = time.monotonic()

    def start(self) -> None:
        """Begin to play. Called once."""
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="cacherl-rollouts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Drop the rollouts under way, close the cache client and end the thread. Raises EngineFailed if it hangs."""
        self._is_stopping = True
        if self._thread is None:
            return
        if self._event_loop is not None and self._playing is not None:
            with suppress(RuntimeError):  # it is over already
                self._event_loop.call_soon_threadsafe(self._playing.cancel)
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            raise EngineFailed(f"the rollout thread did not end within {STOP_S:g} s")
        self._thread = None

    def update_model_version(self, model_version: int) -> None:
        """From now on groups start with these weights. Raises RunMisconfigured where they are an adapter's."""
        if isinstance(self._engine, VllmServerEngine):
            self._engine.weights_came(model_version)
        self._version = model_version

    def check_health(self, stale_after_s: float) -> None:
        """Raise EngineFailed where the thread has died, or its event loop has stood still for so long.

        A cache that is away is no failure: its rollouts wait, then are void, and the trainer waits with them.
        """
        if self._failure is not None:
            raise EngineFailed(f"the rollouts ended: {self._failure}") from self._failure
        silent_s = time.monotonic() - self._beat
        if silent_s > stale_after_s:
            raise EngineFailed(f"the rollouts' event loop has stood still for {silent_s:.0f} s")

    def _run(self) -> None:
        try:
            asyncio.run(self._play())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 - it belongs to the trainer, which check_health tells
            self._failure = error

    async def _play(self) -> None:
        self._event_loop, self._playing = asyncio.get_running_loop(), asyncio.current_task()
        if self._is_stopping:
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._beat_on())
                for number, task_index in enumerate(self._order):
                    await self._room()
                    tasks.create_task(self._play_group(number, task_index))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        finally:
            await self._collector.aclose()

    async def _room(self) -> None:
        """Wait until a group may start: the trainer takes what is there, and its rollouts have slots."""
        while self.rollout_buffer.full():  # noqa: ASYNC110 - a thread's queue sets no event
            await asyncio.sleep(PAUSE_S)
        for _ in range(self._settings.group_size):
            await self._slots.acquire()

    def _one_is_over(self, rollout: Rollout, done: int, planned: int) -> None:
        self._slots.release()

    async def _play_group(self, number: int, task_index: int) -> None:
        version = self._version
        played = await self._collector.collect([task_index] * self._settings.group_size, number)
        scored = [_void_if_late(one) for one in played]
        rows = [training_row(one, self._settings, self._filler_id) for one in scored]
        advantages = group_advantages([row.reward for row in rows])
        outcome = self._outcome(any(taught(rows)), version)
        self._tell(scored, outcome)
        if outcome != "handed_over":
            return
        for one, row, advantage in zip(scored, rows, advantages, strict=True):
            for sample in _samples(one, row, advantage, group_id=number, version=version):
                await self._hand_over(sample)

    def _outcome(self, teaches: bool, version: int) -> str:
        """What becomes of a group, in a word; "replaced" is one that teaches nothing, as often as is allowed."""
        if self._version - version > self._max_staleness:
            return "stale"
        if not teaches and self._replaced < self._settings.extra_groups * (self._handed_over + 1):
            self._replaced += 1
            return "replaced"
        self._handed_over += 1
        return "handed_over"

    async def _hand_over(self, sample: RolloutSample) -> None:
        while True:
            sample.enqueued_at = time.time()
            try:
                return self.rollout_buffer.put_nowait(sample)
            except queue.Full:
                await asyncio.sleep(PAUSE_S)

    def _tell(self, scored: Sequence[ScoredRollout], outcome: str) -> None:
        """Metrics of a group, in TRL's way: a pair is a sum and a count, "total" in a name adds up."""
        kept = [(one.rollout, one.reward) for one in scored if one.reward is not None]
        metrics: dict[str, Any] = {
            "rollout/played_total": float(len(scored)),
            "rollout/void_total": float(len(scored) - len(kept)),
            f"rollout/groups_{outcome}_total": 1.0,
        }
        if kept:
            rewards = [reward.total for _, reward in kept]
            numbers = [rollout_numbers(rollout, reward) for rollout, reward in kept]
            metrics |= {"reward": (sum(rewards), len(kept)), "reward_std": pstdev(rewards)}
            for name in numbers[0]:
                metrics[f"rollout/{name}"] = (sum(each[name] for each in numbers), len(kept))
        with suppress(queue.Full):
            self.metrics_queue.put_nowait(metrics)

    async def _beat_on(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(BEAT_S)


def _void_if_late(scored: ScoredRollout) -> ScoredRollout:
    return replace(scored, reward=None) if scored.rollout.stop is StopReason.TIME_BUDGET else scored


def _samples(
    scored: ScoredRollout, row: TrainingRow, advantage: float, *, group_id: int, version: int
) -> Iterator[RolloutSample]:
    """A sample for each value of the rollout's credit; none where no token is trained."""
    prompt = [0] * len(row.prompt_ids)
    for value in sorted({credit for credit in row.credit if credit > 0.0}, reverse=True):
        mask = prompt + [int(credit == value) for credit in row.credit]
        yield RolloutSample(
            prompt=[],
            completion=[{"role": "assistant", "content": scored.rollout.answer}],  # for TRL's traces: no tool's words
            input_ids=np.array([*row.prompt_ids, *row.completion_ids], dtype=np.int64),
            completion_mask=np.array(mask, dtype=np.int64),
            old_log_probs=np.array([*prompt, *row.logprobs], dtype=np.float32),
            advantage=advantage * value,
            model_version=version,
            group_id=group_id,
            metrics={},  # those of the group go to the metrics queue, void rollouts included
        )


def _task_stream(count: int, seed: int) -> Iterator[int]:
    """Task indices without end, pass after pass, each in an order of its own."""
    chance = random.Random(seed)
    while True:
        yield from chance.sample(range(count), count)
