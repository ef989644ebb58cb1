"""The numbers at /metrics are those of what happened, and names that strangers make up cannot fill the memory."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from tests.cache.http.service import PENDING, batch, call, lookup, record
from toolcache.adapters.batching_embedder import BatchingEmbedder
from toolcache.metrics import MOST_JOBS, MOST_NAMESPACES, MOST_SERIES, MOST_TOOLS, OTHER, Metrics

Numbers = dict[tuple[str, ...], float]


async def numbers(service: httpx.AsyncClient, name: str) -> Numbers:
    """Values of one series by its labels' values, in the order of the labels' names."""
    reply = await service.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    return of(reply.text, name)


def of(text: str, name: str) -> Numbers:
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


async def test_answers_are_counted_by_namespace_tool_tier_and_job(service: httpx.AsyncClient) -> None:
    await record(service, call(result=PENDING), call(result=PENDING), call(result={"content": "other", "took_s": 9}))
    await lookup(service, call(), call(), call("#W9"), call() | {"tool": "teleport"}, job="run-7")
    # By label: job, namespace, tier, tool.
    assert await numbers(service, "toolcache_answers_total") == {
        ("run-7", "shop", "exact", "get_order"): 2,
        ("run-7", "shop", "miss", "get_order"): 1,
        ("run-7", "shop", "miss", OTHER): 1,
    }
    assert await numbers(service, "toolcache_saved_seconds_total") == {("run-7", "shop"): 2 * 0.5}
    assert await numbers(service, "toolcache_trust_count") == {("shop", "exact"): 2, ("shop", "miss"): 2}
    assert await numbers(service, "toolcache_trust_sum") == {("shop", "exact"): 2 * (2 / 3), ("shop", "miss"): 0}
    assert await numbers(service, "toolcache_records_total") == {
        ("shop", "stored"): 1,
        ("shop", "known"): 1,
        ("shop", "conflict"): 1,
    }


async def test_an_unknown_tool_whose_state_is_unknown_too_is_no_label(service: httpx.AsyncClient) -> None:
    write = {"tool": "cancel_order", "arguments": {}, "environment": "e"}
    await lookup(service, write, call(follows=True) | {"tool": "made up"})
    assert set(await numbers(service, "toolcache_answers_total")) == {
        ("", "shop", "miss", "cancel_order"),
        ("", "shop", "miss", OTHER),
    }


async def test_leases_and_waits_are_counted(service: httpx.AsyncClient) -> None:
    (missed,) = await lookup(service, call(), on_miss="lease")
    await lookup(service, call(), on_miss="wait", wait_s=0.001)
    path = f"/v1/leases/{missed['lease']}"
    for extend_s in (60, 0, 60):
        await service.post(path, json={"namespace": "shop", "extend_s": extend_s})
    assert await numbers(service, "toolcache_leases_total") == {
        ("granted", "shop"): 1,
        ("extended", "shop"): 1,
        ("released", "shop"): 1,
        ("lost", "shop"): 1,
    }
    assert await numbers(service, "toolcache_wait_seconds_count") == {(): 1}
    assert (await numbers(service, "toolcache_wait_seconds_sum"))[()] >= 0.001


async def test_requests_are_counted_by_route_and_class_and_problems_by_code(service: httpx.AsyncClient) -> None:
    await lookup(service, call())
    await service.post("/v1/lookup", content=b"{")
    await service.get("/v1/namespaces/none")
    counts = await numbers(service, "toolcache_request_seconds_count")
    assert counts == {
        ("PUT /v1/namespaces/{name}", "2xx"): 1,
        ("POST /v1/lookup", "2xx"): 1,
        ("POST /v1/lookup", "4xx"): 1,
        ("GET /v1/namespaces/{name}", "4xx"): 1,
    }
    assert await numbers(service, "toolcache_problems_total") == {("malformed_body",): 1, ("unknown_namespace",): 1}
    assert await numbers(service, "toolcache_requests_in_flight") == {(): 0}
    assert await numbers(service, "toolcache_requests_waiting") == {(): 0}


async def test_the_store_and_the_process_tell_of_themselves(service: httpx.AsyncClient) -> None:
    assert await numbers(service, "toolcache_store_errors_total") == {(): 0}
    assert await numbers(service, "toolcache_entries_removed_total") == {("evicted",): 0, ("expired",): 0}
    assert (await numbers(service, "process_resident_memory_bytes"))[()] > 1e6


async def test_entries_that_were_evicted_are_counted(service: httpx.AsyncClient) -> None:
    await service.put("/v1/namespaces/small", json={"tools": [{"name": "get_order"}], "max_bytes": 2_000})
    items = [call(f"#W{n}", result=PENDING) for n in range(10)]
    await service.post("/v1/record", json=batch(*items, namespace="small"))
    assert (await numbers(service, "toolcache_entries_removed_total"))["evicted",] >= 7


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


class Encoder:
    """Gives every text the same vector."""

    version = "ones"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.ones((len(texts), 1), dtype=np.float32)


async def test_the_embedder_tells_what_it_had_to_do(metrics: Metrics) -> None:
    embedder = BatchingEmbedder(Encoder())
    metrics.watch(encoding=embedder)
    await embedder.embed(["a lamp", "a chair"], tenant="shop")
    await embedder.embed(["a lamp"], tenant="shop")
    text = metrics.text().decode()
    names = ("batches", "texts", "memo_hits")
    assert [of(text, f"toolcache_encoder_{name}_total")[()] for name in names] == [1, 2, 1]


def test_a_histogram_counts_a_value_in_the_bucket_whose_bound_it_equals(metrics: Metrics) -> None:
    for seconds in (0.0004, 0.001, 0.0011, 1e9):
        metrics.requested("r", "2xx", seconds)
    buckets = of(metrics.text().decode(), "toolcache_request_seconds_bucket")
    assert [buckets[le, "r", "2xx"] for le in ("0.0005", "0.001", "0.0025", "60.0", "+Inf")] == [1, 2, 3, 3, 4]


def test_made_up_names_become_other(metrics: Metrics) -> None:
    def count(labels: int) -> Numbers:
        found: Numbers = {}
        for key, value in of(metrics.text().decode(), "toolcache_answers_total").items():
            found[key[labels],] = found.get((key[labels],), 0) + value
        return found

    for n in range(MOST_JOBS + 5):
        metrics.answered("shop", "get", "exact", f"job-{n}", 1.0, 0.0)
    assert (len(count(0)), count(0)[OTHER,]) == (MOST_JOBS + 1, 5)
    for n in range(MOST_TOOLS + 5):
        metrics.answered("shop", f"tool-{n}", "exact", "job-0", 1.0, 0.0)
    assert count(3)[OTHER,] == 6  # `get` has a place already
    for n in range(MOST_NAMESPACES + 5):
        metrics.answered(f"ns-{n}", "get", "exact", "job", 1.0, 0.0)
    assert count(1)[OTHER,] == 6
    metrics.answered("ns-0", "get", "exact", "x" * 1_000, 1.0, 0.0)
    assert count(0)[OTHER,] == 6
    assert count(1)["ns-0",] == 2


def test_there_are_never_more_series_than_the_limit(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolcache.metrics.MOST_SERIES", 50)
    assert MOST_SERIES > 50
    for n in range(1_000):
        metrics.answered(f"ns-{n % 7}", f"tool-{n % 11}", "exact", f"job-{n % 13}", 1.0, 0.0)
    found = of(metrics.text().decode(), "toolcache_answers_total")
    assert len(found) == 51
    assert sum(found.values()) == 1_000
