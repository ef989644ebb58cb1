"""`cacherl grpo`: from a model that can call tools to one that does it well, on cached answers.

grpo.jsonl    metrics of every step
model/        the model, adapters merged
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from cacherl.adapters.lora import save_model, with_lora
from cacherl.run.build import (
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
from cacherl.run.folder import MODEL, finish_stage
from cacherl.run.settings import Run
from cacherl.run.watch import Watch, trackers_of
from cacherl.train.grpo import train_grpo

SHOWN = ("reward", "validation_reward", "trust", "turns", "tokens_per_second", "step_seconds")


def run_grpo(run: Run, folder: Path, url: str, *, resume: bool) -> None:
    """Train and leave the model in the folder. Raises RunMisconfigured, RendererMisfit, EngineFailed, CacheRefused."""
    began = time.perf_counter()
    check_installed(run)
    settings = replace(run.grpo, seed=run.grpo.seed + run.seed)
    world = make_world(run)
    make_ready(run, world, url, lambda: recordings(run, world, folder)[0])
    tasks = training_tasks(run, world)
    judge = make_judge(run, world)
    trackers = trackers_of(run, folder, "grpo")
    policy = load_policy(run)
    model = with_lora(policy.model, run.lora, seed=run.seed) if run.lora else policy.model
    # The Hugging Face engine samples with the trained model itself, which train_grpo makes.
    engine = None if run.engine.kind == "hf" else open_engine(run, policy, folder, temperature=settings.temperature)
    try:
        with Watch("grpo", settings.steps, SHOWN, trackers) as watch:
            if told := told_left_out(world):
                watch.say(told)
            report = train_grpo(
                model=model,
                tokenizer=policy.tokenizer,
                world=world,
                tasks=tasks,
                source=tool_source(run, world, url),
                judge=judge,
                settings=settings,
                output_dir=folder,
                engine=engine,
                chat=policy.chat,
                reward=run.reward,
                process_weights=run.process,
                resume=resume,
                progress=watch.step,
                rollout_progress=watch.rollout,
            )
    finally:
        if engine is not None:
            engine.close()
    save_model(model, policy.tokenizer, folder / MODEL)
    finish_stage(
        folder,
        "grpo",
        {
            "model": MODEL,
            "steps": len(report.steps),
            "left_out": left_out(world),
            "seconds": time.perf_counter() - began,
        },
    )
