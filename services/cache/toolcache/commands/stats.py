"""`toolcache stats`: what each namespace holds, and how far each of its tools can be trusted."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table

from toolcache.commands.reach import cache, where
from toolcache.settings import Settings
from toolcache_client.messages import Stats


async def stats(settings: Settings, namespace: str | None, *, as_json: bool) -> None:
    """Print a table a namespace, or one JSON list. Raises CacheError, StoreUnavailable."""
    async with cache(settings) as client:
        names = [namespace] if namespace else await client.namespaces()
        found = [await client.stats(name) for name in names]
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())  # noqa: T201 - the command's output
        return
    console = Console()
    if not found:
        console.print(f"{where(settings)} has no namespaces yet; fill it with `toolcache import`")
    for each in found:
        console.print(_table(each))


def _table(stats: Stats) -> Table:
    answered = ", ".join(f"{count} {tier}" for tier, count in stats.answers.items() if count) or "none yet"
    table = Table(
        title=f"{stats.namespace}: {stats.entries} entries from {stats.environments} environments, "
        f"{_size(stats.size_bytes)}; answers: {answered}",
        title_justify="left",
    )
    table.add_column("tool", no_wrap=True)
    table.add_column("effect")
    table.add_column("entries", justify="right")
    table.add_column("conflicts", justify="right")
    table.add_column("trust by kind of answer")
    for tool in stats.tools:
        trusts = ", ".join(f"{kind} {trust:.3f}" for kind, trust in tool.trust.items())
        table.add_row(tool.name, tool.effect, str(tool.entries), str(tool.conflicts), trusts)
    return table


def _size(size_bytes: int) -> str:
    """
    >>> _size(512), _size(2_600_000)
    ('1 KB', '2.6 MB')
    """
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{max(1, round(size_bytes / 1e3))} KB"
