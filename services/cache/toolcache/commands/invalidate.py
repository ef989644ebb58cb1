"""`toolcache invalidate`: remove entries, so that their calls are executed anew."""

from __future__ import annotations

from rich.console import Console

from toolcache.commands.failure import CommandFailed
from toolcache.commands.reach import cache, where
from toolcache.settings import Settings


async def invalidate(
    settings: Settings,
    namespace: str,
    *,
    tool: str | None,
    tag: str | None,
    environment: str | None,
    older_than_s: float | None,
    everything: bool,
) -> None:
    """Remove the entries for which all that is given holds, and print how many there were.

    Raises CommandFailed where nothing is given; CacheError, StoreUnavailable.
    """
    has_filter = any(each is not None for each in (tool, tag, environment, older_than_s))
    if has_filter is everything:
        raise CommandFailed("say which entries (--tool, --tag, --environment, --older-than), or --all; not both")
    async with cache(settings) as client:
        removed = await client.remove(
            namespace, tool=tool, tag=tag, environment=environment, older_than_s=older_than_s, everything=everything
        )
    Console(soft_wrap=True).print(f"{removed} entries removed from {namespace} in {where(settings)}")
