"""Call the cache service from Python: `CacheClient` (sync) and `AsyncCacheClient`, the same requests and replies.

Keep one client a process: its connections are pooled, and the first call through a fresh one costs tens of
milliseconds. Every request here can be repeated without harm (a record is idempotent by content), so a failed
connection, a timeout and a 5xx are retried a bounded number of times with growing pauses before
`CacheUnavailable` is raised.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from toolcache_client.errors import CacheRefused, CacheReplyMalformed, CacheUnavailable, RecordRefused
from toolcache_client.messages import (
    Answer,
    ImportReport,
    LookupItem,
    LookupReply,
    LookupRequest,
    Namespaces,
    NamespaceSpec,
    Problem,
    Recorded,
    RecordItem,
    RecordReply,
    RecordRequest,
    Stats,
)

DEFAULT_URL = "http://127.0.0.1:8765"
RETRY_PAUSES_S = (0.1, 0.4, 1.6)
"""Pauses before the second, third and fourth try: a restarting service is usually back within two seconds."""
MAX_CONNECTIONS = 256
IMPORT_TIMEOUT_S = 600.0
"""Seconds one import request may take; the caller sends files in pieces, so this is minutes of work, not hours."""

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request(Generic[_R]):
    """One HTTP exchange: what is sent and how the reply is read."""

    method: str
    path: str
    read: Callable[[bytes], _R]
    content: bytes | None = None
    params: dict[str, str] | None = None
    timeout_s: float | None = None

    def patience_s(self, default_s: float) -> float:
        return default_s if self.timeout_s is None else self.timeout_s

    def as_httpx(self, default_timeout_s: float) -> dict[str, Any]:
        """The keyword arguments of `httpx.Client.request`."""
        return {
            "method": self.method,
            "url": self.path,
            "content": self.content,
            "params": self.params,
            "timeout": self.patience_s(default_timeout_s),
        }


class _Health(msgspec.Struct):
    """What /healthz says; too small for the contract, enough to tell the service from another."""

    status: Literal["ok"]


def _reader(reply: type[_R]) -> Callable[[bytes], _R]:
    return msgspec.json.Decoder(reply).decode


_read_lookup = _reader(LookupReply)
_read_record = _reader(RecordReply)
_read_namespaces = _reader(Namespaces)
_read_spec = _reader(NamespaceSpec)
_read_stats = _reader(Stats)
_read_import = _reader(ImportReport)
_read_health = _reader(_Health)
_encode = msgspec.json.Encoder().encode


def _nothing(body: bytes) -> None:
    """The reply of an endpoint that says nothing; a page of some other server is none."""
    if body:
        raise msgspec.ValidationError("expected an empty reply")


def _healthy(body: bytes) -> None:
    _read_health(body)


def _lookup(namespace: str, items: Sequence[LookupItem]) -> _Request[LookupReply]:
    body = _sendable(LookupRequest(namespace=namespace, items=tuple(items)))
    return _Request(method="POST", path="/v1/lookup", content=body, read=_read_lookup)


def _record(namespace: str, items: Sequence[RecordItem]) -> _Request[RecordReply]:
    body = _sendable(RecordRequest(namespace=namespace, items=tuple(items)))
    return _Request(method="POST", path="/v1/record", content=body, read=_read_record)


def _sendable(request: LookupRequest | RecordRequest) -> bytes:
    """The request as JSON. Raises CacheRefused for what JSON cannot say, which the encoder would send as null."""
    items: Sequence[LookupItem | RecordItem] = request.items
    for i, item in enumerate(items):
        if not _is_finite(item.arguments):
            raise _unsendable(f"item {i}: the arguments of {item.tool!r} hold NaN or infinity, which JSON cannot say")
    try:
        return _encode(request)
    except UnicodeEncodeError as error:
        raise _unsendable(f"a text of the request is not Unicode ({error})") from error


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict | list | tuple):
        return all(_is_finite(each) for each in (value.values() if isinstance(value, dict) else value))
    return True


def _unsendable(detail: str) -> CacheRefused:
    return CacheRefused(status=400, code="malformed_body", detail=detail)


def _put_namespace(name: str, spec: NamespaceSpec) -> _Request[None]:
    return _Request(method="PUT", path=_path_of(name), content=_encode(spec), read=_nothing)


def _get_namespace(name: str) -> _Request[NamespaceSpec]:
    return _Request(method="GET", path=_path_of(name), read=_read_spec)


def _path_of(namespace: str) -> str:
    # Quoted whole, or "a?b" would create the namespace "a".
    return f"/v1/namespaces/{quote(namespace, safe='')}"


def _import(namespace: str | None, lines: Iterable[bytes]) -> _Request[ImportReport]:
    params = {"namespace": namespace} if namespace else None
    body = b"\n".join(line.rstrip(b"\n") for line in lines)
    return _Request(
        method="POST", path="/v1/import", params=params, content=body, read=_read_import, timeout_s=IMPORT_TIMEOUT_S
    )


def _calibrate(namespace: str) -> _Request[Stats]:
    return _Request(
        method="POST",
        path="/v1/calibrate",
        params={"namespace": namespace},
        read=_read_stats,
        timeout_s=IMPORT_TIMEOUT_S,
    )


def _stats(namespace: str) -> _Request[Stats]:
    return _Request(method="GET", path="/v1/stats", params={"namespace": namespace}, read=_read_stats)


_HEALTH: _Request[None] = _Request(method="GET", path="/healthz", read=_healthy)
_NAMESPACES = _Request(method="GET", path="/v1/namespaces", read=_read_namespaces)


def _result(request: _Request[_R], response: httpx.Response, url: str) -> _R:
    """The reply's message. Raises CacheRefused for a problem, CacheReplyMalformed for anything not of the contract."""
    if response.status_code >= 400:
        try:
            problem = msgspec.json.decode(response.content, type=Problem)
        except msgspec.MsgspecError as error:
            raise CacheReplyMalformed(
                f"{url}{request.path}: status {response.status_code} without a problem"
            ) from error
        raise CacheRefused(status=problem.status, code=problem.code, detail=problem.detail)
    try:
        return request.read(response.content)
    except msgspec.MsgspecError as error:
        raise CacheReplyMalformed(f"{url}{request.path}: not a toolcache reply ({error}); is this its URL?") from error


def _checked(recorded: Sequence[Recorded]) -> list[Recorded]:
    refused = {i: each.detail for i, each in enumerate(recorded) if each.outcome == "refused"}
    if refused:
        raise RecordRefused(refused)
    return list(recorded)


def _unavailable(
    url: str, timeout_s: float, error: Exception | None, response: httpx.Response | None
) -> CacheUnavailable:
    tries = len(RETRY_PAUSES_S) + 1
    if response is not None:
        return CacheUnavailable(
            f"cache {url}: refused {tries} times with status {response.status_code}{_why(response)}"
        )
    return CacheUnavailable(
        f"cache {url}: no answer after {tries} tries of up to {timeout_s:g} s ({type(error).__name__}: {error}). "
        "Is it running? Start it with `toolcache serve`, or check the URL."
    )


def _why(response: httpx.Response) -> str:
    """What the service said of its own failure, which knows best what to do."""
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
    except msgspec.MsgspecError:
        return "; something between here and the service may have answered for it: check the URL"
    return f" ({problem.code}: {problem.detail})"


def _is_worth_retrying(status: int) -> bool:
    return status >= 500


class AsyncCacheClient:
    """The cache at one URL, for asyncio code. Share one between all tasks of an event loop."""

    def __init__(
        self, url: str = DEFAULT_URL, *, timeout_s: float = 10.0, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)
        self._http = httpx.AsyncClient(base_url=self.url, timeout=timeout_s, transport=transport, limits=limits)

    async def lookup(self, namespace: str, items: Sequence[LookupItem]) -> list[Answer]:
        """One answer an item, in their order, in one round trip. A miss is an answer, not an error."""
        return list((await self._send(_lookup(namespace, items))).items)

    async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
        """Store executed calls; what returned is durable. Raises RecordRefused if some could not be stored."""
        return _checked((await self._send(_record(namespace, items))).items)

    async def put_namespace(self, name: str, spec: NamespaceSpec) -> None:
        """Create a namespace or replace its tools and policy; its entries stay."""
        await self._send(_put_namespace(name, spec))

    async def namespace(self, name: str) -> NamespaceSpec:
        return await self._send(_get_namespace(name))

    async def namespaces(self) -> list[str]:
        return list((await self._send(_NAMESPACES)).namespaces)

    async def import_lines(self, lines: Iterable[bytes], *, namespace: str | None = None) -> ImportReport:
        """Store recorded trajectories, one JSON object a line; namespace None reads each record's `domain`."""
        return await self._send(_import(namespace, lines))

    async def calibrate(self, namespace: str) -> Stats:
        """Learn from what is recorded which arguments matter and how far each tier can be trusted."""
        return await self._send(_calibrate(namespace))

    async def stats(self, namespace: str) -> Stats:
        return await self._send(_stats(namespace))

    async def health(self) -> None:
        """Return if the service answers; raise CacheUnavailable if not."""
        await self._send(_HEALTH)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _send(self, request: _Request[_R]) -> _R:
        failed: httpx.RequestError | None = None
        response: httpx.Response | None = None
        for pause_s in (*RETRY_PAUSES_S, None):
            try:
                response = await self._http.request(**request.as_httpx(self._timeout_s))
            except httpx.RequestError as error:
                failed, response = error, None
            else:
                if not _is_worth_retrying(response.status_code):
                    return _result(request, response, self.url)
                failed = None
            if pause_s is not None:
                await asyncio.sleep(pause_s)
        raise _unavailable(self.url, request.patience_s(self._timeout_s), failed, response) from failed


class CacheClient:
    """The cache at one URL, for code without an event loop. Safe to share between threads."""

    def __init__(
        self, url: str = DEFAULT_URL, *, timeout_s: float = 10.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, transport=transport)

    def lookup(self, namespace: str, items: Sequence[LookupItem]) -> list[Answer]:
        """One answer an item, in their order, in one round trip. A miss is an answer, not an error."""
        return list(self._send(_lookup(namespace, items)).items)

    def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
        """Store executed calls; what returned is durable. Raises RecordRefused if some could not be stored."""
        return _checked(self._send(_record(namespace, items)).items)

    def put_namespace(self, name: str, spec: NamespaceSpec) -> None:
        """Create a namespace or replace its tools and policy; its entries stay."""
        self._send(_put_namespace(name, spec))

    def namespace(self, name: str) -> NamespaceSpec:
        return self._send(_get_namespace(name))

    def namespaces(self) -> list[str]:
        return list(self._send(_NAMESPACES).namespaces)

    def import_lines(self, lines: Iterable[bytes], *, namespace: str | None = None) -> ImportReport:
        """Store recorded trajectories, one JSON object a line; namespace None reads each record's `domain`."""
        return self._send(_import(namespace, lines))

    def calibrate(self, namespace: str) -> Stats:
        """Learn from what is recorded which arguments matter and how far each tier can be trusted."""
        return self._send(_calibrate(namespace))

    def stats(self, namespace: str) -> Stats:
        return self._send(_stats(namespace))

    def health(self) -> None:
        """Return if the service answers; raise CacheUnavailable if not."""
        self._send(_HEALTH)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, request: _Request[_R]) -> _R:
        failed: httpx.RequestError | None = None
        response: httpx.Response | None = None
        for pause_s in (*RETRY_PAUSES_S, None):
            try:
                response = self._http.request(**request.as_httpx(self._timeout_s))
            except httpx.RequestError as error:
                failed, response = error, None
            else:
                if not _is_worth_retrying(response.status_code):
                    return _result(request, response, self.url)
                failed = None
            if pause_s is not None:
                time.sleep(pause_s)
        raise _unavailable(self.url, request.patience_s(self._timeout_s), failed, response) from failed
