"""What a tool's recordings teach about it: the roles of its arguments and how often each kind of answer is right.

Learned by `ToolCache.calibrate`; derived from the entries, so it can always be learned again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from toolcache.core.canonical import canonical_json
from toolcache.core.entries import Entry
from toolcache.core.roles import can_be_similar, roles
from toolcache.core.tools import Role, Tool
from toolcache.core.trust import SIMILAR_FLOOR, Evidence, Reason, trust

ENOUGH_PAIRS = 5
"""Pairs that must agree, without exception, before an argument counts as irrelevant. 99.4 % was measured not enough."""
_NOTHING_FOUND = frozenset({"[]", "{}", "null", '""'})


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is known of one tool."""

    roles: Mapping[str, Role] = field(default_factory=dict)
    evidence: Mapping[Reason, Evidence] = field(default_factory=dict)
    entries: int = 0
    """Entries it was learned from."""

    def trust(self, reason: Reason) -> float:
        return trust(reason, self.evidence.get(reason, Evidence()))

    @property
    def can_be_similar(self) -> bool:
        return can_be_similar(self.roles)

    @property
    def serves_similar(self) -> bool:
        """Whether any kind of similar answer is trusted enough to be served."""
        return max(self.trust(Reason.FREE_TEXT), self.trust(Reason.IRRELEVANT)) >= SIMILAR_FLOOR


def unlearned(tool: Tool) -> Profile:
    """A tool's profile before anything was recorded: roles by schema and operator, no evidence."""
    return Profile(roles=roles(tool, {}))


def learned_roles(tool: Tool, entries: Sequence[Entry]) -> dict[str, Role]:
    """The roles of a tool's arguments, from its schema, these entries and the operator."""
    values = {name: [entry.arguments[name] for entry in entries if name in entry.arguments] for name in tool.properties}
    return roles(tool, values, irrelevant_arguments(tool, entries))


def irrelevant_arguments(tool: Tool, entries: Sequence[Entry]) -> frozenset[str]:
    """Arguments of a reading tool that never changed its result.

    Compared are entries of one scope that differ in this argument alone. A group of n counts as n - 1 pairs, since
    the others follow from those. Errors end the matter for the group's argument if their result differs, and are no
    evidence if it does not; neither is an empty result, which says "nothing found" to many a question.
    """
    if not tool.reads:
        return frozenset()
    return frozenset(name for name in tool.properties if _never_matters(name, entries))


def _never_matters(name: str, entries: Iterable[Entry]) -> bool:
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        others = {key: value for key, value in entry.arguments.items() if key != name}
        groups[entry.scope, canonical_json(others)].append(entry)
    pairs = 0
    for group in groups.values():
        if len({entry.result_digest for entry in group}) > 1:
            return False
        if not group[0].result.is_error and group[0].result.content.strip() not in _NOTHING_FOUND:
            pairs += len({entry.canonical for entry in group}) - 1
    return pairs >= ENOUGH_PAIRS


def similar_reason(asked: Mapping[str, object], donor: Mapping[str, object], roles: Mapping[str, Role]) -> Reason:
    """Why a donor that passed the guard differs: in wording, or only in what does not matter."""
    differing = {name for name in {*asked, *donor} if asked.get(name) != donor.get(name)}
    words = any(roles.get(name) is Role.FREE_TEXT for name in differing)
    return Reason.FREE_TEXT if words else Reason.IRRELEVANT


def exact_evidence(entries: Iterable[Entry]) -> Evidence:
    """Of all repetitions of a recorded call: how many agreed with the most frequent result of their key.

    >>> exact_evidence([])
    Evidence(right=0, served=0)
    """
    seen: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        seen[entry.key].append(entry.seen)
    conflicting = [counts for counts in seen.values() if len(counts) > 1]
    if not conflicting:
        return Evidence()
    right = sum(max(counts) for counts in seen.values())
    return Evidence(right=right, served=sum(map(sum, seen.values())))
