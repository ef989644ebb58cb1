"""`cacherl sft`: from recordings, and rollouts kept by rejection sampling, to a model.

sft.jsonl    metrics of every step
model/       the model, adapters merged
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cacherl.adapters.lora import save_model, with_lora
from cacherl.data.rejection import read_samples
from cacherl.data.sft_examples import sft_examples
from cacherl.data.trajectories import Trajectory
from cacherl.errors import RunMisconfigured
from cacherl.rollout.renderer import Example
from cacherl.run.build import (
    Policy,
    load_policy,
    make_world,
    recordings,
    renderer,
    told_left_out,
    training_trajectories,
)
from cacherl.run.folder import MODEL, finish_stage
from cacherl.run.settings import Run
from cacherl.run.watch import Watch, trackers_of
from cacherl.train.sft import train_sft
from cacherl.worlds.world import World

SHOWN = ("loss", "learning_rate", "tokens_per_second", "seconds")


def run_sft(run: Run, folder: Path, *, resume: bool) -> None:
    """Train and leave the model in the folder. Raises RunMisconfigured, TrajectoriesUnreadable, RendererMisfit."""
    began = time.perf_counter()
    settings = replace(run.sft, seed=run.sft.seed + run.seed)
    world = make_world(run)
    trajectories, left_out = training_trajectories(run, world, recordings(run, world, folder))
    trackers = trackers_of(run, folder, "sft")
    policy = load_policy(run, trajectories)
    examples, counts = _examples(run, world, policy, trajectories)
    counts |= left_out
    model = with_lora(policy.model, run.lora, seed=run.seed) if run.lora else policy.model
    with Watch("sft", settings.steps_for(len(examples)), SHOWN, trackers) as watch:
        if told := told_left_out(world):
            watch.say(told)
        watch.say("examples: " + ", ".join(f"{count:,} {what}" for what, count in counts.items() if count))
        report = train_sft(model, examples, settings, output_dir=folder, resume=resume, progress=watch.step)
    save_model(model, policy.tokenizer, folder / MODEL)
    finish_stage(
        folder,
        "sft",
        {
            "model": MODEL,
            "examples": counts,
            "steps": report.steps,
            "trained_tokens": report.trained_tokens,
            "last_loss": report.losses[-1],
            "seconds": time.perf_counter() - began,
        },
    )


def _examples(
    run: Run, world: World, policy: Policy, trajectories: Sequence[Trajectory]
) -> tuple[list[Example], dict[str, int]]:
    """What SFT learns from, and how many of what came to be it or not."""
    longest = run.sft.max_example_tokens
    found = sft_examples(
        trajectories,
        renderer(run, world, policy),
        max_tokens=longest,
        is_wanted=lambda trajectory: trajectory.reward >= run.examples.min_reward,
    )
    samples = [sample.example for path in run.examples.samples for sample in read_samples(Path(path))]
    vocabulary = len(policy.tokenizer)
    if any(max(sample.ids) >= vocabulary for sample in samples):
        raise RunMisconfigured("examples.samples were sampled with another tokenizer: their ids exceed this vocabulary")
    fitting = [sample for sample in samples if len(sample.ids) <= longest]
    counts = {
        "recorded": len(found.examples),
        "sampled": len(fitting),
        "below examples.min_reward": found.unwanted,
        "longer than sft.max_example_tokens": found.too_long + len(samples) - len(fitting),
        "without a word of the model": found.without_assistant,
    }
    if not (found.examples or fitting):
        unrewarded = trajectories and not any(trajectory.reward for trajectory in trajectories)
        hint = '; none has a "reward" above 0: examples.min_reward = 0 takes them all' if unrewarded else ""
        raise RunMisconfigured(f"no trajectory to learn from: {counts}{hint}")
    return [*found.examples, *fitting], counts
