"""Recorded trajectories into a cache, each call in the state that its own history led to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from toolcache.core.cache import Recording, ToolCache, UnknownNamespace
from toolcache.core.calls import Call
from toolcache.core.canonical import NotCanonical
from toolcache.core.state import initial_state, state_after
from toolcache.core.tools import Namespace, Tool
from toolcache.core.trajectories import Step, Trajectory, TrajectoryInvalid, trajectory

MOST_REJECTS = 100
"""Rejects that are reported one by one; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A line, or a call in it, that was not imported."""

    line: int
    reason: str
    detail: str


@dataclass(slots=True, kw_only=True)
class ImportReport:
    """Running totals of one import."""

    trajectories: int = 0
    calls: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    rejects: list[Reject] = field(default_factory=list)
    namespaces: set[str] = field(default_factory=set)

    def reject(self, line: int, reason: str, detail: str) -> None:
        self.rejected[reason] += 1
        if len(self.rejects) < MOST_REJECTS:
            # A lone surrogate of the line can stand in the detail, and no reply can carry it.
            tellable = detail.encode("utf-8", "backslashreplace").decode()
            self.rejects.append(Reject(line=line, reason=reason, detail=tellable))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A recorded call in its state. What cannot be looked up or recorded carries the reason instead of a call."""

    step: Step
    state: str
    call: Call | None = None
    reason: str = ""
    detail: str = ""


def placed(namespace: Namespace, recorded: Trajectory) -> Iterator[Placed]:
    """The trajectory's calls, each in the state its own history led to.

    A call to a tool the namespace does not know counts as a write. A write whose result was not recorded, or that
    succeeded though its arguments have no canonical form, leaves the state unknown: everything after it is rejected,
    for a result in an unknown state is no knowledge. An unparsable call without a success ran nowhere.
    """
    state = initial_state(recorded.environment)
    for step in recorded.steps:
        one = _placed(namespace, step, state)
        yield one
        state = _state_after(one, namespace.tools.get(step.tool))


def _state_after(one: Placed, tool: Tool | None) -> str:
    """The state after a recorded call; "" where it is not known."""
    result = one.step.result
    if not one.state or (tool is not None and tool.reads):
        return one.state
    if result is None:
        return one.state if one.step.arguments is None else ""
    if one.call is not None:
        return state_after(one.state, one.call, tool=tool, is_error=result.is_error)
    changed_nothing = result.is_error and not (tool is not None and tool.errors_change_state)
    return one.state if changed_nothing else ""


def _placed(namespace: Namespace, step: Step, state: str) -> Placed:
    if step.arguments is None:
        return Placed(step=step, state=state, reason="unparsable", detail=f"{step.tool}: {step.unparsable}")
    try:
        call = Call.of(step.tool, step.arguments)
    except NotCanonical as error:
        return Placed(step=step, state=state, reason="not_canonical", detail=f"{step.tool}: {error}")
    if not state:
        detail = f"{step.tool} follows a write without a recorded result"
        return Placed(step=step, state=state, reason="state_unknown", detail=detail)
    if step.tool not in namespace.tools:
        detail = f"namespace {namespace.name} has no tool {step.tool!r}"
        return Placed(step=step, state=state, call=call, reason="unknown_tool", detail=detail)
    if step.result is None:
        detail = f"{step.tool}: the recording ends before its result"
        return Placed(step=step, state=state, call=call, reason="no_result", detail=detail)
    return Placed(step=step, state=state, call=call)


async def import_line(
    cache: ToolCache, line: str | bytes, number: int, report: ImportReport, *, namespace: str | None = None
) -> None:
    """Store one line's calls and add to the report. A line that cannot be used is counted, never fatal."""
    try:
        recorded = trajectory(line)
        target = await cache.namespace(namespace or recorded.domain)
    except TrajectoryInvalid as error:
        report.reject(number, "invalid_line", str(error))
        return
    except UnknownNamespace as error:
        report.reject(number, "unknown_namespace", str(error))
        return
    if not recorded.environment:
        report.reject(number, "no_environment", "a trajectory must name the `environment` it ran in")
        return
    await _import(cache, target, recorded, number, report)


async def _import(
    cache: ToolCache, namespace: Namespace, recorded: Trajectory, number: int, report: ImportReport
) -> None:
    report.trajectories += 1
    report.namespaces.add(namespace.name)
    recordings: list[Recording] = []
    for one in placed(namespace, recorded):
        if one.reason or one.step.result is None or one.step.arguments is None:
            report.reject(number, one.reason, one.detail)
            continue
        recordings.append(
            Recording(
                tool=one.step.tool,
                arguments=one.step.arguments,
                environment=recorded.environment,
                result=one.step.result,
                state=one.state,
            )
        )
    report.calls += len(recorded.steps)
    for outcome in await cache.record(namespace.name, recordings):
        if outcome.outcome is None:
            report.reject(number, "refused", outcome.refused)
        else:
            report.outcomes[outcome.outcome] += 1
