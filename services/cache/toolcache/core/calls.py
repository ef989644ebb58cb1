"""A call, and the keys under which it is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolcache.core.canonical import canonical_json, digest
from toolcache.core.tools import Effect, Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool's name and arguments, with the arguments' canonical text."""

    tool: str
    arguments: Mapping[str, Any]
    canonical: str

    @classmethod
    def of(cls, tool: str, arguments: Mapping[str, Any]) -> Call:
        """Raises NotCanonical."""
        return cls(tool=tool, arguments=arguments, canonical=canonical_json(dict(arguments)))


def scope(tool: Tool, environment: str, state: str) -> str:
    """Where a tool's results hold: a pure tool's anywhere in the environment, another's in one state of it only.

    The environment stays even for pure tools, because it fingerprints the code that computes the result. It stays
    beside a state too: a state is the caller's word, and two environments may be given the same one.
    """
    if tool.effect is Effect.PURE:
        return digest("toolcache/pure/1", environment)
    return digest("toolcache/scope/1", environment, state)


def entry_key(scope: str, call: Call) -> str:
    """The exact tier's key: 64 hex digits, equal iff scope, tool and canonical arguments are."""
    return digest("toolcache/entry/1", scope, call.tool, call.canonical)


def call_digest(environment: str, call: Call) -> str:
    """Names a call whatever the state: where the same question was asked in another state of the environment."""
    return digest("toolcache/call/1", environment, call.tool, call.canonical)
