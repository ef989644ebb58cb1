"""An export read into an empty cache gives the same answers; reading it twice changes nothing."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from toolcache.adapters.hash_embedder import HashEmbedder
from toolcache.core.cache import Ask, ToolCache
from toolcache.core.importing import ImportReport, import_line
from toolcache.core.tiers import Hit


async def exported(cache: ToolCache) -> list[bytes]:
    return [line async for line in cache.export("shop")]


async def read(cache: ToolCache, lines: list[bytes], namespace: str = "shop") -> ImportReport:
    report = ImportReport()
    for number, line in enumerate(lines, 1):
        await import_line(cache, line, number, report, namespace=namespace)
    return report


async def test_an_export_and_its_import_are_a_round_trip(cache: ToolCache, make_cache: Any, tell: Any) -> None:
    write = await tell("cancel_order", "done é\x00", order_id="#W1")
    await tell("get_order", "pending", order_id="#W1", took_s=0.5, tags=("t",))
    await tell("get_order", "pending", order_id="#W1")
    await tell("get_order", "Error: x", order_id=str(2**60), state=write.state_after, is_error=True)
    lines = await exported(cache)
    other: ToolCache = make_cache()
    report = await read(other, lines)
    assert (report.calls, dict(report.outcomes), dict(report.rejected)) == (3, {"stored": 3}, {})
    assert await exported(other) == lines
    question = Ask(tool="get_order", arguments={"order_id": str(2**60)}, environment="shop@1", state=write.state_after)
    (answered,) = await other.lookup("shop", [question])
    assert isinstance(answered.answer, Hit) and answered.answer.result.is_error


async def test_reading_an_export_again_changes_nothing(cache: ToolCache, tell: Any) -> None:
    await tell("get_order", "pending", order_id="#W1")
    lines = await exported(cache)
    report = await read(cache, lines)
    assert dict(report.outcomes) == {"known": 1}
    assert await exported(cache) == lines


async def test_vectors_travel_along_and_are_not_made_again(cache: ToolCache, make_cache: Any, tell: Any) -> None:
    for n in range(9):
        await tell("search_help", "[]", query=f"how do I repair lamp number {n}")
    await cache.calibrate("shop")
    lines = await exported(cache)
    assert all(b'"vector":' in line for line in lines[1:])
    other: ToolCache = make_cache()
    await read(other, lines)
    assert await exported(other) == lines


@pytest.mark.parametrize("line", [b'{"kind":"toolcache/entry/1"}', b'{"kind":"toolcache/entry/9","key":"x"}'])
async def test_a_line_that_is_no_entry_is_counted_and_the_rest_is_read(
    cache: ToolCache, tell: Any, line: bytes
) -> None:
    await tell("get_order", "pending", order_id="#W1")
    report = await read(cache, [line, *await exported(cache)])
    assert dict(report.rejected) == {"invalid_line": 1}
    assert dict(report.outcomes) == {"known": 1}


async def test_an_import_gives_the_answers_that_had_been_learned(
    cache: ToolCache, make_cache: Any, tell: Any, ask: Any
) -> None:
    for n in range(36):
        for limit in (1, 2):
            await tell("search_help", f'["{n}"]', query=f"#{n}", limit=limit)
    await cache.calibrate("shop")
    question = Ask(tool="search_help", arguments={"query": "#3", "limit": 9}, environment="shop@1")
    other: ToolCache = make_cache()
    await read(other, await exported(cache))
    (before,), (after,) = await cache.lookup("shop", [question]), await other.lookup("shop", [question])
    assert isinstance(before.answer, Hit) and isinstance(after.answer, Hit)
    assert (after.answer.tier, after.answer.trust, after.answer.donor) == (
        before.answer.tier,
        before.answer.trust,
        before.answer.donor,
    )


@pytest.mark.parametrize(
    "forged",
    [{"seen": 0}, {"seen": 2**40}, {"tool": "teleport"}, {"scope": "x"}, {"expires_at_s": -1.0}, {"took_s": 1e300}],
)
async def test_a_line_that_no_cache_can_have_written_is_refused(
    cache: ToolCache, tell: Any, forged: dict[str, Any]
) -> None:
    await tell("get_order", "pending", order_id="#W1")
    (line,) = (await exported(cache))[1:]
    report = await read(cache, [json.dumps(json.loads(line) | forged, separators=(",", ":")).encode()])
    assert dict(report.rejected) == {"invalid_line": 1}


@pytest.mark.parametrize("vector", [b"1234", b"\x00" * 1024, b"\xff" * 1024])
async def test_a_vector_that_would_spoil_the_index_is_left_out(cache: ToolCache, tell: Any, vector: bytes) -> None:
    await tell("search_help", "[]", query="lamps")
    (line,) = (await exported(cache))[1:]
    version = HashEmbedder().version
    forged = json.loads(line) | {"vector": base64.b64encode(vector).decode(), "version": version}
    await read(cache, [json.dumps(forged, separators=(",", ":")).encode()])
    assert b'"vector"' not in (await exported(cache))[1]
