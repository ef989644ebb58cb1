"""`cacherl report`: one page about whatever a run's folder holds, finished or not. It stands alone: no script, no
network.

Not covered: comparing runs; the rollouts themselves.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from cacherl.errors import RunMisconfigured
from cacherl.evaluate.intervals import interval
from cacherl.run.charts import TIER_COLOURS, Curve, Steps, curves, line_chart, share_chart, stack_chart
from cacherl.run.folder import ENVIRONMENT_FILE, EVALUATION_FILE, RUN_FILE
from cacherl.train.step_metrics import METRICS

REPORT_FILE = "report.html"
Figure = tuple[str, str]
"""(SVG, caption)."""


_LOGIN = re.compile(r"//[^/@\s\"]+@")
"""Name and password in an address."""


def write_report(folder: Path) -> Path:
    """Write the folder's report.html; returns where it is. Raises RunMisconfigured for a folder without a run."""
    if not (folder / RUN_FILE).exists():
        raise RunMisconfigured(f"{folder} holds no run: there is no {RUN_FILE} in it")
    stages = [(path, make) for path in _metric_files(folder) if (make := _STAGES.get(path.name))]
    page = _PAGE.substitute(
        name=html.escape(folder.name),
        evaluations=_evaluations(folder),
        stages="".join(_stage(folder, path, make) for path, make in stages),
        meanings="".join(_meaning(name) for name in METRICS),
        settings=html.escape(_LOGIN.sub("//***@", (folder / RUN_FILE).read_text(encoding="utf-8"))),
        facts=_facts(folder),
    )
    target = folder / REPORT_FILE
    target.write_text(page, encoding="utf-8")
    return target


def read_steps(path: Path) -> list[dict[str, Any]]:
    """One object a step; a last line that is being written just now is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _metric_files(folder: Path) -> list[Path]:
    """Metrics of all stages, in the order in which they ran."""
    return sorted(folder.rglob("*.jsonl"), key=lambda path: path.stat().st_mtime)


def _stage(folder: Path, path: Path, figures: Callable[[Steps], Iterator[Figure]]) -> str:
    steps = read_steps(path)
    if not steps:
        return ""
    drawn = "".join(
        f"<figure>{svg}<figcaption>{caption}</figcaption></figure>" for svg, caption in figures(steps) if svg
    )
    where = path.parent.relative_to(folder).as_posix()
    title = path.stem.upper() if path.stem != "samples" else "Rejection sampling"
    place = "" if where == "." else f" <small>{html.escape(where)}</small>"
    return f"<section><h2>{title}{place}</h2><div class=grid>{drawn}</div></section>"


def _sft_figures(steps: Steps) -> Iterator[Figure]:
    loss = curves(steps, {"loss": "loss"})
    yield line_chart(steps, loss, "nats a token", log=True), "Loss over the tokens the model is to say."
    yield line_chart(steps, curves(steps, {"tokens_per_second": "tokens/s"}), "tokens/s"), "Speed."


def _grpo_figures(steps: Steps) -> Iterator[Figure]:
    rewards = {
        "reward": "training reward",
        "validation_reward": "validation formula",
        "reward_answer": "answer",
        "reward_process": "process",
    }
    yield (
        line_chart(steps, curves(steps, rewards), "reward", unit_range=True),
        "The training reward weighs an answer by the trust in the tool results it rests on; the validation formula "
        "never changes.",
    )
    yield (
        line_chart(steps, _reward_by_tier(steps), "reward", unit_range=True),
        "Training reward by the least trustworthy tier a rollout was served. A policy that is paid for steering to "
        "cheap tiers shows here.",
    )
    yield share_chart(steps, "tier_mix", "share of calls", TIER_COLOURS), "Who answered the calls."
    yield (
        line_chart(steps, curves(steps, {"trust": "trust"}), "trust", unit_range=True),
        "Mean trust of the answers; a miss counts 0.",
    )
    phases = {"rollout_seconds": "rollouts", "update_seconds": "update", "follow_seconds": "weights to the engine"}
    yield stack_chart(steps, phases, "seconds a step"), "Where a step's time goes."
    waits = {"generate_seconds_sum": "generating", "tool_seconds_sum": "waiting for tools"}
    yield stack_chart(steps, waits, "seconds, all rollouts"), "The rollouts' time, summed; they run side by side."
    saved = {"saved_seconds_sum": "saved by served results", "tool_seconds_sum": "spent waiting"}
    yield line_chart(steps, curves(steps, saved), "seconds"), "What the served results took when executed live."
    waiting = {"engine_idle_share": "engine without a request", "cache_seconds_share": "rollouts asking the cache"}
    yield line_chart(steps, curves(steps, waiting), "share of time", unit_range=True), "Time nobody gains from."
    latency = {"tool_seconds_p50": "median", "tool_seconds_p99": "99th percentile"}
    yield line_chart(steps, curves(steps, latency), "seconds", log=True), "Wait of a rollout for one answer."
    yield line_chart(steps, curves(steps, {"tokens_per_second": ""}), "tokens/s"), "Sampled tokens a second."
    yield share_chart(steps, "stops", "share of rollouts"), "Why rollouts ended."
    yield share_chart(steps, "call_statuses", "share of calls"), "How calls parsed."
    teaching = {
        "zero_variance_groups": "of equal reward",
        "groups_replaced": "replaced",
    }
    yield line_chart(steps, curves(steps, teaching), "groups"), "Groups that teach nothing, and those replaced."
    yield line_chart(steps, curves(steps, {"entropy": ""}), "nats"), "Entropy of the policy at the trained tokens."
    drift = {"mismatch_k3": "engine against trainer", "kl": "from the starting weights"}
    yield line_chart(steps, curves(steps, drift), "nats", log=True), "Divergence."
    yield line_chart(steps, curves(steps, {"grad_norm": ""}), "norm"), "Gradient before clipping."


def _sample_figures(steps: Steps) -> Iterator[Figure]:
    kept = {"rollouts": "played", "kept": "kept"}
    yield line_chart(steps, curves(steps, kept), "rollouts"), "Rollouts of each part, by the tasks done with it."
    yield share_chart(steps, "left_out", "share of those left out"), "Why rollouts were not kept."


_STAGES: Mapping[str, Callable[[Steps], Iterator[Figure]]] = {
    "sft.jsonl": _sft_figures,
    "grpo.jsonl": _grpo_figures,
    "samples.jsonl": _sample_figures,
}
"""File of a stage's metrics to what is drawn of it."""


def _reward_by_tier(steps: Steps) -> list[Curve]:
    by_tier = [step.get("reward_by_worst_tier") or {} for step in steps]
    tiers = [tier for tier in TIER_COLOURS if any(tier in each for each in by_tier)]
    return [
        Curve(
            label="no call answered" if tier == "none" else tier,
            values=[each[tier]["mean"] if tier in each else None for each in by_tier],
            colour=TIER_COLOURS[tier],
        )
        for tier in tiers
    ]


def _evaluations(folder: Path) -> str:
    """A table of every evaluation below the folder, in the order in which they were made."""
    paths = sorted(folder.rglob(EVALUATION_FILE), key=lambda path: path.stat().st_mtime)
    found = [(path.parent.relative_to(folder).as_posix(), json.loads(path.read_text("utf-8"))) for path in paths]
    if not found:
        return ""
    rows = "".join(_evaluation_row(where, numbers) for where, numbers in found)
    meanings = "".join(f"<p class=note>{tools}: {html.escape(text)}.</p>" for tools, text in sorted(_meanings(found)))
    return (
        "<section><h2>Held-out tasks</h2><table><tr><th>model</th><th>tools</th><th>success</th>"
        "<th>process accuracy</th><th>call precision</th><th>validation reward</th><th>rollouts</th></tr>"
        f"{rows}</table><p class=note>In brackets: 95 % intervals. What success means:</p>{meanings}</section>"
    )


def _meanings(found: Sequence[tuple[str, Mapping[str, Any]]]) -> set[tuple[str, str]]:
    return {(numbers["tools"], numbers["success_means"]) for _, numbers in found}


def _evaluation_row(where: str, numbers: Mapping[str, Any]) -> str:
    names = ("success", "process_accuracy", "call_precision", "validation_reward")
    cells = "".join(f"<td>{interval(numbers[name])}</td>" for name in names)
    model = where.removesuffix("/eval") if where != "." else numbers["model"]
    return (
        f"<tr><th>{html.escape(model)}</th><td>{html.escape(numbers['tools'])}</td>{cells}"
        f"<td>{numbers['rollouts']}</td></tr>"
    )


def _meaning(name: str) -> str:
    metric = METRICS[name]
    return f"<tr><th>{name}</th><td>{html.escape(metric.unit)}</td><td>{html.escape(metric.meaning)}</td></tr>"


def _facts(folder: Path) -> str:
    """What the run was computed with, the last time it was started."""
    path = folder / ENVIRONMENT_FILE
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if not starts:
        return ""
    last = dict(starts[-1])
    packages = ", ".join(f"{name} {version}" for name, version in last.pop("packages").items())
    facts = {**last, "packages": packages, "starts": len(starts)}
    return "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items())


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$name</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h2 small { color: #57606a; font-weight: 400; margin-left: .5rem; }
.note { color: #57606a; font-size: .9rem; max-width: 48rem; margin: .3rem 0; }
table { border-collapse: collapse; font-size: .92rem; } tr { border-bottom: 1px solid #e4e7eb; }
th, td { text-align: left; padding: .3rem 1.2rem .3rem 0; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1.5rem 2rem; }
.grid svg { width: 100%; height: auto; }
figure { margin: 0; } figcaption { color: #57606a; font-size: .9rem; }
summary { cursor: pointer; font-weight: 600; margin-top: 1.5rem; }
pre { font-size: .85rem; white-space: pre-wrap; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; }
</style></head><body>
<h1>$name</h1>
$evaluations
$stages
<section><h2>About this run</h2><dl>$facts</dl>
<details><summary>What the numbers of a GRPO step mean</summary><table>$meanings</table></details>
<details><summary>Settings</summary><pre>$settings</pre></details></section>
</body></html>
""")
