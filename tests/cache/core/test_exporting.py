"""An export read into an empty cache gives the same answers; reading it twice changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

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
