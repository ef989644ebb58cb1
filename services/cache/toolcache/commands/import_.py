"""`toolcache import`: recorded trajectories into the cache, then learn from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from toolcache.adapters.recordings import Line, RecordingsUnreadable, lines, size_bytes
from toolcache.adapters.tool_files import Toolset, beside, toolsets
from toolcache.commands.failure import CommandFailed
from toolcache.commands.reach import cache, where
from toolcache.http import wire as translate
from toolcache.settings import Settings
from toolcache_client import AsyncCacheClient
from toolcache_client.messages import ImportReport, NamespaceSpec

PIECE_BYTES = 2 * 2**20
"""Bytes of recordings sent in one request: enough to share commits, small enough for the bar to move."""


@dataclass(slots=True)
class _Total:
    trajectories: int = 0
    calls: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    rejects: list[str] = field(default_factory=list)
    namespaces: set[str] = field(default_factory=set)

    def add(self, report: ImportReport, piece: list[Line]) -> None:
        self.trajectories += report.trajectories
        self.calls += report.calls
        self.outcomes.update(report.outcomes)
        self.rejected.update(report.rejected)
        self.namespaces.update(report.namespaces)
        for each in report.rejects:
            self.rejects.append(f"line {piece[each.line - 1].number}: {each.reason}: {each.detail}")


async def import_(
    settings: Settings, recordings: Path, tools: Path | None, namespace: str | None, domain: str | None
) -> None:
    """Import a file. Raises CommandFailed, ToolFileInvalid, RecordingsUnreadable, CacheError, StoreUnavailable."""
    size = size_bytes(recordings)
    chosen = _chosen(tools or beside(recordings), namespace, domain)
    console = Console()
    total = _Total()
    async with cache(settings) as client:
        for name, toolset in chosen.items():
            await _put(client, name, toolset, console)
        with _progress(console) as progress:
            bar = progress.add_task("importing", total=size)
            wanted = (line for line in lines(recordings) if domain is None or _is_of(line, domain))
            damaged = await _send_all(client, wanted, namespace, total, lambda n: progress.update(bar, completed=n))
            learning = progress.add_task("learning", total=len(total.namespaces))
            for name in sorted(total.namespaces):
                await client.calibrate(name)
                progress.advance(learning)
    _print(console, total, settings)
    if damaged is not None:
        raise CommandFailed(f"{damaged}; what came before is stored")


def _chosen(path: Path, namespace: str | None, domain: str | None) -> dict[str, Toolset]:
    """Toolsets by the namespace they are for."""
    found = toolsets(path)
    if domain is not None:
        if domain not in found:
            raise CommandFailed(f"{path} has no domain {domain!r} (it has: {', '.join(sorted(found))})")
        found = {domain: found[domain]}
    if namespace is not None:
        if len(found) > 1:
            raise CommandFailed(f"{path} has the domains {', '.join(sorted(found))}: choose one with --domain")
        return dict.fromkeys([namespace], next(iter(found.values())))
    if "" in found:
        raise CommandFailed(f"{path} holds one toolset without a name: name it with --namespace")
    return found


async def _put(client: AsyncCacheClient, name: str, toolset: Toolset, console: Console) -> None:
    """Create the namespace, or bring its tools up to date; a policy that stands there already is kept."""
    spec = translate.spec(toolset.namespace(name))
    if name in await client.namespaces():
        old = await client.namespace(name)
        spec = NamespaceSpec(tools=spec.tools, tiers=old.tiers, similar_threshold=old.similar_threshold)
    await client.put_namespace(name, spec)
    if toolset.unannotated:
        console.print(
            f"[yellow]{name}: no effect given for {', '.join(toolset.unannotated)}; taken for writes. "
            "That costs hits: add `effect` to the tools, or `write_tools` to the file.[/]"
        )


class _Domain(msgspec.Struct):
    """Of a recorded trajectory only this."""

    domain: str | None = None


_domain = msgspec.json.Decoder(_Domain)


def _is_of(line: Line, domain: str) -> bool:
    """Whether the line is to be sent: what cannot be read is, so that the service tells and counts it."""
    try:
        return _domain.decode(line.text).domain in (None, domain)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return True


async def _send_all(
    client: AsyncCacheClient,
    reading: Iterator[Line],
    namespace: str | None,
    total: _Total,
    progress: Callable[[int], None],
) -> RecordingsUnreadable | None:
    """Send the lines piece by piece. A damaged file ends it early: returned, after what could be read was sent."""
    piece: list[Line] = []
    damaged: RecordingsUnreadable | None = None
    while True:
        try:
            line = next(reading, None)
        except RecordingsUnreadable as error:
            line, damaged = None, error
        if line is not None:
            piece.append(line)
        if piece and (line is None or sum(len(each.text) for each in piece) >= PIECE_BYTES):
            total.add(await client.import_lines([each.text for each in piece], namespace=namespace), piece)
            progress(piece[-1].read_bytes)
            piece = []
        if line is None:
            return damaged


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), console=console
    )


def _print(console: Console, total: _Total, settings: Settings) -> None:
    stored = ", ".join(f"{count} {outcome}" for outcome, count in sorted(total.outcomes.items())) or "none stored"
    console.print(f"{total.trajectories} trajectories, {total.calls} calls into {where(settings)}: {stored}")
    for reason, count in sorted(total.rejected.items()):
        console.print(f"[yellow]refused: {count} {reason}[/]")
    for reject in total.rejects[:10]:
        console.print(f"  {reject}", markup=False, highlight=False)
