"""Every example is dealt out exactly once, and nothing grows beyond what was allowed unless it cannot be cut."""

import random
from collections.abc import Callable, Sequence

import pytest

from cacherl.train.packing import packed, padded, shares


def chained(groups: Sequence[Sequence[int]]) -> list[int]:
    return sorted(place for group in groups for place in group)


@pytest.mark.parametrize("cut", [packed, padded])
@pytest.mark.parametrize("seed", range(20))
def test_each_example_is_in_exactly_one_group(cut: Callable[..., list[list[int]]], seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 50) for _ in range(rng.randint(1, 60))]
    assert chained(cut(lengths, 40)) == list(range(len(lengths)))
    assert cut(lengths, 40) == cut(lengths, 40)
    assert cut(lengths, None) == [list(range(len(lengths)))]
    assert cut([], 40) == cut([], None) == []


@pytest.mark.parametrize("seed", range(20))
def test_only_an_example_that_is_too_long_by_itself_exceeds_a_row_and_it_is_alone(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 60) for _ in range(50)]
    for row in packed(lengths, 40):
        assert sum(lengths[place] for place in row) <= 40 or len(row) == 1
    for row in padded(lengths, 40):
        assert len(row) * max(lengths[place] for place in row) <= 40 or len(row) == 1


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_never_more_than_the_bound_of_first_fit_decreasing(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 40) for _ in range(80)]
    least = -(-sum(lengths) // 40)
    assert len(packed(lengths, 40)) <= 11 / 9 * max(least, sum(length > 20 for length in lengths)) + 1


def test_an_example_fits_to_the_very_token() -> None:
    assert packed([6, 4], most=10) == [[0, 1]]
    assert packed([6, 5], most=10) == [[0], [1]]
    assert padded([5, 5], most=10) == [[0, 1]]
    assert padded([6, 4], most=11) == [[0], [1]]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_processes_share_a_batch_without_overlap_and_their_loads_differ_by_at_most_one_example(processes: int) -> None:
    lengths = [random.Random(4).randint(1, 50) for _ in range(20)]
    dealt = shares(lengths, processes)
    assert len(dealt) == processes
    assert chained(dealt) == list(range(20))
    loads = [sum(lengths[place] for place in share) for share in dealt]
    assert max(loads) - min(loads) <= max(lengths)


def test_one_process_takes_the_batch_in_its_order() -> None:
    assert shares([3, 9, 5], processes=1) == [[0, 1, 2]]


def test_there_may_be_more_processes_than_examples() -> None:
    assert shares([4], processes=3) == [[0], [], []]
