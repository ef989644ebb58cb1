"""What was measured, as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.search.rewording import Kind


def show(found: dict[str, Any], console: Console) -> None:
    console.print(pairs_table(found))
    console.print(reuse_table(found))


def pairs_table(found: dict[str, Any]) -> Table:
    """Per kind and search: the share of pairs with equal results for k = 1 and k = 5, and rank-biased overlap."""
    searches = list(found["pairs"])
    table = Table(title="results equal to the recorded query's: first 1 | first 5 | rank-biased overlap of 10")
    for column in ("asked with", "pairs", "cosine", "kept apart", *searches):
        table.add_column(column)
    for kind in Kind:
        rows = [found["pairs"][search]["by_kind"].get(kind.value) for search in searches]
        if not rows[0]:
            continue
        table.add_row(
            kind.value,
            str(rows[0]["pairs"]),
            f"{rows[0]['cosine']:.2f}",
            f"{rows[0]['guarded']:.2f}",
            *(f"{row['equal_at_1']:.2f} | {row['equal_at_5']:.2f} | {row['rank_biased_overlap']:.2f}" for row in rows),
            end_section=kind in (Kind.TYPO, Kind.NEED),
        )
    return table


def reuse_table(found: dict[str, Any]) -> Table:
    """Per search, k, what was recorded and policy: how much the cache served, how right, and what it said of it.

    "near misses" counts those served that were right, of those served: their meaning differs, their result need not.
    """
    table = Table(title="what the cache does with queries it has not seen")
    told = ("served", "right", "trust", "off by", "overlap", "near misses", "below floor", "too far", "none passes")
    for column in ("search", "k", "recorded", "policy", *told):
        table.add_column(column)
    for trial in found["reuse"]:
        for policy, row in trial["policies"].items():
            misses = (row["misses"].get(reason, 0) for reason in ("below_floor", "below_threshold", "not_recorded"))
            table.add_row(
                *(trial["search"], str(trial["k"]), trial["recorded"], policy),
                *(f"{row['served'] / row['asked']:.1%}", *_quality(row)),
                f"{row['near_misses_right']} of {row['near_misses_served']}",
                *map(str, misses),
            )
        table.add_section()
    return table


def _quality(row: dict[str, Any]) -> tuple[str, ...]:
    names = ("precision", "mean_trust", "calibration_error", "rank_biased_overlap")
    return tuple(f"{row[name]:.2f}" if row["served"] else "-" for name in names)
