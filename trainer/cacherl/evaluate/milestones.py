"""Process accuracy: how much of a task's path the calls of a rollout followed.

Milestones are matched greedily as an ordered subsequence, as ACEBench's process accuracy does; extra calls
between them cost nothing here and show in the call precision.

Not covered: several alternative paths of one task; partial credit inside a call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class CallLike(Protocol):
    """A call by tool name and arguments."""

    @property
    def name(self) -> str: ...

    @property
    def arguments(self) -> Mapping[str, Any] | None: ...


class MilestoneLike(Protocol):
    """A call the task expects (worlds/world.py: Milestone)."""

    @property
    def tool(self) -> str: ...

    @property
    def arguments(self) -> Mapping[str, Any]: ...


FreeText = frozenset[tuple[str, str]]
"""(tool, argument) pairs whose wording is free, so that they are left out of comparisons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MilestoneMatch:
    """How the calls of one rollout meet the milestones of its task."""

    matched: int
    milestones: int
    calls: int

    @property
    def recall(self) -> float:
        """Matched milestones / milestones; 1 for a task without any."""
        return self.matched / self.milestones if self.milestones else 1.0

    @property
    def precision(self) -> float:
        """Matched milestones / calls; 1 when there was nothing to call and nothing was called."""
        if self.calls:
            return self.matched / self.calls
        return 0.0 if self.milestones else 1.0


def match_milestones(
    calls: Sequence[CallLike], milestones: Sequence[MilestoneLike], free_text: FreeText = frozenset()
) -> MilestoneMatch:
    """Walk the milestones in order, each taking the first call that meets it after the one taken before.

    A milestone nobody meets is passed over, so a single slip does not cost the steps that follow it.
    """
    matched = begin = 0
    for milestone in milestones:
        place = next((i for i in range(begin, len(calls)) if is_same_call(calls[i], milestone, free_text)), None)
        if place is not None:
            matched, begin = matched + 1, place + 1
    return MilestoneMatch(matched=matched, milestones=len(milestones), calls=len(calls))


def is_same_call(call: CallLike, milestone: MilestoneLike, free_text: FreeText = frozenset()) -> bool:
    """Same tool and equal arguments, those in `free_text` left aside."""
    if call.name != milestone.tool:
        return False

    def compared(arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in arguments.items() if (milestone.tool, key) not in free_text}

    return compared(call.arguments or {}) == compared(milestone.arguments)
