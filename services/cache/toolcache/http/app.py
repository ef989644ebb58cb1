"""The service's endpoints. Each reads a message, asks the cache, writes a message; errors become problems.

Bodies are decoded by msgspec straight into the contract's types: FastAPI's own models would cost several times the
lookup itself. The OpenAPI document still describes them (openapi.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from toolcache.core import importing
from toolcache.core.cache import ToolCache, UnknownNamespace
from toolcache.core.ports import Store, StoreUnavailable
from toolcache.core.tools import NamespaceInvalid
from toolcache.http import wire as translate
from toolcache.http.openapi import describe, documented
from toolcache.http.problems import Code, Refused, of_refusal, problem
from toolcache.settings import Limits
from toolcache.telemetry import log
from toolcache_client import messages as wire

_M = TypeVar("_M")
_NAMESPACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
IMPORTED_AT_ONCE = 32
"""Lines of an import in work together, so that they share a commit."""


def create_app(cache: ToolCache, store: Store, limits: Limits) -> FastAPI:
    """The service over one cache. Closes the store when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await store.close()

    app = FastAPI(title="toolcache", version="1", lifespan=lifespan, docs_url="/docs", redoc_url=None)
    routes = _Routes(cache, limits)
    add = app.add_api_route
    add("/v1/lookup", routes.lookup, methods=["POST"], **documented(wire.LookupRequest, wire.LookupReply))
    add("/v1/record", routes.record, methods=["POST"], **documented(wire.RecordRequest, wire.RecordReply))
    add("/v1/import", routes.import_, methods=["POST"], **documented(None, wire.ImportReport, ndjson=True))
    add("/v1/namespaces", routes.namespaces, methods=["GET"], **documented(None, wire.Namespaces))
    add("/v1/namespaces/{name}", routes.put_namespace, methods=["PUT"], **documented(wire.NamespaceSpec, None))
    add("/v1/namespaces/{name}", routes.get_namespace, methods=["GET"], **documented(None, wire.NamespaceSpec))
    add("/v1/calibrate", routes.calibrate, methods=["POST"], **documented(None, wire.Stats, query=("namespace",)))
    add("/v1/stats", routes.stats, methods=["GET"], **documented(None, wire.Stats, query=("namespace",)))
    add("/healthz", routes.health, methods=["GET"], **documented(None, None))
    add("/readyz", routes.ready, methods=["GET"], **documented(None, None))
    _answer_errors_with_problems(app)
    describe(app)
    return app


class _Routes:
    def __init__(self, cache: ToolCache, limits: Limits) -> None:
        self._cache = cache
        self._limits = limits

    async def lookup(self, request: Request) -> Response:
        """Answer one or many calls: tier, trust, result, reason, donor and state of each, misses too."""
        body = _decoded(await self._body(request), _LOOKUP)
        self._check_count(len(body.items))
        answered = await self._cache.lookup(body.namespace, [translate.question(item) for item in body.items])
        return _reply(wire.LookupReply(items=tuple(map(translate.answer, answered))))

    async def record(self, request: Request) -> Response:
        """Store one or many executed calls. Items that are not refused are durable when this answers."""
        body = _decoded(await self._body(request), _RECORD)
        self._check_count(len(body.items))
        done = await self._cache.record(body.namespace, [translate.recording(item) for item in body.items])
        return _reply(wire.RecordReply(items=tuple(map(translate.recorded, done))))

    async def import_(self, request: Request) -> Response:
        """Store recorded trajectories, one JSON object a line, streamed. Lines that cannot be used are counted."""
        report = importing.ImportReport()
        namespace = request.query_params.get("namespace")
        if namespace is not None:
            await self._cache.namespace(namespace)
        waiting: list[tuple[int, bytes]] = []
        async for number, line in self._lines(request):
            waiting.append((number, line))
            if len(waiting) == IMPORTED_AT_ONCE:
                await self._import(waiting, report, namespace)
                waiting = []
        await self._import(waiting, report, namespace)
        log("imported", trajectories=report.trajectories, calls=report.calls, rejected=sum(report.rejected.values()))
        return _reply(translate.import_report(report))

    async def _import(
        self, lines: list[tuple[int, bytes]], report: importing.ImportReport, namespace: str | None
    ) -> None:
        work = (importing.import_line(self._cache, line, n, report, namespace=namespace) for n, line in lines)
        await asyncio.gather(*work)

    async def namespaces(self) -> Response:
        """The names of all namespaces."""
        return _reply(wire.Namespaces(namespaces=tuple(await self._cache.namespaces())))

    async def put_namespace(self, name: str, request: Request) -> Response:
        """Create a namespace, or replace its tools and policy. Its entries stay."""
        spec = _decoded(await self._body(request), _SPEC)
        if not _NAMESPACE_NAME.fullmatch(name):
            raise Refused(Code.INVALID_NAMESPACE, f"{name!r} is no namespace name: use {_NAMESPACE_NAME.pattern}")
        try:
            await self._cache.put_namespace(translate.namespace(name, spec))
        except NamespaceInvalid as error:
            raise Refused(Code.INVALID_NAMESPACE, f"namespace {name}: {error}") from error
        return Response(status_code=204)

    async def get_namespace(self, name: str) -> Response:
        """A namespace's tools and policy."""
        return _reply(translate.spec(await self._cache.namespace(name)))

    async def calibrate(self, request: Request) -> Response:
        """Learn from what is recorded which arguments matter and how far each tier can be trusted."""
        namespace = _parameter(request, "namespace")
        await self._cache.calibrate(namespace)
        return _reply(translate.stats(await self._cache.report(namespace)))

    async def stats(self, request: Request) -> Response:
        """What a namespace holds, what it answered since the service started, and each tool's trust."""
        return _reply(translate.stats(await self._cache.report(_parameter(request, "namespace"))))

    async def health(self) -> Response:
        """The process answers."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def ready(self) -> Response:
        """The store answers too."""
        await self._cache.namespaces()
        return Response(b'{"status":"ready"}', media_type="application/json")

    async def _body(self, request: Request) -> bytes:
        parts: list[bytes] = []
        size_bytes = 0
        async for part in request.stream():
            size_bytes += len(part)
            if size_bytes > self._limits.body_bytes:
                raise Refused(Code.BODY_TOO_LARGE, _too_large("body", self._limits.body_bytes))
            parts.append(part)
        return b"".join(parts)

    async def _lines(self, request: Request) -> AsyncIterator[tuple[int, bytes]]:
        """Numbered lines that are not blank, as they arrive; the limit is on a line, not on the whole."""
        rest, number = b"", 0
        async for part in request.stream():
            *complete, rest = (rest + part).split(b"\n")
            if max(map(len, (*complete, rest))) > self._limits.body_bytes:
                raise Refused(Code.BODY_TOO_LARGE, _too_large(f"line {number + 1}", self._limits.body_bytes))
            for line in complete:
                number += 1
                if line.strip():
                    yield number, line
        if rest.strip():
            yield number + 1, rest

    def _check_count(self, count: int) -> None:
        if count > self._limits.items:
            raise Refused(
                Code.TOO_MANY_ITEMS, f"{count} items in one request, at most {self._limits.items}; send several"
            )


_LOOKUP = msgspec.json.Decoder(wire.LookupRequest)
_RECORD = msgspec.json.Decoder(wire.RecordRequest)
_SPEC = msgspec.json.Decoder(wire.NamespaceSpec)


def _decoded(body: bytes, decoder: msgspec.json.Decoder[_M]) -> _M:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(Code.MALFORMED_BODY, f"{error}; see /docs for the message") from error


def _reply(message: wire.Reply | wire.Message) -> Response:
    return Response(msgspec.json.encode(message), media_type="application/json")


def _parameter(request: Request, name: str) -> str:
    value = request.query_params.get(name)
    if not value:
        raise Refused(Code.MISSING_PARAMETER, f"name the {name}: ?{name}=...")
    return value


def _too_large(what: str, limit_bytes: int) -> str:
    return f"the {what} exceeds {limit_bytes} bytes; send less at once, or raise TOOLCACHE_MAX_BODY_BYTES"


def _answer_errors_with_problems(app: FastAPI) -> None:
    async def unknown_namespace(_: Request, error: Exception) -> Response:
        return problem(Code.UNKNOWN_NAMESPACE, str(error.args[0]))

    async def store_unavailable(_: Request, error: Exception) -> Response:
        log("store_unavailable", error=str(error))
        return problem(Code.STORE_UNAVAILABLE, str(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = Code.METHOD_NOT_ALLOWED if error.status_code == 405 else Code.NOT_FOUND
        return problem(code, f"{request.method} {request.url.path}: see /docs for what there is")

    async def defect(request: Request, error: Exception) -> Response:
        log("defect", path=request.url.path, error=type(error).__name__)
        return problem(Code.INTERNAL, f"{type(error).__name__}; the service's log has the trace")

    app.add_exception_handler(Refused, of_refusal)
    app.add_exception_handler(UnknownNamespace, unknown_namespace)
    app.add_exception_handler(StoreUnavailable, store_unavailable)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, defect)
