"""The service as tests make it: over parts in memory, called in this process or served by a real uvicorn."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from toolcache.adapters.faiss_index import FaissIndex
from toolcache.adapters.hash_embedder import HashEmbedder
from toolcache.adapters.memory_leases import MemoryLeases
from toolcache.adapters.memory_store import MemoryStore
from toolcache.core.cache import ToolCache
from toolcache.core.ports import Leases, Store
from toolcache.http.app import create_app
from toolcache.http.keyring import Keyring
from toolcache.http.traffic import Traffic, WatchedLeases
from toolcache.metrics import Metrics
from toolcache.settings import Limits

NOW_S = 1000.0
LIMITS = Limits(body_bytes=200_000, items=50, result_bytes=5_000, in_flight=20, waiting=5)
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
ENVIRONMENT = "shop@1"
PENDING = {"content": '{"status": "pending"}', "took_s": 0.5}


def call(order: str = "#W1", **more: Any) -> dict[str, Any]:
    return {"tool": "get_order", "arguments": {"order_id": order}, "environment": ENVIRONMENT, **more}


def batch(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"namespace": "shop", "items": list(items), **more}


@dataclass(frozen=True, kw_only=True)
class Served:
    """A service and the parts of it that tests look at."""

    app: FastAPI
    cache: ToolCache
    store: Store
    traffic: Traffic
    metrics: Metrics


def made(
    store: Store | None = None,
    *,
    limits: Limits = LIMITS,
    leases: Leases | None = None,
    keyring: Keyring | None = None,
) -> Served:
    """A service over these parts, in memory but for those given; its clock stands still."""
    store = MemoryStore() if store is None else store
    metrics = Metrics()
    traffic = Traffic(limits, metrics)
    cache = ToolCache(
        store,
        WatchedLeases(leases or MemoryLeases(time.monotonic), traffic, metrics),
        FaissIndex(),
        HashEmbedder(),
        clock=lambda: NOW_S,
        chance=lambda: 0.0,
    )
    app = create_app(cache, store, limits, traffic=traffic, metrics=metrics, keyring=keyring, clock=lambda: NOW_S)
    return Served(app=app, cache=cache, store=store, traffic=traffic, metrics=metrics)


@asynccontextmanager
async def client_of(served: Served, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service in this process, while it lives."""
    transport = httpx.ASGITransport(app=served.app, raise_app_exceptions=False)
    async with (
        served.app.router.lifespan_context(served.app),
        httpx.AsyncClient(transport=transport, base_url="http://t", **more) as client,
    ):
        yield client


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The app behind uvicorn in a thread; gives its URL once it answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


async def lookup(service: httpx.AsyncClient, *items: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    reply = await service.post("/v1/lookup", json=batch(*items, **more))
    assert reply.status_code == 200, reply.text
    answers: list[dict[str, Any]] = reply.json()["items"]
    return answers


async def record(service: httpx.AsyncClient, *items: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    reply = await service.post("/v1/record", json=batch(*items, **more))
    assert reply.status_code == 200, reply.text
    done: list[dict[str, Any]] = reply.json()["items"]
    return done
