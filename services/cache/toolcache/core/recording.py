"""Take results in: check them, give them their keys, store them, learn from shadow executions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from toolcache.core.calls import Call, entry_key, scope
from toolcache.core.canonical import NotCanonical
from toolcache.core.entries import MOST_SECONDS, Entry, Outcome, Result
from toolcache.core.lookup import no_such_tool
from toolcache.core.policy import Policy
from toolcache.core.questions import Recorded, Recording
from toolcache.core.roles import place
from toolcache.core.state import initial_state, split_lineage, state_after, with_lineage
from toolcache.core.tools import Effect
from toolcache.core.trust import Evidence, Reason, kind

_SHADOWED = frozenset(Reason) - {Reason.CONFLICT}


class CallRefused(ValueError):
    """A call that cannot be recorded; the message says why."""


def entry_of(policy: Policy, recording: Recording, *, now_s: float) -> Entry:
    """Raises CallRefused."""
    own = policy.tools.get(recording.tool)
    if own is None:
        raise CallRefused(no_such_tool(policy, recording.tool))
    tool = own.tool
    try:
        call = Call.of(tool.name, recording.arguments, tool.masks)
    except NotCanonical as error:
        raise CallRefused(f"arguments of {tool.name}: {error}") from error
    _check(recording.result, recording)
    state, lineage = split_lineage(recording.state)
    if lineage < 1.0 and tool.effect is not Effect.PURE:
        raise CallRefused(
            f"result of {tool.name}: its state follows a simulated write, which no world has seen; execute the writes, "
            "and record it in the state they lead to"
        )
    state = state or initial_state(recording.environment)
    where = scope(tool, recording.environment, state)
    return Entry(
        key=entry_key(where, call),
        scope=where,
        environment=recording.environment,
        tool=tool.name,
        arguments=call.arguments,
        canonical=call.canonical,
        result=recording.result,
        result_digest=recording.result.digest(),
        place=place(tool, where, recording.environment, call, own.profile.roles),
        recorded_at_s=now_s,
        expires_at_s=0.0 if tool.ttl_s is None else now_s + tool.ttl_s,
        tags=recording.tags,
    )


def _check(result: Result, recording: Recording) -> None:
    if not 0.0 <= result.took_s <= MOST_SECONDS:
        raise CallRefused(f"result of {recording.tool}: took_s must lie in 0..{MOST_SECONDS:g}")
    try:
        for text in (result.content, recording.environment, *recording.tags):
            text.encode()
    except UnicodeEncodeError as error:
        raise CallRefused(f"result of {recording.tool}: not Unicode text ({error})") from error


def recorded(policy: Policy, recording: Recording, entry: Entry, outcome: Outcome) -> Recorded:
    """What to say of a stored recording: the state it led to, by what really happened."""
    tool = policy.tools[entry.tool].tool
    call = Call.of(tool.name, entry.arguments, tool.masks)
    state, lineage = split_lineage(recording.state)
    after = state_after(
        state or initial_state(recording.environment), call, tool=tool, is_error=recording.result.is_error
    )
    return Recorded(outcome=outcome, entry=entry.id, state_after=with_lineage(after, lineage))


def shadows(recordings: Sequence[Recording], entries: Mapping[int, Entry]) -> dict[str, dict[str, Evidence]]:
    """What shadow executions say, by tool and kind of answer: whether what was served equals what is true."""
    found: dict[str, dict[str, Evidence]] = defaultdict(lambda: defaultdict(Evidence))
    for i, entry in entries.items():
        served = recordings[i].served
        if served is None or served.reason not in _SHADOWED:
            continue
        name = kind(Reason(served.reason), served.score)
        found[entry.tool][name] = found[entry.tool][name].plus(right=served.result.digest() == entry.result_digest)
    return found
