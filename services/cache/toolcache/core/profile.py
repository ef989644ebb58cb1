"""What a tool's recordings teach about it: the roles of its arguments and how often each kind of answer is right.

Learned by `ToolCache.calibrate`; derived from the entries, so it can always be learned again.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from toolcache.core.canonical import canonical_json
from toolcache.core.entries import Entry
from toolcache.core.roles import can_be_similar, roles
from toolcache.core.tools import Mask, Role, Tool
from toolcache.core.trust import BAND_EDGES, BANDED, NONE, Evidence, Reason, Verdict, band, kind, verdicts

ENOUGH_PAIRS = 5
"""Pairs that must agree, without exception, before an argument counts as irrelevant. 99.4 % was measured not enough."""
_BY_ROLES = (Reason.FREE_TEXT, Reason.IRRELEVANT, Reason.SIMULATED)
"""Reasons whose evidence holds for the roles and masks it was measured under, and no others."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What is known of one tool. (Without slots, so that what follows from the evidence is worked out once.)"""

    roles: Mapping[str, Role] = field(default_factory=dict)
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    """By kind of answer (trust.kind): what recorded pairs say."""
    shadows: Mapping[str, Evidence] = field(default_factory=dict)
    """By kind of answer: what shadow executions say. Not part of what is learned from entries."""
    entries: int = 0
    """Entries it was learned from."""
    similar_threshold: float = 0.0
    """The namespace's. Evidence of less similar answers is left aside, as those are not served."""
    masks: tuple[Mask, ...] = ()
    """The tool's, when the evidence was measured."""
    proposed_masks: tuple[Mask, ...] = ()
    """Masks that the recordings speak for (masks.py)."""

    def under(self, tool: Tool, similar_threshold: float) -> Profile:
        """The same under the operator's word of today.

        Evidence for similar answers that was measured under other roles or masks is forgotten. What was counted of
        exact answers stays: a contradiction under other masks is a contradiction.
        """
        is_current = self.masks == tool.masks and all(self.roles.get(each) is role for each, role in tool.roles.items())
        if is_current and self.similar_threshold == similar_threshold:
            return self
        stale = () if is_current else tuple(reason.value for reason in _BY_ROLES)
        return replace(
            self,
            roles={**self.roles, **tool.roles},
            evidence={name: each for name, each in self.evidence.items() if not name.startswith(stale)},
            similar_threshold=similar_threshold,
            masks=tool.masks,
            proposed_masks=tuple(mask for mask in self.proposed_masks if mask not in tool.masks),
        )

    def with_shadows(self, shadows: Mapping[str, Evidence]) -> Profile:
        """The same with what shadow executions found.

        Their results are entries too, so they count once more when the tool is learned anew. That narrows the bounds
        of kinds that are served already; it cannot make one be served, as only answers that are served are shadowed.
        """
        return replace(self, shadows=shadows) if shadows else self

    def trust(self, reason: Reason, score: float | None = None) -> float:
        """Probability that an answer given for this reason, with this similarity, is right."""
        return self._verdict(reason, score).trust

    def serves(self, reason: Reason, score: float | None, floor: float) -> bool:
        """Whether such answers are proven to be right as often as the floor asks."""
        return self.proven(reason, score) >= floor

    def proven(self, reason: Reason, score: float | None = None) -> float:
        """The share of right answers that is proven of such answers: what `serves` holds against the floor."""
        return self._verdict(reason, score).proven

    def may_reword(self, floor: float, threshold: float) -> bool:
        """Whether an answer to another wording could be served at any similarity."""
        return self.can_reword and any(
            self.serves(reason, edge, floor)
            for reason in (Reason.FREE_TEXT, Reason.SIMULATED)
            for edge in BAND_EDGES[band(threshold) :]
        )

    def proofs(self) -> dict[str, float]:
        """By kind of answer of which anything is known: the share of right answers that is proven."""
        return {name: self.proven(*_of_kind(name)) for name in sorted({*self.evidence, *self.shadows})}

    def trusts(self) -> dict[str, float]:
        """By kind of answer: the trust of such an answer now, for recorded calls and all of which anything is known."""
        names = {Reason.RECORDED.value, *self.evidence, *self.shadows}
        return {name: self.trust(*_of_kind(name)) for name in sorted(names)}

    @cached_property
    def recorded_trust(self) -> float:
        """Trust of a call that was recorded with one result: asked by every lookup."""
        return self.trust(Reason.RECORDED)

    @property
    def can_be_similar(self) -> bool:
        return can_be_similar(self.roles)

    @property
    def can_reword(self) -> bool:
        """Whether another wording could ever be the same question: only then are vectors compared."""
        return Role.FREE_TEXT in self.roles.values()

    @cached_property
    def _verdicts(self) -> dict[str, Verdict]:
        """By kind, as far as they were asked for."""
        return {}

    def _verdict(self, reason: Reason, score: float | None) -> Verdict:
        name = kind(reason, score)
        found = self._verdicts.get(name)
        if found is None:
            if score is not None and reason in BANDED:
                found = self._in_bands(reason, score)
            else:
                found = self._of([name], reason)[0]
            self._verdicts[name] = found
        return found

    def _in_bands(self, reason: Reason, score: float) -> Verdict:
        # Guesses have no threshold. A band that the threshold divides counts whole: it is less similar, so no flattery.
        first = 0 if reason is Reason.NEAREST else min(band(self.similar_threshold), band(score))
        names = [kind(reason, edge) for edge in BAND_EDGES[first:]]
        return self._of(names, reason)[band(score) - first]

    def _of(self, names: Sequence[str], reason: Reason) -> list[Verdict]:
        recorded = [self.evidence.get(name, NONE) for name in names]
        return verdicts(reason, recorded, [self.shadows.get(name, NONE) for name in names])


def _of_kind(name: str) -> tuple[Reason, float | None]:
    reason, _, edge = name.partition("@")
    return Reason(reason), float(edge) if edge else None


def unlearned(tool: Tool) -> Profile:
    """A tool's profile before anything was recorded: roles by schema and operator, no evidence."""
    return Profile(roles=roles(tool, {}), masks=tool.masks)


def learned_roles(tool: Tool, entries: Sequence[Entry]) -> dict[str, Role]:
    """The roles of a tool's arguments, from its schema, these entries and the operator."""
    values = {name: [entry.arguments[name] for entry in entries if name in entry.arguments] for name in tool.properties}
    return roles(tool, values, irrelevant_arguments(tool, entries))


def irrelevant_arguments(tool: Tool, entries: Sequence[Entry]) -> frozenset[str]:
    """Arguments of a reading tool that never changed its result: entries that differ in it alone always agreed."""
    if not tool.reads:
        return frozenset()
    telling = telling_entries(entries)
    return frozenset(name for name in tool.properties if _never_matters(name, entries, telling))


def _never_matters(name: str, entries: Iterable[Entry], telling: Set[int]) -> bool:
    alike: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        others = {key: value for key, value in entry.arguments.items() if key != name}
        alike[entry.scope, canonical_json(others)].append(entry)
    pairs = agreeing_pairs(alike.values(), telling)
    return pairs is not None and pairs >= ENOUGH_PAIRS


def agreeing_pairs(alike: Iterable[Sequence[Entry]], telling: Set[int]) -> int | None:
    """Independent pairs among entries of which each group should have one result; None if a group has more.

    A group of n counts as n - 1 pairs, since the others follow from those; and two calls with one result, met again in
    another state, are no new pair. Errors end the matter if their group's results differ, and are no evidence if they
    do not; neither are results that tell nothing.
    """
    pairs: set[tuple[str, str, str]] = set()
    for group in alike:
        if len({entry.result_digest for entry in group}) > 1:
            return None
        if group[0].order in telling:
            first, *others = sorted({entry.canonical for entry in group})
            pairs.update((first, other, group[0].result_digest) for other in others)
    return len(pairs)


def telling_entries(entries: Sequence[Entry]) -> frozenset[int]:
    """Orders of the entries whose result is neither an error nor empty.

    An empty list says "nothing found" to many a question. Only where a tool has never returned anything but the empty
    text (it just notes something down) is that its result.
    """
    successes = [entry for entry in entries if not entry.result.is_error]
    is_mute = all(entry.result.content == "" for entry in successes)
    return frozenset(entry.order for entry in successes if is_mute or not _says_nothing(entry.result.content))


def _says_nothing(content: str) -> bool:
    """Whether a result is empty, through and through: no text, null, or JSON without anything in it.

    >>> _says_nothing('{"results": [], "total": 0}'), _says_nothing('["HAT-1"]'), _says_nothing("0")
    (True, False, False)
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return not content.strip()
    return value is None or value == "" or (isinstance(value, dict | list) and _is_hollow(value))


def _is_hollow(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_hollow, value.values() if isinstance(value, dict) else value))
    return not value


def similar_reason(asked: Mapping[str, object], donor: Mapping[str, object], roles: Mapping[str, Role]) -> Reason:
    """Why a donor that passed the guard differs: in wording, or only in what does not matter."""
    differing = {name for name in {*asked, *donor} if asked.get(name) != donor.get(name)}
    words = any(roles.get(name) is Role.FREE_TEXT for name in differing)
    return Reason.FREE_TEXT if words else Reason.IRRELEVANT


def exact_evidence(entries: Iterable[Entry]) -> Evidence:
    """Of all repetitions of a recorded call: how many agreed with the most frequent result of their key.

    A first recording repeats nothing, so calls recorded once say nothing.

    >>> exact_evidence([])
    Evidence(right=0, served=0)
    """
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        seen[entry.key][entry.result_digest] += entry.seen
    return Evidence(
        right=sum(max(counts.values()) - 1 for counts in seen.values()),
        served=sum(counts.total() - 1 for counts in seen.values()),
    )
