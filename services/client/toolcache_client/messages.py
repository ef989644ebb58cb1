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

OnMiss = Literal["fail", "lease", "wait"]
"""What a lookup does about a miss: say so; take the lease to execute it, or wait for whoever has it; only wait."""

ApiRole = Literal["read", "write", "admin"]
"""What a key may do in its namespaces: look up; record too; change policies, delete, and manage keys too."""

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
    """Names the rollout that asks; any text that is one a rollout."""
    group: str = ""
    """Names the rollouts of one task that are compared: each gets samples of a stochastic tool of its own."""


class LookupRequest(Message, frozen=True, kw_only=True):
    namespace: str
    items: tuple[LookupItem, ...]
    on_miss: OnMiss = "fail"
    wait_s: float = 0.0
    """Seconds to wait at most for results that others execute. Nothing is waited for where a lease was granted to
    this very request: its holder must get to work."""
    lease_s: float = 60.0
    """Seconds until a lease passes on unless it is extended: longer than the slowest tool takes."""
    job: str = ""
    """Names the training job in metrics and leases."""


class Candidate(Reply, frozen=True, kw_only=True):
    """An entry that was looked at, and why it was or was not served."""

    donor: str
    arguments: dict[str, Any]
    verdict: str
    """`served`, or what it failed: a guard, the threshold, the floor, an error, expired."""
    differs: tuple[str, ...] = ()
    """Arguments that differ from the asked call's."""
    score: float | None = None
    age_s: float = 0.0


class Explanation(Reply, frozen=True, kw_only=True):
    """What decided an answer: keys, guards, thresholds, candidates."""

    key: str
    state: str
    canonical: str
    """The call's arguments in canonical form, less what is masked."""
    roles: dict[str, ArgumentRole] = {}
    masked: tuple[str, ...] = ()
    guard: dict[str, Any] = {}
    """What must be equal for a similar answer: identity arguments, and the critical words of free text."""
    threshold: float = 0.0
    floor: float = 0.0
    trust: dict[str, float] = {}
    """By kind of answer: the trust it would carry now."""
    steps: tuple[str, ...] = ()
    """The tiers in the order they were tried, and what each found."""
    candidates: tuple[Candidate, ...] = ()


class Answer(Reply, frozen=True, kw_only=True, omit_defaults=True):
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
    lineage: float = 1.0
    """Lowest trust among the simulated writes that led to this state; `trust` never exceeds it."""
    lease: str | None = None
    """With a miss: permission to execute the call. Send it with the record, or release it."""
    shared: bool = False
    """A stochastic tool ran out of samples: another rollout of the group was given this one too."""
    shadow: bool = False
    """Please execute this call all the same and record it with `served`: that is how trust stays true."""
    explanation: Explanation | None = None
    """With `?explain=1`: what decided."""


class LookupReply(Reply, frozen=True, kw_only=True):
    items: tuple[Answer, ...]


class Served(Message, frozen=True, kw_only=True):
    """What the cache had answered to a call that was executed all the same (a shadow execution)."""

    reason: str
    result: ToolResult
    score: float | None = None


class RecordItem(Message, frozen=True, kw_only=True):
    """One executed call and what came of it."""

    tool: str
    arguments: dict[str, Any]
    environment: str
    result: ToolResult
    state: str = ""
    rollout: str = ""
    lease: str = ""
    """The lease under which it was executed; recording ends it."""
    tags: tuple[str, ...] = ()
    """Words by which entries can be invalidated together."""
    served: Served | None = None
    """The cache's own answer, to be compared with this result."""


class RecordRequest(Message, frozen=True, kw_only=True):
    namespace: str
    items: tuple[RecordItem, ...]
    request_id: str = ""
    """Names the request, so that sending it again counts nothing twice; remembered for a quarter of an hour."""
    job: str = ""


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


class Mask(Message, frozen=True, kw_only=True):
    """A part of the arguments that cannot matter: request ids, nonces, trace headers."""

    argument: str
    pattern: str = ""
    """Regular expression (Python's): what it matches in the argument's strings is masked. Empty: all of it."""


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
    ttl_s: float | None = None
    """Seconds a result stays true (clock, network); None: for ever."""
    samples: int = 1
    """Results kept a call; more than 1 for a stochastic tool, drawn without replacement inside a group."""
    masks: tuple[Mask, ...] = ()
    simulate_writes: bool = False
    """A missed write may be answered from one that differs in free text only. Lowers the lineage of what follows."""
    similar_floor: float = 0.9
    """Least proven precision (lower bound of the 95 % Wilson interval) with which similar answers are served."""


class NamespaceSpec(Message, frozen=True, kw_only=True):
    """A toolset and the policy of its cache."""

    tools: tuple[ToolSpec, ...]
    tiers: tuple[Tier, ...] = ("exact", "similar")
    """Tiers that may be served. `approximate` answers are guesses: add it only where a run wants them."""
    similar_threshold: float = 0.8
    """Least cosine similarity of a similar answer, 0..1, higher is stricter; asked after the guards."""
    max_bytes: int = 0
    """Bytes of entries to keep; beyond it the least recently used go. 0: no limit."""
    shadow_share: float = 0.0
    """Share of the answers served that ask for a shadow execution, 0..1."""


class Evidence(Reply, frozen=True, kw_only=True):
    """How many answers of a kind were right, of how many that were compared."""

    right: int
    compared: int
    proven: float = 0.0
    """What share of right answers that proves: lower bound of the 95 % Wilson interval, with what is known of less
    similar answers. Similar answers are served from the tool's `similar_floor` on."""


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
    """By kind of answer: the trust that the next such answer will carry."""
    evidence: dict[str, Evidence] = {}
    proposed_masks: tuple[Mask, ...] = ()
    """Masks that the recordings speak for; put them into the tool's policy to confirm them."""


class Stats(Reply, frozen=True, kw_only=True):
    namespace: str
    entries: int
    environments: int
    tools: tuple[ToolStats, ...]
    answers: dict[str, int]
    seconds_saved: float
    """Sum of `took_s` over the answers served since the service started."""
    size_bytes: int = 0


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


class EntryView(Reply, frozen=True, kw_only=True):
    """A recorded entry as it is browsed."""

    id: str
    order: int
    tool: str
    arguments: dict[str, Any]
    environment: str
    result: ToolResult
    recorded_at_s: float
    """Seconds since 1970, UTC."""
    seen: int
    """How often this result was recorded for this call in this state."""
    expires_at_s: float = 0.0
    tags: tuple[str, ...] = ()


class Entries(Reply, frozen=True, kw_only=True):
    entries: tuple[EntryView, ...]
    next_after: int | None = None
    """Ask on with `after=` this; None: that was all."""


class Removed(Reply, frozen=True, kw_only=True):
    removed: int


class LeaseRequest(Message, frozen=True, kw_only=True):
    """Extend a lease, or give it back unexecuted (`extend_s` 0) so that the next one waiting gets it."""

    namespace: str
    extend_s: float = 0.0


class LeaseReply(Reply, frozen=True, kw_only=True):
    held: bool
    """Whether the lease was still the caller's."""


class KeySpec(Message, frozen=True, kw_only=True):
    """An API key to make."""

    name: str
    role: ApiRole
    namespaces: tuple[str, ...] = ()
    """Where it holds; "*" is everywhere."""


class ApiKey(Reply, frozen=True, kw_only=True):
    id: str
    name: str
    role: ApiRole
    namespaces: tuple[str, ...]
    created_at_s: float
    secret: str = ""
    """The whole key, told once: when it is made. Only its hash is kept."""


class ApiKeys(Reply, frozen=True, kw_only=True):
    keys: tuple[ApiKey, ...]


class Problem(Reply, frozen=True, kw_only=True):
    """An RFC 9457 problem: what went wrong, in `code` from a closed list, and in `detail` what to do."""

    type: str
    title: str
    status: int
    detail: str
    code: str
