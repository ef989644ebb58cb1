"""Entries as lines of JSON, to be kept elsewhere and read back: nothing of them is lost, vectors included.

The first line of an export is the namespace with its policy; each further one is an entry. Importing them into another
store gives the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from toolcache.core.entries import Entry, Place, Result
from toolcache.core.ports import Vector
from toolcache.core.tools import Namespace

NAMESPACE_KIND = "toolcache/namespace/1"
ENTRY_KIND = "toolcache/entry/1"


class ExportedNamespace(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    namespace: Namespace


class Exported(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry; `vector` is base64 in the JSON."""

    kind: str
    key: str
    scope: str
    environment: str
    tool: str
    arguments: Mapping[str, Any]
    canonical: str
    content: str
    is_error: bool = False
    took_s: float = 0.0
    guard: str = ""
    equal: str = ""
    call: str = ""
    recorded_at_s: float = 0.0
    expires_at_s: float = 0.0
    tags: tuple[str, ...] = ()
    seen: int = 1
    vector: bytes = b""
    version: str = ""


_encode = msgspec.json.Encoder().encode
_namespace = msgspec.json.Decoder(ExportedNamespace)
_entry = msgspec.json.Decoder(Exported)


class NoExport(ValueError):
    """A line that is no line of an export."""


def namespace_line(namespace: Namespace) -> bytes:
    return _encode(ExportedNamespace(kind=NAMESPACE_KIND, namespace=namespace)) + b"\n"


def entry_line(entry: Entry, vector: Vector | None, *, version: str) -> bytes:
    line = Exported(
        kind=ENTRY_KIND,
        key=entry.key,
        scope=entry.scope,
        environment=entry.environment,
        tool=entry.tool,
        arguments=entry.arguments,
        canonical=entry.canonical,
        content=entry.result.content,
        is_error=entry.result.is_error,
        took_s=entry.result.took_s,
        guard=entry.place.guard,
        equal=entry.place.equal,
        call=entry.place.call,
        recorded_at_s=entry.recorded_at_s,
        expires_at_s=entry.expires_at_s,
        tags=entry.tags,
        seen=entry.seen,
        vector=vector or b"",
        version=version if vector else "",
    )
    return _encode(line) + b"\n"


def is_export(line: bytes) -> bool:
    """Whether a line claims to be one of an export: its kind stands first."""
    return line.lstrip().startswith(b'{"kind":"toolcache/')


def read_line(line: bytes) -> Namespace | Exported:
    """Raises NoExport."""
    try:
        if NAMESPACE_KIND.encode() in line[:64]:
            return _namespace.decode(line).namespace
        read = _entry.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise NoExport(f"no line of an export: {error}") from error
    if read.kind != ENTRY_KIND:
        raise NoExport(f"an export of kind {read.kind!r}; this version reads {ENTRY_KIND!r}")
    return read


def entry_of(line: Exported) -> Entry:
    result = Result(content=line.content, is_error=line.is_error, took_s=line.took_s)
    return Entry(
        key=line.key,
        scope=line.scope,
        environment=line.environment,
        tool=line.tool,
        arguments=line.arguments,
        canonical=line.canonical,
        result=result,
        result_digest=result.digest(),
        place=Place(guard=line.guard, equal=line.equal, call=line.call),
        recorded_at_s=line.recorded_at_s,
        expires_at_s=line.expires_at_s,
        tags=line.tags,
        seen=line.seen,
    )
