"""Reach a cache: a running service by its URL, or a store's file through the same endpoints in this process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from toolcache.adapters.sqlite_store import SqliteStore
from toolcache.settings import Settings
from toolcache_client import AsyncCacheClient


def service(settings: Settings) -> FastAPI:
    """The service over the settings' store. Raises StoreUnavailable."""
    from toolcache.adapters.faiss_index import FaissIndex
    from toolcache.adapters.minilm_embedder import MiniLmEmbedder
    from toolcache.core.cache import ToolCache
    from toolcache.http.app import create_app

    store = SqliteStore.open(settings.store)
    return create_app(ToolCache(store, FaissIndex(), MiniLmEmbedder(), time.time), store, settings.limits)


@asynccontextmanager
async def cache(settings: Settings) -> AsyncIterator[AsyncCacheClient]:
    """A client of the service at `settings.url`, or of the local store where no URL is set."""
    if settings.url:
        async with AsyncCacheClient(settings.url) as client:
            yield client
        return
    app = service(settings)
    async with (
        app.router.lifespan_context(app),
        AsyncCacheClient("http://local-store", transport=httpx.ASGITransport(app=app)) as client,
    ):
        yield client


def where(settings: Settings) -> str:
    """For people: which cache that is."""
    return settings.url or str(settings.store)
