"""How alike two ranked results are: from equal, which is what the cache's trust speaks of, to nothing in common."""

from __future__ import annotations

from collections.abc import Sequence

PERSISTENCE = 0.9
"""Of rank-biased overlap: how likely a reader goes on to the next rank. 0.9 puts 86 % of the weight on the first 10."""


def jaccard(one: Sequence[str], other: Sequence[str]) -> float:
    """Share of what either list holds that both hold, whatever the order; 1 for two empty lists.

    >>> jaccard(["a", "b"], ["b", "c"])
    0.3333333333333333
    """
    either = {*one, *other}
    return len({*one} & {*other}) / len(either) if either else 1.0


def rank_biased_overlap(one: Sequence[str], other: Sequence[str], persistence: float = PERSISTENCE) -> float:
    """Rank-biased overlap, extrapolated beyond the last rank: RBO_ext of Webber, Moffat and Zobel, "A similarity
    measure for indefinite rankings", ACM TOIS 28(4), 2010, equation 32.

        (X_k / k) p^k + ((1 - p) / p) sum over d = 1..k of (X_d / d) p^d

    X_d is how many items the first d of both lists share. 1 for equal lists, 0 for disjoint ones; a difference counts
    the more the higher it stands. A list that is shorter than the other shares nothing in the ranks it lacks.

    >>> rank_biased_overlap("ab", "ab"), rank_biased_overlap("ab", "cd")
    (1.0, 0.0)
    """
    depth = max(len(one), len(other))
    if not depth:
        return 1.0
    agreements = [len({*one[:d]} & {*other[:d]}) / d for d in range(1, depth + 1)]
    weighted = sum(share * persistence**d for d, share in enumerate(agreements, start=1))
    found = agreements[-1] * persistence**depth + (1 - persistence) / persistence * weighted
    return round(found, 12)  # so that equal lists give 1, not 0.9999999999999999
