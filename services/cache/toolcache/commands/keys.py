"""`toolcache keys`: make, list and revoke API keys."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from toolcache.commands.failure import CommandFailed
from toolcache.commands.reach import cache, where
from toolcache.settings import Settings
from toolcache_client.messages import ApiRole


async def create(settings: Settings, name: str, role: ApiRole, namespaces: list[str]) -> None:
    """Print the key alone on standard output, so that a script can take it.

    Raises CommandFailed where no service can know the key; CacheError, StoreUnavailable.
    """
    _check(settings)
    async with cache(settings) as client:
        key = await client.make_api_key(name, role, namespaces)
    places = ", ".join(key.namespaces)
    made = f"key {key.id} of {key.name}: {key.role} in {places}, made in {where(settings)}"
    sys.stderr.write(f"{made}. Keep it now, it is never shown again:\n")
    print(key.secret)  # noqa: T201 - the command's output


def _check(settings: Settings) -> None:
    if not (settings.url or settings.store_is_redis or Path(settings.store).exists()):
        raise CommandFailed(
            f"there is no store {settings.store_name} yet, so no service would know the key; "
            "name the service with --url, or the store it uses with --store"
        )


async def show(settings: Settings) -> None:
    """Print a table. Raises CacheError, StoreUnavailable."""
    async with cache(settings) as client:
        keys = await client.api_keys()
    console = Console(soft_wrap=not keys)
    if not keys:
        console.print(f"{where(settings)} has no keys yet; make one with `toolcache keys create`")
        return
    table = Table("id", "name", "role", "namespaces", "made (UTC)")
    for key in keys:
        made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(key.created_at_s))
        table.add_row(key.id, key.name, key.role, ", ".join(key.namespaces), made)
    console.print(table, markup=False)


async def revoke(settings: Settings, key_id: str) -> None:
    """Raises CacheRefused if there is no such key; CacheError, StoreUnavailable."""
    async with cache(settings) as client:
        await client.delete_api_key(key_id)
    Console(soft_wrap=True).print(f"key {key_id} is revoked")
