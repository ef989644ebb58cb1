"""`cacherl sample`: play training tasks with the current policy and keep the rollouts worth imitating.

samples.ndjson     the kept rollouts, as tokens (data/rejection.py)
samples.jsonl      what came of each part
parts/             kept rollouts part by part, so that a stopped run goes on
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
from cacherl.run.build import (
    agent_loop,
    load_policy,
    make_judge,
    make_world,
    open_engine,
    recordings,
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
    """Play, keep, and leave the kept ones in the folder; a stopped run goes on with the first part it lacks.

    One process only. Raises RunMisconfigured, RendererMisfit, EngineFailed, CacheRefused.
    """
    began = time.perf_counter()
    world = make_world(run)
    make_ready(run, world, url, lambda: recordings(run, world, folder)[0])
    tasks = training_tasks(run, world)[: run.iterate.tasks or None]
    judge = make_judge(run, world)
    policy = load_policy(run)
    policy.model.train(False)
    settings = replace(run.grpo, seed=run.grpo.seed + run.seed + SEED_OFFSET)
    parts = _parts(len(tasks), settings.concurrency, run.iterate.samples_per_task)
    engine = open_engine(run, policy, folder, temperature=settings.temperature)
    with closing(engine), Watch("sample", len(parts), SHOWN) as watch:
        engine.follow(policy.model, 0)
        loop = agent_loop(run, world, policy, engine, temperature=settings.temperature)
        scorer = Scorer(judge, run.reward, run.process)
        collector = Collector(loop, world, tasks, tool_source(run, world, url), scorer, settings, watch.rollout)
        asyncio.run(_keep_all(run.iterate, folder, parts, collector, watch))
    samples = [sample for number in range(1, len(parts) + 1) for sample in read_samples(_part_file(folder, number))]
    write_samples(folder / SAMPLES_FILE, samples)
    seconds = time.perf_counter() - began
    finish_stage(
        folder,
        "sample",
        {"tasks": len({each.task_id for each in samples}), "samples": len(samples), "seconds": seconds},
    )


async def _keep_all(
    iterate: IterateSettings, folder: Path, parts: Sequence[range], collector: Collector, watch: Watch
) -> None:
    """Play the parts that are not kept yet."""
    (folder / "parts").mkdir(exist_ok=True)
    done = next((n for n in range(len(parts)) if not _part_file(folder, n + 1).exists()), len(parts))
    try:
        with MetricsLog(folder / "samples.jsonl", after_step=done) as log:
            for number, places in enumerate(parts[done:], start=done + 1):
                metrics = await _keep_part(iterate, folder, number, places, collector)
                log.write(metrics)
                watch.step(metrics)
    finally:
        await collector.aclose()


async def _keep_part(
    iterate: IterateSettings, folder: Path, number: int, places: range, collector: Collector
) -> dict[str, Any]:
    """Play the tasks at the places and keep their best; returns what came of it."""
    began = time.perf_counter()
    scored = await collector.collect([place for place in places for _ in range(iterate.samples_per_task)], number)
    kept = keep_best(scored, above=iterate.keep_above, min_trust=iterate.min_trust, per_task=iterate.keep_per_task)
    write_samples(_part_file(folder, number), kept.samples)
    rewards = [one.reward.total for one in scored if one.reward is not None]
    return {
        "step": number,
        "rollouts": len(scored),
        "kept": len(kept.samples),
        "left_out": kept.left_out,
        "reward": fmean(rewards) if rewards else None,
        "seconds": time.perf_counter() - began,
    }


def _parts(tasks: int, concurrency: int, samples_per_task: int) -> list[range]:
    """The places of the tasks, in parts of about PARTS_PER_CONCURRENCY * concurrency rollouts.

    >>> _parts(5, concurrency=2, samples_per_task=4)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    size = max(1, PARTS_PER_CONCURRENCY * concurrency // samples_per_task)
    return [range(begin, min(begin + size, tasks)) for begin in range(0, tasks, size)]


def _part_file(folder: Path, number: int) -> Path:
    return folder / "parts" / f"{number}.ndjson"
