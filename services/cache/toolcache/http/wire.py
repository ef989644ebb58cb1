"""Between messages and the core's values, both ways."""

from __future__ import annotations

from collections.abc import Sequence

from toolcache.core.cache import Answered, Question, Recorded, Recording, Report, ToolReport
from toolcache.core.entries import Result
from toolcache.core.importing import ImportReport
from toolcache.core.tiers import Guess, Hit, Miss
from toolcache.core.tools import Effect, Namespace, NamespaceInvalid, Role, Tier, Tool
from toolcache.core.trust import Reason
from toolcache_client import messages as wire

ALL_TIERS = frozenset(Tier)


def question(item: wire.LookupItem) -> Question:
    return Question(
        tool=item.tool,
        arguments=item.arguments,
        environment=item.environment,
        state=item.state,
        follows=item.follows,
        tiers=ALL_TIERS if item.tiers is None else frozenset(map(Tier, item.tiers)),
    )


def answer(answered: Answered) -> wire.Answer:
    given = answered.answer
    match given:
        case Miss():
            return wire.Answer(
                tier="miss",
                trust=0.0,
                reason=given.reason.value,
                state=answered.state or None,
                state_after=answered.state_after or None,
                detail=given.detail,
            )
        case Hit() | Guess():
            return wire.Answer(
                tier=given.tier.value if isinstance(given, Hit) else "approximate",
                trust=given.trust,
                reason=given.reason.value,
                state=answered.state or None,
                state_after=answered.state_after or None,
                result=_result(given.result),
                donor=given.donor.id,
                score=given.score,
                adapted=isinstance(given, Hit) and given.was_adapted,
            )


def recording(item: wire.RecordItem) -> Recording:
    return Recording(
        tool=item.tool,
        arguments=item.arguments,
        environment=item.environment,
        result=Result(content=item.result.content, is_error=item.result.is_error, took_s=item.result.took_s),
        state=item.state,
    )


def recorded(done: Recorded) -> wire.Recorded:
    return wire.Recorded(
        outcome="refused" if done.outcome is None else done.outcome.value,
        entry=done.entry,
        state_after=done.state_after or None,
        detail=done.refused,
    )


def namespace(name: str, spec: wire.NamespaceSpec) -> Namespace:
    """Raises NamespaceInvalid."""
    tools = {each.name: _tool(each) for each in spec.tools}
    if len(tools) < len(spec.tools):
        raise NamespaceInvalid("a tool stands in it twice")
    return Namespace(
        name=name,
        tools=tools,
        tiers=frozenset(map(Tier, spec.tiers)) - {Tier.MISS},
        similar_threshold=spec.similar_threshold,
    )


def spec(namespace: Namespace) -> wire.NamespaceSpec:
    return wire.NamespaceSpec(
        tools=tuple(_tool_spec(tool) for tool in namespace.tools.values()),
        tiers=tuple(tier.value for tier in Tier if tier in namespace.tiers),
        similar_threshold=namespace.similar_threshold,
    )


def stats(report: Report) -> wire.Stats:
    return wire.Stats(
        namespace=report.namespace,
        entries=report.entries,
        environments=report.environments,
        tools=tuple(map(_tool_stats, report.tools)),
        answers={tier.value: count for tier, count in report.answers.items()},
        seconds_saved=report.seconds_saved,
    )


def import_report(report: ImportReport) -> wire.ImportReport:
    return wire.ImportReport(
        trajectories=report.trajectories,
        calls=report.calls,
        outcomes=dict(report.outcomes),
        rejected=dict(report.rejected),
        rejects=tuple(
            wire.Reject(line=each.line, reason=each.reason, detail=each.detail)
            for each in sorted(report.rejects, key=lambda reject: reject.line)  # lines are worked on side by side
        ),
        namespaces=tuple(sorted(report.namespaces)),
    )


def _result(result: Result) -> wire.ToolResult:
    return wire.ToolResult(content=result.content, is_error=result.is_error, took_s=result.took_s)


def _tool(spec: wire.ToolSpec) -> Tool:
    return Tool(
        name=spec.name,
        description=spec.description,
        parameters=spec.parameters,
        effect=Effect(spec.effect),
        roles={argument: Role(role) for argument, role in spec.arguments.items()},
        errors_change_state=spec.errors_change_state,
    )


def _tool_spec(tool: Tool) -> wire.ToolSpec:
    return wire.ToolSpec(
        name=tool.name,
        description=tool.description,
        parameters=dict(tool.parameters),
        effect=tool.effect.value,
        arguments={argument: role.value for argument, role in tool.roles.items()},
        errors_change_state=tool.errors_change_state,
    )


_TRUSTED: Sequence[Reason] = (
    Reason.RECORDED,
    Reason.FREE_TEXT,
    Reason.IRRELEVANT,
    Reason.OTHER_STATE,
    Reason.NEAREST,
)
"""The reasons of answers, each with a trust of its own."""


def _tool_stats(report: ToolReport) -> wire.ToolStats:
    return wire.ToolStats(
        name=report.tool.name,
        effect=report.tool.effect.value,
        entries=report.entries,
        conflicts=report.conflicts,
        answers={tier.value: count for tier, count in report.answers.items()},
        roles={argument: role.value for argument, role in report.profile.roles.items()},
        trust={reason.value: report.profile.trust(reason) for reason in _TRUSTED},
    )
