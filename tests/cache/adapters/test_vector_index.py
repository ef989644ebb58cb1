"""The index agrees with brute force whatever came, changed and went; and nothing long runs on the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolcache.adapters import faiss_index
from toolcache.adapters.faiss_index import FaissIndex, _Tool
from toolcache.adapters.hash_embedder import HashEmbedder
from toolcache.core.ports import IndexedVector

PLACE = ("shop", "find")
# Their inner products are exact in float32, so equal cosines are equal to the last bit.
EXACT = [
    np.array(row, dtype="<f4")
    for row in ([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, -1], [0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5])
]


@pytest.fixture(params=["inline", "in threads"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "in threads":
        force_threads(monkeypatch)
    yield request.param


def force_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "INLINE_COMPARED", -1)
    monkeypatch.setattr(faiss_index, "INLINE_MOVED", -1)


def entry(order: int, row: np.ndarray, guard: str = "g") -> IndexedVector:
    return IndexedVector(order=order, guard=guard, vector=row.astype("<f4").tobytes())


def unit_rows(count: int, dimensions: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f4")


def brute_force(
    held: dict[int, tuple[str, np.ndarray]], asked: np.ndarray, count: int, guard: str | None
) -> list[tuple[int, float]]:
    scored = [(order, float(row @ asked)) for order, (own, row) in held.items() if guard in (None, own)]
    return sorted(scored, key=lambda each: (-each[1], each[0]))[:count]


ORDERS = st.integers(1, 15)
GUARDS = st.sampled_from(["red", "green", "blue"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.tuples(ORDERS, GUARDS, st.sampled_from(EXACT)), min_size=1, max_size=12)),
        st.tuples(st.just("remove"), st.sets(ORDERS)),
        st.tuples(st.just("drop"), st.none()),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, count=st.integers(0, 16))
def test_it_answers_as_brute_force_would_whatever_was_added_replaced_and_removed(
    steps: list[tuple[str, Any]], count: int, mode: str
) -> None:
    async def play() -> None:
        index, held = FaissIndex(), dict[int, tuple[str, np.ndarray]]()
        for what, how in steps:
            match what:
                case "add":
                    await index.add(PLACE, [entry(order, row, guard) for order, guard, row in how])
                    held |= {order: (guard, row) for order, guard, row in how}
                case "remove":
                    await index.remove(PLACE, how)
                    held = {order: own for order, own in held.items() if order not in how}
                case _:
                    await index.drop(PLACE)
                    held = {}
            assert index.size(PLACE) == len(held)
            for guard in (None, "red", "green", "unheard of"):
                found = await index.nearest(PLACE, EXACT[3].tobytes(), count, guard=guard)
                assert found == brute_force(held, EXACT[3], count, guard)

    asyncio.run(play())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 700), st.integers(2, 40), st.integers(0, 2**32 - 1), st.integers(1, 800), st.data())
def test_its_cosines_are_those_of_brute_force(
    count: int, dimensions: int, seed: int, wanted: int, data: st.DataObject
) -> None:
    """More vectors than one slice, of any length, of which some go again."""
    rows = unit_rows(count + 1, dimensions, seed)
    gone = data.draw(st.sets(st.integers(0, count - 1)))
    index, asked = FaissIndex(), rows[-1]

    async def found() -> list[tuple[int, float]]:
        await index.add(PLACE, [entry(100 + 3 * n, row) for n, row in enumerate(rows[:-1])])
        await index.remove(PLACE, {100 + 3 * n for n in gone})
        return await index.nearest(PLACE, asked.tobytes(), wanted)

    scores = {100 + 3 * n: float(rows[n] @ asked) for n in range(count) if n not in gone}
    got = asyncio.run(found())
    assert [score for _, score in got] == pytest.approx(sorted(scores.values(), reverse=True)[:wanted], abs=1e-6)
    assert all(scores[order] == pytest.approx(score, abs=1e-6) for order, score in got)
    assert len({order for order, _ in got}) == len(got)


async def test_of_equal_vectors_the_smaller_order_comes_first_also_where_the_count_cuts_them(mode: str) -> None:
    index = FaissIndex()
    await index.add(PLACE, [entry(order, EXACT[0]) for order in (9, 4, 7, 2)] + [entry(1, EXACT[1])])
    assert await index.nearest(PLACE, EXACT[0].tobytes(), 2) == [(2, 1.0), (4, 1.0)]


async def test_no_cosine_is_greater_than_one() -> None:
    rows = unit_rows(2_000, 24, seed=3) * np.float32(1.0000002)
    index = FaissIndex()
    await index.add(PLACE, [entry(n, row) for n, row in enumerate(rows)])
    own = [(await index.nearest(PLACE, row.tobytes(), 1))[0][1] for row in rows[:200]]
    assert max(own) == 1.0


async def test_partitions_do_not_see_each_other(mode: str) -> None:
    index = FaissIndex()
    await index.add(PLACE, [entry(1, EXACT[0])])
    await index.add(("other", "find"), [entry(2, EXACT[0])])
    for unknown in (("shop", "get"), ("elsewhere", "find")):
        assert await index.nearest(unknown, EXACT[0].tobytes(), 3) == []
        assert index.size(unknown) == 0
        await index.remove(unknown, [1])
        await index.drop(unknown)
    assert await index.nearest(PLACE, EXACT[0].tobytes(), 3) == [(1, 1.0)]
    await index.drop(PLACE)
    assert await index.nearest(("other", "find"), EXACT[0].tobytes(), 3) == [(2, 1.0)]


async def test_a_vector_of_another_length_is_refused_and_changes_nothing(mode: str) -> None:
    index = FaissIndex()
    await index.add(PLACE, [entry(1, EXACT[0])])
    with pytest.raises(ValueError, match="reshape"):
        await index.add(PLACE, [entry(2, unit_rows(1, 8, seed=1)[0])])
    with pytest.raises(ValueError, match="reshape"):
        await index.nearest(PLACE, unit_rows(1, 3, seed=1)[0].tobytes(), 1)
    assert await index.nearest(PLACE, EXACT[0].tobytes(), 3) == [(1, 1.0)]


async def test_after_a_drop_vectors_may_have_another_length(mode: str) -> None:
    index = FaissIndex()
    await index.add(PLACE, [entry(1, EXACT[0])])
    await index.drop(PLACE)
    row = np.array([0.6, 0.8], dtype="<f4")
    await index.add(PLACE, [entry(1, row)])
    assert await index.nearest(PLACE, row.tobytes(), 3) == [(1, pytest.approx(1.0))]


async def test_the_memory_of_removed_vectors_is_given_back() -> None:
    index = FaissIndex()
    rows = unit_rows(6_000, 8, seed=5)
    await index.add(PLACE, [entry(n, row) for n, row in enumerate(rows)])
    await index.remove(PLACE, range(1, 6_000))
    assert index._tools[PLACE]._rooms < 2_000
    assert await index.nearest(PLACE, rows[0].tobytes(), 3) == [(0, pytest.approx(1.0))]


async def test_searches_among_changes_find_only_what_was_there_before_or_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of the entries stay; the others come and go while searches run in threads."""
    force_threads(monkeypatch)
    monkeypatch.setattr(faiss_index, "THREADS", 4)
    rows = unit_rows(600, 32, seed=11)
    index = FaissIndex()
    await index.add(PLACE, [entry(n, row, f"g{n % 3}") for n, row in enumerate(rows[:300])])
    fleeting = [entry(n, rows[n], f"g{n % 3}") for n in range(300, 600)]

    async def come_and_go() -> None:
        for _ in range(10):
            await index.add(PLACE, fleeting)
            await index.remove(PLACE, range(300, 600, 2))
            await index.remove(PLACE, range(301, 600, 2))

    async def ask(n: int) -> None:
        found = await index.nearest(PLACE, rows[n].tobytes(), 20, guard=f"g{n % 3}")
        assert found[0] == (n, pytest.approx(1.0, abs=1e-6))
        for order, score in found:
            assert order % 3 == n % 3
            assert score == pytest.approx(float(rows[order] @ rows[n]), abs=1e-6)

    changes = asyncio.create_task(come_and_go())
    asked = 0
    while not changes.done():
        await asyncio.gather(*(ask(n) for n in range(asked % 300, asked % 300 + 10)))
        asked = (asked + 10) % 290
    await changes
    assert index.size(PLACE) == 300


class Slow:
    """Stands in for a method of an index's tool, and stays inside until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.entered, self.go = threading.Semaphore(0), threading.Event()
        self.threads: list[threading.Thread] = []
        original: Callable[..., Any] = getattr(_Tool, name)

        def slow(tool: _Tool, *arguments: Any) -> Any:
            self.threads.append(threading.current_thread())
            self.entered.release()
            assert self.go.wait(30)
            return original(tool, *arguments)

        monkeypatch.setattr(_Tool, name, slow)

    async def is_inside(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=30)


async def test_a_change_waits_for_the_search_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    index = FaissIndex()
    await index.add(PLACE, [entry(1, EXACT[0])])
    force_threads(monkeypatch)
    searching = Slow(monkeypatch, "nearest")
    search = asyncio.create_task(index.nearest(PLACE, EXACT[0].tobytes(), 5))
    await searching.is_inside()
    monkeypatch.setattr(faiss_index, "INLINE_MOVED", 1000)  # small enough for the loop, but somebody is in the way
    change = asyncio.create_task(index.add(PLACE, [entry(2, EXACT[0])]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert index.size(PLACE) == 1
    searching.go.set()
    await change
    assert await search == [(1, 1.0)]
    assert index.size(PLACE) == 2


async def test_a_caller_that_gives_up_leaves_no_change_half_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "THREADS", 2)
    index = FaissIndex()
    await index.add(PLACE, [entry(1, EXACT[0])])
    force_threads(monkeypatch)
    adding = Slow(monkeypatch, "put")
    change = asyncio.create_task(index.add(PLACE, [entry(2, EXACT[1])]))
    await adding.is_inside()
    change.cancel()
    with pytest.raises(asyncio.CancelledError):
        await change
    search = asyncio.create_task(index.nearest(PLACE, EXACT[1].tobytes(), 1))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not search.done()
    adding.go.set()
    assert await search == [(2, 1.0)]


async def test_searches_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "THREADS", 2)
    index = FaissIndex()
    await index.add(PLACE, [entry(1, EXACT[0])])
    force_threads(monkeypatch)
    searching = Slow(monkeypatch, "nearest")
    searches = [asyncio.create_task(index.nearest(PLACE, EXACT[0].tobytes(), 1)) for _ in range(2)]
    await searching.is_inside()
    await searching.is_inside()
    searching.go.set()
    assert await asyncio.gather(*searches) == [[(1, 1.0)], [(1, 1.0)]]


async def test_only_what_is_short_runs_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit_rows(40, 8, seed=2)
    monkeypatch.setattr(faiss_index, "INLINE_COMPARED", 10)
    monkeypatch.setattr(faiss_index, "INLINE_MOVED", 5)
    ran = {name: Slow(monkeypatch, name) for name in ("nearest", "put", "remove", "clear")}
    for each in ran.values():
        each.go.set()
    index = FaissIndex()
    await index.add(PLACE, [entry(n, row, "few") for n, row in enumerate(rows[:5])])
    await index.add(PLACE, [entry(n, row, "many") for n, row in enumerate(rows[5:], 5)])
    await index.nearest(PLACE, rows[0].tobytes(), 1, guard="few")
    await index.nearest(PLACE, rows[0].tobytes(), 1, guard="many")
    await index.nearest(PLACE, rows[0].tobytes(), 1)
    await index.remove(PLACE, [0])
    await index.drop(PLACE)
    here = threading.current_thread()
    assert {name: [thread is here for thread in each.threads] for name, each in ran.items()} == {
        "put": [True, False],
        "nearest": [True, False, False],
        "remove": [False],
        "clear": [True, False],  # the first one made the index
    }


async def test_the_hash_embedder_gives_unit_vectors_that_know_letters() -> None:
    texts = ["a red lamp", "A red lamp", "a red lamps", "zebra crossing", ""]
    rows = [np.frombuffer(vector, dtype="<f4") for vector in await HashEmbedder().embed(texts, tenant="a")]
    assert [float(np.linalg.norm(row)) for row in rows] == pytest.approx([1.0] * 5)
    assert float(rows[0] @ rows[1]) == pytest.approx(1.0)
    assert float(rows[0] @ rows[2]) > 0.8 > 0.3 > float(rows[0] @ rows[3])
