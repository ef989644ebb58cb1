"""What each endpoint does: read a message, ask the cache, write a message. The docstrings are the API's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from toolcache.core import importing
from toolcache.core.access import EVERYWHERE, ApiRole, made
from toolcache.core.cache import MissPolicy, ToolCache
from toolcache.core.ports import Filter, Once, Store
from toolcache.core.questions import TELL
from toolcache.core.quick import QuickHit
from toolcache.core.tools import NamespaceInvalid
from toolcache.core.trust import Reason
from toolcache.http import parameters as ask
from toolcache.http import wire as translate
from toolcache.http.exchange import Exchange
from toolcache.http.import_ import NAMESPACE_NAME, Permitted, creates_namespace
from toolcache.http.keyring import Keyring
from toolcache.http.operation import Content, Description, Handler, Stream
from toolcache.http.problems import Code, Refused
from toolcache.metrics import CONTENT_TYPE, OTHER, Metrics
from toolcache.settings import Limits
from toolcache.telemetry import log
from toolcache_client import messages as wire

_M = TypeVar("_M")
_H = TypeVar("_H", bound=Callable[..., Any])
IMPORTED_AT_ONCE = 32
"""Lines of an import in work together, so that they share a commit."""
EXPORT_PIECE_BYTES = 64 * 1024
LONGEST_WAIT_S = 3600.0
LONGEST_LEASE_S = 86400.0
LONGEST_REQUEST_ID = 128
LONGEST_KEY_NAME = 64
LISTED = 100
"""Entries that are listed at once, unless told otherwise."""
_NDJSON = "application/x-ndjson"
_OF_BATCHES = (Code.UNKNOWN_NAMESPACE, Code.TOO_MANY_ITEMS, Code.INVALID_VALUE)
_NO_SUCH_TOOL = frozenset((Reason.UNKNOWN_TOOL, Reason.STATE_UNKNOWN))
"""Reasons of misses whose tool may be none of the namespace's."""


class Health(wire.Reply, frozen=True, kw_only=True):
    """What probes are told; too small for the contract."""

    status: str


class _Answers(msgspec.Struct):
    """A LookupReply on its way out: quick hits have the shape of answers already."""

    items: list[QuickHit | wire.Answer]


_DESCRIBED: list[tuple[Description, str]] = []


def _at(
    route: str,
    *parameters: ask.Parameter[Any],
    takes: type[wire.Message] | str | None = None,
    gives: type[wire.Message | wire.Reply] | str | None = None,
    problems: Sequence[Code] = (),
    **more: bool,
) -> Callable[[_H], _H]:
    """Notes where a handler is served, and what it takes and gives."""

    def note(handler: _H) -> _H:
        method, _, path = route.partition(" ")
        about = Description(
            method=method, path=path, body=takes, reply=gives, parameters=parameters, problems=tuple(problems), **more
        )
        _DESCRIBED.append((about, handler.__name__))
        return handler

    return note


class Endpoints:
    """The endpoints over one cache. Each raises Refused, ClientGone, UnknownNamespace, StoreUnavailable."""

    def __init__(
        self,
        cache: ToolCache,
        store: Store,
        limits: Limits,
        *,
        keyring: Keyring | None,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._store = store
        self._limits = limits
        self._keyring = keyring
        self._metrics = metrics
        self._clock = clock

    def described(self) -> list[tuple[Description, Handler]]:
        """Every endpoint, in the order they stand here."""
        return [(about, getattr(self, name)) for about, name in _DESCRIBED]

    # -- looking up and recording --------------------------------------------------------------------------------------

    @_at(
        "POST /v1/lookup",
        ask.EXPLAIN,
        takes=wire.LookupRequest,
        gives=wire.LookupReply,
        problems=(*_OF_BATCHES, Code.STOPPING),
    )
    async def lookup(self, exchange: Exchange) -> bytes:
        """Answer one or many calls: tier, trust, result, reason, donor and state of each, misses too."""
        body = _decoded(await exchange.body(self._limits.body_bytes), _LOOKUP)
        exchange.job, exchange.items = body.job, len(body.items)
        self._check_count(len(body.items))
        exchange.needs(ApiRole.WRITE if body.on_miss == "lease" else ApiRole.READ, body.namespace)
        explain = bool(exchange.query) and ask.EXPLAIN.of(exchange.query)
        miss = TELL if body.on_miss == "fail" else _miss_policy(body)
        if explain:
            long = await self._cache.lookup(body.namespace, body.items, miss=miss, explain=True)
            answers: list[QuickHit | wire.Answer] = [translate.answer(each) for each in long]
        else:
            short = await self._cache.lookup_quickly(body.namespace, body.items, miss=miss)
            answers = [each if isinstance(each, QuickHit) else translate.answer(each) for each in short.items]
            for tool, tally in short.tallies.items():
                trust = tally.trust * tally.count
                self._metrics.answered(body.namespace, tool, "exact", body.job, trust, tally.saved_s, count=tally.count)
        self._count(body, answers)
        return _encode(_Answers(items=answers))

    def _count(self, body: wire.LookupRequest, answers: Sequence[QuickHit | wire.Answer]) -> None:
        answered, namespace, job = self._metrics.answered, body.namespace, body.job
        for item, answer in zip(body.items, answers, strict=True):
            if isinstance(answer, QuickHit):
                continue
            if answer.result is None:
                tool = OTHER if answer.reason in _NO_SUCH_TOOL else item.tool
                answered(namespace, tool, "miss", job, 0.0, 0.0)
            else:
                answered(namespace, item.tool, answer.tier, job, answer.trust, answer.result.took_s)

    @_at("POST /v1/record", takes=wire.RecordRequest, gives=wire.RecordReply, problems=_OF_BATCHES)
    async def record(self, exchange: Exchange) -> bytes:
        """Store one or many executed calls. Items that are not refused are durable when this answers."""
        body = _decoded(await exchange.body(self._limits.body_bytes), _RECORD)
        exchange.job, exchange.items = body.job, len(body.items)
        self._check_count(len(body.items))
        exchange.needs(ApiRole.WRITE, body.namespace)
        if len(body.request_id) > LONGEST_REQUEST_ID:
            raise Refused(Code.INVALID_VALUE, f"request_id is longer than {LONGEST_REQUEST_ID} characters")
        once = Once(name=f"record:{body.request_id}") if body.request_id else None
        done = await self._permitted(exchange).record(
            body.namespace, [translate.recording(item) for item in body.items], once=once
        )
        return _encode(wire.RecordReply(items=tuple([translate.recorded(each) for each in done])))

    @_at(
        "POST /v1/leases/{id}",
        takes=wire.LeaseRequest,
        gives=wire.LeaseReply,
        problems=(Code.UNKNOWN_NAMESPACE, Code.INVALID_VALUE),
    )
    async def lease(self, exchange: Exchange) -> bytes:
        """Extend a lease by so many seconds from now, or give it back unexecuted."""
        body = _decoded(await exchange.body(self._limits.body_bytes), _LEASE)
        exchange.needs(ApiRole.WRITE, body.namespace)
        _check_within("extend_s", body.extend_s, 0.0, LONGEST_LEASE_S)
        lease_id = exchange.path_parameters["id"]
        if body.extend_s:
            is_held = await self._cache.extend_lease(body.namespace, lease_id, body.extend_s)
        else:
            is_held = await self._cache.release_lease(body.namespace, lease_id)
        return _encode(wire.LeaseReply(held=is_held))

    # -- import and export ---------------------------------------------------------------------------------------------

    @_at(
        "POST /v1/import",
        ask.INTO,
        takes=_NDJSON,
        gives=wire.ImportReport,
        problems=(Code.UNKNOWN_NAMESPACE,),
        takes_long=True,
    )
    async def import_(self, exchange: Exchange) -> bytes:
        """Store recorded trajectories and exported entries, one JSON object a line, streamed.

        Lines that cannot be used are counted, and the first hundred are told with their reason.
        """
        into = ask.INTO.or_none(exchange.query)
        if into is not None:
            exchange.needs(ApiRole.WRITE, into)
        elif exchange.key.role < ApiRole.WRITE:
            raise Refused(Code.FORBIDDEN, "this takes the role write; the key's role is read")
        report = importing.ImportReport()
        async for batch in self._batches(exchange):
            if into is not None and not exchange.items and not (batch and creates_namespace(batch[0][1])):
                await self._cache.namespace(into)  # told before all lines are refused one by one
            exchange.items += len(batch)
            await self._import(exchange, batch, report, into)
        log("imported", trajectories=report.trajectories, calls=report.calls, rejected=sum(report.rejected.values()))
        return _encode(translate.import_report(report))

    async def _batches(self, exchange: Exchange) -> AsyncIterator[list[tuple[int, bytes]]]:
        """Lines that may be worked on side by side; at least one batch, however empty.

        A line that makes a namespace comes alone: those after it need it.
        """
        batch: list[tuple[int, bytes]] = []
        async for number, line in exchange.lines(self._limits.body_bytes):
            if creates_namespace(line):
                if batch:
                    yield batch
                yield [(number, line)]
                batch = []
                continue
            batch.append((number, line))
            if len(batch) == IMPORTED_AT_ONCE:
                yield batch
                batch = []
        if batch or not exchange.items:
            yield batch

    async def _import(
        self, exchange: Exchange, lines: list[tuple[int, bytes]], report: importing.ImportReport, into: str | None
    ) -> None:
        target = self._permitted(exchange)
        work = (importing.import_line(target, line, number, report, namespace=into) for number, line in lines)
        # Every line is waited for, also where another one failed: none may be at work after the reply.
        failed = [each for each in await asyncio.gather(*work, return_exceptions=True) if each is not None]
        if failed:
            raise failed[0]

    @_at("GET /v1/export", ask.NAMESPACE, gives=_NDJSON, problems=(Code.UNKNOWN_NAMESPACE,), takes_long=True)
    async def export(self, exchange: Exchange) -> Stream:
        """The namespace and its entries, one JSON object a line, as `import` reads them."""
        namespace = ask.NAMESPACE.of(exchange.query)
        exchange.needs(ApiRole.READ, namespace)
        return Stream(media_type=_NDJSON, pieces=self._exported(namespace))

    async def _exported(self, namespace: str) -> AsyncGenerator[bytes, None]:
        waiting: list[bytes] = []
        size_bytes = 0
        async with aclosing(self._cache.export(namespace)) as lines:
            async for line in lines:
                waiting.append(line)
                size_bytes += len(line)
                if size_bytes > EXPORT_PIECE_BYTES:
                    yield b"".join(waiting)
                    waiting, size_bytes = [], 0
        yield b"".join(waiting)

    # -- entries -------------------------------------------------------------------------------------------------------

    @_at(
        "GET /v1/entries",
        ask.NAMESPACE,
        ask.TOOL,
        ask.AFTER,
        ask.LIMIT,
        gives=wire.Entries,
        problems=(Code.UNKNOWN_NAMESPACE,),
    )
    async def entries(self, exchange: Exchange) -> bytes:
        """Recorded entries in the order they came, so many at once."""
        namespace = ask.NAMESPACE.of(exchange.query)
        exchange.needs(ApiRole.READ, namespace)
        limit = ask.LIMIT.or_none(exchange.query) or LISTED
        after = ask.AFTER.or_none(exchange.query) or 0
        found = await self._cache.browse(namespace, ask.TOOL.or_none(exchange.query), after, limit)
        next_after = found[-1].order if len(found) == limit else None
        return _encode(wire.Entries(entries=tuple(map(translate.entry_view, found)), next_after=next_after))

    @_at(
        "DELETE /v1/entries",
        ask.NAMESPACE,
        ask.TOOL,
        ask.TAG,
        ask.ENVIRONMENT,
        ask.OLDER_THAN_S,
        ask.ALL,
        gives=wire.Removed,
        problems=(Code.UNKNOWN_NAMESPACE,),
    )
    async def remove_entries(self, exchange: Exchange) -> bytes:
        """Remove the entries for which everything given holds; `all` has to be said where nothing is given."""
        query = exchange.query
        namespace = ask.NAMESPACE.of(query)
        exchange.needs(ApiRole.ADMIN, namespace)
        older_than_s = ask.OLDER_THAN_S.or_none(query)
        which = Filter(
            tool=ask.TOOL.or_none(query),
            tag=ask.TAG.or_none(query),
            environment=ask.ENVIRONMENT.or_none(query),
            recorded_before_s=None if older_than_s is None else self._clock() - older_than_s,
        )
        if (which == Filter()) is not bool(ask.ALL.or_none(query)):
            raise Refused(
                Code.INVALID_PARAMETER,
                "say which entries (tool, tag, environment, older_than_s), or all=1 to remove every one; not both",
            )
        removed = await self._cache.remove_where(namespace, which)
        log("removed", namespace=namespace, entries=removed)
        return _encode(wire.Removed(removed=removed))

    # -- namespaces ----------------------------------------------------------------------------------------------------

    @_at("GET /v1/namespaces", gives=wire.Namespaces)
    async def namespaces(self, exchange: Exchange) -> bytes:
        """The names of all namespaces that the key may read."""
        names = [name for name in await self._cache.namespaces() if exchange.key.may(ApiRole.READ, name)]
        return _encode(wire.Namespaces(namespaces=tuple(names)))

    @_at(
        "PUT /v1/namespaces/{name}", takes=wire.NamespaceSpec, problems=(Code.UNKNOWN_NAMESPACE, Code.INVALID_NAMESPACE)
    )
    async def put_namespace(self, exchange: Exchange) -> None:
        """Create a namespace, or replace its tools and policy. Its entries stay."""
        name = exchange.path_parameters["name"]
        exchange.needs(ApiRole.ADMIN, name)
        spec = _decoded(await exchange.body(self._limits.body_bytes), _SPEC)
        if not NAMESPACE_NAME.fullmatch(name):
            raise Refused(Code.INVALID_NAMESPACE, f"{name[:80]!r} is no namespace name: use {NAMESPACE_NAME.pattern}")
        try:
            await self._cache.put_namespace(translate.namespace(name, spec))
        except NamespaceInvalid as error:
            raise Refused(Code.INVALID_NAMESPACE, f"namespace {name}: {error}") from error

    @_at("GET /v1/namespaces/{name}", gives=wire.NamespaceSpec, problems=(Code.UNKNOWN_NAMESPACE,))
    async def get_namespace(self, exchange: Exchange) -> bytes:
        """A namespace's tools and policy."""
        name = exchange.path_parameters["name"]
        exchange.needs(ApiRole.READ, name)
        return _encode(translate.spec(await self._cache.namespace(name)))

    @_at("DELETE /v1/namespaces/{name}", gives=wire.Removed, problems=(Code.UNKNOWN_NAMESPACE,))
    async def delete_namespace(self, exchange: Exchange) -> bytes:
        """Forget a namespace with all its entries; how many there were."""
        name = exchange.path_parameters["name"]
        exchange.needs(ApiRole.ADMIN, name)
        removed = await self._cache.delete_namespace(name)
        log("namespace_deleted", namespace=name, entries=removed)
        return _encode(wire.Removed(removed=removed))

    @_at("POST /v1/calibrate", ask.NAMESPACE, gives=wire.Stats, problems=(Code.UNKNOWN_NAMESPACE,), takes_long=True)
    async def calibrate(self, exchange: Exchange) -> bytes:
        """Learn from what is recorded which arguments matter and how far each tier can be trusted."""
        namespace = ask.NAMESPACE.of(exchange.query)
        exchange.needs(ApiRole.WRITE, namespace)
        await self._cache.calibrate(namespace)
        return _encode(translate.stats(await self._cache.report(namespace)))

    @_at("GET /v1/stats", ask.NAMESPACE, gives=wire.Stats, problems=(Code.UNKNOWN_NAMESPACE,))
    async def stats(self, exchange: Exchange) -> bytes:
        """What a namespace holds, what it answered since the service started, and each tool's trust."""
        namespace = ask.NAMESPACE.of(exchange.query)
        exchange.needs(ApiRole.READ, namespace)
        return _encode(translate.stats(await self._cache.report(namespace)))

    # -- keys ----------------------------------------------------------------------------------------------------------

    @_at("POST /v1/keys", takes=wire.KeySpec, gives=wire.ApiKey, problems=(Code.INVALID_VALUE,))
    async def make_key(self, exchange: Exchange) -> bytes:
        """Make an API key. Its secret is told here, and never again."""
        exchange.needs_everywhere(ApiRole.ADMIN)
        spec = _decoded(await exchange.body(self._limits.body_bytes), _KEY)
        _check_key(spec)
        key, secret = made(spec.name, translate.ROLES[spec.role], spec.namespaces, now_s=self._clock())
        await self._store.put_api_key(key)
        if self._keyring is not None:
            self._keyring.made(key)
        log("key_made", key=key.id, role=spec.role, namespaces=key.namespaces)
        return _encode(translate.api_key(key, secret=secret))

    @_at("GET /v1/keys", gives=wire.ApiKeys)
    async def keys(self, exchange: Exchange) -> bytes:
        """All API keys, without their secrets."""
        exchange.needs_everywhere(ApiRole.ADMIN)
        keys = sorted(await self._store.api_keys(), key=lambda key: (key.created_at_s, key.id))
        return _encode(wire.ApiKeys(keys=tuple(map(translate.api_key, keys))))

    @_at("DELETE /v1/keys/{id}", gives=wire.Removed, problems=(Code.UNKNOWN_KEY,))
    async def revoke_key(self, exchange: Exchange) -> bytes:
        """Revoke an API key: within seconds it opens nothing any more."""
        exchange.needs_everywhere(ApiRole.ADMIN)
        key_id = exchange.path_parameters["id"]
        if not await self._store.delete_api_key(key_id):
            raise Refused(Code.UNKNOWN_KEY, f"no key {key_id[:64]!r}; GET /v1/keys lists them")
        if self._keyring is not None:
            self._keyring.revoked(key_id)
        log("key_revoked", key=key_id)
        return _encode(wire.Removed(removed=1))

    # -- the service itself --------------------------------------------------------------------------------------------

    @_at("GET /healthz", gives=Health, is_public=True)
    async def health(self, exchange: Exchange) -> bytes:
        """The process answers."""
        return b'{"status":"ok"}'

    @_at("GET /readyz", gives=Health, problems=(Code.STORE_UNAVAILABLE,), is_public=True)
    async def ready(self, exchange: Exchange) -> bytes:
        """The store answers too."""
        await self._cache.namespaces()
        return b'{"status":"ready"}'

    @_at("GET /metrics", gives="text/plain", is_exempt=True)
    async def metrics(self, exchange: Exchange) -> Content:
        """The service's numbers, for Prometheus."""
        exchange.needs_everywhere(ApiRole.READ)
        # In a thread: with thousands of series it takes longer than lookups may be held up.
        return Content(media_type=CONTENT_TYPE, body=await asyncio.to_thread(self._metrics.text))

    def _permitted(self, exchange: Exchange) -> Permitted:
        return Permitted(self._cache, exchange.key, self._limits, self._metrics)

    def _check_count(self, count: int) -> None:
        if count > self._limits.items:
            raise Refused(
                Code.TOO_MANY_ITEMS, f"{count} items in one request, at most {self._limits.items}; send several"
            )


_LOOKUP = msgspec.json.Decoder(wire.LookupRequest)
_RECORD = msgspec.json.Decoder(wire.RecordRequest)
_LEASE = msgspec.json.Decoder(wire.LeaseRequest)
_SPEC = msgspec.json.Decoder(wire.NamespaceSpec)
_KEY = msgspec.json.Decoder(wire.KeySpec)
_encode = msgspec.json.Encoder().encode


def _decoded(body: bytes, decoder: msgspec.json.Decoder[_M]) -> _M:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(Code.MALFORMED_BODY, f"{error}; see /docs for the message") from error


def _miss_policy(body: wire.LookupRequest) -> MissPolicy:
    _check_within("wait_s", body.wait_s, 0.0, LONGEST_WAIT_S)
    _check_within("lease_s", body.lease_s, 0.001, LONGEST_LEASE_S)
    return MissPolicy(action=body.on_miss, wait_s=body.wait_s, lease_s=body.lease_s)


def _check_within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise Refused(Code.INVALID_VALUE, f"{name} is {value:g}; it must lie in {least:g}..{most:g}")


def _check_key(spec: wire.KeySpec) -> None:
    if not 0 < len(spec.name) <= LONGEST_KEY_NAME:
        raise Refused(Code.INVALID_VALUE, f"name the key, in 1..{LONGEST_KEY_NAME} characters")
    if not spec.namespaces:
        raise Refused(Code.INVALID_VALUE, f'say where the key holds: namespaces, or "{EVERYWHERE}" for everywhere')
    for name in spec.namespaces:
        if name != EVERYWHERE and not NAMESPACE_NAME.fullmatch(name):
            raise Refused(Code.INVALID_VALUE, f"{name[:80]!r} is no namespace name: use {NAMESPACE_NAME.pattern}")
