"""Which parts of the arguments could be masked: what the recordings speak for, and nothing that takes effect by itself.

A mask makes calls equal that are not, so it is the operator's to set. What is proposed here never mattered in any
recording that could have shown it; `toolcache audit --mask` tells what it would gain, and what it would break.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import combinations
from typing import Any

from toolcache.core.calls import masked
from toolcache.core.canonical import canonical_json
from toolcache.core.entries import Entry
from toolcache.core.patterns import compiled
from toolcache.core.profile import ENOUGH_PAIRS, agreeing_pairs, telling_entries
from toolcache.core.tools import Mask, Tool

PATTERNS: Mapping[str, str] = {
    "UUID": r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b",
    "long hex": r"\b[0-9a-fA-F]{16,}\b",
    "ISO timestamp": r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?",
    "epoch, seconds or milliseconds": r"(?:^|[\s=:@])1\d{9}(?:\d{3})?(?:$|\s)",
    "trailing counter": r"[-_:]\d+$",
    "white space": r"\s+",
    "path formatting": r"/(?:\.?/)*",
}
"""The closed list of patterns that are tried, by what they match. (Not letter case: a mask hides, it folds nothing.)"""
ALWAYS_DIFFERENT = 0.9
"""Share of different values from which on an argument that never matters counts as a nonce."""

MOST_ENTRIES = 10_000
"""Entries of a tool that are looked at, about: a mask that matters shows in as many."""


def proposals(tool: Tool, entries: Sequence[Entry]) -> tuple[Mask, ...]:
    """Masks that at least 5 independent pairs of these entries speak for, and none against. None for a write.

    The entries' arguments are taken as they are: hand in what is left of them under today's masks. Whole arguments
    come first, those that are different in almost every call and never matter, alone or two together (a request id and
    a time); then patterns in the others. Each must earn its place beside those before it.
    """
    if not tool.reads:
        return ()
    entries = _of_whole_scopes(entries)
    telling = telling_entries(entries)
    found: list[Mask] = []
    left: Sequence[Entry] = entries
    for masks in _candidates(tool, entries):
        is_open = not any(mask.argument == each.argument for mask in masks for each in found if not each.pattern)
        if is_open and _are_borne_out(masks, left, telling):
            found += masks
            left = [_without(masks, entry) for entry in left]
    return tuple(found)


def _of_whole_scopes(entries: Sequence[Entry]) -> list[Entry]:
    """All, or as many as are looked at, chosen by scope: only entries of one scope can speak for a mask."""
    chosen: set[str] = set()
    count = 0
    for scope, size in Counter(entry.scope for entry in entries).most_common():  # the largest have most to tell
        if count >= MOST_ENTRIES:
            break
        chosen.add(scope)
        count += size
    return [entry for entry in entries if entry.scope in chosen]


def _candidates(tool: Tool, entries: Sequence[Entry]) -> Iterator[tuple[Mask, ...]]:
    nonces = [Mask(argument=name) for name in tool.properties if _is_always_different(name, entries)]
    yield from combinations(nonces, 1)
    yield from combinations(nonces, 2)
    for name in tool.properties:
        texts = {text for entry in entries for text in _strings(entry.arguments.get(name))}
        for pattern in PATTERNS.values():
            if any(compiled(pattern).search(text) for text in texts):
                yield (Mask(argument=name, pattern=pattern),)


def _is_always_different(name: str, entries: Sequence[Entry]) -> bool:
    values = [canonical_json(entry.arguments[name]) for entry in entries if name in entry.arguments]
    return len(set(values)) >= max(ENOUGH_PAIRS, ALWAYS_DIFFERENT * len(values))


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for each in value:
                yield from _strings(each)
        case dict():
            for each in value.values():
                yield from _strings(each)


def _are_borne_out(masks: Sequence[Mask], entries: Sequence[Entry], telling: Set[int]) -> bool:
    alike: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        alike[entry.scope, canonical_json(masked(entry.arguments, masks))].append(entry)
    pairs = agreeing_pairs(alike.values(), telling)
    return pairs is not None and pairs >= ENOUGH_PAIRS


def _without(masks: Sequence[Mask], entry: Entry) -> Entry:
    kept = masked(entry.arguments, masks)
    return replace(entry, arguments=kept, canonical=canonical_json(kept))
