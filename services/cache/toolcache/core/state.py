"""State as a hash chain: the digest of the environment and of the effective writes since.

    state_0   = H(environment)
    state_k+1 = H(state_k, canonical write)     if the write took effect, else state_k

So a state names the world a call sees, at any depth, in any process, without a tree to walk. Two orders of the same
writes are two states: sometimes one hit fewer, never a wrong one.

Behind the digest a state may carry its lineage, the lowest trust among the simulated writes that led to it:
`<64 hex digits>~0.93`. It travels with the caller, so no process has to remember it.
"""

from __future__ import annotations

import re
from functools import lru_cache

from toolcache.core.calls import SHORT, Call
from toolcache.core.canonical import digest
from toolcache.core.tools import Effect, Tool

_DIGEST = re.compile("[0-9a-f]{64}")
MARK = "~"
"""Stands between the digest of a state and its lineage."""


def initial_state(environment: str) -> str:
    """The state of an untouched environment, 64 hex digits."""
    return _short_initial(environment) if len(environment) <= SHORT else _initial(environment)


def _initial(environment: str) -> str:
    return digest("toolcache/environment/1", environment)


_short_initial = lru_cache(maxsize=4096)(_initial)


def state_after(state: str, call: Call, *, tool: Tool | None, is_error: bool) -> str:
    """The state a call leads to, from what its result said; both without lineage.

    A tool that nobody annotated (None) counts as a write. A write whose result is an error changed nothing, unless
    the tool says otherwise: 3 of 1,216 measured failed writes had changed something half-way.
    """
    if tool is not None and tool.effect is not Effect.WRITE:
        return state
    if is_error and not (tool is not None and tool.errors_change_state):
        return state
    return digest("toolcache/write/1", state, call.tool, *call.masks, call.canonical)


def with_lineage(state: str, lineage: float) -> str:
    """The state as the caller carries it on; six digits of the lineage are kept, rounded down.

    >>> with_lineage("ab", 1.0), with_lineage("ab", 0.95), with_lineage("", 0.95)
    ('ab', 'ab~0.95', '')
    """
    if lineage >= 1.0 or not state:
        return state
    return f"{state}{MARK}{int(lineage * 1e6) / 1e6:g}"


def split_lineage(state: str) -> tuple[str, float]:
    """The digest of a state that a caller sent, and its lineage.

    Only what this module writes is read: behind anything but a digest the mark is part of a name that a caller made up.

    >>> split_lineage("world~0.95"), split_lineage("0" * 64 + "~0.95")[1]
    (('world~0.95', 1.0), 0.95)
    """
    digest_, mark, text = state.rpartition(MARK)
    if not mark or _DIGEST.fullmatch(digest_) is None:
        return state, 1.0
    try:
        lineage = float(text)
    except ValueError:
        return state, 1.0
    return (digest_, lineage) if 0.0 <= lineage < 1.0 else (state, 1.0)
