"""Measure, on what is recorded, how often each kind of answer would have been right.

Every entry is asked for as if it were missing; what the tiers would serve is compared with what was recorded. The
rules used here are those of a lookup (tiers.py), so the number describes the answers that will be given.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from toolcache.core import tiers
from toolcache.core.calls import Call
from toolcache.core.entries import Entry
from toolcache.core.profile import Profile, exact_evidence, learned_roles
from toolcache.core.roles import guard
from toolcache.core.tiers import Candidate, Hit
from toolcache.core.tools import Namespace, Tier, Tool
from toolcache.core.trust import Evidence, Reason

MOST_QUESTIONS = 1000
"""Entries of a tool that are asked for at most, evenly spread: the interval is then within 2 points."""
GUESS_CANDIDATES = 8
"""Neighbours fetched for a guess, since the nearest may be an error or the same call."""

Nearest = Callable[[Entry, Sequence[int] | None], list[tuple[int, float]]]
"""(entry, among) -> (entry order, cosine), nearest first; empty where the entry has no vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A tool's entries under the roles they taught."""

    tool: Tool
    entries: tuple[Entry, ...]
    """With their new guards."""
    changed_guards: Mapping[int, str]
    profile: Profile


def wants_vectors(namespace: Namespace, profile: Profile) -> bool:
    """Whether entries of the tool can be needed by vector at all."""
    by_words = Tier.SIMILAR in namespace.tiers and profile.can_reword
    return by_words or Tier.APPROXIMATE in namespace.tiers


def lesson(tool: Tool, entries: Sequence[Entry]) -> Lesson:
    """The roles these entries teach, and their guards under those roles."""
    roles = learned_roles(tool, entries)
    guards = {
        entry.order: guard(entry.scope, tool.name, entry.arguments, roles)
        if tool.reads and tool.violation(entry.arguments) is None
        else ""
        for entry in entries
    }
    return Lesson(
        tool=tool,
        entries=tuple(replace(entry, guard=guards[entry.order]) for entry in entries),
        changed_guards={entry.order: guards[entry.order] for entry in entries if entry.guard != guards[entry.order]},
        profile=Profile(roles=roles, entries=len(entries)),
    )


def measured(lesson: Lesson, namespace: Namespace, nearest: Nearest) -> Profile:
    """The lesson's profile with its evidence."""
    evidence: dict[Reason, Evidence] = defaultdict(Evidence)
    evidence[Reason.RECORDED] = exact_evidence(lesson.entries)
    if lesson.tool.reads:
        for reason, right in _answers(lesson, namespace, nearest):
            evidence[reason] = evidence[reason].plus(right=right)
    return replace(
        lesson.profile,
        evidence={reason: each for reason, each in evidence.items() if each.served},
        similar_threshold=namespace.similar_threshold,
    )


def _answers(lesson: Lesson, namespace: Namespace, nearest: Nearest) -> Iterator[tuple[Reason, bool]]:
    by_guard: dict[str, list[Entry]] = defaultdict(list)
    by_call: dict[str, list[Entry]] = defaultdict(list)
    for entry in lesson.entries:
        by_call[entry.call_digest].append(entry)
        if entry.guard:
            by_guard[entry.guard].append(entry)
    step = max(1, math.ceil(len(lesson.entries) / MOST_QUESTIONS))
    for entry in lesson.entries[::step]:
        similar = _similar_answer(entry, by_guard.get(entry.guard, []), lesson.profile, namespace, nearest)
        if similar is not None:
            yield similar.reason, similar.result.digest() == entry.result_digest
        others = [e for e in by_call[entry.call_digest] if e.scope != entry.scope and not e.result.is_error]
        if others:
            yield Reason.OTHER_STATE, max(others, key=lambda e: e.order).result_digest == entry.result_digest
        elif Tier.APPROXIMATE in namespace.tiers:
            guess = _nearest_other(entry, lesson.entries, nearest)
            if guess is not None:
                yield Reason.NEAREST, guess.result_digest == entry.result_digest


def _similar_answer(
    entry: Entry, bucket: Sequence[Entry], profile: Profile, namespace: Namespace, nearest: Nearest
) -> Hit | None:
    """What the similar tier would serve for the entry's call if neither the call nor its result were recorded."""
    candidates = [e for e in bucket if e.canonical != entry.canonical and not e.result.is_error]
    if not candidates:
        return None
    call = Call(tool=entry.tool, arguments=entry.arguments, canonical=entry.canonical)
    believed = _believing(profile)
    best = tiers.equal_where_it_matters(call, candidates, profile)
    if best is None:
        entries = {e.order: e for e in candidates}
        near = nearest(entry, list(entries))
        best = Candidate(entry=entries[near[0][0]], score=near[0][1]) if near else None
    answer = tiers.similar(call, best, believed, threshold=namespace.similar_threshold)
    return answer if isinstance(answer, Hit) else None


def _believing(profile: Profile) -> Profile:
    """The profile with so much evidence that the floor refuses nothing: it is what is being measured."""
    certain = Evidence(right=10**6, served=10**6)
    return replace(profile, evidence={Reason.FREE_TEXT: certain, Reason.IRRELEVANT: certain})


def _nearest_other(entry: Entry, entries: Sequence[Entry], nearest: Nearest) -> Entry | None:
    by_order = {e.order: e for e in entries}
    found = (by_order[order] for order, _ in nearest(entry, None) if order in by_order)
    return next((e for e in found if e.canonical != entry.canonical and not e.result.is_error), None)
