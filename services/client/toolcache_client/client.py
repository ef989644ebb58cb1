"""Call the cache service from Python: `CacheClient` (sync) and `AsyncCacheClient`, the same requests and replies.

Keep one client a process: its connections are pooled, and its breaker knows what all calls have seen.

A connection that fails, a timeout and a 5xx are tried again a bounded number of times with growing pauses before
`CacheUnavailable` is raised; a 429 too, after as long as it asks for. Other refusals are final at once. Trying again
does no harm: a record carries a name by which the service knows it, an imported line is known by its content, and both
count once however often they arrive. Where the reply gets lost and the call is repeated: a lease that was granted stays
taken for its `lease_s`; a key that was made stays in the list, held by nobody; a namespace or key that was deleted is
reported as unknown.

When call after call has failed, the breaker (breaker.py) lets calls fail at once for a while instead.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Self, TypeVar

import httpx

from toolcache_client import requests
from toolcache_client.breaker import Breaker, Held
from toolcache_client.errors import CacheBusy, CacheDenied, CacheError, CacheUnavailable, RecordRefused
from toolcache_client.messages import (
    Answer,
    ApiKey,
    ApiRole,
    EntryView,
    ImportReport,
    LookupItem,
    NamespaceSpec,
    OnMiss,
    Recorded,
    RecordItem,
    Stats,
    ToolResult,
)
from toolcache_client.pooled import AsyncPooledTransport, PooledTransport
from toolcache_client.requests import Request
from toolcache_client.resolve import LEASE_S, PATIENCE_S, Resolved, resolve, resolve_async
from toolcache_client.tries import Tries, is_worth_retrying, refusal, result

DEFAULT_URL = "http://127.0.0.1:8765"
RETRY_PAUSES_S = (0.1, 0.4, 1.6)
"""Pauses before the second, third and fourth try, give or take half: a restarting service is usually back within two
seconds."""
PAGE = 500
"""Entries asked for at once when they are browsed."""

_R = TypeVar("_R")


class _Client:
    """What both clients do before and after the wire: addresses, headers, timeouts, the breaker."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        job: str,
        timeout_s: float,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.url = url.rstrip("/")
        self._job = job
        self._timeout_s = timeout_s
        self._clock = clock
        self._chance = chance
        self._breaker = Breaker()
        origin = _url(self.url)
        key = os.environ.get("TOOLCACHE_API_KEY", "") if api_key is None else api_key
        self._headers = [(b"host", origin.netloc), *_authorization(key.strip())]

    def _http(self, request: Request[_R]) -> httpx.Request:
        body, timeout_s = request.content, request.patience_s(self._timeout_s)
        headers = [
            *self._headers,
            (b"content-type", request.content_type.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        timeout = {"connect": min(timeout_s, self._timeout_s), "read": timeout_s, "write": timeout_s, "pool": timeout_s}
        # With a stream httpx takes the headers as they are and adds none: its own would cost as much as the rest.
        return httpx.Request(
            request.method,
            _url(self.url + request.target),
            headers=headers,
            stream=httpx.ByteStream(body),
            extensions={"timeout": timeout},
        )

    @contextmanager
    def _calling(self, request: Request[_R]) -> Iterator[Tries]:
        """Around one call: refuse it while the breaker is open, and tell the breaker what became of it."""
        admitted = self._breaker.admit(self._clock())
        if isinstance(admitted, Held):
            raise CacheUnavailable(
                f"cache {self.url}: not asked, for it has been away for {admitted.for_s:.1f} s; "
                f"the next try is due in {admitted.retry_in_s:.1f} s. {admitted.why}",
                retry_in_s=admitted.retry_in_s,
            )
        pauses_s = () if admitted.is_probe else RETRY_PAUSES_S
        timeout_s = request.patience_s(self._timeout_s)
        try:
            yield Tries(self.url, pauses_s=pauses_s, chance=self._chance, timeout_s=timeout_s)
        except CacheUnavailable as error:
            if isinstance(error, CacheBusy):
                self._breaker.succeeded()
            else:
                self._breaker.failed(admitted, self._clock(), str(error))
            raise
        except CacheError:  # refused or not understood, but answered
            self._breaker.succeeded()
            raise
        self._breaker.succeeded()


class AsyncCacheClient(_Client):
    """The cache at one URL, for asyncio code. Share one between all tasks of an event loop."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        job: str = "",
        timeout_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`api_key` None reads TOOLCACHE_API_KEY; `job` names the caller in the service's metrics.

        `transport` None takes this SDK's own (pooled.py). Raises CacheUnavailable for what is no URL, CacheDenied for
        what can be no key.
        """
        super().__init__(url, api_key=api_key, job=job, timeout_s=timeout_s, clock=clock, chance=chance)
        self._sleep = sleep
        self._transport = AsyncPooledTransport(_url(self.url)) if transport is None else transport

    async def lookup(
        self,
        namespace: str,
        items: Sequence[LookupItem],
        *,
        on_miss: OnMiss = "fail",
        wait_s: float = 0.0,
        lease_s: float = LEASE_S,
        explain: bool = False,
    ) -> list[Answer]:
        """One answer an item, in their order, in one round trip. A miss is an answer, not an error.

        `on_miss` "lease" asks for permission to execute what is missing, and waits up to `wait_s` for what others
        execute; "wait" only waits. With `explain` each answer tells what decided it, at some cost.
        """
        request = requests.lookup(
            namespace, items, on_miss=on_miss, wait_s=wait_s, lease_s=lease_s, explain=explain, job=self._job
        )
        return list((await self._send(request)).items)

    async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
        """Store executed calls; what returned is durable. Raises RecordRefused if some could not be stored."""
        return _checked((await self._send(requests.record(namespace, items, job=self._job))).items)

    async def resolve(
        self,
        namespace: str,
        item: LookupItem,
        execute: Callable[[], Awaitable[ToolResult]],
        *,
        lease_s: float = LEASE_S,
        wait_s: float = PATIENCE_S,
        tags: Sequence[str] = (),
        answer: Answer | None = None,
    ) -> Resolved:
        """The call's result: from the cache; else from whoever executes it already, waiting up to `wait_s`; else from
        `execute`, recorded for all others.

        `execute` must run the call in the item's own state. Its lease is extended while it runs and given back if it
        raises; the error comes through. A hit that asks for a shadow execution is executed, and recorded as one.
        `answer` is what a lookup with `on_miss` "lease" has said of this very item, as in a batch with others: then the
        cache is not asked that again, and a lease in it is used.
        """
        return await resolve_async(
            self, namespace, item, execute, lease_s=lease_s, wait_s=wait_s, tags=tags, answer=answer
        )

    async def extend_lease(self, namespace: str, lease_id: str, *, extend_s: float = LEASE_S) -> bool:
        """Hold the lease for `extend_s` from now; False: it had passed on."""
        return (await self._send(requests.lease(namespace, lease_id, extend_s=extend_s))).held

    async def release_lease(self, namespace: str, lease_id: str) -> bool:
        """Give the lease back unexecuted, so that the next one waiting gets it; False: it had passed on."""
        return (await self._send(requests.lease(namespace, lease_id, extend_s=0.0))).held

    async def put_namespace(self, name: str, spec: NamespaceSpec) -> None:
        """Create a namespace or replace its tools and policy; its entries stay."""
        await self._send(requests.put_namespace(name, spec))

    async def namespace(self, name: str) -> NamespaceSpec:
        return await self._send(requests.get_namespace(name))

    async def namespaces(self) -> list[str]:
        return list((await self._send(requests.NAMESPACES)).namespaces)

    async def delete_namespace(self, name: str) -> int:
        """Forget the namespace with all it holds; how many entries that were."""
        return (await self._send(requests.delete_namespace(name))).removed

    async def entries(
        self, namespace: str, *, tool: str | None = None, after: int | None = None
    ) -> AsyncIterator[EntryView]:
        """The entries of a tool, or of the namespace, oldest first, from the one after the order `after` on."""
        while True:
            page = await self._send(requests.entries(namespace, tool=tool, after=after, limit=PAGE))
            for entry in page.entries:
                yield entry
            if (after := page.next_after) is None:
                return

    async def remove(
        self,
        namespace: str,
        *,
        tool: str | None = None,
        tag: str | None = None,
        environment: str | None = None,
        older_than_s: float | None = None,
        everything: bool = False,
    ) -> int:
        """Remove the entries for which all that is given holds; how many there were.

        Raises CacheRefused where nothing is given and `everything` is not asked for.
        """
        request = requests.remove(
            namespace, tool=tool, tag=tag, environment=environment, older_than_s=older_than_s, everything=everything
        )
        return (await self._send(request)).removed

    async def export(self, namespace: str) -> AsyncIterator[bytes]:
        """The namespace and its entries, one JSON object a line, as they arrive; import_lines reads them.

        Raises CacheUnavailable where it breaks off: begin anew.
        """
        request = requests.export(namespace)
        rest = b""
        async with aclosing(self._stream(request)) as pieces:
            async for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield line
        if rest:
            yield rest

    async def import_lines(self, lines: Iterable[bytes], *, namespace: str | None = None) -> ImportReport:
        """Store recorded trajectories or exported entries, one JSON object a line.

        `namespace` None reads each trajectory's `domain`. A line that is imported again is `known` and counts nothing
        twice, whatever request brings it.
        """
        return await self._send(requests.import_(namespace, lines))

    async def calibrate(self, namespace: str) -> Stats:
        """Learn from what is recorded which arguments matter and how far each tier can be trusted."""
        return await self._send(requests.calibrate(namespace))

    async def stats(self, namespace: str) -> Stats:
        return await self._send(requests.stats(namespace))

    async def make_api_key(self, name: str, role: ApiRole, namespaces: Sequence[str]) -> ApiKey:
        """Make an API key; its `secret` is told this once. The namespace "*" is everywhere."""
        return await self._send(requests.make_key(name, role, namespaces))

    async def api_keys(self) -> list[ApiKey]:
        """All API keys, without their secrets."""
        return list((await self._send(requests.KEYS)).keys)

    async def delete_api_key(self, key_id: str) -> None:
        """Revoke an API key. Raises CacheRefused if there is none of that id."""
        await self._send(requests.delete_key(key_id))

    async def health(self) -> None:
        """Return if the service answers; raise CacheUnavailable if not."""
        await self._send(requests.HEALTH)

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _send(self, request: Request[_R]) -> _R:
        with self._calling(request) as tries:
            response, body = await self._replied(request, tries)
            return result(request, response.status_code, body, self.url)

    async def _stream(self, request: Request[None]) -> AsyncGenerator[bytes, None]:
        """The pieces of a streamed reply."""
        with self._calling(request) as tries:
            response, body = await self._replied(request, tries)
            if not response.is_success:
                raise refusal(request, response.status_code, body, self.url)
        try:
            assert isinstance(response.stream, httpx.AsyncByteStream)
            async for piece in response.stream:
                yield piece
        except httpx.RequestError as error:
            raise _broken_off(self.url, request, error) from error
        finally:
            await response.aclose()

    async def _replied(self, request: Request[_R], tries: Tries) -> tuple[httpx.Response, bytes]:
        """The first reply that is worth no further try, and its body, which of a stream is left to be read."""
        while True:
            try:
                response = await self._transport.handle_async_request(self._http(request))
                body = await _body_async(request, response)
            except httpx.RequestError as error:
                pause_s = tries.pause_after_error(error)
            else:
                if not is_worth_retrying(response.status_code):
                    return response, body
                pause_s = tries.pause_after_status(response.status_code, response.headers, body)
            await self._sleep(pause_s)


class CacheClient(_Client):
    """The cache at one URL, for code without an event loop. Safe to share between threads."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        job: str = "",
        timeout_s: float = 10.0,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`api_key` None reads TOOLCACHE_API_KEY; `job` names the caller in the service's metrics.

        `transport` None takes this SDK's own (pooled.py). Raises CacheUnavailable for what is no URL, CacheDenied for
        what can be no key.
        """
        super().__init__(url, api_key=api_key, job=job, timeout_s=timeout_s, clock=clock, chance=chance)
        self._sleep = sleep
        self._transport = PooledTransport(_url(self.url)) if transport is None else transport

    def lookup(
        self,
        namespace: str,
        items: Sequence[LookupItem],
        *,
        on_miss: OnMiss = "fail",
        wait_s: float = 0.0,
        lease_s: float = LEASE_S,
        explain: bool = False,
    ) -> list[Answer]:
        """One answer an item, in their order, in one round trip. A miss is an answer, not an error.

        `on_miss` "lease" asks for permission to execute what is missing, and waits up to `wait_s` for what others
        execute; "wait" only waits. With `explain` each answer tells what decided it, at some cost.
        """
        request = requests.lookup(
            namespace, items, on_miss=on_miss, wait_s=wait_s, lease_s=lease_s, explain=explain, job=self._job
        )
        return list(self._send(request).items)

    def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
        """Store executed calls; what returned is durable. Raises RecordRefused if some could not be stored."""
        return _checked(self._send(requests.record(namespace, items, job=self._job)).items)

    def resolve(
        self,
        namespace: str,
        item: LookupItem,
        execute: Callable[[], ToolResult],
        *,
        lease_s: float = LEASE_S,
        wait_s: float = PATIENCE_S,
        tags: Sequence[str] = (),
        answer: Answer | None = None,
    ) -> Resolved:
        """The call's result: from the cache; else from whoever executes it already, waiting up to `wait_s`; else from
        `execute`, recorded for all others.

        `execute` must run the call in the item's own state. Its lease is extended while it runs and given back if it
        raises; the error comes through. A hit that asks for a shadow execution is executed, and recorded as one.
        `answer` is what a lookup with `on_miss` "lease" has said of this very item, as in a batch with others: then the
        cache is not asked that again, and a lease in it is used.
        """
        return resolve(self, namespace, item, execute, lease_s=lease_s, wait_s=wait_s, tags=tags, answer=answer)

    def extend_lease(self, namespace: str, lease_id: str, *, extend_s: float = LEASE_S) -> bool:
        """Hold the lease for `extend_s` from now; False: it had passed on."""
        return self._send(requests.lease(namespace, lease_id, extend_s=extend_s)).held

    def release_lease(self, namespace: str, lease_id: str) -> bool:
        """Give the lease back unexecuted, so that the next one waiting gets it; False: it had passed on."""
        return self._send(requests.lease(namespace, lease_id, extend_s=0.0)).held

    def put_namespace(self, name: str, spec: NamespaceSpec) -> None:
        """Create a namespace or replace its tools and policy; its entries stay."""
        self._send(requests.put_namespace(name, spec))

    def namespace(self, name: str) -> NamespaceSpec:
        return self._send(requests.get_namespace(name))

    def namespaces(self) -> list[str]:
        return list(self._send(requests.NAMESPACES).namespaces)

    def delete_namespace(self, name: str) -> int:
        """Forget the namespace with all it holds; how many entries that were."""
        return self._send(requests.delete_namespace(name)).removed

    def entries(self, namespace: str, *, tool: str | None = None, after: int | None = None) -> Iterator[EntryView]:
        """The entries of a tool, or of the namespace, oldest first, from the one after the order `after` on."""
        while True:
            page = self._send(requests.entries(namespace, tool=tool, after=after, limit=PAGE))
            yield from page.entries
            if (after := page.next_after) is None:
                return

    def remove(
        self,
        namespace: str,
        *,
        tool: str | None = None,
        tag: str | None = None,
        environment: str | None = None,
        older_than_s: float | None = None,
        everything: bool = False,
    ) -> int:
        """Remove the entries for which all that is given holds; how many there were.

        Raises CacheRefused where nothing is given and `everything` is not asked for.
        """
        request = requests.remove(
            namespace, tool=tool, tag=tag, environment=environment, older_than_s=older_than_s, everything=everything
        )
        return self._send(request).removed

    def export(self, namespace: str) -> Iterator[bytes]:
        """The namespace and its entries, one JSON object a line, as they arrive; import_lines reads them.

        Raises CacheUnavailable where it breaks off: begin anew.
        """
        request = requests.export(namespace)
        rest = b""
        with closing(self._stream(request)) as pieces:
            for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines
        if rest:
            yield rest

    def import_lines(self, lines: Iterable[bytes], *, namespace: str | None = None) -> ImportReport:
        """Store recorded trajectories or exported entries, one JSON object a line.

        `namespace` None reads each trajectory's `domain`. A line that is imported again is `known` and counts nothing
        twice, whatever request brings it.
        """
        return self._send(requests.import_(namespace, lines))

    def calibrate(self, namespace: str) -> Stats:
        """Learn from what is recorded which arguments matter and how far each tier can be trusted."""
        return self._send(requests.calibrate(namespace))

    def stats(self, namespace: str) -> Stats:
        return self._send(requests.stats(namespace))

    def make_api_key(self, name: str, role: ApiRole, namespaces: Sequence[str]) -> ApiKey:
        """Make an API key; its `secret` is told this once. The namespace "*" is everywhere."""
        return self._send(requests.make_key(name, role, namespaces))

    def api_keys(self) -> list[ApiKey]:
        """All API keys, without their secrets."""
        return list(self._send(requests.KEYS).keys)

    def delete_api_key(self, key_id: str) -> None:
        """Revoke an API key. Raises CacheRefused if there is none of that id."""
        self._send(requests.delete_key(key_id))

    def health(self) -> None:
        """Return if the service answers; raise CacheUnavailable if not."""
        self._send(requests.HEALTH)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, request: Request[_R]) -> _R:
        with self._calling(request) as tries:
            response, body = self._replied(request, tries)
            return result(request, response.status_code, body, self.url)

    def _stream(self, request: Request[None]) -> Generator[bytes, None, None]:
        """The pieces of a streamed reply."""
        with self._calling(request) as tries:
            response, body = self._replied(request, tries)
            if not response.is_success:
                raise refusal(request, response.status_code, body, self.url)
        try:
            assert isinstance(response.stream, httpx.SyncByteStream)
            yield from response.stream
        except httpx.RequestError as error:
            raise _broken_off(self.url, request, error) from error
        finally:
            response.close()

    def _replied(self, request: Request[_R], tries: Tries) -> tuple[httpx.Response, bytes]:
        """The first reply that is worth no further try, and its body, which of a stream is left to be read."""
        while True:
            try:
                response = self._transport.handle_request(self._http(request))
                body = _body(request, response)
            except httpx.RequestError as error:
                pause_s = tries.pause_after_error(error)
            else:
                if not is_worth_retrying(response.status_code):
                    return response, body
                pause_s = tries.pause_after_status(response.status_code, response.headers, body)
            self._sleep(pause_s)


def _body(request: Request[_R], response: httpx.Response) -> bytes:
    """The reply's body; that of a stream is left to be read."""
    if request.is_stream and response.is_success:
        return b""
    assert isinstance(response.stream, httpx.SyncByteStream)
    try:
        return b"".join(response.stream)
    finally:
        response.close()


async def _body_async(request: Request[_R], response: httpx.Response) -> bytes:
    """The reply's body; that of a stream is left to be read."""
    if request.is_stream and response.is_success:
        return b""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    try:
        return b"".join([piece async for piece in response.stream])
    finally:
        await response.aclose()


@lru_cache(maxsize=256)
def _url(text: str) -> httpx.URL:
    """Parsed once: the hot paths are two, and parsing takes as long as sending. Raises CacheUnavailable."""
    try:
        return httpx.URL(text)
    except httpx.InvalidURL as error:
        raise CacheUnavailable(f"cache {text}: no URL ({error}); check it") from error


def _authorization(key: str) -> list[tuple[bytes, bytes]]:
    """Raises CacheDenied for a key that no header can carry: it could end its header and begin another."""
    if not key:
        return []
    if not key.isprintable():
        raise CacheDenied(status=401, code="unauthenticated", detail="the API key holds a control character")
    return [(b"authorization", b"Bearer " + key.encode())]


def _checked(recorded: Sequence[Recorded]) -> list[Recorded]:
    refused = {i: each.detail for i, each in enumerate(recorded) if each.outcome == "refused"}
    if refused:
        raise RecordRefused(refused)
    return list(recorded)


def _broken_off(url: str, request: Request[_R], error: httpx.RequestError) -> CacheUnavailable:
    why = f"{type(error).__name__}: {error}"
    return CacheUnavailable(f"{url}{request.target}: the reply broke off ({why}); what came is not all, begin anew")
