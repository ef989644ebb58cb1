"""Recorded trajectories, and exported entries, into a cache; each call in the state that its own history led to.

A line that was imported before is known: what it holds is there, and counts no second time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from toolcache.core.cache import Recorded, Recording, UnknownNamespace
from toolcache.core.calls import Call
from toolcache.core.canonical import NotCanonical, digest
from toolcache.core.entries import Outcome
from toolcache.core.exporting import Exported, ExportedNamespace, NoExport, is_export, read_line
from toolcache.core.ports import Once
from toolcache.core.profile import Profile
from toolcache.core.state import initial_state, state_after
from toolcache.core.tools import Namespace, Tool
from toolcache.core.trajectories import Step, Trajectory, TrajectoryInvalid, trajectory
from toolcache.core.trust import Evidence

LINES_KEPT_S = 400 * 86400.0
"""Seconds for which a line counts as imported: longer than recordings are worked with."""
MOST_REJECTS = 100
"""Rejects that are reported one by one; all are counted."""


class Target(Protocol):
    """What is needed of a cache to import into it."""

    async def namespaces(self) -> list[str]: ...
    async def namespace(self, name: str) -> Namespace: ...
    async def put_namespace(self, namespace: Namespace) -> None: ...
    async def put_learned(
        self, namespace: str, profiles: Mapping[str, Profile], shadows: Mapping[str, Mapping[str, Evidence]]
    ) -> None: ...
    async def record(
        self, namespace: str, recordings: Sequence[Recording], *, once: Once | None = None
    ) -> list[Recorded]: ...
    async def import_entries(self, namespace: str, lines: Sequence[Exported]) -> list[Outcome]: ...


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
        tool = namespace.tools.get(step.tool)
        call = Call.of(step.tool, step.arguments, () if tool is None else tool.masks)
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
    cache: Target,
    line: bytes,
    number: int,
    report: ImportReport,
    *,
    namespace: str | None = None,
) -> None:
    """Store what one line holds and add to the report. A line that cannot be used is counted, never fatal."""
    if is_export(line):
        await _import_exported(cache, line, number, report, namespace=namespace)
        return
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
    await _import(cache, target, recorded, number, report, Once(name=_name_of(line), keep_s=LINES_KEPT_S))


def _name_of(line: bytes) -> str:
    return "line:" + digest(line.strip().decode("utf-8", "replace"))


async def _import_exported(
    cache: Target, line: bytes, number: int, report: ImportReport, *, namespace: str | None
) -> None:
    try:
        read = read_line(line)
        if isinstance(read, Exported):
            await _import_entry(cache, read, report, namespace)
        else:
            await _create(cache, read, namespace or read.namespace.name)
    except NoExport as error:
        report.reject(number, "invalid_line", str(error))
    except UnknownNamespace as error:
        report.reject(number, "unknown_namespace", str(error))


async def _import_entry(cache: Target, read: Exported, report: ImportReport, namespace: str | None) -> None:
    if namespace is None:
        raise NoExport("an exported entry does not tell its namespace: name it with ?namespace=")
    report.calls += 1
    report.namespaces.add(namespace)
    for outcome in await cache.import_entries(namespace, [read]):
        report.outcomes[outcome] += 1


async def _create(cache: Target, read: ExportedNamespace, name: str) -> None:
    """Make the namespace of an export unless there is one: the policy of one in use is its operator's."""
    if name not in await cache.namespaces():
        await cache.put_namespace(replace(read.namespace, name=name))
        await cache.put_learned(name, read.profiles, read.shadows)


async def _import(
    cache: Target, namespace: Namespace, recorded: Trajectory, number: int, report: ImportReport, once: Once
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
    for outcome in await cache.record(namespace.name, recordings, once=once):
        if outcome.outcome is None:
            report.reject(number, "refused", outcome.refused)
        else:
            report.outcomes[outcome.outcome] += 1
