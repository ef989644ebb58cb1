"""`toolcache audit`: seed a fresh cache with some recorded runs, replay others against it, count what is wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from toolcache.adapters.batching_embedder import BatchingEmbedder
from toolcache.adapters.faiss_index import FaissIndex
from toolcache.adapters.memory_leases import MemoryLeases
from toolcache.adapters.memory_store import MemoryStore
from toolcache.adapters.minilm_embedder import best_encoder
from toolcache.adapters.recordings import Line, lines
from toolcache.adapters.tool_files import toolsets
from toolcache.commands.failure import CommandFailed
from toolcache.core.audit import BINS, Answers, Audit, audit, is_held_out
from toolcache.core.cache import ToolCache
from toolcache.core.importing import ImportReport, import_line
from toolcache.core.ports import Embedder
from toolcache.core.tools import Mask, Namespace, NamespaceInvalid, Tier
from toolcache.core.trajectories import Trajectory, TrajectoryInvalid, trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """An audit of a file, and what it says about masks."""

    found: Audit
    proposed_masks: tuple[str, ...]
    """Masks that the seeding runs speak for, as `--mask` takes them."""
    masks: tuple[str, ...] = ()
    without_masks: Audit | None = None
    """The same audit without `masks`; None where none were given."""

    def as_json(self) -> dict[str, Any]:
        """The document that `toolcache audit --json` writes."""
        document = self.found.as_json() | {"proposed_masks": list(self.proposed_masks)}
        if self.without_masks is not None:
            document |= {"masks": list(self.masks), "without_masks": self.without_masks.as_json()}
        return document


async def audit_file(
    recordings: Path,
    tools: Path,
    domain: str | None,
    replay_models: Sequence[str],
    tiers: Sequence[Tier],
    *,
    replay_share: float = 0.0,
    masks: Sequence[str] = (),
    embedder_dir: Path | None = None,
) -> Audited:
    """Run and print the audit. Raises CommandFailed, ToolFileInvalid, RecordingsUnreadable.

    Replayed are the runs of `replay_models`; or, where none are named, `replay_share` of all runs, chosen by a hash of
    their names. `masks` (TOOL.ARGUMENT or TOOL.ARGUMENT=PATTERN) are tried against the policy without them.
    """
    namespace = replace(_namespace(tools, domain), tiers=frozenset(tiers))
    masked = _with_masks(namespace, masks)
    seeds, replayed, unusable = _split(recordings, domain, _chooser(replay_models, replay_share), set(replay_models))
    console = Console()
    embedder = BatchingEmbedder(best_encoder(embedder_dir))
    with Progress(console=console) as progress:
        without, proposed = await _audited(namespace, embedder, seeds, replayed, progress)
        found = (await _audited(masked, embedder, seeds, replayed, progress))[0] if masks else without
    audited = Audited(
        found=found, proposed_masks=proposed, masks=tuple(masks), without_masks=without if masks else None
    )
    _print(console, audited, len(seeds), unusable)
    return audited


async def _audited(
    namespace: Namespace,
    embedder: Embedder,
    seeds: Sequence[Line],
    replayed: Sequence[Trajectory],
    progress: Progress,
) -> tuple[Audit, tuple[str, ...]]:
    """The audit over a fresh cache, and the masks its seeds speak for."""
    # Chance draws samples of stochastic tools; the same ones in every audit.
    chance = random.Random(0).random
    leases = MemoryLeases(time.monotonic)
    cache = ToolCache(MemoryStore(), leases, FaissIndex(), embedder, clock=time.time, chance=chance)
    await cache.put_namespace(namespace)
    await _seed(cache, namespace.name, seeds, progress)
    bar = progress.add_task("replaying", total=len(replayed))
    found = await audit(cache, namespace, replayed, lambda: progress.advance(bar))
    report = await cache.report(namespace.name)
    return found, tuple(_text(own.tool.name, mask) for own in report.tools for mask in own.profile.proposed_masks)


def _text(tool: str, mask: Mask) -> str:
    return f"{tool}.{mask.argument}={mask.pattern}" if mask.pattern else f"{tool}.{mask.argument}"


def _namespace(tools: Path, domain: str | None) -> Namespace:
    found = toolsets(tools)
    if domain is None and len(found) > 1:
        raise CommandFailed(f"{tools} has the domains {', '.join(sorted(found))}: choose one with --domain")
    name = domain if domain is not None and domain in found else next(iter(found))
    if domain is not None and domain not in found and "" not in found:
        raise CommandFailed(f"{tools} has no domain {domain!r} (it has: {', '.join(sorted(found))})")
    return found[name].namespace(domain or name or "audit")


def _with_masks(namespace: Namespace, texts: Sequence[str]) -> Namespace:
    """The namespace with these masks beside those its tools have."""
    tools = dict(namespace.tools)
    for text in texts:
        place, _, pattern = text.partition("=")
        name, _, argument = place.rpartition(".")
        tool = tools.get(name)
        if tool is None or argument not in tool.properties:
            raise CommandFailed(
                f"--mask {text}: no tool {name!r} with an argument {argument!r}; TOOL.ARGUMENT[=PATTERN]"
            )
        try:
            tools[name] = replace(tool, masks=(*tool.masks, Mask(argument=argument, pattern=pattern)))
        except NamespaceInvalid as error:
            raise CommandFailed(f"--mask {text}: {error}") from error
    return replace(namespace, tools=tools)


def _chooser(models: Sequence[str], share: float) -> Callable[[Trajectory, Line], bool]:
    """Whether a run is replayed. A run without a name goes by the number of its line."""
    if models:
        chosen = frozenset(models)
        return lambda one, line: one.model in chosen
    if not 0.0 < share < 1.0:
        raise CommandFailed("nothing to replay: name models with --replay-models, or give a share in 0..1")
    return lambda one, line: is_held_out(one.uid or str(line.number), share)


def _split(
    recordings: Path, domain: str | None, is_replayed: Callable[[Trajectory, Line], bool], models: set[str]
) -> tuple[list[Line], list[Trajectory], int]:
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
        if is_replayed(one, line):
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


# -- what is printed ---------------------------------------------------------------------------------------------------


def _print(console: Console, audited: Audited, seeds: int, unusable: int) -> None:
    found = audited.found
    tiers = [tier for tier, answers in found.tiers.items() if answers.served]
    console.print(_by_tool(found, tiers, f"{found.calls} calls of {found.rollouts} runs, seeded with {seeds} others"))
    console.print(_by_trust(found))
    if audited.without_masks is not None:
        console.print(_by_mask(audited.without_masks, found))
    _print_sums(console, found)
    if audited.proposed_masks:
        console.print("masks the seeding runs speak for (try them with --mask, confirm them in the tool's policy):")
        for text in audited.proposed_masks:
            console.print(f"  {text}", markup=False, highlight=False)
    if unusable:
        console.print(f"[yellow]{unusable} lines are no trajectories and were left out[/]")


def _print_sums(console: Console, found: Audit) -> None:
    for tier, answers in found.tiers.items():
        console.print(
            f"{tier.value}: {answers.served} of {found.calls} calls ({answers.served / max(1, found.calls):.1%})"
        )
    misses = ", ".join(f"{count} {reason}" for reason, count in sorted(found.misses.items()))
    per_1000 = 1000 * found.wrong / found.calls if found.calls else 0.0
    console.print(f"wrong answers: {found.wrong} ({per_1000:.2f} per 1,000 calls)")
    console.print(f"contaminated rollouts: {found.contaminated_rollouts} of {found.rollouts}")
    if found.sampled:
        console.print(f"samples of stochastic tools: {found.sampled}, neither right nor wrong")
    console.print(f"misses: {misses or 'none'}")
    error = found.calibration_error
    console.print(f"expected calibration error: {'-' if error is None else f'{error:.4f}'}")


def _by_tool(found: Audit, tiers: Sequence[Tier], caption: str) -> Table:
    table = Table(title=f"{found.namespace}: {caption}")
    table.add_column("tool", overflow="fold")
    table.add_column("calls", justify="right")
    for tier in tiers:
        table.add_column(f"{tier.value}, right", justify="right", no_wrap=True)
    for name, tool in sorted(found.tools.items()):
        table.add_row(name, str(tool.calls), *_cells([tool.tiers.get(tier, Answers()) for tier in tiers]))
    table.add_section()
    table.add_row("all", str(found.calls), *_cells([found.tiers[tier] for tier in tiers]), style="bold")
    return table


def _cells(tiers: Sequence[Answers]) -> list[str]:
    """Answers and the share of them that was right, by tier."""
    return [f"{each.served}  {_share(each.precision)}" if each.served else "-" for each in tiers]


def _by_trust(found: Audit) -> Table:
    table = Table(title="stated trust against what was right")
    for name in ("trust", "answers", "mean trust", "right"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, answers in enumerate(found.bins):
        if answers.served:
            edges = f"{i / BINS:.1f} to {(i + 1) / BINS:.1f}"
            table.add_row(edges, str(answers.served), _share(answers.mean_trust), _share(answers.precision))
    return table


def _by_mask(without: Audit, found: Audit) -> Table:
    table = Table(title="without the masks and with them")
    table.add_column("tool", overflow="fold")
    for name in ("answered", "exact", "wrong"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, after in sorted(found.tools.items()):
        before = without.tools[name]
        exact = [tool.tiers.get(Tier.EXACT, Answers()).served for tool in (before, after)]
        if (before.served, before.wrong, exact[0]) != (after.served, after.wrong, exact[1]):
            table.add_row(
                name,
                f"{before.served} -> {after.served}",
                f"{exact[0]} -> {exact[1]}",
                f"{before.wrong} -> {after.wrong}",
            )
    exact = [each.tiers[Tier.EXACT].served for each in (without, found)]
    table.add_section()
    table.add_row(
        "all",
        f"{without.served} -> {found.served}",
        f"{exact[0]} -> {exact[1]}",
        f"{without.wrong} -> {found.wrong}",
        style="bold",
    )
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
