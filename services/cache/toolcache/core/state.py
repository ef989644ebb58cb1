"""State as a hash chain: the digest of the environment and of the effective writes since.

    state_0  = H(environment)
    state_k+1 = H(state_k, canonical write)     if the write took effect, else state_k

So a state names the world a call sees, at any depth, in any process, without a tree to walk. Two orders of the same
writes are two states: sometimes one hit fewer, never a wrong one.
"""

from __future__ import annotations

from toolcache.core.calls import Call
from toolcache.core.canonical import digest
from toolcache.core.tools import Effect, Tool


def initial_state(environment: str) -> str:
    """The state of an untouched environment, 64 hex digits."""
    return digest("toolcache/environment/1", environment)


def state_after(state: str, call: Call, *, tool: Tool | None, is_error: bool) -> str:
    """The state a call leads to, from what its result said.

    A tool that nobody annotated (None) counts as a write. A write whose result is an error changed nothing, unless
    the tool says otherwise: 3 of 1,216 measured failed writes had changed something half-way.
    """
    if tool is not None and tool.effect is not Effect.WRITE:
        return state
    if is_error and not (tool is not None and tool.errors_change_state):
        return state
    return digest("toolcache/write/1", state, call.tool, call.canonical)
