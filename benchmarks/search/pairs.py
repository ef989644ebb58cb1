"""How often the result of one query is the result of another: pair by pair, before any cache decides anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.search.needs import Need
from benchmarks.search.overlap import jaccard, rank_biased_overlap
from benchmarks.search.retrieval import MOST_RESULTS, SearchTool
from benchmarks.search.rewording import Kind, Variation
from benchmarks.search.vectors import PreparedVectors
from toolcache.core.roles import guard_contents, text_of
from toolcache.core.tools import Role
from toolcache.core.trust import BAND_EDGES, band

DEPTHS = (1, 5, 10)
"""Values of k at which results are compared whole."""
CALLED_WITH = 5
"""k of the calls whose cosine is told."""
TOOL = "search_docs"
ROLES = {"query": Role.FREE_TEXT, "k": Role.IDENTITY}


def call_text(query: str, k: int) -> str:
    """What the cache embeds for the call."""
    return text_of(TOOL, arguments(query, k))


def arguments(query: str, k: int) -> dict[str, Any]:
    return {"query": query, "k": k}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A recorded query and another that is asked."""

    kind: Kind
    recorded: str
    asked: str

    @property
    def is_guarded(self) -> bool:
        """Whether the cache's guard keeps the two apart, whatever their similarity."""
        one, other = (guard_contents(arguments(query, 1), ROLES) for query in (self.recorded, self.asked))
        return one != other


def pairs(varied: Sequence[Variation], needs: Sequence[Need], vectors: PreparedVectors) -> list[Pair]:
    """Each variation with its need's query, and each need's query with the nearest of all other needs."""
    rows = np.stack([vectors.row(call_text(need.query, CALLED_WITH)) for need in needs])  # [N, D]
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1.0)
    nearest = [needs[place] for place in cosines.argmax(axis=1)]
    own = [Pair(kind=each.kind, recorded=each.need.query, asked=each.asked) for each in varied]
    return own + [
        Pair(kind=Kind.NEED, recorded=near.query, asked=need.query) for need, near in zip(needs, nearest, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Both results of a pair, side by side."""

    pair: Pair
    cosine: float
    equal: tuple[bool, ...]
    """At each of DEPTHS: the same documents in the same order."""
    same_five: bool
    """The first five are the same documents, in whatever order."""
    jaccard: float
    overlap: float
    """Rank-biased."""


def compared(tool: SearchTool, pair: Pair, vectors: PreparedVectors) -> Compared:
    one, other = tool.ids(pair.recorded, MOST_RESULTS), tool.ids(pair.asked, MOST_RESULTS)
    return Compared(
        pair=pair,
        cosine=vectors.cosine(call_text(pair.recorded, CALLED_WITH), call_text(pair.asked, CALLED_WITH)),
        equal=tuple(one[:depth] == other[:depth] for depth in DEPTHS),
        same_five=set(one[:5]) == set(other[:5]),
        jaccard=jaccard(one, other),
        overlap=rank_biased_overlap(one, other),
    )


def statistics(found: Sequence[Compared]) -> dict[str, Any]:
    """By kind; by band of cosine, and by what the guard does, rewordings and near misses apart; and how well cosine
    tells equal results."""
    groups = {
        "rewordings": [one for one in found if one.pair.kind.keeps_meaning],
        "near_misses": [one for one in found if not one.pair.kind.keeps_meaning],
    }
    return {
        "by_kind": _each({kind.value: [one for one in found if one.pair.kind is kind] for kind in Kind}),
        "by_band": {name: _by_band(own) for name, own in groups.items()},
        "by_guard": {name: _by_guard(own) for name, own in groups.items()},
        "cosine_tells_equal_auc": {
            f"k={k}": area_under_roc([(one.cosine, one.equal[n]) for one in found]) for n, k in enumerate(DEPTHS)
        },
    }


def summary(found: Sequence[Compared]) -> dict[str, Any]:
    """Shares and means, of at least one pair."""
    return {
        "pairs": len(found),
        **{f"equal_at_{k}": fmean(one.equal[n] for one in found) for n, k in enumerate(DEPTHS)},
        "same_five_in_any_order": fmean(one.same_five for one in found),
        "jaccard": fmean(one.jaccard for one in found),
        "rank_biased_overlap": fmean(one.overlap for one in found),
        "cosine": fmean(one.cosine for one in found),
        "guarded": fmean(one.pair.is_guarded for one in found),
    }


def _by_band(found: Sequence[Compared]) -> dict[str, dict[str, Any]]:
    bands = enumerate(BAND_EDGES)
    return _each({f"{edge:.2f}": [one for one in found if band(one.cosine) == n] for n, edge in bands})


def _by_guard(found: Sequence[Compared]) -> dict[str, dict[str, Any]]:
    return _each(
        {
            "passed": [one for one in found if not one.pair.is_guarded],
            "kept_apart": [one for one in found if one.pair.is_guarded],
        }
    )


def _each(parts: Mapping[str, Sequence[Compared]]) -> dict[str, dict[str, Any]]:
    return {name: summary(part) for name, part in parts.items() if part}


def area_under_roc(scored: Iterable[tuple[float, bool]]) -> float | None:
    """How likely a right one has the higher score than a wrong one, equal scores counting half: 1 tells all, 0.5
    nothing (the Mann-Whitney statistic over its maximum; Hanley and McNeil, Radiology 143, 1982). None where all are
    right or all wrong.

    >>> area_under_roc([(0.9, True), (0.8, False), (0.7, True), (0.6, False)])
    0.75
    """
    scored = list(scored)
    right = np.array([score for score, is_right in scored if is_right])
    wrong = np.sort([score for score, is_right in scored if not is_right])
    if not len(right) or not len(wrong):
        return None
    below, not_above = (np.searchsorted(wrong, right, side=side) for side in ("left", "right"))
    return float((below + not_above).sum() / (2 * len(right) * len(wrong)))
