"""Reach a cache: a running service by its URL, or a store through the same endpoints in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from toolcache.settings import Settings, without_login
from toolcache_client import AsyncCacheClient


@asynccontextmanager
async def cache(settings: Settings) -> AsyncIterator[AsyncCacheClient]:
    """A client of the service at `settings.url`, or of the store where no URL is set. Raises StoreUnavailable.

    Who can open the store needs no key to it.
    """
    if settings.url:
        async with AsyncCacheClient(settings.url, api_key=settings.api_key) as client:
            yield client
        return
    from toolcache.commands.in_process import InProcess
    from toolcache.commands.serve import opened

    app = await opened(settings, asks_for_keys=False)
    async with (
        app.router.lifespan_context(app),
        AsyncCacheClient("http://local-store", api_key="", transport=InProcess(app)) as client,
    ):
        yield client


def where(settings: Settings) -> str:
    """For people: which cache that is."""
    return without_login(settings.url) or settings.store_name
