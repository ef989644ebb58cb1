"""Curves of a run as SVG, drawn by matplotlib. What was not measured is not drawn: a chart without values is empty."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

Steps = Sequence[Mapping[str, Any]]
"""One object a step, as the run's JSON lines have them."""
COLOURS = ("#1a7f64", "#3b82c4", "#d9902f", "#b8433f", "#7c5cbf", "#6b7280", "#0f766e", "#a16207")
TIER_COLOURS: Mapping[str, str] = {
    "live": "#6b7280",
    "exact": "#1a7f64",
    "similar": "#3b82c4",
    "approximate": "#d9902f",
    "miss": "#b8433f",
    "none": "#cbd5e1",
}
SIZE = (6.0, 2.6)
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of a chart."""

    label: str
    values: Sequence[float | None]
    """One a step; None leaves a gap."""
    colour: str = ""


def curves(steps: Steps, names: Mapping[str, str]) -> list[Curve]:
    """Metrics of the steps by name, each with its label; those without any value are left out."""
    found = (Curve(label=label, values=[step.get(name) for step in steps]) for name, label in names.items())
    return [curve for curve in found if any(value is not None for value in curve.values)]


def line_chart(
    steps: Steps, drawn: Sequence[Curve], y_label: str, *, unit_range: bool = False, log: bool = False
) -> str:
    """Lines over the steps; empty without any."""
    if not drawn:
        return ""
    _, axes = plt.subplots(figsize=SIZE)
    x = _x(steps)
    if len(x) == 1:
        axes.set_xlim(x[0] - 1, x[0] + 1)
    for place, curve in enumerate(drawn):
        values = [float("nan") if value is None else value for value in curve.values]
        colour = curve.colour or COLOURS[place % len(COLOURS)]
        # A marker as well: one step alone, or one between two gaps, makes no line.
        marker = "o" if len(steps) < 30 else ""
        axes.plot(x, values, label=curve.label, color=colour, linewidth=1.4, marker=marker, markersize=2.5)
    if unit_range:
        axes.set_ylim(-0.02, 1.02)
    if log:
        axes.set_yscale("log")
    if len(drawn) > 1:
        _legend(axes, len(drawn))
    return _svg(axes, y_label)


def share_chart(steps: Steps, name: str, y_label: str, colours: Mapping[str, str] | None = None) -> str:
    """How the counts of one metric, an object of counts by kind, divide, as shares of each step; empty without any."""
    counts = [step.get(name) or {} for step in steps]
    kinds = [kind for kind in _in_order(counts, colours) if any(count.get(kind) for count in counts)]
    if not kinds:
        return ""
    totals = [sum(count.values()) or 1 for count in counts]
    shares = [[count.get(kind, 0) / total for count, total in zip(counts, totals, strict=True)] for kind in kinds]
    return _stack(steps, kinds, shares, y_label, colours or {}, top=1.0)


def stack_chart(steps: Steps, names: Mapping[str, str], y_label: str) -> str:
    """Metrics laid on top of each other; empty without any."""
    drawn = curves(steps, names)
    if not drawn:
        return ""
    heights = [[value or 0.0 for value in curve.values] for curve in drawn]
    return _stack(steps, [curve.label for curve in drawn], heights, y_label, {})


def _stack(
    steps: Steps,
    labels: Sequence[str],
    heights: Sequence[Sequence[float]],
    y_label: str,
    colours: Mapping[str, str],
    top: float | None = None,
) -> str:
    _, axes = plt.subplots(figsize=SIZE)
    bottom = [0.0] * len(steps)
    for place, (label, height) in enumerate(zip(labels, heights, strict=True)):
        colour = colours.get(label, COLOURS[place % len(COLOURS)])
        axes.bar(_x(steps), height, bottom=bottom, width=1.0, color=colour, label=label, linewidth=0)
        bottom = [low + more for low, more in zip(bottom, height, strict=True)]
    if top is not None:
        axes.set_ylim(0, top)
    _legend(axes, len(labels))
    return _svg(axes, y_label)


def _x(steps: Steps) -> list[int]:
    return [step["step"] for step in steps]


def _in_order(counts: Sequence[Mapping[str, Any]], colours: Mapping[str, str] | None) -> list[str]:
    """All kinds that occur, those with a colour first and in its order."""
    found = dict.fromkeys(kind for count in counts for kind in count)
    return list(dict.fromkeys([*(kind for kind in colours or () if kind in found), *found]))


def _legend(axes: Axes, count: int) -> None:
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(count, 4))


def _svg(axes: Axes, y_label: str) -> str:
    """The current figure, which these axes are in, as an SVG element; the figure is closed."""
    axes.set_xlabel("step")
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none"}):
        plt.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata=_NO_METADATA)
    plt.close("all")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
