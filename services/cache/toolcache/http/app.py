"""The service as an ASGI application: its endpoints, and the few things around them.

The endpoints are plain ASGI applications (operation.py). The two that every rollout calls all the time are found by
their path before FastAPI's router and middleware are asked, which serve the rest, /docs and what is not found.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from toolcache.core.cache import ToolCache
from toolcache.core.ports import Store
from toolcache.http.endpoints import Endpoints
from toolcache.http.keyring import Keyring
from toolcache.http.openapi import document
from toolcache.http.operation import Operation, send_problem
from toolcache.http.problems import CONTENT_TYPE, Code, body_of
from toolcache.http.traffic import Traffic
from toolcache.metrics import Metrics
from toolcache.settings import Limits

_HOT = frozenset(("/v1/lookup", "/v1/record"))


def create_app(
    cache: ToolCache,
    store: Store,
    limits: Limits,
    *,
    traffic: Traffic,
    metrics: Metrics,
    keyring: Keyring | None = None,
    clock: Callable[[], float] = time.time,
) -> Service:
    """The service over one cache and the store it stands on; starts the cache when it starts, closes it when it ends.

    Without a keyring everyone who reaches it may do everything.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await cache.start()
        watching = asyncio.create_task(traffic.watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await cache.close()

    metrics.watch(upkeep=cache)
    endpoints = Endpoints(cache, store, limits, keyring=keyring, metrics=metrics, clock=clock)
    operations = [
        Operation(about, handler, traffic=traffic, keyring=keyring, metrics=metrics)
        for about, handler in endpoints.described()
    ]
    return Service(operations, traffic, lifespan=lifespan)


class Service(FastAPI):
    """FastAPI, with a short way to the hot endpoints."""

    def __init__(self, operations: Sequence[Operation], traffic: Traffic, **more: Any) -> None:
        super().__init__(
            title="toolcache", version="1", docs_url="/docs", redoc_url=None, redirect_slashes=False, **more
        )
        self.traffic = traffic
        by_path: dict[str, dict[str, Operation]] = {}
        for operation in operations:
            by_path.setdefault(operation.about.path, {})[operation.about.method] = operation
        for path, by_method in by_path.items():
            self.router.routes.append(Route(path, endpoint=_ByMethod(by_method), name=path))
        self._hot = {path: by_path[path]["POST"] for path in _HOT}
        self._document = document(operations)
        self.add_exception_handler(HTTPException, _no_endpoint)

    def openapi(self) -> dict[str, Any]:
        return self._document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            operation = self._hot.get(scope["path"])
            if operation is not None:
                await operation(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


class _ByMethod:
    """The operations of one path; HEAD is a GET whose body the server leaves out, where that body is soon made."""

    def __init__(self, operations: Mapping[str, Operation]) -> None:
        self._operations = dict(operations)
        get = operations.get("GET")
        if get is not None and not get.about.takes_long:
            self._operations["HEAD"] = get

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = self._operations.get(scope["method"])
        if operation is not None:
            await operation(scope, receive, send)
            return
        allowed = ", ".join(sorted(self._operations))
        detail = f"{scope['method']} {scope['path']}: allowed are {allowed}; see /docs"
        await send_problem(send, Code.METHOD_NOT_ALLOWED, detail, allow=allowed)


async def _no_endpoint(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = Code.METHOD_NOT_ALLOWED if error.status_code == 405 else Code.NOT_FOUND
    detail = f"{request.method} {request.scope['path']}: see /docs for what there is"
    return Response(body_of(code, detail), status_code=code.status, media_type=CONTENT_TYPE, headers=error.headers)
