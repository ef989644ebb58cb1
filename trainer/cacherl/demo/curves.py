"""The demo's curves as SVG, drawn by matplotlib: the only file that imports it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from cacherl.rollout.rollout import TIERS

TIER_COLOURS: Mapping[str, str] = {
    "live": "#6b7280",
    "exact": "#1a7f64",
    "similar": "#3b82c4",
    "approximate": "#d9902f",
    "miss": "#b8433f",
}
STAGES = ("before", "sft", "grpo")
STAGE_NAMES = {"before": "untrained", "sft": "after SFT", "grpo": "after GRPO"}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """One object a step, as MetricsLog wrote them."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def success_by_stage(summary: Mapping[str, Any]) -> str:
    """Success on held-out tasks with 95 % intervals, sampled and greedy side by side."""
    _, axes = plt.subplots(figsize=(6.0, 3.2))
    sampled = [summary[stage]["success"] for stage in STAGES]
    greedy = [summary[stage]["greedy"]["success"] for stage in STAGES]
    for offset, (label, colour, numbers) in enumerate((("sampled", "#1a7f64", sampled), ("greedy", "#9bb8ae", greedy))):
        values = [each["value"] for each in numbers]
        low = [each["value"] - each["ci95"][0] for each in numbers]
        high = [each["ci95"][1] - each["value"] for each in numbers]
        places = [place + 0.36 * (offset - 0.5) for place in range(len(STAGES))]
        axes.bar(places, values, width=0.34, color=colour, label=label, yerr=[low, high], capsize=3, ecolor="#444")
    axes.set_xticks(range(len(STAGES)), [STAGE_NAMES[stage] for stage in STAGES])
    axes.set_ylim(0, 1)
    axes.set_ylabel("success, 95 % interval")
    axes.legend(frameon=False, loc="upper left")
    return _svg(axes)


def loss(steps: Sequence[Mapping[str, Any]]) -> str:
    """SFT loss a step."""
    _, axes = plt.subplots(figsize=(6.0, 2.8))
    axes.plot([step["step"] for step in steps], [step["loss"] for step in steps], color="#1a7f64", linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("SFT step")
    axes.set_ylabel("loss, nats a token")
    return _svg(axes)


def rewards(steps: Sequence[Mapping[str, Any]]) -> str:
    """The training reward, its two parts and the fixed validation formula, a GRPO step."""
    _, axes = plt.subplots(figsize=(6.0, 2.8))
    for name, label, colour in (
        ("reward", "training reward", "#1a7f64"),
        ("validation_reward", "validation formula", "#333333"),
        ("reward_answer", "answer", "#3b82c4"),
        ("reward_process", "process", "#d9902f"),
    ):
        axes.plot([step["step"] for step in steps], [step[name] for step in steps], label=label, color=colour)
    axes.set_ylim(0, 1)
    axes.set_xlabel("GRPO step")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right")
    return _svg(axes)


def tiers(steps: Sequence[Mapping[str, Any]]) -> str:
    """Which tier answered, as a share of the calls of each GRPO step."""
    _, axes = plt.subplots(figsize=(6.0, 2.8))
    totals = [max(1, sum(step["tier_mix"].values())) for step in steps]
    present = [tier for tier in TIERS if any(step["tier_mix"].get(tier) for step in steps)] or list(TIERS)
    shares = [[step["tier_mix"].get(t, 0) / n for step, n in zip(steps, totals, strict=True)] for t in present]
    colours = [TIER_COLOURS[tier] for tier in present]
    axes.stackplot([step["step"] for step in steps], shares, labels=present, colors=colours)
    axes.set_ylim(0, 1)
    axes.set_xlabel("GRPO step")
    axes.set_ylabel("share of calls")
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(present))
    return _svg(axes)


def _svg(axes: Axes) -> str:
    """The current figure, which these axes are in, as an SVG element; the figure is closed."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.StringIO()
    plt.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    plt.close("all")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
