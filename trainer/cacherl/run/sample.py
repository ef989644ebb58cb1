"""`cacherl sample`: play training tasks with the current policy and keep the rollouts worth imitating.

samples.ndjson     the kept rollouts, as tokens (data/rejection.py)
samples.jsonl      what came of each part
parts/A-B.ndjson   kept rollouts of the tasks A to B (B not among them), so that a stopped run goes on
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from cacherl.data.rejection import keep_best, read_samples, write_samples
from cacherl.run.broken import refuse_broken
from cacherl.run.build import (
    agent_loop,
    check_installed,
    left_out,
    load_policy,
    make_judge,
    make_world,
    open_engine,
    recordings,
    told_left_out,
    tool_source,
    training_tasks,
)
from cacherl.run.cache import make_ready
from cacherl.run.folder import SAMPLES_FILE, finish_stage
from cacherl.run.settings import IterateSettings, Run
from cacherl.run.watch import Watch
from cacherl.train.collector import Collector
from cacherl.train.metrics_log import MetricsLog
from cacherl.train.scoring import Scorer

SHOWN = ("rollouts", "kept", "reward", "seconds")
SEED_OFFSET = 500_009
"""Apart from GRPO's seeds: what is sampled here is not what the policy was trained on."""
PARTS_PER_CONCURRENCY = 4
"""Rollouts of a part for each one under way, so that little of it is the tail in which the engine runs dry."""


def run_sample(run: Run, folder: Path, url: str) -> None:
    """Play, keep, and leave the kept ones in the folder; a stopped run goes on with the first task it lacks.

    One process only. Raises RunMisconfigured, RendererMisfit, EngineFailed, CacheRefused, and CacheRLError where most
    rollouts of a part broke off.
    """
    began = time.perf_counter()
    check_installed(run)
    world = make_world(run)
    make_ready(run, world, url, lambda: recordings(run, world, folder)[0])
    tasks = training_tasks(run, world)[: run.iterate.tasks or None]
    judge = make_judge(run, world)
    policy = load_policy(run)
    policy.model.train(False)
    settings = replace(run.grpo, seed=run.grpo.seed + run.seed + SEED_OFFSET)
    (folder / "parts").mkdir(exist_ok=True)
    parts = _parts(_done(folder), len(tasks), settings.concurrency, run.iterate.samples_per_task)
    engine = open_engine(run, policy, folder, temperature=settings.temperature)
    with closing(engine), Watch("sample", len(tasks), SHOWN) as watch:
        if told := told_left_out(world):
            watch.say(told)
        engine.follow(policy.model, 0)
        loop = agent_loop(run, world, policy, engine, temperature=settings.temperature)
        scorer = Scorer(judge, run.reward, run.process)
        collector = Collector(loop, world, tasks, tool_source(run, world, url), scorer, settings, watch.rollout)
        asyncio.run(_keep_all(run.iterate, folder, parts, collector, watch))
    samples = [sample for path in _kept_parts(folder) for sample in read_samples(path)]
    write_samples(folder / SAMPLES_FILE, samples)
    seconds = time.perf_counter() - began
    finish_stage(
        folder,
        "sample",
        {
            "tasks": len({each.task_id for each in samples}),
            "samples": len(samples),
            "left_out": left_out(world),
            "seconds": seconds,
        },
    )


async def _keep_all(
    iterate: IterateSettings, folder: Path, parts: Sequence[range], collector: Collector, watch: Watch
) -> None:
    """Play the parts; a metrics line's step is the number of tasks done by then."""
    try:
        with MetricsLog(folder / "samples.jsonl", after_step=_done(folder)) as log:
            for places in parts:
                metrics = await _keep_part(iterate, folder, places, collector)
                log.write(metrics)
                watch.step(metrics)
    finally:
        await collector.aclose()


async def _keep_part(iterate: IterateSettings, folder: Path, places: range, collector: Collector) -> dict[str, Any]:
    """Play the tasks at the places and keep their best; returns what came of it."""
    began = time.perf_counter()
    # By its first task, not by its number: how the tasks are cut depends on the concurrency, which may change.
    scored = await collector.collect([p for p in places for _ in range(iterate.samples_per_task)], places.start)
    refuse_broken([one.rollout for one in scored])
    kept = keep_best(scored, above=iterate.keep_above, min_trust=iterate.min_trust, per_task=iterate.keep_per_task)
    write_samples(folder / "parts" / f"{places.start}-{places.stop}.ndjson", kept.samples)
    rewards = [one.reward.total for one in scored if one.reward is not None]
    return {
        "step": places.stop,
        "rollouts": len(scored),
        "kept": len(kept.samples),
        "left_out": kept.left_out,
        "reward": fmean(rewards) if rewards else None,
        "seconds": time.perf_counter() - began,
    }


def _parts(done: int, tasks: int, concurrency: int, samples_per_task: int) -> list[range]:
    """The places of the tasks that are not done, in parts of about PARTS_PER_CONCURRENCY * concurrency rollouts.

    >>> _parts(1, 6, concurrency=2, samples_per_task=4)
    [range(1, 3), range(3, 5), range(5, 6)]
    """
    size = max(1, PARTS_PER_CONCURRENCY * concurrency // samples_per_task)
    return [range(begin, min(begin + size, tasks)) for begin in range(done, tasks, size)]


def _kept_parts(folder: Path) -> list[Path]:
    """The files of kept rollouts from the first task on, up to the first task that is not done."""
    by_begin = {_tasks_of(path)[0]: path for path in (folder / "parts").glob("*-*.ndjson")}
    found: list[Path] = []
    while next_part := by_begin.get(_tasks_of(found[-1])[1] if found else 0):
        found.append(next_part)
    return found


def _done(folder: Path) -> int:
    """How many tasks are done."""
    parts = _kept_parts(folder)
    return _tasks_of(parts[-1])[1] if parts else 0


def _tasks_of(part: Path) -> tuple[int, int]:
    """The places of its first task and of the one behind its last."""
    begin, _, end = part.stem.partition("-")
    return int(begin), int(end)
