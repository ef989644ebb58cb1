"""`make bench-rollout`: measure, print a table, write benchmarks/results/rollout.json. A quarter of an hour."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

# Before torch is loaded: on a shared machine its threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.table import Table

from benchmarks.cache import servers
from benchmarks.cache.__main__ import machine
from benchmarks.cache.scenarios import scratch
from benchmarks.rollout.lockstep import lockstep
from benchmarks.rollout.long_prompts import LongSizes, hugging_face, scripted
from benchmarks.rollout.shop import Shop, Sizes, make_shop
from benchmarks.rollout.waiting import waiting

OUT = Path("benchmarks/results/rollout.json")
ROUNDS = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Run the chosen parts; results of the others are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="A,B,...", help="waiting, long_prompts")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args(argv)
    console = Console(width=130)
    found: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.only and arguments.out.exists() else {}
    found["machine"] = machine()
    for name, measure in _parts(Sizes(), LongSizes(), arguments.rounds).items():
        if not arguments.only or name in arguments.only.split(","):
            console.print(f"measuring {name} ...")
            found[name] = measure()
            arguments.out.write_text(json.dumps(_rounded(found), indent=2) + "\n")
    console.print(table(found))


def _parts(sizes: Sizes, long: LongSizes, rounds: int) -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        "waiting": lambda: measure_waiting(make_shop(sizes), rounds),
        "long_prompts": lambda: measure_long_prompts(make_shop(sizes), long),
    }


def measure_waiting(shop: Shop, rounds: int) -> dict[str, Any]:
    """The shop's rollouts over SQLite, batched and not, in lockstep, and over Redis where there is one: round by round,
    so that a busy moment of the machine falls on all of them."""
    found: dict[str, Any] = {"sizes": asdict(shop.sizes), "rounds": []}
    for n in range(rounds):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(scratch()))
            server = stack.enter_context(servers.toolcache(str(folder / "rollout.sqlite3")))
            told = {
                "batched": asyncio.run(waiting(server, _filled(server, shop, f"batched-{n}"), batched=True)),
                "one_by_one": asyncio.run(waiting(server, _filled(server, shop, f"single-{n}"), batched=False)),
                "lockstep": asyncio.run(lockstep(server, _filled(server, shop, f"lockstep-{n}"))),
            }
            if (redis_url := stack.enter_context(servers.redis(folder))) is not None:
                other = stack.enter_context(servers.toolcache(redis_url))
                told["redis"] = asyncio.run(waiting(other, _filled(other, shop, f"redis-{n}"), batched=True))
        found["rounds"].append({"load_before": os.getloadavg()[0], **told})
    return found


def _filled(server: servers.Server, shop: Shop, namespace: str) -> Shop:
    """The shop in a fresh namespace: what an earlier run recorded is not known there."""
    fresh = replace(shop, namespace=namespace)
    fresh.fill(server.url)
    return fresh


def measure_long_prompts(shop: Shop, sizes: LongSizes) -> dict[str, Any]:
    """Callbacks of the event loop while long prompts are rendered, generated for and parsed."""
    return {
        "sizes": asdict(sizes),
        "scripted": asyncio.run(scripted(shop, sizes)),
        "hugging_face": asyncio.run(hugging_face(shop, sizes)),
    }


def table(found: dict[str, Any]) -> Table:
    """The lines that have a reach, with what was measured, the worst of the rounds."""
    made = Table(
        title=f"{found['machine']['cpu']}, {found['machine']['cores']} cores, Python {found['machine']['python']}"
    )
    for column in ("what", "measured", "reach"):
        made.add_column(column)
    for what, value, reach in [*_waiting_lines(found), *_loop_lines(found)]:
        made.add_row(what, value, reach)
    return made


def _waiting_lines(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    rounds = found.get("waiting", {}).get("rounds", [])
    lines = []
    for arm in ("batched", "one_by_one", "redis"):
        played = [each[arm] for each in rounds if arm in each]
        if played:
            shares = ", ".join(f"{each['cache_share']:.3%}" for each in played)
            lines.append((f"waiting for the cache, {played[0]['rollouts']} rollouts, {arm}", shares, "< 2 %"))
            lookups = ", ".join(f"{each['lookup_p50_ms']:.1f}/{each['lookup_p99_ms']:.1f}" for each in played)
            lines.append((f"lookup p50/p99 ms, {arm}", lookups, ""))
    for arm, reach in (("batched", "<= 1.2x"), ("lockstep", "")):
        ratios = [f"{each[arm]['step_s'] / each['batched']['longest_rollout_s']:.3f}x" for each in rounds]
        if ratios:
            lines.append((f"step time / longest rollout, {arm}", ", ".join(ratios), reach))
    return lines


def _loop_lines(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    loops = {f"{name}, long prompts": found.get("long_prompts", {}).get(name) for name in ("scripted", "hugging_face")}
    for n, each in enumerate(found.get("waiting", {}).get("rounds", [])):
        loops[f"{each['batched']['rollouts']} rollouts, round {n + 1}"] = each["batched"]
    return [
        (f"longest callback, {name}", _held(played["event_loop"]), "<= 5 ms")
        for name, played in loops.items()
        if played is not None
    ]


def _held(told: dict[str, Any]) -> str:
    collected_ms = told["garbage_collections"]["longest_ms"] or 0.0
    return (
        f"{told['longest_ms']:.1f} ms ({told['above_5_ms']} of {told['callbacks']} above 5 ms; 99.9 %: "
        f"{told['p999_ms']:.1f} ms; longest garbage collection {collected_ms:.1f} ms)"
    )


def _rounded(value: Any) -> Any:
    """With five significant digits: what is left says nothing."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
