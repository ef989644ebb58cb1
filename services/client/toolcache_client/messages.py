"""What travels between the service and whoever calls it, one type a message.

The service and the SDK decode and encode with these same types; `proto/toolcache/v1/toolcache.proto` is their
contract, and a test holds the two together. Field names on the wire are the ones here (snake_case).

Not here: how a message is sent (client.py) and what the service does with it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Tier = Literal["exact", "similar", "approximate", "miss"]
"""How an answer was found; `miss`: there is none. (A result executed just now is `live`: no cache says that.)"""

Effect = Literal["pure", "read", "write"]
"""What a call does to the world: neither reads nor changes it; reads it; changes it. Unannotated means `write`."""

ArgumentRole = Literal["identity", "free_text", "irrelevant"]
"""Whether an argument must be equal, may be worded differently, or was never seen to matter."""


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message to the service. A field that it does not know is an error: a typing slip must not pass in silence."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A message from the service. Unknown fields are passed over, so that an older client can read a newer service."""


class ToolResult(Message, frozen=True, kw_only=True):
    """What a tool returned."""

    content: str
    """The text the model sees; structured results as JSON text."""
    is_error: bool = False
    took_s: float = 0.0
    """Seconds the live call took; what a hit saves."""


class LookupItem(Message, frozen=True, kw_only=True):
    """One call to answer, in one state of one environment."""

    tool: str
    arguments: dict[str, Any]
    environment: str
    """Fingerprint of the world the rollout started in: code version and initial state."""
    state: str = ""
    """`state_after` of the rollout's previous answer; empty is the environment's initial state."""
    follows: bool = False
    """Take the state which the previous item of this batch leads to (parallel calls of one turn, in their order)."""
    tiers: tuple[Tier, ...] | None = None
    """Tiers the caller accepts; None is the namespace's policy. A caller can narrow the policy, never widen it."""
    rollout: str = ""
    group: str = ""


class LookupRequest(Message, frozen=True, kw_only=True):
    namespace: str
    items: tuple[LookupItem, ...]


class Answer(Reply, frozen=True, kw_only=True):
    """What the cache knows of one call, and how far it can be trusted."""

    tier: Tier
    trust: float
    """Probability that `result` equals what a live call would have returned; 0 for a miss."""
    reason: str
    """Why this tier, in one word (docs: reasons)."""
    state: str | None = None
    """The state in which the call was looked up; None where it follows a call whose effect is not known."""
    state_after: str | None = None
    """Pass it as the next item's `state`. None is unknown, as after a missed write: record its result to learn it.

    Never an empty string, which would ask for the initial state; a request with None in its place is refused.
    """
    result: ToolResult | None = None
    donor: str | None = None
    """Id of the recorded entry that was served."""
    score: float | None = None
    """Cosine similarity of the donor's text to the call's, -1..1, higher is nearer; None where no vector was asked."""
    adapted: bool = False
    """The donor's argument, echoed in its result, was replaced by this call's."""
    detail: str = ""
    """For people: what was wrong with the call, or what kept a candidate from being served."""


class LookupReply(Reply, frozen=True, kw_only=True):
    items: tuple[Answer, ...]


class RecordItem(Message, frozen=True, kw_only=True):
    """One executed call and what came of it."""

    tool: str
    arguments: dict[str, Any]
    environment: str
    result: ToolResult
    state: str = ""
    rollout: str = ""


class RecordRequest(Message, frozen=True, kw_only=True):
    namespace: str
    items: tuple[RecordItem, ...]


RecordOutcome = Literal["stored", "known", "conflict", "refused"]
"""New; the same result was there already; another result was there (both are kept); not stored, `detail` says why."""


class Recorded(Reply, frozen=True, kw_only=True):
    outcome: RecordOutcome
    entry: str = ""
    state_after: str | None = None
    """The state the call led to; None for a refused one."""
    detail: str = ""


class RecordReply(Reply, frozen=True, kw_only=True):
    items: tuple[Recorded, ...]


class ToolSpec(Message, frozen=True, kw_only=True):
    """One tool of a namespace: its schema, and what the operator knows of it."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    """JSON schema of the arguments, as in OpenAI's tool format."""
    effect: Effect = "write"
    arguments: dict[str, ArgumentRole] = {}
    """The operator's word on an argument's role; it wins over schema and data."""
    errors_change_state: bool = False
    """A write whose result is an error changes nothing, unless this is set."""


class NamespaceSpec(Message, frozen=True, kw_only=True):
    """A toolset and the policy of its cache."""

    tools: tuple[ToolSpec, ...]
    tiers: tuple[Tier, ...] = ("exact", "similar")
    """Tiers that may be served. `approximate` answers are guesses: add it only where a run wants them."""
    similar_threshold: float = 0.8
    """Least cosine similarity of a similar answer, 0..1, higher is stricter; asked after the guards."""


class ToolStats(Reply, frozen=True, kw_only=True):
    name: str
    effect: Effect
    entries: int
    conflicts: int
    """Keys of this tool for which two different results were recorded."""
    answers: dict[str, int]
    """Answers since the service started, by tier."""
    roles: dict[str, ArgumentRole]
    trust: dict[str, float]
    """By tier (and, for `approximate`, by reason): the trust that the next such answer will carry."""


class Stats(Reply, frozen=True, kw_only=True):
    namespace: str
    entries: int
    environments: int
    tools: tuple[ToolStats, ...]
    answers: dict[str, int]
    seconds_saved: float
    """Sum of `took_s` over the answers served since the service started."""


class Namespaces(Reply, frozen=True, kw_only=True):
    namespaces: tuple[str, ...]


class Reject(Reply, frozen=True, kw_only=True):
    """A line, or a call in it, that was not imported."""

    line: int
    """1-based line of the file or of the request's body."""
    reason: str
    detail: str


class ImportReport(Reply, frozen=True, kw_only=True):
    """What became of the trajectories of one import."""

    trajectories: int
    calls: int
    outcomes: dict[str, int]
    """stored, known, conflict: how many calls each."""
    rejected: dict[str, int]
    """How many lines or calls were refused, by reason."""
    rejects: tuple[Reject, ...] = ()
    """The first hundred of them."""
    namespaces: tuple[str, ...] = ()
    """Namespaces that got entries; calibrate them when the last piece of an import is in."""


class Problem(Reply, frozen=True, kw_only=True):
    """An RFC 9457 problem: what went wrong, in `code` from a closed list, and in `detail` what to do."""

    type: str
    title: str
    status: int
    detail: str
    code: str
