"""Every call to the service as a value: what is sent, how its reply is read. Both clients send these; no I/O here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote, urlencode
from uuid import uuid4

import msgspec

from toolcache_client.errors import CacheRefused
from toolcache_client.messages import (
    ApiKey,
    ApiKeys,
    ApiRole,
    Entries,
    ImportReport,
    KeySpec,
    LeaseReply,
    LeaseRequest,
    LookupItem,
    LookupReply,
    LookupRequest,
    Namespaces,
    NamespaceSpec,
    OnMiss,
    RecordItem,
    RecordReply,
    RecordRequest,
    Removed,
    Stats,
)

LONG_TIMEOUT_S = 600.0
"""Seconds an import, a calibration or a removal may take: minutes of work, not hours."""

_R = TypeVar("_R")
JSON = "application/json"
NDJSON = "application/x-ndjson"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[_R]):
    """One HTTP exchange."""

    method: str
    target: str
    """Path and query."""
    read: Callable[[bytes], _R]
    content: bytes = b""
    content_type: str = JSON
    is_stream: bool = False
    """Its reply is read piece by piece, not by `read`."""
    timeout_s: float | None = None
    """Instead of the client's own."""
    extra_s: float = 0.0
    """On top of the timeout: seconds which the service was asked to wait."""

    def patience_s(self, default_s: float) -> float:
        return (default_s if self.timeout_s is None else self.timeout_s) + self.extra_s


class _Health(msgspec.Struct):
    """What /healthz says; too small for the contract, enough to tell the service from another."""

    status: Literal["ok"]


def _reader(reply: type[_R]) -> Callable[[bytes], _R]:
    return msgspec.json.Decoder(reply).decode


_read_lookup = _reader(LookupReply)
_read_record = _reader(RecordReply)
_read_lease = _reader(LeaseReply)
_read_spec = _reader(NamespaceSpec)
_read_namespaces = _reader(Namespaces)
_read_entries = _reader(Entries)
_read_removed = _reader(Removed)
_read_import = _reader(ImportReport)
_read_stats = _reader(Stats)
_read_key = _reader(ApiKey)
_read_keys = _reader(ApiKeys)
_read_health = _reader(_Health)
_encode = msgspec.json.Encoder().encode


def _nothing(body: bytes) -> None:
    """The reply of an endpoint that says nothing; a page of some other server is none."""
    if body:
        raise msgspec.ValidationError("expected an empty reply")


def _healthy(body: bytes) -> None:
    _read_health(body)


# -- lookup, record, leases --------------------------------------------------------------------------------------------


def lookup(
    namespace: str,
    items: Sequence[LookupItem],
    *,
    on_miss: OnMiss,
    wait_s: float,
    lease_s: float,
    explain: bool,
    job: str,
) -> Request[LookupReply]:
    """Raises CacheRefused for what JSON cannot say."""
    message = LookupRequest(
        namespace=namespace, items=tuple(items), on_miss=on_miss, wait_s=wait_s, lease_s=lease_s, job=job
    )
    target = "/v1/lookup?explain=1" if explain else "/v1/lookup"
    return Request(method="POST", target=target, content=_sendable(message), read=_read_lookup, extra_s=wait_s)


def record(namespace: str, items: Sequence[RecordItem], *, job: str) -> Request[RecordReply]:
    """Raises CacheRefused for what JSON cannot say."""
    # Made once a call, not once a try: that is how the service knows a retry.
    message = RecordRequest(namespace=namespace, items=tuple(items), request_id=uuid4().hex, job=job)
    return Request(method="POST", target="/v1/record", content=_sendable(message), read=_read_record)


def lease(namespace: str, lease_id: str, *, extend_s: float) -> Request[LeaseReply]:
    """Extends it by `extend_s` from now; 0 gives it back."""
    message = LeaseRequest(namespace=namespace, extend_s=extend_s)
    return Request(method="POST", target=f"/v1/leases/{_part(lease_id)}", content=_encode(message), read=_read_lease)


def _sendable(message: LookupRequest | RecordRequest) -> bytes:
    """The message as JSON. Raises CacheRefused for what JSON cannot say, which the encoder would send as null."""
    items: Sequence[LookupItem | RecordItem] = message.items
    for i, item in enumerate(items):
        if not _is_finite(item.arguments):
            raise _unsendable(f"item {i}: the arguments of {item.tool!r} hold NaN or infinity, which JSON cannot say")
    try:
        return _encode(message)
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


# -- namespaces --------------------------------------------------------------------------------------------------------


def put_namespace(name: str, spec: NamespaceSpec) -> Request[None]:
    return Request(method="PUT", target=f"/v1/namespaces/{_part(name)}", content=_encode(spec), read=_nothing)


def get_namespace(name: str) -> Request[NamespaceSpec]:
    return Request(method="GET", target=f"/v1/namespaces/{_part(name)}", read=_read_spec)


def delete_namespace(name: str) -> Request[Removed]:
    target = f"/v1/namespaces/{_part(name)}"
    return Request(method="DELETE", target=target, read=_read_removed, timeout_s=LONG_TIMEOUT_S)


NAMESPACES = Request(method="GET", target="/v1/namespaces", read=_read_namespaces)


# -- entries -----------------------------------------------------------------------------------------------------------


def entries(namespace: str, *, tool: str | None, after: int | None, limit: int) -> Request[Entries]:
    query = {"namespace": namespace, "tool": tool, "after": after, "limit": limit}
    return Request(method="GET", target=_target("/v1/entries", query), read=_read_entries)


def remove(
    namespace: str,
    *,
    tool: str | None,
    tag: str | None,
    environment: str | None,
    older_than_s: float | None,
    everything: bool,
) -> Request[Removed]:
    """Raises CacheRefused where no filter is given and everything is not asked for: that is a slip."""
    filters = {"tool": tool, "tag": tag, "environment": environment, "older_than_s": older_than_s}
    if not everything and all(value is None for value in filters.values()):
        detail = "name a tool, a tag, an environment or an age, or ask for everything"
        raise CacheRefused(status=400, code="missing_parameter", detail=detail)
    query = {"namespace": namespace, **filters, "all": "1" if everything else None}
    return Request(method="DELETE", target=_target("/v1/entries", query), read=_read_removed, timeout_s=LONG_TIMEOUT_S)


def import_(namespace: str | None, lines: Iterable[bytes]) -> Request[ImportReport]:
    return Request(
        method="POST",
        target=_target("/v1/import", {"namespace": namespace or None}),
        content=b"\n".join(line.rstrip(b"\n") for line in lines),
        content_type=NDJSON,
        read=_read_import,
        timeout_s=LONG_TIMEOUT_S,
    )


def export(namespace: str) -> Request[None]:
    """Its reply is a stream of lines."""
    target = _target("/v1/export", {"namespace": namespace})
    return Request(method="GET", target=target, read=_nothing, is_stream=True)


# -- what was learned, and the service itself --------------------------------------------------------------------------


def calibrate(namespace: str) -> Request[Stats]:
    target = _target("/v1/calibrate", {"namespace": namespace})
    return Request(method="POST", target=target, read=_read_stats, timeout_s=LONG_TIMEOUT_S)


def stats(namespace: str) -> Request[Stats]:
    return Request(method="GET", target=_target("/v1/stats", {"namespace": namespace}), read=_read_stats)


def make_key(name: str, role: ApiRole, namespaces: Sequence[str]) -> Request[ApiKey]:
    spec = KeySpec(name=name, role=role, namespaces=tuple(namespaces))
    return Request(method="POST", target="/v1/keys", content=_encode(spec), read=_read_key)


def delete_key(key_id: str) -> Request[Removed]:
    return Request(method="DELETE", target=f"/v1/keys/{_part(key_id)}", read=_read_removed)


KEYS = Request(method="GET", target="/v1/keys", read=_read_keys)
HEALTH: Request[None] = Request(method="GET", target="/healthz", read=_healthy)


def _part(text: str) -> str:
    # Quoted whole, or "a?b" would create the namespace "a".
    return quote(text, safe="")


def _target(path: str, query: Mapping[str, str | int | float | None]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path
