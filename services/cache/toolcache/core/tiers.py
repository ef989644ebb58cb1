"""Which answer a call gets: the rules of reuse, as pure decisions over candidates that others fetched.

The order of the tiers is the order of the functions: exact, similar, approximate; what none of them answers is a Miss.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from toolcache.core.adapt import adapted
from toolcache.core.calls import Call, masked
from toolcache.core.entries import Entry, Result, Sample, donor_id
from toolcache.core.profile import Profile, similar_reason
from toolcache.core.tools import Tier, Tool
from toolcache.core.trust import Reason, kind


class Hit(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An answer that passed every guard: exact or similar."""

    tier: Tier
    donor: str
    """Id of the recorded entry."""
    result: Result
    trust: float
    reason: Reason
    score: float | None = None
    was_adapted: bool = False


class Guess(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An approximate answer: allowed by policy, trusted as little as was measured."""

    donor: str
    result: Result
    trust: float
    reason: Reason
    score: float | None = None

    @property
    def tier(self) -> Tier:
        return Tier.APPROXIMATE


class Miss(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    reason: Reason
    detail: str = ""


Answer = Hit | Guess | Miss


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that passed the guards, and its cosine similarity to the asked call."""

    entry: Entry
    score: float | None = None
    """None where no vector was asked."""


def exact(
    key: str, samples: Sequence[Sample], profile: Profile, *, now_s: float, is_masked: bool = False
) -> Hit | None:
    """The recorded result of this very call in this very scope; the most frequent one, the older of equals.

    None where nothing is recorded that has not expired. `is_masked`: something in the asked call is, so that the donor
    may have had another value there.
    """
    fresh = samples if len(samples) == 1 and samples[0].is_fresh(now_s) else [s for s in samples if s.is_fresh(now_s)]
    if not fresh:
        return None
    if len(fresh) > 1:
        return _most_frequent(key, fresh, profile)
    donor = fresh[0]
    return Hit(
        tier=Tier.EXACT,
        donor=donor_id(key, donor.result_digest),
        result=donor.result,
        trust=profile.trust(Reason.MASKED) if is_masked else profile.recorded_trust,
        reason=Reason.MASKED if is_masked else Reason.RECORDED,
    )


def _most_frequent(key: str, samples: Sequence[Sample], profile: Profile) -> Hit:
    """Of results that contradict each other; trusted no more than its share of the recordings."""
    donor = max(samples, key=lambda sample: (sample.seen, -sample.order))
    share = donor.seen / sum(sample.seen for sample in samples)
    return Hit(
        tier=Tier.EXACT,
        donor=donor_id(key, donor.result_digest),
        result=donor.result,
        trust=min(share, profile.recorded_trust),
        reason=Reason.CONFLICT,
    )


def similar(call: Call, candidate: Candidate, profile: Profile, *, tool: Tool, threshold: float) -> Hit | Miss:
    """The best candidate that passed the guard, if it is near enough and if its kind of answer is proven.

    An error is never served as similar, and a write only where it is simulated: the caller sees to both.
    """
    donor, score = candidate.entry, candidate.score
    if score is not None and score < threshold:
        return Miss(
            reason=Reason.BELOW_THRESHOLD,
            detail=f"nearest {donor.id} has similarity {score:.3f}, threshold {threshold:g}",
        )
    reason = _similar_reason(call, donor, profile, tool)
    if not profile.serves(reason, score, tool.similar_floor):
        return below_floor(reason, profile, score=score, floor=tool.similar_floor)
    text = adapted(donor.result.content, donor.arguments, call.arguments, profile.roles)
    return Hit(
        tier=Tier.SIMILAR,
        donor=donor.id,
        result=donor.result if text is None else Result(content=text, took_s=donor.result.took_s),
        trust=profile.trust(reason, score),
        reason=reason,
        score=score,
        was_adapted=text is not None,
    )


def _similar_reason(call: Call, donor: Entry, profile: Profile, tool: Tool) -> Reason:
    """A simulated write is a kind of its own, whatever differs: equal words need not mean an equal state."""
    if not tool.reads:
        return Reason.SIMULATED
    kept = masked(donor.arguments, tool.masks) if tool.masks else donor.arguments
    return similar_reason(call.kept, kept, profile.roles)


def below_floor(reason: Reason, profile: Profile, *, score: float | None, floor: float) -> Miss:
    """A similar answer of that kind exists, but the tool has not proven itself."""
    name, proven = kind(reason, score), profile.proven(reason, score)
    detail = (
        f"similar answers ({name}) of this tool are proven right to a share of {proven:.2f}, its floor is {floor:g}"
    )
    return Miss(reason=Reason.BELOW_FLOOR, detail=detail)


def approximate(other_states: Entry | None, nearest: Candidate | None, profile: Profile) -> Guess | None:
    """A guess for a reading tool: the newest result of the same call in another state, else the nearest call's.

    Neither may be an error.
    """
    if other_states is not None:
        return _guess(Candidate(entry=other_states), Reason.OTHER_STATE, profile)
    return None if nearest is None else _guess(nearest, Reason.NEAREST, profile)


def _guess(candidate: Candidate, reason: Reason, profile: Profile) -> Guess:
    donor, score = candidate.entry, candidate.score
    return Guess(donor=donor.id, result=donor.result, trust=profile.trust(reason, score), reason=reason, score=score)


def miss(tool: Tool, call: Call) -> Miss:
    """Why nothing is recorded for the call, as far as the call itself can tell."""
    violation = tool.violation(call.arguments)
    if violation is not None:
        return Miss(reason=Reason.INVALID_ARGUMENTS, detail=violation)
    if not tool.reads:
        return Miss(reason=Reason.WRITE, detail="a write is never answered from a similar call; execute and record it")
    return Miss(reason=Reason.NOT_RECORDED)
