"""How a batch is cut into forward passes: which examples share a process, a pass, a row.

Pure and deterministic, so that every process works out the same plan for all and no plan is sent around. Examples are
named by their place in the batch; each function deals out every place exactly once.
"""

from collections.abc import Sequence


def shares(lengths: Sequence[int], processes: int) -> list[list[int]]:
    """The batch dealt out to the processes, like loads of tokens: the longest example first, to whoever has least.

    >>> shares([5, 9, 3, 4], processes=2)
    [[1, 2], [0, 3]]
    """
    if processes == 1:
        return [list(range(len(lengths)))]
    dealt: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for place in _longest_first(lengths):
        least = loads.index(min(loads))
        dealt[least].append(place)
        loads[least] += lengths[place]
    return [sorted(share) for share in dealt]


def packed(lengths: Sequence[int], most: int | None) -> list[list[int]]:
    """Examples that share a row of at most `most` tokens; a longer one is alone in its row. None: one row.

    First fit, the longest first, which needs at most 11/9 of the best possible rows (plus one).

    >>> packed([5, 9, 3, 4], most=9)
    [[1], [0, 3], [2]]
    """
    if most is None:
        return [list(range(len(lengths)))] if lengths else []
    rows: list[list[int]] = []
    filled: list[int] = []
    for place in _longest_first(lengths):
        row = next((row for row, tokens in enumerate(filled) if tokens + lengths[place] <= most), None)
        if row is None:
            rows.append([])
            filled.append(0)
            row = len(rows) - 1
        rows[row].append(place)
        filled[row] += lengths[place]
    return rows


def padded(lengths: Sequence[int], most: int | None) -> list[list[int]]:
    """Examples that share a pass of one a row: rows times the longest is at most `most`, or it is a single one.

    Like lengths stand together. None: one pass, in the batch's order.

    >>> padded([5, 9, 3, 4], most=10)
    [[1], [0, 3], [2]]
    """
    if most is None:
        return [list(range(len(lengths)))] if lengths else []
    passes: list[list[int]] = []
    for place in _longest_first(lengths):
        # The first of a pass is its longest.
        if passes and (len(passes[-1]) + 1) * lengths[passes[-1][0]] <= most:
            passes[-1].append(place)
        else:
            passes.append([place])
    return passes


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
