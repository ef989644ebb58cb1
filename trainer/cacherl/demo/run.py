"""The demo, start to end. Each phase leaves its files in the run's folder, so that a report can be looked at again.

recordings.ndjson   what the scripted agents did, live
cache.sqlite3       those recordings as a cache (with an own service; absent with --cache-url)
sft.jsonl grpo.jsonl    metrics of every step
model-sft/ model-grpo/  the models
summary.json report.html
"""

from __future__ import annotations

import asyncio
import json
import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from cacherl.adapters.hf_engine import HFEngine
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.adapters.tiny_qwen3 import make_model, make_tokenizer
from cacherl.config import write_run
from cacherl.data.sft_examples import sft_examples
from cacherl.data.trajectories import Trajectory, read_trajectories
from cacherl.demo.counted_world import CountedWorld
from cacherl.demo.report import print_table, write_report
from cacherl.demo.service import cache_service, check_alive, fill
from cacherl.demo.settings import DemoRun
from cacherl.evaluate.evaluate import Evaluation, evaluate
from cacherl.evaluate.intervals import Estimate
from cacherl.reward.answer import MilestoneJudge
from cacherl.rollout.loop import CacheAgentLoop
from cacherl.rollout.parser import Parser
from cacherl.rollout.renderer import Renderer
from cacherl.rollout.rollout import Rollout
from cacherl.rollout.tools import Drop, ToolError, writing_tools
from cacherl.train.grpo import FromCache, GrpoReport, train_grpo
from cacherl.train.sft import train_sft
from cacherl.worlds.record import record_runs, write_ndjson
from cacherl.worlds.support_desk import FREE_TEXT, SupportDesk
from toolcache_client import AsyncCacheClient, CacheClient
from toolcache_client.messages import Stats

CONCURRENCY = 96
"""Trajectories under way at once in evaluation; the engine decodes them as one batch."""
SHOWN_ROLLOUTS = 4
OUTPUTS = (
    "recordings.ndjson",
    "cache.sqlite3",
    "cache.sqlite3-wal",
    "cache.sqlite3-shm",
    "sft.jsonl",
    "grpo.jsonl",
    "summary.json",
    "report.html",
)
"""What an earlier run left in the folder, so that no old number stands beside a new run file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One stage of the model on held-out tasks, live, the cache off."""

    greedy: Evaluation
    sampled: Evaluation


def run_demo(run: DemoRun, folder: Path, cache_url: str | None) -> Mapping[str, Any]:
    """Run everything and return the summary.

    Raises RunMisconfigured, CacheUnavailable (the cache is down when the run starts), CacheRefused.
    """
    began = time.perf_counter()
    torch.set_num_threads(run.threads)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # one bar is enough
    if cache_url is not None:
        check_alive(cache_url)  # before anything of an earlier run is cleared away
    folder.mkdir(parents=True, exist_ok=True)
    for old in OUTPUTS:
        (folder / old).unlink(missing_ok=True)
    write_run(folder / "run.toml", run)
    console = Console()
    with _progress(console) as progress, cache_service(cache_url, folder) as url:
        demo = _Demo(run, folder, url, progress)
        summary = demo.play()
    summary["wall_s"] = time.perf_counter() - began
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_report(folder, summary)
    print_table(console, summary)
    console.print(f"report: {folder / 'report.html'}")
    return summary


class _Demo:
    """The phases, in order, and what they hand on."""

    def __init__(self, run: DemoRun, folder: Path, url: str, progress: Progress) -> None:
        self._run = run = _seeded(run)
        self._folder = folder
        self._url = url
        self._progress = progress
        self._world = CountedWorld(SupportDesk(seed=run.world.seed))
        self._judge = MilestoneJudge(writes=writing_tools(self._world.tools), free_text=FREE_TEXT, weights=run.judge)
        self._seconds: dict[str, float] = {}
        self._last_rollouts: deque[Rollout] = deque(maxlen=run.grpo.prompts_per_step * run.grpo.group_size)

    def play(self) -> dict[str, Any]:
        trajectories = self._record()
        cached = self._import()
        tokenizer = make_tokenizer(_texts(trajectories), vocabulary_size=self._run.vocabulary_size)
        model = make_model(tokenizer, seed=self._run.seed, size=self._run.model)
        before = self._measure("evaluate untrained", model, tokenizer, self._run.evaluate.untrained_tasks)
        self._sft(model, tokenizer, trajectories)
        sft = self._measure("evaluate after SFT", model, tokenizer, self._run.evaluate.tasks)
        live_before = self._world.live_calls
        steps = self._grpo(model, tokenizer)
        live_calls = self._world.live_calls - live_before
        grpo = self._measure("evaluate after GRPO", model, tokenizer, self._run.evaluate.tasks)
        return self._summary({"before": before, "sft": sft, "grpo": grpo}, steps, live_calls, trajectories, cached)

    def _record(self) -> Sequence[Trajectory]:
        path = self._folder / "recordings.ndjson"
        with self._phase("record", 1) as advance:
            tasks = self._world.tasks("train", self._run.record.tasks)
            record = self._run.record
            write_ndjson(path, record_runs(self._world, tasks, runs_per_task=record.runs_per_task, seed=record.seed))
            advance(1)
        return read_trajectories(path).trajectories

    def _import(self) -> Stats:
        path = self._folder / "recordings.ndjson"
        count = self._run.record.tasks * self._run.record.runs_per_task
        with self._phase("import into the cache", count) as advance, CacheClient(self._url, timeout_s=60) as client:
            return fill(client, self._world, path, advance)

    def _sft(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, trajectories: Sequence[Trajectory]
    ) -> None:
        context = self._run.grpo.budgets.context_tokens
        found = sft_examples(trajectories, self._renderer(tokenizer), max_tokens=context)
        with self._phase("SFT", self._run.sft.steps_for(len(found.examples))) as advance:
            train_sft(
                model,
                found.examples,
                self._run.sft,
                output_dir=self._folder,
                progress=lambda metrics: advance(metrics["step"]),
            )
        self._save(model, tokenizer, "model-sft")

    def _grpo(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> GrpoReport:
        with self._phase("GRPO on cached answers", self._run.grpo.steps) as advance:
            report = train_grpo(
                model=model,
                tokenizer=tokenizer,
                world=self._world,
                tasks=self._world.tasks("train", self._run.record.tasks),
                source=FromCache(
                    open_cache=lambda: AsyncCacheClient(self._url),
                    namespace=self._world.name,
                    on_miss=ToolError(),
                    on_outage=Drop(),
                ),
                judge=self._judge,
                settings=self._run.grpo,
                reward=self._run.reward,
                output_dir=self._folder,
                progress=lambda metrics: advance(metrics["step"]),
                rollout_progress=lambda rollout, _, __: self._last_rollouts.append(rollout),
            )
        self._save(model, tokenizer, "model-grpo")
        return report

    def _measure(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, count: int) -> Measured:
        tasks = self._world.tasks("held_out", count)
        samples = self._run.evaluate.samples_per_task
        model.train(False)
        with self._phase(name, count * (1 + samples)) as advance, HFEngine(model, max_rows=CONCURRENCY) as engine:
            greedy, sampled = (
                asyncio.run(
                    evaluate(
                        CacheAgentLoop(
                            engine,
                            self._renderer(tokenizer),
                            Parser(self._world.tools),
                            budgets=self._run.grpo.budgets,
                            temperature=temperature,
                        ),
                        self._world,
                        tasks,
                        self._judge,
                        samples_per_task=repeats,
                        free_text=FREE_TEXT,
                        concurrency=CONCURRENCY,
                        seed=self._run.seed,
                        progress=partial(_count_up, advance, before),
                    )
                )
                for temperature, repeats, before in ((0.0, 1, 0), (1.0, samples, count))
            )
        return Measured(greedy=greedy, sampled=sampled)

    def _renderer(self, tokenizer: PreTrainedTokenizerFast) -> Renderer:
        return Renderer(HFTokenizer(tokenizer), tools=self._world.tools if self._run.grpo.tools_in_prompt else None)

    def _save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
        model.save_pretrained(self._folder / name)
        tokenizer.save_pretrained(self._folder / name)

    @contextmanager
    def _phase(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for one phase; what it yields is told how much is done."""
        bar: TaskID = self._progress.add_task(name, total=total)
        began = time.perf_counter()
        yield lambda done: self._progress.update(bar, completed=done)
        self._seconds[name] = time.perf_counter() - began
        if not self._progress.console.is_terminal:  # no bars in a log: a line when a phase is over
            self._progress.console.print(f"{name}: {self._seconds[name]:.0f} s")

    def _summary(
        self,
        stages: Mapping[str, Measured],
        grpo: GrpoReport,
        live_calls: int,
        trajectories: Sequence[Trajectory],
        cached: Stats,
    ) -> dict[str, Any]:
        mix: Counter[str] = Counter()
        for step in grpo.steps:
            mix.update(step["tier_mix"])
        asked = sum(mix.values())
        return {
            **{name: _stage(measured) for name, measured in stages.items()},
            "tier_mix": {tier: {"calls": n, "share": n / asked if asked else 0.0} for tier, n in mix.items()},
            "live_calls_during_grpo": live_calls,
            "live_calls_avoided": sum(mix[tier] for tier in ("exact", "similar", "approximate")),
            "recordings": {
                "trajectories": len(trajectories),
                "successful": sum(each.reward > 0 for each in trajectories),
                "entries": cached.entries,
            },
            "seconds": self._seconds,
            "seed": self._run.seed,
            "machine": machine(),
            "shown": self._shown(),
        }

    def _shown(self) -> list[dict[str, Any]]:
        """Rollouts of the last GRPO step, one a task: the two with the best answers and the two with the worst."""
        tasks = {task.id: task for task in self._world.tasks("train", self._run.record.tasks)}
        by_task = {each.task_id: each for each in self._last_rollouts if not each.stop.is_void}
        judged = [(self._judge.score(rollout, tasks[each]), rollout) for each, rollout in by_task.items()]
        judged.sort(key=lambda pair: -pair[0])
        return [
            {
                "prompt": tasks[rollout.task_id].prompt,
                "answer": rollout.answer,
                "answer_reward": score,
                "stop": rollout.stop.value,
                "calls": [
                    {
                        "name": call.name or call.status.value,
                        "arguments": call.arguments,
                        "tier": call.tier,
                        "trust": call.trust,
                        "result": call.result,
                    }
                    for call in rollout.calls
                ],
            }
            for score, rollout in (judged if len(judged) <= SHOWN_ROLLOUTS else judged[:2] + judged[-2:])
        ]


def _seeded(run: DemoRun) -> DemoRun:
    """The run with its seed added to that of every section."""
    return replace(
        run,
        world=replace(run.world, seed=run.world.seed + run.seed),
        record=replace(run.record, seed=run.record.seed + run.seed),
        sft=replace(run.sft, seed=run.sft.seed + run.seed),
        grpo=replace(run.grpo, seed=run.grpo.seed + run.seed),
    )


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.completed:>5.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _count_up(advance: Callable[[int], None], before: int, _: Rollout, done: int, __: int) -> None:
    advance(before + done)


def _texts(trajectories: Sequence[Trajectory]) -> Iterator[str]:
    """What the tokenizer is made from: contents and calls."""
    for trajectory in trajectories:
        for message in trajectory.messages:
            yield message.get("content") or ""
            for call in message.get("tool_calls") or ():
                yield json.dumps({"name": call["function"]["name"], "arguments": call["function"]["arguments"]})


def _stage(measured: Measured) -> dict[str, Any]:
    """The sampled numbers, since sampling is what GRPO trains, and the greedy ones beside them."""
    return {
        "process_accuracy": _estimate(measured.sampled.process_accuracy),
        "success": _estimate(measured.sampled.success),
        "validation_reward": _estimate(measured.sampled.validation_reward),
        "stops": measured.sampled.stops,
        "void": measured.sampled.void + measured.greedy.void,
        "greedy": {
            "process_accuracy": _estimate(measured.greedy.process_accuracy),
            "success": _estimate(measured.greedy.success),
        },
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "ci95": list(estimate.ci95), "n": estimate.count}
