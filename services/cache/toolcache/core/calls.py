"""A call, and the keys under which it is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from toolcache.core.canonical import canonical_json, digest, digester
from toolcache.core.patterns import compiled
from toolcache.core.tools import Effect, Mask, Tool

SHORT = 1024
"""Characters of an environment and a state up to which digests over them are remembered: so that what is remembered
stays small, whatever callers send."""
MASKED = "\x1a"
"""Stands for what a mask matched: the control character that ASCII calls SUBSTITUTE."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A tool's name and arguments, with the canonical text of what in them can matter."""

    tool: str
    arguments: Mapping[str, Any]
    canonical: str
    kept: Mapping[str, Any]
    """The arguments less what is masked; `canonical` is their text."""
    masks: tuple[str, ...] = ()
    """Digest of the masks that made it so: under other masks it is another call, also where the text is the same."""
    may_differ: bool = False
    """Whether another call of the same text can have had other values in its masked parts."""

    @classmethod
    def of(cls, tool: str, arguments: Mapping[str, Any], masks: Sequence[Mask] = ()) -> Call:
        """Raises NotCanonical."""
        if not masks:
            return cls(tool=tool, arguments=arguments, canonical=canonical_json(arguments), kept=arguments)
        kept = masked(arguments, masks)
        return cls(
            tool=tool,
            arguments=arguments,
            canonical=canonical_json(kept),
            kept=kept,
            masks=(fingerprint(tuple(masks)),),
            may_differ=kept != arguments or any(not mask.pattern for mask in masks),
        )


def _is_unicode(text: str) -> bool:
    """Whether it has no lone surrogate; what has one has no canonical form either."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=1024)
def fingerprint(masks: tuple[Mask, ...]) -> str:
    """Names a tool's masks, whatever their order."""
    return digest("toolcache/masks/1", *(f"{len(m.argument)}:{m.argument}{m.pattern}" for m in sorted(masks, key=str)))


def masked(arguments: Mapping[str, Any], masks: Sequence[Mask]) -> dict[str, Any]:
    """The arguments less what cannot matter: whole arguments, or what a pattern matches in their strings.

    >>> masked({"path": "/run-17/a", "trace": "x"}, [Mask(argument="trace"), Mask(argument="path", pattern="[0-9]+")])
    {'path': '/run-\\x1a/a'}
    """
    kept = dict(arguments)
    for mask in masks:
        if mask.argument not in kept:
            continue
        if mask.pattern:
            kept[mask.argument] = _without(compiled(mask.pattern), kept[mask.argument])
        else:
            del kept[mask.argument]
    return kept


def _without(pattern: Any, value: Any) -> Any:
    match value:
        case str() if value.isascii() or _is_unicode(value):
            return pattern.sub(MASKED, value)
        case list():
            return [_without(pattern, each) for each in value]
        case dict():
            return {name: _without(pattern, each) for name, each in value.items()}
        case _:
            return value


def _scope(is_pure: bool, environment: str, state: str) -> str:
    is_short = len(environment) + len(state) <= SHORT
    return _short_scope(is_pure, environment, state) if is_short else _any_scope(is_pure, environment, state)


def _any_scope(is_pure: bool, environment: str, state: str) -> str:
    if is_pure:
        return digest("toolcache/pure/1", environment)
    return digest("toolcache/scope/1", environment, state)


_short_scope = lru_cache(maxsize=8192)(_any_scope)


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
    if call.masks:
        return digest("toolcache/entry/masked/1", *call.masks, scope, call.tool, call.canonical)
    return _entry_digester(scope, call.tool)(call.canonical.encode())


def call_digest(environment: str, call: Call) -> str:
    """Names a call whatever the state: where the same question was asked in another state of the environment."""
    return digest("toolcache/call/1", environment, call.tool, call.canonical)
