"""What a tool's recordings teach about it: the roles of its arguments and how often each kind of answer is right.

Learned by `ToolCache.calibrate`; derived from the entries, so it can always be learned again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from toolcache.core.canonical import canonical_json
from toolcache.core.entries import Entry
from toolcache.core.roles import can_be_similar, roles
from toolcache.core.tools import Role, Tool
from toolcache.core.trust import SIMILAR_FLOOR, Evidence, Reason, trust

ENOUGH_PAIRS = 5
"""Pairs that must agree, without exception, before an argument counts as irrelevant. 99.4 % was measured not enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is known of one tool."""

    roles: Mapping[str, Role] = field(default_factory=dict)
    evidence: Mapping[Reason, Evidence] = field(default_factory=dict)
    entries: int = 0
    """Entries it was learned from."""
    similar_threshold: float = 0.0
    """The namespace's, when the evidence was measured."""

    def under(self, operator_roles: Mapping[str, Role], similar_threshold: float) -> Profile:
        """The same under the operator's word of today; what was measured under another, or stricter, is forgotten."""
        stale: set[Reason] = set()
        if similar_threshold < self.similar_threshold:
            stale = {Reason.FREE_TEXT}
        if any(self.roles.get(name) is not role for name, role in operator_roles.items()):
            stale = {Reason.FREE_TEXT, Reason.IRRELEVANT}
        if not stale:
            return self
        kept: dict[Reason, Evidence] = {reason: each for reason, each in self.evidence.items() if reason not in stale}
        return replace(self, roles={**self.roles, **operator_roles}, evidence=kept)

    def trust(self, reason: Reason) -> float:
        return trust(reason, self.evidence.get(reason, Evidence()))

    @property
    def can_be_similar(self) -> bool:
        return can_be_similar(self.roles)

    @property
    def can_reword(self) -> bool:
        """Whether another wording could ever be the same question: only then are vectors compared."""
        return Role.FREE_TEXT in self.roles.values()

    @property
    def serves_rewordings(self) -> bool:
        """Whether an answer to another wording is trusted enough to be served."""
        return self.can_reword and self.trust(Reason.FREE_TEXT) >= SIMILAR_FLOOR


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
    evidence if it does not; neither is an empty result, which says "nothing found" to many a question. Only where a
    tool has never returned anything but the empty text (it just notes something down) is that its result.
    """
    if not tool.reads:
        return frozenset()
    successes = [entry for entry in entries if not entry.result.is_error]
    is_mute = all(entry.result.content == "" for entry in successes)
    telling = {e.order for e in successes if is_mute or not _says_nothing(e.result.content)}
    return frozenset(name for name in tool.properties if _never_matters(name, entries, telling))


def _never_matters(name: str, entries: Iterable[Entry], telling: Set[int]) -> bool:
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        others = {key: value for key, value in entry.arguments.items() if key != name}
        groups[entry.scope, canonical_json(others)].append(entry)
    pairs = 0
    for group in groups.values():
        if len({entry.result_digest for entry in group}) > 1:
            return False
        if group[0].order in telling:
            pairs += len({entry.canonical for entry in group}) - 1
    return pairs >= ENOUGH_PAIRS


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

    A first recording repeats nothing, so calls recorded once say nothing. Without any disagreement there is no
    evidence against what holds by construction, and none is returned.

    >>> exact_evidence([])
    Evidence(right=0, served=0)
    """
    seen: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        seen[entry.key].append(entry.seen)
    if all(len(counts) == 1 for counts in seen.values()):
        return Evidence()
    return Evidence(
        right=sum(max(counts) - 1 for counts in seen.values()),
        served=sum(sum(counts) - 1 for counts in seen.values()),
    )
