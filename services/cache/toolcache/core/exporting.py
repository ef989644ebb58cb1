"""Entries as lines of JSON, to be kept elsewhere and read back: nothing of them is lost, vectors included.

The first line of an export is the namespace with its policy and what was learned; each further one is an entry.
Importing them into a namespace that is not there yet gives the same answers. What a line says of itself is checked, and
what follows from the rest (keys, digests) is worked out again: a line cannot speak for another call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from toolcache.core.calls import Call, entry_key
from toolcache.core.canonical import NotCanonical
from toolcache.core.entries import MOST_SECONDS, Entry, Result
from toolcache.core.policy import Policy
from toolcache.core.ports import Known, Vector
from toolcache.core.profile import Profile
from toolcache.core.roles import place
from toolcache.core.tools import Namespace
from toolcache.core.trust import Evidence

NAMESPACE_KIND = "toolcache/namespace/1"
ENTRY_KIND = "toolcache/entry/1"


class ExportedNamespace(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    namespace: Namespace
    profiles: Mapping[str, Profile] = {}
    shadows: Mapping[str, Mapping[str, Evidence]] = {}


class Exported(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry; `vector` is base64 in the JSON."""

    kind: str
    scope: str
    environment: str
    tool: str
    arguments: Mapping[str, Any]
    content: str
    is_error: bool = False
    took_s: float = 0.0
    recorded_at_s: float = 0.0
    expires_at_s: float = 0.0
    tags: tuple[str, ...] = ()
    seen: int = 1
    vector: bytes = b""
    version: str = ""


MOST_SEEN = 2**31
_DIGEST = re.compile("[0-9a-f]{64}")
_encode = msgspec.json.Encoder().encode
_namespace = msgspec.json.Decoder(ExportedNamespace)
_entry = msgspec.json.Decoder(Exported)


class NoExport(ValueError):
    """A line that is no line of an export."""


def namespace_line(known: Known) -> bytes:
    line = ExportedNamespace(
        kind=NAMESPACE_KIND, namespace=known.namespace, profiles=known.profiles, shadows=known.shadows
    )
    return _encode(line) + b"\n"


def entry_line(entry: Entry, vector: Vector | None, *, version: str) -> bytes:
    line = Exported(
        kind=ENTRY_KIND,
        scope=entry.scope,
        environment=entry.environment,
        tool=entry.tool,
        arguments=entry.arguments,
        content=entry.result.content,
        is_error=entry.result.is_error,
        took_s=entry.result.took_s,
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


def read_line(line: bytes) -> ExportedNamespace | Exported:
    """Raises NoExport."""
    try:
        if NAMESPACE_KIND.encode() in line[:64]:
            return _namespace.decode(line)
        read = _entry.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise NoExport(f"no line of an export: {error}") from error
    if read.kind != ENTRY_KIND:
        raise NoExport(f"an export of kind {read.kind!r}; this version reads {ENTRY_KIND!r}")
    return read


def entry_of(policy: Policy, line: Exported) -> Entry:
    """The entry under today's policy. Raises NoExport for what no cache can have exported."""
    own = policy.tools.get(line.tool)
    if own is None:
        raise NoExport(f"namespace {policy.name} has no tool {line.tool!r}")
    times = (line.recorded_at_s, line.expires_at_s, line.took_s)
    if not (1 <= line.seen <= MOST_SEEN and all(0.0 <= each <= MOST_SECONDS * 10 for each in times)):
        raise NoExport(f"an entry of {line.tool}: a count or a time that cannot be")
    if _DIGEST.fullmatch(line.scope) is None:
        raise NoExport(f"an entry of {line.tool}: its scope is no digest")
    try:
        call = Call.of(line.tool, line.arguments, own.tool.masks)
        for text in (line.content, line.environment, *line.tags):
            text.encode()
    except (NotCanonical, UnicodeEncodeError) as error:
        raise NoExport(f"an entry of {line.tool}: {error}") from error
    result = Result(content=line.content, is_error=line.is_error, took_s=line.took_s)
    return Entry(
        key=entry_key(line.scope, call),
        scope=line.scope,
        environment=line.environment,
        tool=line.tool,
        arguments=line.arguments,
        canonical=call.canonical,
        result=result,
        result_digest=result.digest(),
        place=place(own.tool, line.scope, line.environment, call, own.profile.roles),
        recorded_at_s=line.recorded_at_s,
        expires_at_s=line.expires_at_s,
        tags=line.tags,
        seen=line.seen,
    )
