"""Measure, on what is recorded, how often each kind of answer would have been right.

Entries are asked for in the order in which they came, each against those that were there before it, by the rules of a
lookup (tiers.py): what would have been served is compared with what was recorded. So a group of n calls with one
result counts n - 1 times, not for each of its n (n - 1) / 2 pairs, which all follow from those; and what an answer
could lean on was recorded before it, as in use.

What counts as one piece of evidence. The lower bound that decides whether a kind is served takes its pieces for
independent. The same two wordings with the same two results, met again in another state, are one fact seen twice: in a
hundred states that have nothing to do with the question they would prove a hundred times what was seen once. So the
share of right answers is taken over all questions, as callers would meet them, and its weight is the number of
different facts among them (an effective sample size, as for clustered samples: Kish, Survey Sampling, 1965).

Nothing here waits or fetches; it runs in a thread. Work is bounded: a tool's questions, and the rows each is compared
with, are sampled evenly where there are more than can tell something new.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from toolcache.core import masks, tiers
from toolcache.core.calls import Call, entry_key
from toolcache.core.canonical import NotCanonical
from toolcache.core.entries import Entry, Place
from toolcache.core.ports import Vector
from toolcache.core.profile import Profile, exact_evidence, learned_roles
from toolcache.core.roles import Placing
from toolcache.core.tiers import Candidate, Hit
from toolcache.core.tools import Namespace, Tier, Tool
from toolcache.core.trust import Evidence, Reason, kind

_T = TypeVar("_T")
_AT_ONCE = 64
"""Questions in one matrix product."""
MOST_QUESTIONS = 1000
"""Entries of a tool that are asked for at most, of each way to answer: the interval is then within 2 points."""
MOST_ROWS = 8192
"""Vectors a question is compared with at most: 12 MB of them at 384 dimensions."""
EQUALS_READ = 8
"""Equal entries that a lookup reads (Store.with_equal)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A tool's entries under the roles they taught and today's masks."""

    tool: Tool
    entries: tuple[Entry, ...]
    """Oldest first, with their new keys and places."""
    rekeyed: Mapping[int, tuple[str, str, Place]]
    """Key, canonical arguments and place of every entry of which one of the three has changed, by its order."""
    profile: Profile


def wants_vectors(namespace: Namespace, tool: Tool, profile: Profile) -> bool:
    """Whether entries of the tool can be needed by vector at all."""
    by_words = Tier.SIMILAR in namespace.tiers and profile.can_reword and (tool.reads or tool.simulate_writes)
    return by_words or (Tier.APPROXIMATE in namespace.tiers and tool.reads)


def lesson(tool: Tool, entries: Sequence[Entry]) -> Lesson:
    """What these entries teach about the tool's arguments, and where each belongs under that.

    Entries of writes keep their keys: their canonical form went into the states of what followed.
    """
    calls = list(_calls(tool, sorted(entries, key=lambda entry: entry.order)))
    kept = [replace(entry, arguments=call.kept, canonical=call.canonical) for entry, call in calls]
    roles = learned_roles(tool, kept)
    placing = Placing(tool, roles)
    placed = [
        replace(
            entry,
            key=entry_key(entry.scope, call) if tool.reads else entry.key,
            canonical=call.canonical,
            place=placing.place(entry.scope, entry.environment, call),
        )
        for entry, call in calls
    ]
    moved = [new for (old, _), new in zip(calls, placed, strict=True) if _address(old) != _address(new)]
    return Lesson(
        tool=tool,
        entries=tuple(placed),
        rekeyed={entry.order: _address(entry) for entry in moved},
        profile=Profile(roles=roles, entries=len(placed), masks=tool.masks, proposed_masks=masks.proposals(tool, kept)),
    )


def _calls(tool: Tool, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Call]]:
    """Each entry's call under today's masks; left out is one without a canonical form, which nobody can ask for."""
    for entry in entries:
        try:
            call = Call.of(tool.name, entry.arguments, tool.masks)
        except NotCanonical:  # a mask had hidden what has none
            continue
        if not tool.reads:
            call = Call(tool=tool.name, arguments=call.arguments, canonical=entry.canonical, kept=call.kept)
        yield entry, call


def _address(entry: Entry) -> tuple[str, str, Place]:
    return entry.key, entry.canonical, entry.place


def measured(lesson: Lesson, namespace: Namespace, vectors: Mapping[int, Vector]) -> Profile:
    """The lesson's profile with its evidence. `vectors` by the order of their entries; what has none is left out."""
    tool = lesson.tool
    evidence = dict(_exact(lesson))
    if tool.reads or tool.simulate_writes:
        evidence |= _tallied(_similar(lesson, vectors), by_facts=True)
    if tool.reads:
        evidence |= _tallied(_other_states(lesson), by_facts=False)
    if tool.reads and Tier.APPROXIMATE in namespace.tiers:
        evidence |= _tallied(_nearest(lesson, vectors), by_facts=False)
    return replace(
        lesson.profile,
        evidence={name: found for name, found in evidence.items() if found.served},
        similar_threshold=namespace.similar_threshold,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """One question and what came of it."""

    kind: str
    right: bool
    fact: Hashable


@dataclass(slots=True, kw_only=True)
class _Tally:
    asked: int = 0
    right: int = 0
    facts: set[Hashable] = field(default_factory=set)


def _tallied(told: Iterable[_Told], *, by_facts: bool) -> dict[str, Evidence]:
    """Evidence by kind. A share that is no whole number of facts is rounded down.

    Guesses are not held against a floor: for them every question counts, since only the share is asked.
    """
    tallies: dict[str, _Tally] = defaultdict(_Tally)
    for each in told:
        tally = tallies[each.kind]
        tally.asked += 1
        tally.right += each.right
        tally.facts.add(each.fact)
    return {
        name: Evidence(right=tally.right * weight // tally.asked, served=weight)
        for name, tally in tallies.items()
        for weight in [len(tally.facts) if by_facts else tally.asked]
    }


# -- exact -------------------------------------------------------------------------------------------------------------


def _exact(lesson: Lesson) -> Iterator[tuple[str, Evidence]]:
    if lesson.tool.samples > 1:
        yield Reason.SAMPLED.value, exact_evidence(lesson.entries)
        return
    by_mask = {entry.order for entry in lesson.entries if _is_masked(entry, lesson.tool)}
    yield Reason.RECORDED.value, exact_evidence(e for e in lesson.entries if e.order not in by_mask)
    yield Reason.MASKED.value, exact_evidence(e for e in lesson.entries if e.order in by_mask)


def _is_masked(entry: Entry, tool: Tool) -> bool:
    """Whether something in the entry's arguments is masked, so that its repetitions may have had other values there."""
    return Call.of(tool.name, entry.arguments, tool.masks).may_differ


# -- similar -----------------------------------------------------------------------------------------------------------


def _similar(lesson: Lesson, vectors: Mapping[int, Vector]) -> Iterator[_Told]:
    equal = _grouped(lesson.entries, lambda entry: entry.place.equal if lesson.tool.reads else "")
    reworded = _grouped(lesson.entries, lambda entry: entry.place.guard)
    twins = {e.order: twin for group in equal for e in group[1:] if (twin := _oldest(e, group)) is not None}
    by_order = {e.order: e for e in lesson.entries}
    for order in _sampled(sorted(twins), MOST_QUESTIONS):
        yield from _answered(lesson, by_order[order], Candidate(entry=twins[order]))
    if not lesson.profile.can_reword:
        return
    wordings = [e.order for group in reworded for e in group[1:] if e.order not in twins and e.order in vectors]
    chosen = set(_sampled(sorted(wordings), MOST_QUESTIONS))
    for group in reworded:
        asked = [e for e in group if e.order in chosen]
        for entry, candidate in _nearest_before(asked, group, vectors):
            yield from _answered(lesson, entry, candidate)


def _answered(lesson: Lesson, entry: Entry, candidate: Candidate) -> Iterator[_Told]:
    """What the similar tier would serve for the entry's call, if neither that call nor this result were recorded."""
    call = Call.of(entry.tool, entry.arguments, lesson.tool.masks)
    # No floor and no threshold: it is measured what they will be held against.
    tool = replace(lesson.tool, similar_floor=0.0)
    answer = tiers.similar(call, candidate, lesson.profile, tool=tool, threshold=-2.0)
    if type(answer) is Hit:
        donor = candidate.entry
        yield _Told(
            kind=kind(answer.reason, answer.score),
            right=answer.result.digest() == entry.result_digest,
            fact=(entry.canonical, donor.canonical, entry.result_digest, donor.result_digest),
        )


def _oldest(entry: Entry, group: Sequence[Entry]) -> Entry | None:
    return next((donor for donor in group[:EQUALS_READ] if _could_serve(donor, entry)), None)


def _could_serve(donor: Entry, asked: Entry) -> bool:
    """Whether the donor was there when the other was asked for, is another call, no error, and was not expired."""
    return (
        donor.order < asked.order
        and donor.canonical != asked.canonical
        and not donor.result.is_error
        and donor.is_fresh(asked.recorded_at_s)
    )


# -- approximate -------------------------------------------------------------------------------------------------------


def _other_states(lesson: Lesson) -> Iterator[_Told]:
    """The newest result of the same call in another state."""
    groups = _grouped(lesson.entries, lambda entry: entry.place.call)
    chosen = set(_sampled(sorted(e.order for group in groups for e in group[1:]), MOST_QUESTIONS))
    for group in groups:
        for i, entry in enumerate(group):
            if entry.order in chosen:
                before = (e for e in reversed(group[:i]) if e.scope != entry.scope and not e.result.is_error)
                newest = next((e for e in before if e.is_fresh(entry.recorded_at_s)), None)
                if newest is not None:
                    yield _guessed(Candidate(entry=newest), entry, Reason.OTHER_STATE)


def _nearest(lesson: Lesson, vectors: Mapping[int, Vector]) -> Iterator[_Told]:
    """The nearest other call of the tool, whatever its state and identity arguments."""
    asked = [e for e in lesson.entries if e.order in vectors]
    for entry, candidate in _nearest_before(_sampled(asked, MOST_QUESTIONS), asked, vectors):
        yield _guessed(candidate, entry, Reason.NEAREST)


def _guessed(candidate: Candidate, entry: Entry, reason: Reason) -> _Told:
    return _Told(
        kind=kind(reason, candidate.score),
        right=candidate.entry.result_digest == entry.result_digest,
        fact=None,
    )


# -- groups, samples, vectors ------------------------------------------------------------------------------------------


def _grouped(entries: Iterable[Entry], name: Callable[[Entry], str]) -> list[list[Entry]]:
    """Entries that share a name, in their order; those without a name and those alone are left out."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[name(entry)].append(entry)
    return [group for shared, group in groups.items() if shared and len(group) > 1]


def _sampled(items: Sequence[_T], most: int) -> Sequence[_T]:
    """Every n-th, so that at most so many are left."""
    step = max(1, -(-len(items) // most))
    return items[::step]


def _nearest_before(
    asked: Sequence[Entry], group: Sequence[Entry], vectors: Mapping[int, Vector]
) -> Iterator[tuple[Entry, Candidate]]:
    """Each asked entry with the nearest of the group that could have served it then; those without one are left out."""
    donors = _sampled([e for e in group if e.order in vectors and not e.result.is_error], MOST_ROWS)
    if not asked or not donors:
        return
    rows = _matrix(donors, vectors)  # [N, D] unit length
    orders = [donor.order for donor in donors]
    for start in range(0, len(asked), _AT_ONCE):
        some = asked[start : start + _AT_ONCE]
        for entry, scores in zip(some, _matrix(some, vectors) @ rows.T, strict=True):  # [N] cosines
            candidate = _best(entry, donors, scores[: bisect_left(orders, entry.order)])
            if candidate is not None:
                yield entry, candidate


def _best(asked: Entry, donors: Sequence[Entry], scores: NDArray[np.float32]) -> Candidate | None:
    """The nearest donor that could serve; the older of equals. Takes what it looked at out of the scores."""
    for _ in range(len(scores)):
        i = int(np.argmax(scores))
        if _could_serve(donors[i], asked):
            return Candidate(entry=donors[i], score=float(scores[i]))
        scores[i] = -np.inf
    return None


def _matrix(entries: Sequence[Entry], vectors: Mapping[int, Vector]) -> NDArray[np.float32]:
    return np.stack([np.frombuffer(vectors[entry.order], dtype="<f4") for entry in entries])
