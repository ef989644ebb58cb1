"""`toolcache import`: recorded trajectories, or an export, into the cache; then learn from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from toolcache.adapters.recordings import Line, RecordingsUnreadable, lines, size_bytes
from toolcache.adapters.tool_files import Toolset, beside
from toolcache.commands.failure import CommandFailed
from toolcache.commands.namespaces import chosen, put_tools
from toolcache.commands.reach import cache, where
from toolcache.core.exporting import ExportedNamespace, NoExport, is_export, read_line
from toolcache.settings import Settings
from toolcache_client import AsyncCacheClient
from toolcache_client.messages import ImportReport

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
    toolsets: dict[str, Toolset] = {}
    if (exported := _exported_name(recordings)) is not None:
        namespace = namespace or exported  # its first line brings the tools and their policy
    else:
        toolsets = chosen(tools or beside(recordings), namespace, domain)
    console = Console()
    total = _Total()
    async with cache(settings) as client:
        for name, toolset in toolsets.items():
            await put_tools(client, name, toolset, console)
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


def _exported_name(recordings: Path) -> str | None:
    """The namespace of an export, which its first line names; None for anything else. Raises CommandFailed."""
    first = next(lines(recordings), None)
    if first is None or not is_export(first.text):
        return None
    try:
        read = read_line(first.text)
    except NoExport as error:
        raise CommandFailed(f"{recordings}: {error}") from error
    return read.namespace.name if isinstance(read, ExportedNamespace) else None


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
    waiting_bytes = 0
    damaged: RecordingsUnreadable | None = None
    while True:
        try:
            line = next(reading, None)
        except RecordingsUnreadable as error:
            line, damaged = None, error
        if line is not None:
            piece.append(line)
            waiting_bytes += len(line.text)
        if piece and (line is None or waiting_bytes >= PIECE_BYTES):
            total.add(await client.import_lines([each.text for each in piece], namespace=namespace), piece)
            progress(piece[-1].read_bytes)
            piece, waiting_bytes = [], 0
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
