"""Fidelity by cosine, drawn: does a higher similarity mean a better answer?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from toolcache.core.trust import BAND_EDGES

ENOUGH = 20
"""Pairs in a band before it is drawn."""
_LINES = (
    ("rewordings", "equal_at_1", "same first result", "tab:blue", "-"),
    ("rewordings", "equal_at_5", "same first five", "tab:blue", "--"),
    ("near_misses", "equal_at_1", "same first result", "tab:red", "-"),
    ("near_misses", "equal_at_5", "same first five", "tab:red", "--"),
)


def draw(found: dict[str, Any], path: Path) -> None:
    """One panel a search: the share of equal results in each band of cosine, rewordings and near misses apart."""
    mpl.rcParams["svg.hashsalt"] = "search"  # the same numbers give the same file
    mpl.rcParams["svg.fonttype"] = "none"
    searches = list(found["pairs"])
    figure = Figure(figsize=(4.2 * len(searches), 3.9), layout="constrained")
    panels = figure.subplots(1, len(searches), sharey=True, squeeze=False)[0]
    for panel, search in zip(panels, searches, strict=True):
        _panel(panel, found["pairs"][search]["by_band"], search)
    panels[0].set_ylabel("share of pairs with equal results")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def _panel(panel: Axes, bands: dict[str, Any], search: str) -> None:
    drawn = [f"{edge:.2f}" for edge in BAND_EDGES if any(_is_drawn(own, f"{edge:.2f}") for own in bands.values())]
    for group, measure, label, color, style in _LINES:
        places = [place for place, edge in enumerate(drawn) if _is_drawn(bands[group], edge)]
        shares = [bands[group][drawn[place]][measure] for place in places]
        name = f"{group.replace('_', ' ')}: {label}"
        panel.plot(places, shares, color=color, linestyle=style, marker="o", markersize=4, label=name)
    panel.set_title(search)
    panel.set_xlabel("cosine of the two calls, from")
    panel.set_xticks(range(len(drawn)), drawn)
    panel.set_ylim(0, 1.02)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _is_drawn(bands: dict[str, Any], edge: str) -> bool:
    return edge in bands and bands[edge]["pairs"] >= ENOUGH
