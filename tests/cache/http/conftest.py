"""The service twice: called in this process, and served by a real uvicorn on a free port of the loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from toolcache.adapters.faiss_index import FaissIndex
from toolcache.adapters.hash_embedder import HashEmbedder
from toolcache.adapters.memory_store import MemoryStore
from toolcache.adapters.sqlite_store import SqliteStore
from toolcache.core.cache import ToolCache
from toolcache.core.ports import Store
from toolcache.http.app import create_app
from toolcache.settings import Limits

LIMITS = Limits(body_bytes=200_000, items=50)
SPEC: dict[str, Any] = {
    "tools": [
        {
            "name": "get_order",
            "effect": "read",
            "parameters": {
                "type": "object",
                "properties": {"order_id": {"type": "string"}, "weight": {"multipleOf": 0.01}},
            },
        },
        {
            "name": "search_help",
            "effect": "read",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
        },
        {"name": "cancel_order", "effect": "write"},
    ]
}


def made_app(store: Store) -> FastAPI:
    return create_app(ToolCache(store, FaissIndex(), HashEmbedder(), lambda: 1000.0), store, LIMITS)


@pytest.fixture
async def service() -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service in this process over a store in memory, with the namespace `shop`."""
    app = made_app(MemoryStore())
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        assert (await client.put("/v1/namespaces/shop", json=SPEC)).status_code == 204
        yield client


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The app behind uvicorn in a thread; gives its URL once it answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The URL of a real server over SQLite with the namespace `shop`."""
    with serving(made_app(SqliteStore.open(tmp_path / "served.sqlite3"))) as address:
        httpx.put(f"{address}/v1/namespaces/shop", json=SPEC).raise_for_status()
        yield address
