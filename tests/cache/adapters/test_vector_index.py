"""FAISS agrees with brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolcache.adapters.faiss_index import FaissIndex
from toolcache.adapters.hash_embedder import HashEmbedder
from toolcache.core.ports import StoredVector

PLACE = ("shop", "find")


def unit_rows(count: int, dimensions: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f4")


def filled(rows: np.ndarray, *, first_entry: int = 100) -> FaissIndex:
    """Entry orders count from `first_entry`, by threes; vector orders count from 1."""
    index = FaissIndex()
    vectors = [
        StoredVector(order=n + 1, entry_order=first_entry + 3 * n, vector=row.tobytes()) for n, row in enumerate(rows)
    ]
    half = len(vectors) // 2
    for part in (vectors[:half], vectors[half:]):
        if part:
            index.add(PLACE, part)
    return index


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(2, 24), st.integers(0, 2**32 - 1), st.integers(1, 70), st.data())
def test_the_nearest_are_those_of_brute_force(
    count: int, dimensions: int, seed: int, wanted: int, data: st.DataObject
) -> None:
    rows = unit_rows(count + 1, dimensions, seed)
    index, asked = filled(rows[:-1]), rows[-1]
    among = data.draw(st.none() | st.sets(st.sampled_from([*range(100, 100 + 3 * count, 3), 101, 7])))
    found = index.nearest(PLACE, asked.tobytes(), wanted, among=None if among is None else sorted(among))
    allowed = [n for n in range(count) if among is None or 100 + 3 * n in among]
    scores = {100 + 3 * n: float(rows[n] @ asked) for n in allowed}
    best = sorted(scores.values(), reverse=True)[:wanted]
    assert [score for _, score in found] == pytest.approx(best, abs=1e-6)
    assert all(scores[order] == pytest.approx(score, abs=1e-6) for order, score in found)
    assert len({order for order, _ in found}) == len(found)


def test_a_vector_is_its_own_nearest_with_cosine_one() -> None:
    rows = unit_rows(500, 16, seed=7)
    index = filled(rows)
    for n in range(0, 500, 50):
        ((order, score),) = index.nearest(PLACE, rows[n].tobytes(), 1)
        assert (order, score) == (100 + 3 * n, pytest.approx(1.0, abs=1e-6))


def test_partitions_do_not_see_each_other_and_an_empty_one_finds_nothing() -> None:
    rows = unit_rows(4, 8, seed=1)
    index = filled(rows)
    assert index.nearest(("shop", "get"), rows[0].tobytes(), 3) == []
    assert index.nearest(("other", "find"), rows[0].tobytes(), 3) == []
    assert index.nearest(PLACE, rows[0].tobytes(), 3, among=[]) == []
    assert (index.last(PLACE), index.last(("shop", "get"))) == (4, 0)


async def test_the_hash_embedder_gives_unit_vectors_that_know_letters() -> None:
    rows = [
        np.frombuffer(vector, dtype="<f4")
        for vector in await HashEmbedder().embed(["a red lamp", "A red lamp", "a red lamps", "zebra crossing", ""])
    ]
    assert [float(np.linalg.norm(row)) for row in rows] == pytest.approx([1.0] * 5)
    assert float(rows[0] @ rows[1]) == pytest.approx(1.0)
    assert float(rows[0] @ rows[2]) > 0.8 > 0.3 > float(rows[0] @ rows[3])
