"""Masks are proposed where the recordings speak for them and none against; and each pattern matches what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from toolcache.core import masks
from toolcache.core.calls import Call, entry_key, masked
from toolcache.core.entries import Entry, Result
from toolcache.core.masks import PATTERNS, proposals
from toolcache.core.tools import Effect, Mask, Tool

SEARCH = Tool(
    name="search",
    parameters={
        "type": "object",
        "properties": {"query": {"type": "string"}, "trace": {}, "page": {"type": "integer"}},
    },
    effect=Effect.READ,
)
UUIDS = [f"123e4567-e89b-12d3-a456-4266141740{n:02d}" for n in range(40)]


def entry(content: str, *, scope: str = "s", is_error: bool = False, **arguments: Any) -> Entry:
    call = Call.of("search", arguments)
    result = Result(content=content, is_error=is_error)
    return Entry(
        key=entry_key(scope, call),
        scope=scope,
        environment="e",
        tool="search",
        arguments=arguments,
        canonical=call.canonical,
        result=result,
        result_digest=result.digest(),
    )


def proposed(entries: Sequence[Entry], tool: Tool = SEARCH) -> dict[str, list[str]]:
    """Names of the proposed patterns by argument; "" is the whole argument."""
    names = {pattern: name for name, pattern in PATTERNS.items()} | {"": ""}
    found: dict[str, list[str]] = {}
    for mask in proposals(tool, [replace(each, order=order) for order, each in enumerate(entries, start=1)]):
        found.setdefault(mask.argument, []).append(names[mask.pattern])
    return found


def traced(groups: int, values: Sequence[Any] = UUIDS, **more: Any) -> list[Entry]:
    """So many questions, each asked twice with another trace, and answered alike."""
    return [entry(f"[{n + 1}]", query=f"q{n}", trace=values[2 * n + i], **more) for n in range(groups) for i in (0, 1)]


def test_an_argument_that_is_always_different_and_never_matters_is_proposed_whole() -> None:
    assert proposed(traced(5)) == {"trace": [""]}
    assert proposed(traced(4)) == {}
    assert proposed(traced(5, range(40))) == {"trace": [""]}


def test_two_nonces_that_never_come_apart_are_proposed_together() -> None:
    entries = [entry(f"[{n // 2 + 1}]", query=f"q{n // 2}", trace=UUIDS[n], page=n) for n in range(10)]
    assert proposed(entries) == {"trace": [""], "page": [""]}
    matters = [entry(f"[{n + 1}]", query=f"q{n // 2}", trace=UUIDS[n], page=n) for n in range(10)]
    assert proposed(matters) == {}


def test_behind_a_nonce_other_masks_come_to_light() -> None:
    wordings = [f"topic{n // 2}x" + " " * (1 + n % 2) + "y" for n in range(10)]
    entries = [entry(f"[{n // 2 + 1}]", query=wording, trace=UUIDS[n]) for n, wording in enumerate(wordings)]
    pairs = [entry(f"[{n // 2 + 50}]", query=f"q{n // 2}", trace=UUIDS[n + 10]) for n in range(10)]
    assert proposed([*entries, *pairs]) == {"trace": [""], "query": ["white space"]}


def test_of_two_patterns_that_say_the_same_the_first_is_proposed() -> None:
    """The last digits of these UUIDs could be taken for a counter."""
    entries = [entry(f"[{n // 2 + 1}]", query=f"topic{n // 2}x ref {UUIDS[n]}") for n in range(10)]
    assert proposed(entries) == {"query": ["UUID"]}


def test_an_argument_that_never_matters_but_has_few_values_is_no_nonce() -> None:
    assert proposed(traced(10, ["up", "down"] * 10)) == {}


def test_one_result_that_differs_is_enough_against_it() -> None:
    torn = [entry("[98]", query="torn", trace=UUIDS[38]), entry("[99]", query="torn", trace=UUIDS[39])]
    assert proposed([*traced(15), *torn]) == {}


@pytest.mark.parametrize("content", ["[]", '{"hits": []}', "null"])
def test_empty_results_and_errors_speak_for_nothing(content: str) -> None:
    assert proposed([entry(content, query=f"q{n // 2}", trace=UUIDS[n]) for n in range(30)]) == {}
    assert proposed([entry("Error", query=f"q{n // 2}", trace=UUIDS[n], is_error=True) for n in range(30)]) == {}


def test_nothing_is_proposed_for_a_write() -> None:
    assert proposed(traced(15), replace(SEARCH, effect=Effect.WRITE)) == {}


def test_a_part_of_an_argument_is_proposed_where_the_rest_matters() -> None:
    entries = [entry(f"[{n // 2 + 1}]", query=f"topic{n // 2}x ref {UUIDS[n]}") for n in range(10)]
    assert proposed(entries) == {"query": ["UUID"]}
    assert proposed(entries[:8]) == {}
    assert proposed([*entries, entry("[other]", query=f"topic0x ref {UUIDS[30]}")]) == {}


def test_a_part_inside_a_list_or_an_object_is_found() -> None:
    entries = [entry(f"[{n // 2 + 1}]", trace={"path": [n // 2, UUIDS[n]]}) for n in range(10)]
    assert proposed(entries) == {"trace": ["UUID"]}


def test_two_parts_that_vary_together_are_no_evidence_for_either() -> None:
    """Neither mask alone makes two of these calls equal."""
    entries = [entry(f"[{n // 2 + 1}]", query=f"topic{n // 2}x at 17000000{n:02d} ref {UUIDS[n]}") for n in range(30)]
    assert proposed(entries) == {}


# -- the closed list ---------------------------------------------------------------------------------------------------

ALIKE = [
    ("UUID", f"ref {UUIDS[0]}!", f"ref {UUIDS[1].upper()}!"),
    ("long hex", "commit 0123456789abcdef", "commit fedcba9876543210ff"),
    ("ISO timestamp", "at 2024-05-15T15:00:00Z", "at 2024-05-16 15:30"),
    ("ISO timestamp", "at 2024-05-15T15:00:00.123+02:00", "at 2024-05-15T15:00:00"),
    ("epoch, seconds or milliseconds", "t=1715785200", "t=1715785200123"),
    ("trailing counter", "req-17", "req-2"),
    ("trailing counter", "run:1", "run:11"),
    ("white space", "a lamp", "a \n lamp"),
    ("path formatting", "a/b", "a//b"),
    ("path formatting", "/a/b", "/a/./b"),
]
APART = [
    ("UUID", f"ref {UUIDS[0]}", "ref lamp"),
    ("long hex", "0123456789abcdef", "0123456789abcde"),
    ("ISO timestamp", "on 2024-05-15", "on 2024-05-16"),
    ("epoch, seconds or milliseconds", "order 17157852001", "order 17157852002"),
    ("epoch, seconds or milliseconds", "3.1715785200", "3.1715785201"),
    ("epoch, seconds or milliseconds", "2715785200", "2715785201"),
    ("trailing counter", "#W17", "#W2"),
    ("trailing counter", "17", "2"),
    ("trailing counter", "req-17 lamps", "req-2 lamps"),
    ("white space", "a lamp", "alamp"),
    ("path formatting", "/a", "a"),
    ("path formatting", "a/b", "ab"),
    ("path formatting", "a/../b", "a/b"),
    ("path formatting", ".a", "a"),
    ("path formatting", "/", ""),
]


def under(name: str, text: str) -> Any:
    return masked({"text": text}, [Mask(argument="text", pattern=PATTERNS[name])])["text"]


@pytest.mark.parametrize(("name", "one", "other"), ALIKE)
def test_a_pattern_makes_equal_what_differs_in_it(name: str, one: str, other: str) -> None:
    assert under(name, one) == under(name, other)


@pytest.mark.parametrize(("name", "one", "other"), APART)
def test_a_pattern_leaves_apart_what_differs_in_more(name: str, one: str, other: str) -> None:
    assert under(name, one) != under(name, other)


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_can_be_set_as_a_mask(name: str) -> None:
    tool = replace(SEARCH, masks=(Mask(argument="query", pattern=PATTERNS[name]),))
    one, other = next((one, other) for which, one, other in ALIKE if which == name)
    calls = [Call.of("search", {"query": text}, tool.masks) for text in (one, other)]
    assert calls[0].canonical == calls[1].canonical


def test_of_very_many_entries_the_fullest_scopes_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "MOST_ENTRIES", 10)
    torn = [entry("[1]", query="q0", trace=UUIDS[38], scope="t"), entry("[2]", query="q0", trace=UUIDS[39], scope="t")]
    assert proposed([*torn, *traced(5)]) == {"trace": [""]}
    monkeypatch.setattr(masks, "MOST_ENTRIES", 11)
    assert proposed([*torn, *traced(5)]) == {}
