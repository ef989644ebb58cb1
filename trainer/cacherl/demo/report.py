"""What a demo run found: a table in the terminal and a page that stands alone (no script, no network)."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from rich.console import Console
from rich.table import Table

from cacherl.demo import curves
from cacherl.demo.curves import STAGE_NAMES, STAGES


def print_table(console: Console, summary: Mapping[str, Any]) -> None:
    """The numbers of the run, for the terminal."""
    table = Table(title="held-out tasks, live tools, cache off (95 % intervals)", title_justify="left")
    for column in ("stage", "process accuracy", "success, sampled", "success, greedy"):
        table.add_column(column)
    for stage in STAGES:
        found = summary[stage]
        numbers = (found["process_accuracy"], found["success"], found["greedy"]["success"])
        table.add_row(STAGE_NAMES[stage], *map(_interval, numbers))
    console.print(table)
    mix = ", ".join(f"{tier} {each['share']:.1%}" for tier, each in summary["tier_mix"].items() if each["calls"])
    console.print(f"GRPO's tool calls: {mix}")
    console.print(
        f"live calls during GRPO: {summary['live_calls_during_grpo']}; "
        f"avoided: {summary['live_calls_avoided']}; wall time: {summary['wall_s']:.0f} s"
    )


def write_report(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write report.html from the summary and the metrics in the folder."""
    grpo = curves.read_metrics(folder / "grpo.jsonl")
    page = _PAGE.substitute(
        headline=_headline(summary),
        rows="".join(map(_row, ((stage, summary[stage]) for stage in STAGES))),
        success=curves.success_by_stage(summary),
        loss=curves.loss(curves.read_metrics(folder / "sft.jsonl")),
        rewards=curves.rewards(grpo),
        tiers=curves.tiers(grpo),
        mix="".join(_mix_row(tier, each) for tier, each in summary["tier_mix"].items()),
        rollouts="".join(map(_rollout, summary["shown"])),
        facts=_facts(summary),
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def _interval(number: Mapping[str, Any]) -> str:
    low, high = number["ci95"]
    return f"{number['value']:.1%} ({low:.1%} to {high:.1%})"


def _headline(summary: Mapping[str, Any]) -> str:
    sft, grpo = summary["sft"]["success"], summary["grpo"]["success"]
    live = summary["live_calls_during_grpo"]
    calls = "without a single live tool call" if live == 0 else f"with {live} live tool calls"
    return (
        f"Success at desks it never saw went from {sft['value']:.0%} after SFT to {grpo['value']:.0%} after GRPO, "
        f"{calls}: {summary['live_calls_avoided']:,} calls were answered from recordings."
    )


def _row(stage: tuple[str, Mapping[str, Any]]) -> str:
    name, found = stage
    cells = (found["process_accuracy"], found["success"], found["greedy"]["success"])
    values = "".join(f"<td>{_interval(cell)}</td>" for cell in cells)
    return f"<tr><th>{STAGE_NAMES[name]}</th>{values}<td>{found['success']['n']}</td></tr>"


def _mix_row(tier: str, each: Mapping[str, Any]) -> str:
    name = f'<span class="tier {tier}">{tier}</span>'
    return f"<tr><th>{name}</th><td>{each['calls']:,}</td><td>{each['share']:.1%}</td></tr>"


def _rollout(shown: Mapping[str, Any]) -> str:
    calls = "".join(map(_call, shown["calls"]))
    return (
        f"<section class=rollout><h3>{html.escape(shown['prompt'])}</h3><ol>{calls}</ol>"
        f"<p>answer: <b>{html.escape(shown['answer'] or '-')}</b> · answer reward {shown['answer_reward']:.2f}"
        f" · {html.escape(shown['stop'])}</p></section>"
    )


def _call(call: Mapping[str, Any]) -> str:
    tier = call["tier"]
    badge = (
        f'<span class="tier {tier}">{tier} {call["trust"]:.2f}</span>' if tier else '<span class="tier">unusable</span>'
    )
    arguments = "" if call["arguments"] is None else json.dumps(call["arguments"], ensure_ascii=False)
    words = f"{html.escape(call['name'])} {html.escape(arguments)}"
    return f"<li>{badge} <code>{words}</code><pre>{html.escape(call['result'])}</pre></li>"


def _facts(summary: Mapping[str, Any]) -> str:
    recordings, machine = summary["recordings"], summary["machine"]
    phases = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in summary["seconds"].items())
    facts = {
        "recordings": f"{recordings['trajectories']:,} runs, {recordings['successful']:,} of them right; "
        f"{recordings['entries']:,} entries in the cache",
        "wall time": f"{summary['wall_s']:.0f} s ({phases})",
        "machine": ", ".join(f"{name} {value}" for name, value in machine.items()),
        "seed": str(summary["seed"]),
    }
    return "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>CacheRL demo run</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
.lead { font-size: 1.1rem; max-width: 48rem; } .note { color: #57606a; font-size: .9rem; max-width: 48rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .3rem 1.2rem .3rem 0; }
tr { border-bottom: 1px solid #e4e7eb; } th { font-weight: 600; } td { font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 1.5rem 2rem; }
.grid svg { width: 100%; height: auto; }
figure { margin: 0; } figcaption { color: #57606a; font-size: .9rem; }
.tier { border-radius: .3rem; color: #fff; padding: 0 .4rem; font-size: .8rem; white-space: nowrap; }
.tier { background: #6b7280; }
.exact { background: #1a7f64; } .similar { background: #3b82c4; } .approximate { background: #b5731c; }
.miss { background: #b8433f; }
.rollout { border: 1px solid #e4e7eb; border-radius: .5rem; padding: .8rem 1rem; }
.rollout ol { padding-left: 1.2rem; margin: 0; } .rollout p { margin: .5rem 0 0; }
code { font-size: .85rem; overflow-wrap: anywhere; }
pre { margin: .2rem 0 .5rem; color: #57606a; font-size: .85rem; white-space: pre-wrap; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; }
</style></head><body>
<h1>CacheRL demo run</h1>
<p class="lead">$headline</p>
<h2>Held-out tasks, live tools, cache off</h2>
<table><tr><th>stage</th><th>process accuracy</th><th>success, sampled</th><th>success, greedy</th><th>tasks</th></tr>
$rows</table>
<p class="note">Process accuracy is the share of a task's milestones that the calls met in order. Success is the
world's word: its final state is the true one and the answer says what is true. In brackets: 95 % intervals
(bootstrap for the mean, of no width where all values are equal; Wilson for the share).
Process accuracy is of the sampled rollouts.</p>
<div class="grid">
<figure>$success<figcaption>GRPO trains what sampling does; greedy shows what the weights hold.</figcaption></figure>
<figure>$loss<figcaption>SFT imitates recordings of mixed quality.</figcaption></figure>
<figure>$rewards<figcaption>The training reward weighs an answer by the trust in the tool results it rests on; the
validation formula never changes.</figcaption></figure>
<figure>$tiers<figcaption>Who answered the calls of each GRPO step. A miss is told to the model as an error, nothing
is guessed.</figcaption></figure>
</div>
<h2>Tool calls during GRPO</h2>
<table><tr><th>tier</th><th>calls</th><th>share</th></tr>$mix</table>
<h2>Rollouts of the last GRPO step</h2>
<p class="note">Each call with the tier that answered it and the trust of the answer.</p>
<div class="grid">$rollouts</div>
<h2>About this run</h2>
<dl>$facts</dl>
</body></html>
""")
