"""`cacherl eval`: how good a model is on held-out tasks.

evaluation.json    the numbers, with 95 % intervals, and what they mean
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cacherl.errors import RunStopped
from cacherl.evaluate.evaluate import Evaluation, evaluate, judged
from cacherl.evaluate.intervals import Estimate, interval
from cacherl.reward.answer import AnswerJudge
from cacherl.rollout.loop import CacheAgentLoop, Progress
from cacherl.rollout.rollout import Rollout, tier_mix
from cacherl.run.broken import refuse_broken
from cacherl.run.build import (
    agent_loop,
    check_installed,
    free_text,
    has_live_tools,
    held_out_tasks,
    left_out,
    load_policy,
    make_judge,
    make_world,
    open_engine,
    recordings,
    told_left_out,
    tool_source,
)
from cacherl.run.cache import make_ready
from cacherl.run.folder import EVALUATION_FILE, finish_stage, write_json
from cacherl.run.settings import Run
from cacherl.run.watch import Watch
from cacherl.train.collector import Collector
from cacherl.train.scoring import Scorer
from cacherl.worlds.world import Task, World

MEANING = {
    "live": "the final state of the world is the true one and the answer says what is true; the cache was off",
    "cache": "the judge's full marks for what was done and said; there are no live tools, so calls were answered from "
    "recordings, and what the cache guessed counts like the truth",
}
"""What success means, by who answered the calls."""


def run_evaluate(run: Run, folder: Path, url: str) -> None:
    """Measure and leave the numbers in the folder.

    Raises RunMisconfigured, RendererMisfit, EngineFailed, and RunStopped where next to nothing could be played.
    """
    began = time.perf_counter()
    check_installed(run)
    world = make_world(run)
    make_ready(run, world, url, lambda: recordings(run, world, folder)[0])
    tasks = held_out_tasks(run, world)
    judge = make_judge(run, world)
    policy = load_policy(run)
    policy.model.train(False)
    temperature = run.evaluate.temperature
    played: list[Rollout] = []
    engine = open_engine(run, policy, folder, temperature=temperature or 1.0)
    with closing(engine), Watch("eval", 0, ()) as watch:
        if told := told_left_out(world):
            watch.say(told)
        engine.follow(policy.model, 0)
        loop = agent_loop(run, world, policy, engine, temperature=temperature)
        playing = _live if has_live_tools(world) else _on_cache

        def progress(rollout: Rollout, done: int, planned: int) -> None:
            played.append(rollout)
            watch.rollout(rollout, done, planned)

        found = asyncio.run(playing(run, world, tasks, judge, loop, progress, url))
    refuse_broken(played)
    if not found.outcomes:
        raise RunStopped(f"nothing was measured: all {len(played)} rollouts were void ({found.stops})")
    numbers = summary(found, run)
    write_json(folder / EVALUATION_FILE, numbers)
    print_table(Console(), numbers)
    finish_stage(folder, "eval", {"left_out": left_out(world), "seconds": time.perf_counter() - began})


async def _live(
    run: Run, world: World, tasks: Sequence[Task], judge: AnswerJudge, loop: CacheAgentLoop, progress: Progress, _: str
) -> Evaluation:
    return await evaluate(
        loop,
        world,
        tasks,
        judge,
        samples_per_task=run.evaluate.samples_per_task,
        free_text=free_text(run),
        concurrency=run.grpo.concurrency,
        seed=run.seed,
        progress=progress,
    )


async def _on_cache(
    run: Run,
    world: World,
    tasks: Sequence[Task],
    judge: AnswerJudge,
    loop: CacheAgentLoop,
    progress: Progress,
    url: str,
) -> Evaluation:
    played = [place for place in range(len(tasks)) for _ in range(run.evaluate.samples_per_task)]
    scorer = Scorer(judge, run.reward, run.process)
    settings = replace(run.grpo, seed=run.seed)
    collector = Collector(loop, world, tasks, tool_source(run, world, url), scorer, settings, progress)
    try:
        scored = await collector.collect(played, 0)
    finally:
        await collector.aclose()
    return judged(scored, [tasks[place] for place in played], free_text=free_text(run))


def summary(found: Evaluation, run: Run) -> dict[str, Any]:
    """An evaluation as it is written down."""
    return {
        "model": run.model.path,
        "tools": found.tools,
        "success_means": MEANING[found.tools],
        "temperature": run.evaluate.temperature,
        "rollouts": len(found.outcomes),
        "void": found.void,
        "success": _estimate(found.success),
        "process_accuracy": _estimate(found.process_accuracy),
        "call_precision": _estimate(found.call_precision),
        "validation_reward": _estimate(found.validation_reward),
        "calls": found.calls,
        "unusable_calls": found.unusable_calls,
        "stops": found.stops,
        "tier_mix": tier_mix([call for outcome in found.outcomes for call in outcome.rollout.calls]),
    }


def print_table(console: Console, numbers: dict[str, Any]) -> None:
    """The numbers, for the terminal."""
    table = Table(title="held-out tasks (95 % intervals)", title_justify="left")
    for column in ("success", "process accuracy", "call precision", "validation reward", "rollouts"):
        table.add_column(column)
    names = ("success", "process_accuracy", "call_precision", "validation_reward")
    table.add_row(*(interval(numbers[name]) for name in names), str(numbers["rollouts"]))
    console.print(table)
    console.print(f"success: {numbers['success_means']}", soft_wrap=True, highlight=False)


def _estimate(estimate: Estimate) -> dict[str, Any]:
    if estimate.count == 0:  # NaN is no JSON
        return {"value": None, "ci95": None, "n": 0}
    return {"value": estimate.value, "ci95": list(estimate.ci95), "n": estimate.count}
