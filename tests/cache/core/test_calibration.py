"""Calibrating equals a count by brute force: every entry is asked for as if it were missing, by the same rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from toolcache.adapters.hash_embedder import HashEmbedder
from toolcache.core import calibration
from toolcache.core.cache import ToolCache
from toolcache.core.entries import Result
from toolcache.core.roles import text_of
from toolcache.core.tools import Namespace, Tier
from toolcache.core.trust import Evidence, Reason

RECORDED = [
    # query, limit, state, content
    ("repairing flat bicycle tyres", 1, "", '["tyres"]'),
    ("repairing flat bicycle tyres please", 1, "", '["tyres"]'),
    ("kindly repairing flat bicycle tyres", 1, "", '["tyres"]'),
    ("repairing flat bicycle tyres dear", 1, "", '["dear tyres"]'),
    ("repairing flat bicycle tyres gladly", 2, "", '["two"]'),
    ("baking sourdough bread loaves", 1, "", '["bread"]'),
    ("baking sourdough bread loaves slowly", 1, "", '["bread"]'),
    ("baking sourdough bread loaves", 1, "later", '["stale bread"]'),
    ("baking sourdough bread loaves please", 1, "later", '["stale bread"]'),
    ("tuning acoustic guitar strings", 1, "", "Error: busy"),
    ("tuning acoustic guitar strings please", 1, "", '["strings"]'),
    ("zebra crossing", 1, "", '["zebra"]'),
    ("baking sourdough bread not loaves", 1, "", '["flat"]'),
]
CRITICAL = {"baking sourdough bread not loaves": ["not"]}


def by_hand(vectors: dict[str, np.ndarray], threshold: float) -> dict[Reason, Evidence]:
    """The evidence by plain loops over the table above, without the cache's code for guards, tiers and indexes."""
    counted = {reason: [0, 0] for reason in (Reason.FREE_TEXT, Reason.OTHER_STATE)}

    def count(reason: Reason, is_right: bool) -> None:
        counted[reason][0] += is_right
        counted[reason][1] += 1

    for query, limit, state, content in RECORDED:
        near = [
            (float(vectors[query, limit] @ vectors[q, n]), text)
            for q, n, s, text in RECORDED
            if (n, s) == (limit, state)
            and q != query
            and not text.startswith("Error")
            and CRITICAL.get(q, []) == CRITICAL.get(query, [])
        ]
        if near and max(near)[0] >= threshold:
            count(Reason.FREE_TEXT, max(near)[1] == content)
        elsewhere = [
            t for q, n, s, t in RECORDED if (q, n) == (query, limit) and s != state and not t.startswith("Error")
        ]
        if elsewhere:
            count(Reason.OTHER_STATE, elsewhere[-1] == content)
    return {reason: Evidence(right=right, served=served) for reason, (right, served) in counted.items()}


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.8, 0.93, 1.0])
async def test_evidence_equals_the_count_by_brute_force(
    cache: ToolCache, shop: Namespace, tell: Any, threshold: float
) -> None:
    await cache.put_namespace(replace(shop, similar_threshold=threshold))
    for query, limit, state, content in RECORDED:
        is_error = content.startswith("Error")
        await tell("search_help", content, state=state, is_error=is_error, query=query, limit=limit)
    await cache.calibrate("shop")
    texts = {(q, n): text_of("search_help", {"query": q, "limit": n}) for q, n, _, _ in RECORDED}
    rows = await HashEmbedder().embed(list(texts.values()))
    vectors = {key: np.frombuffer(row, dtype="<f4") for key, row in zip(texts, rows, strict=True)}
    (tool,) = [each for each in (await cache.report("shop")).tools if each.tool.name == "search_help"]
    expected = {reason: each for reason, each in by_hand(vectors, threshold).items() if each.served}
    assert tool.profile.evidence == expected
    assert tool.profile.entries == len(RECORDED)


async def test_the_evidence_is_what_a_person_counts(cache: ToolCache, tell: Any) -> None:
    for query, limit, state, content in RECORDED:
        await tell("search_help", content, state=state, is_error=content.startswith("Error"), query=query, limit=limit)
    await cache.calibrate("shop")
    (tool,) = [each for each in (await cache.report("shop")).tools if each.tool.name == "search_help"]
    # Served at 0.8: tyres x 4, of which the "dear" one has a result of its own and is the plain one's nearest: 2 wrong;
    # bread x 2 and stale bread x 2, right; and the strings' error, for which the good result would have been served.
    assert tool.profile.evidence[Reason.FREE_TEXT] == Evidence(right=6, served=9)
    # "baking sourdough bread loaves" was asked in two states, with two results.
    assert tool.profile.evidence[Reason.OTHER_STATE] == Evidence(right=0, served=2)
    assert tool.profile.trust(Reason.FREE_TEXT) == 7 / 11


async def test_the_nearest_guess_is_measured_where_guesses_are_allowed(
    cache: ToolCache, shop: Namespace, tell: Any
) -> None:
    await cache.put_namespace(replace(shop, tiers=frozenset({Tier.EXACT, Tier.APPROXIMATE})))
    for name, content in (("#W1", "a"), ("#W12", "a"), ("#W123", "a"), ("zebra", "b"), ("zebras", "c")):
        await tell("get_order", content, order_id=name)
    await tell("get_order", "Error: none", order_id="#W1234", is_error=True)
    await cache.calibrate("shop")
    (tool,) = [each for each in (await cache.report("shop")).tools if each.tool.name == "get_order"]
    # Right: #W1, #W12, #W123. Wrong: both zebras (each other's), and the error, for which "a" would have been served.
    assert tool.profile.evidence == {Reason.NEAREST: Evidence(right=3, served=6)}


async def test_writes_are_not_asked_for(cache: ToolCache, tell: Any) -> None:
    await tell("cancel_order", "done", comment="baking sourdough bread loaves")
    await tell("cancel_order", "done", comment="baking sourdough bread loaves please")
    await cache.calibrate("shop")
    (tool,) = [each for each in (await cache.report("shop")).tools if each.tool.name == "cancel_order"]
    assert tool.profile.evidence == {}


async def test_of_very_many_entries_an_even_sample_is_asked_for(
    cache: ToolCache, shop: Namespace, tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "MOST_QUESTIONS", 4)
    for n in range(9):
        await tell("search_help", '["same"]', query=f"baking sourdough bread loaves {'x' * n}".strip())
    await cache.calibrate("shop")
    (tool,) = [each for each in (await cache.report("shop")).tools if each.tool.name == "search_help"]
    assert sum(each.served for each in tool.profile.evidence.values()) == 3


async def test_calibrating_twice_learns_the_same(cache: ToolCache, tell: Any) -> None:
    for query, limit, state, content in RECORDED:
        await tell("search_help", content, state=state, query=query, limit=limit)
    await cache.calibrate("shop")
    first = (await cache.report("shop")).tools
    await cache.calibrate("shop")
    assert (await cache.report("shop")).tools == first


def test_results_are_compared_as_results() -> None:
    assert Result(content="a").digest() != Result(content="a", is_error=True).digest()
    assert Result(content='{"a":1}', took_s=1.0).digest() == Result(content='{"a": 1.0}', took_s=2.0).digest()
