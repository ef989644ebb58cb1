"""`toolcache audit`: seed a fresh cache with some recorded runs, replay others against it, count what is wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from toolcache.adapters.faiss_index import FaissIndex
from toolcache.adapters.memory_store import MemoryStore
from toolcache.adapters.minilm_embedder import MiniLmEmbedder
from toolcache.adapters.recordings import Line, lines
from toolcache.adapters.tool_files import toolsets
from toolcache.commands.failure import CommandFailed
from toolcache.core.audit import Audit, TierAudit, audit
from toolcache.core.cache import ToolCache
from toolcache.core.importing import ImportReport, import_line
from toolcache.core.tools import Namespace, Tier
from toolcache.core.trajectories import Trajectory, TrajectoryInvalid, trajectory


async def audit_file(
    recordings: Path,
    tools: Path,
    domain: str | None,
    replay_models: Sequence[str],
    tiers: Sequence[Tier],
) -> Audit:
    """Run and print the audit. Raises CommandFailed, ToolFileInvalid, RecordingsUnreadable."""
    namespace = replace(_namespace(tools, domain), tiers=frozenset(tiers))
    seeds, replayed, unusable = _split(recordings, domain, set(replay_models))
    console = Console()
    cache = ToolCache(MemoryStore(), FaissIndex(), MiniLmEmbedder(), time.time)
    await cache.put_namespace(namespace)
    with Progress(console=console) as progress:
        await _seed(cache, namespace.name, seeds, progress)
        bar = progress.add_task("replaying", total=len(replayed))
        found = await audit(cache, namespace, replayed, lambda: progress.advance(bar))
    _print(console, found, len(seeds), unusable)
    return found


def _namespace(tools: Path, domain: str | None) -> Namespace:
    found = toolsets(tools)
    if domain is None and len(found) > 1:
        raise CommandFailed(f"{tools} has the domains {', '.join(sorted(found))}: choose one with --domain")
    name = domain if domain is not None and domain in found else next(iter(found))
    if domain is not None and domain not in found and "" not in found:
        raise CommandFailed(f"{tools} has no domain {domain!r} (it has: {', '.join(sorted(found))})")
    return found[name].namespace(domain or name or "audit")


def _split(recordings: Path, domain: str | None, models: set[str]) -> tuple[list[Line], list[Trajectory], int]:
    """Lines to seed with, trajectories to replay, and how many lines are no trajectory."""
    seeds: list[Line] = []
    replayed: list[Trajectory] = []
    seen: set[str] = set()
    unusable = 0
    for line in lines(recordings):
        try:
            one = trajectory(line.text)
        except TrajectoryInvalid:
            unusable += 1
            continue
        if domain is not None and one.domain != domain:
            continue
        seen.add(one.model)
        if one.model in models:
            replayed.append(one)
        else:
            seeds.append(line)
    if missing := sorted(models - seen):
        raise CommandFailed(f"{recordings} has no runs of {missing[0]!r} (models: {', '.join(sorted(seen))})")
    return seeds, replayed, unusable


async def _seed(cache: ToolCache, namespace: str, seeds: Sequence[Line], progress: Progress) -> None:
    bar = progress.add_task("seeding", total=len(seeds))
    report = ImportReport()
    for line in seeds:
        await import_line(cache, line.text, line.number, report, namespace=namespace)
        progress.advance(bar)
    learning = progress.add_task("learning")
    await cache.calibrate(namespace, lambda _, done, of: progress.update(learning, completed=done, total=of))
    progress.update(learning, completed=1, total=1)


def _print(console: Console, found: Audit, seeds: int, unusable: int) -> None:
    table = Table(title=f"{found.namespace}: {found.calls} calls of {found.rollouts} runs, seeded with {seeds} others")
    table.add_column("tool", no_wrap=True)
    table.add_column("calls", justify="right")
    for tier in _SERVING:
        table.add_column(f"{tier.value}: right", justify="right")
    for name, tool in sorted(found.tools.items()):
        table.add_row(name, str(tool.calls), *_cells(tool.tiers))
    table.add_section()
    table.add_row("all", str(found.calls), *_cells(found.tiers), style="bold")
    console.print(table)
    for tier in _SERVING:
        served = found.tiers[tier].served
        console.print(f"{tier.value}: {served} of {found.calls} calls ({served / max(1, found.calls):.1%})")
    misses = ", ".join(f"{count} {reason}" for reason, count in sorted(found.misses.items()))
    per_1000 = 1000 * found.wrong / found.calls if found.calls else 0.0
    console.print(f"wrong answers: {found.wrong} ({per_1000:.2f} per 1,000 calls)")
    console.print(f"contaminated rollouts: {found.contaminated_rollouts} of {found.rollouts}")
    console.print(f"misses: {misses or 'none'}")
    if unusable:
        console.print(f"[yellow]{unusable} lines are no trajectories and were left out[/]")


_SERVING = (Tier.EXACT, Tier.SIMILAR, Tier.APPROXIMATE)


def _cells(tiers: dict[Tier, TierAudit]) -> list[str]:
    """Answers and the share of them that was right, by tier."""
    cells: list[str] = []
    for tier in _SERVING:
        found = tiers.get(tier)
        cells.append(f"{found.served}: {found.right / found.served:.4f}" if found and found.served else "-")
    return cells
