"""Which answer a call gets: the rules of reuse, as pure decisions over candidates that others fetched.

The order of the tiers is the order of the functions: exact, similar, approximate; what none of them answers is a Miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from toolcache.core.adapt import adapted
from toolcache.core.calls import Call
from toolcache.core.entries import Entry, Result
from toolcache.core.profile import Profile, similar_reason
from toolcache.core.tools import Tier, Tool
from toolcache.core.trust import SIMILAR_FLOOR, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """An answer that passed every guard: exact or similar."""

    tier: Tier
    donor: Entry
    result: Result
    trust: float
    reason: Reason
    score: float | None = None
    was_adapted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """An approximate answer: allowed by policy, trusted as little as was measured."""

    donor: Entry
    result: Result
    trust: float
    reason: Reason
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    reason: Reason
    detail: str = ""


Answer = Hit | Guess | Miss


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An entry that passed the guards, and its cosine similarity to the asked call."""

    entry: Entry
    score: float | None = None
    """None where no vector was asked."""


def exact(samples: Sequence[Entry], profile: Profile) -> Hit | None:
    """The recorded result of this very call in this very scope; the most frequent one, the older of equals."""
    if not samples:
        return None
    donor = max(samples, key=lambda entry: (entry.seen, -entry.order))
    if len(samples) == 1:
        own, reason = 1.0, Reason.RECORDED
    else:
        own, reason = donor.seen / sum(entry.seen for entry in samples), Reason.CONFLICT
    trust = min(own, profile.trust(Reason.RECORDED))
    return Hit(tier=Tier.EXACT, donor=donor, result=donor.result, trust=trust, reason=reason)


def similar(call: Call, candidate: Candidate | None, profile: Profile, *, threshold: float) -> Hit | Miss:
    """The best candidate that passed the guard, if near enough and if the tool has earned it.

    An error is never served as similar, so it must not be the candidate.
    """
    if candidate is None:
        return Miss(reason=Reason.NOT_RECORDED)
    donor, score = candidate.entry, candidate.score
    if score is not None and score < threshold:
        return Miss(
            reason=Reason.BELOW_THRESHOLD,
            detail=f"nearest {donor.id} has similarity {score:.3f}, threshold {threshold:g}",
        )
    reason = similar_reason(call.arguments, donor.arguments, profile.roles)
    trust = profile.trust(reason)
    if trust < SIMILAR_FLOOR:
        return below_floor(reason, profile)
    text = adapted(donor.result.content, donor.arguments, call.arguments, profile.roles)
    return Hit(
        tier=Tier.SIMILAR,
        donor=donor,
        result=donor.result if text is None else replace(donor.result, content=text),
        trust=trust,
        reason=reason,
        score=score,
        was_adapted=text is not None,
    )


def below_floor(reason: Reason, profile: Profile) -> Miss:
    """A similar answer of that kind exists, but the tool has not earned it."""
    trust = profile.trust(reason)
    return Miss(
        reason=Reason.BELOW_FLOOR,
        detail=f"similar answers ({reason}) of this tool have trust {trust:.2f}, floor {SIMILAR_FLOOR:g}",
    )


def equal_where_it_matters(call: Call, candidates: Sequence[Entry], profile: Profile) -> Candidate | None:
    """The oldest candidate that differs only in irrelevant arguments: no vector need be asked for it."""
    equal = [e for e in candidates if similar_reason(call.arguments, e.arguments, profile.roles) is Reason.IRRELEVANT]
    return Candidate(entry=min(equal, key=lambda e: e.order)) if equal else None


def approximate(other_states: Sequence[Entry], nearest: Candidate | None, profile: Profile) -> Guess | None:
    """A guess for a reading tool: the newest result of the same call in another state, else the nearest call's."""
    if other_states:
        donor = max(other_states, key=lambda entry: entry.order)
        trust = profile.trust(Reason.OTHER_STATE)
        return Guess(donor=donor, result=donor.result, trust=trust, reason=Reason.OTHER_STATE)
    if nearest is not None:
        donor, trust = nearest.entry, profile.trust(Reason.NEAREST)
        return Guess(donor=donor, result=donor.result, trust=trust, reason=Reason.NEAREST, score=nearest.score)
    return None


def miss(tool: Tool, call: Call) -> Miss:
    """Why nothing is recorded for the call, as far as the call itself can tell."""
    violation = tool.violation(call.arguments)
    if violation is not None:
        return Miss(reason=Reason.INVALID_ARGUMENTS, detail=violation)
    if not tool.reads:
        return Miss(reason=Reason.WRITE, detail="a write is never answered from a similar call; execute and record it")
    return Miss(reason=Reason.NOT_RECORDED)
