"""`toolcache serve`: the HTTP service on one store; and how the service is put together."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from toolcache.commands.failure import CommandFailed
from toolcache.core.ports import Leases, Store
from toolcache.settings import Settings
from toolcache.telemetry import log, say_aloud

if TYPE_CHECKING:
    from toolcache.http.app import Service

KEEP_ALIVE_S = 75
"""Seconds an idle connection is kept: longer than balancers and clients keep theirs (60), so that they close first and
never send a request into a connection that is being closed."""
DRAIN_S = 10
"""Seconds requests in work are given when the service is told to stop."""
SWITCH_S = 0.0005
_BACKLOG = 2048


def serve(settings: Settings) -> None:
    """Serve until told to stop. Raises CommandFailed when the address is taken, StoreUnavailable."""
    import uvloop

    say_aloud()
    listener = _listener(settings.host, settings.port)
    # The server takes the signal, lets requests in work end, and then raises it again: that is this one's moment.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # SQLite, FAISS and the encoder work in threads. One that computes would keep the event loop waiting for 5 ms at a
    # time, longer than ten lookups take.
    sys.setswitchinterval(SWITCH_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, listener))


async def _serve(settings: Settings, listener: socket.socket) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _tell(settings, listener)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.traffic.stop()  # or those that wait for others would use up all of DRAIN_S
            await super().shutdown(sockets)

    app = await opened(settings, asks_for_keys=settings.asks_for_keys)
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # who asks is known by keys; nothing here looks at addresses
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        backlog=_BACKLOG,
    )
    # What lives as long as the program need not be looked at by every full collection, which stops all requests.
    gc.collect()
    gc.freeze()
    server = Server(config)
    try:
        await server.serve(sockets=[listener])
    finally:
        log("stopped")
    if not server.started:
        raise CommandFailed("the service did not start; the events above say why")


def _tell(settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    if settings.access == "open" and not settings.is_loopback:
        log("open_to_everyone", host=host, advice="everyone who reaches this address may do everything")
    access = "keys" if settings.asks_for_keys else "open"
    log("serving", url=f"http://{host}:{port}", store=settings.store_name, access=access)


async def opened(settings: Settings, *, asks_for_keys: bool) -> Service:
    """The service over the settings' store, opened in the running loop; its lifespan closes it.

    Raises StoreUnavailable, and CommandFailed where keys are asked for and there is none.
    """
    from toolcache.adapters.batching_embedder import BatchingEmbedder
    from toolcache.adapters.faiss_index import FaissIndex
    from toolcache.adapters.minilm_embedder import best_encoder
    from toolcache.core.cache import ToolCache
    from toolcache.http.app import create_app
    from toolcache.http.keyring import Keyring
    from toolcache.http.traffic import Traffic, WatchedLeases
    from toolcache.metrics import Metrics

    store, leases = await _opened_store(settings)
    try:
        if asks_for_keys and not settings.admin_key_hash and not await store.api_keys():
            raise CommandFailed(_NO_KEY)
        embedder = BatchingEmbedder(best_encoder(settings.embedder_dir))
    except BaseException:
        await leases.close()
        await store.close()
        raise
    metrics = Metrics()
    metrics.watch(encoding=embedder)
    traffic = Traffic(settings.limits, metrics)
    cache = ToolCache(
        store,
        WatchedLeases(leases, traffic, metrics),
        FaissIndex(),
        embedder,
        clock=time.time,
        chance=random.random,
    )
    keyring = Keyring(store, admin_key_hash=settings.admin_key_hash) if asks_for_keys else None
    return create_app(cache, store, settings.limits, traffic=traffic, metrics=metrics, keyring=keyring)


_NO_KEY = (
    "this address asks for keys, and there is none: set TOOLCACHE_ADMIN_KEY to a secret of at least 16 characters "
    "(with it POST /v1/keys makes others), or let everyone in with TOOLCACHE_ACCESS=open"
)


async def _opened_store(settings: Settings) -> tuple[Store, Leases]:
    """Raises StoreUnavailable."""
    if settings.store_is_redis:
        from toolcache.adapters.redis_leases import RedisLeases
        from toolcache.adapters.redis_store import RedisStore

        store = await RedisStore.open(settings.store)
        try:
            return store, await RedisLeases.open(settings.store)
        except BaseException:
            await store.close()
            raise
    from toolcache.adapters.memory_leases import MemoryLeases
    from toolcache.adapters.sqlite_store import SqliteStore

    return SqliteStore.open(Path(settings.store)), MemoryLeases(time.monotonic)


def _listener(host: str, port: int) -> socket.socket:
    """Bound before anything heavy is loaded, so that a taken port is told at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # only now is the port taken: two programs may bind one with SO_REUSEADDR
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CommandFailed(f"cannot listen on {host}:{port} ({why}); choose another with --port") from error
    return listener
