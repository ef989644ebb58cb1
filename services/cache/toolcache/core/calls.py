"""A call, and the keys under which it is found."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from toolcache.core.canonical import canonical_json, digest, digester
from toolcache.core.tools import Effect, Mask, Tool

MASKED = "\N{FULL BLOCK}"
"""Stands for what a mask matched."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A tool's name and arguments, with the canonical text of what in them can matter."""

    tool: str
    arguments: Mapping[str, Any]
    canonical: str
    kept: Mapping[str, Any]
    """The arguments less what is masked; `canonical` is their text."""

    @classmethod
    def of(cls, tool: str, arguments: Mapping[str, Any], masks: Sequence[Mask] = ()) -> Call:
        """Raises NotCanonical."""
        kept = masked(arguments, masks) if masks else arguments
        return cls(tool=tool, arguments=arguments, canonical=canonical_json(kept), kept=kept)


def masked(arguments: Mapping[str, Any], masks: Sequence[Mask]) -> dict[str, Any]:
    """The arguments less what cannot matter: whole arguments, or what a pattern matches in their strings.

    >>> masked({"path": "/run-17/a", "trace": "x"}, [Mask(argument="trace"), Mask(argument="path", pattern="[0-9]+")])
    {'path': '/run-█/a'}
    """
    kept = dict(arguments)
    for mask in masks:
        if mask.argument not in kept:
            continue
        if mask.pattern:
            kept[mask.argument] = _without(re.compile(mask.pattern), kept[mask.argument])
        else:
            del kept[mask.argument]
    return kept


def _without(pattern: re.Pattern[str], value: Any) -> Any:
    match value:
        case str():
            return pattern.sub(MASKED, value)
        case list():
            return [_without(pattern, each) for each in value]
        case dict():
            return {name: _without(pattern, each) for name, each in value.items()}
        case _:
            return value


@lru_cache(maxsize=8192)
def _scope(is_pure: bool, environment: str, state: str) -> str:
    if is_pure:
        return digest("toolcache/pure/1", environment)
    return digest("toolcache/scope/1", environment, state)


def scope(tool: Tool, environment: str, state: str) -> str:
    """Where a tool's results hold: a pure tool's anywhere in the environment, another's in one state of it only.

    The environment stays even for pure tools, because it fingerprints the code that computes the result. It stays
    beside a state too: a state is the caller's word, and two environments may be given the same one.
    """
    is_pure = tool.effect is Effect.PURE
    return _scope(is_pure, environment, "" if is_pure else state)


_ENTRY = "toolcache/entry/1"


def entry_prefix(is_pure: bool, environment: str, state: str, tool: str) -> tuple[str, ...]:
    """What an entry's key is the digest of, before the canonical arguments."""
    return _ENTRY, _scope(is_pure, environment, "" if is_pure else state), tool


@lru_cache(maxsize=8192)
def _entry_digester(scope: str, tool: str) -> Callable[[bytes], str]:
    return digester(_ENTRY, scope, tool)


def entry_key(scope: str, call: Call) -> str:
    """The exact tier's key: 64 hex digits, equal iff scope, tool and canonical arguments are."""
    return _entry_digester(scope, call.tool)(call.canonical.encode())


def call_digest(environment: str, call: Call) -> str:
    """Names a call whatever the state: where the same question was asked in another state of the environment."""
    return digest("toolcache/call/1", environment, call.tool, call.canonical)
