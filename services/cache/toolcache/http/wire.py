"""Between messages and the core's values, both ways."""

from __future__ import annotations

from collections.abc import Mapping

from toolcache.core.access import ApiKey, ApiRole
from toolcache.core.cache import Answered, Recorded, Recording, Report, Served, ToolReport
from toolcache.core.entries import Entry, Result
from toolcache.core.explaining import Explanation
from toolcache.core.importing import ImportReport
from toolcache.core.profile import Profile
from toolcache.core.tiers import Hit, Miss
from toolcache.core.tools import Effect, Mask, Namespace, NamespaceInvalid, Role, Tier, Tool
from toolcache.core.trust import NONE
from toolcache_client import messages as wire

ROLES: Mapping[str, ApiRole] = {role.name.lower(): role for role in ApiRole}
_ROLE_NAMES: Mapping[ApiRole, wire.ApiRole] = {ApiRole.READ: "read", ApiRole.WRITE: "write", ApiRole.ADMIN: "admin"}


def answer(answered: Answered) -> wire.Answer:
    given = answered.answer
    if isinstance(given, Miss):
        return wire.Answer(
            tier="miss",
            trust=0.0,
            reason=given.reason.value,
            state=answered.state or None,
            state_after=answered.state_after or None,
            detail=given.detail,
            lineage=answered.lineage,
            lease=answered.lease,
            shared=answered.shared,
            explanation=_explanation(answered.explanation),
        )
    return wire.Answer(
        tier=given.tier.value,
        trust=given.trust,
        reason=given.reason.value,
        state=answered.state or None,
        state_after=answered.state_after or None,
        result=_result(given.result),
        donor=given.donor,
        score=given.score,
        adapted=isinstance(given, Hit) and given.was_adapted,
        lineage=answered.lineage,
        shared=answered.shared,
        shadow=answered.shadow,
        explanation=_explanation(answered.explanation),
    )


def recording(item: wire.RecordItem) -> Recording:
    return Recording(
        tool=item.tool,
        arguments=item.arguments,
        environment=item.environment,
        result=result(item.result),
        state=item.state,
        lease=item.lease,
        tags=item.tags,
        served=None
        if item.served is None
        else Served(reason=item.served.reason, result=result(item.served.result), score=item.served.score),
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
        max_bytes=spec.max_bytes,
        shadow_share=spec.shadow_share,
    )


def spec(namespace: Namespace) -> wire.NamespaceSpec:
    return wire.NamespaceSpec(
        tools=tuple(_tool_spec(tool) for tool in namespace.tools.values()),
        tiers=tuple(tier.value for tier in Tier if tier in namespace.tiers),
        similar_threshold=namespace.similar_threshold,
        max_bytes=namespace.max_bytes,
        shadow_share=namespace.shadow_share,
    )


def stats(report: Report) -> wire.Stats:
    return wire.Stats(
        namespace=report.namespace,
        entries=report.entries,
        environments=report.environments,
        tools=tuple(map(_tool_stats, report.tools)),
        answers={tier.value: count for tier, count in report.answers.items()},
        seconds_saved=report.seconds_saved,
        size_bytes=report.size_bytes,
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


def entry_view(entry: Entry) -> wire.EntryView:
    return wire.EntryView(
        id=entry.id,
        order=entry.order,
        tool=entry.tool,
        arguments=dict(entry.arguments),
        environment=entry.environment,
        result=_result(entry.result),
        recorded_at_s=entry.recorded_at_s,
        seen=entry.seen,
        expires_at_s=entry.expires_at_s,
        tags=entry.tags,
    )


def api_key(key: ApiKey, *, secret: str = "") -> wire.ApiKey:
    return wire.ApiKey(
        id=key.id,
        name=key.name,
        role=_ROLE_NAMES[key.role],
        namespaces=key.namespaces,
        created_at_s=key.created_at_s,
        secret=secret,
    )


def result(sent: wire.ToolResult) -> Result:
    return Result(content=sent.content, is_error=sent.is_error, took_s=sent.took_s)


def _result(result: Result) -> wire.ToolResult:
    return wire.ToolResult(content=result.content, is_error=result.is_error, took_s=result.took_s)


def _explanation(made: Explanation | None) -> wire.Explanation | None:
    if made is None:
        return None
    return wire.Explanation(
        key=made.key,
        state=made.state,
        canonical=made.canonical,
        roles={argument: role.value for argument, role in made.roles.items()},
        masked=made.masked,
        guard=dict(made.guard),
        threshold=made.threshold,
        floor=made.floor,
        trust=dict(made.trust),
        steps=made.steps,
        candidates=tuple(
            wire.Candidate(
                donor=each.donor,
                arguments=dict(each.arguments),
                verdict=each.verdict,
                differs=each.differs,
                score=each.score,
                age_s=each.age_s,
            )
            for each in made.candidates
        ),
    )


def _tool(spec: wire.ToolSpec) -> Tool:
    return Tool(
        name=spec.name,
        description=spec.description,
        parameters=spec.parameters,
        effect=Effect(spec.effect),
        roles={argument: Role(role) for argument, role in spec.arguments.items()},
        errors_change_state=spec.errors_change_state,
        ttl_s=spec.ttl_s,
        samples=spec.samples,
        masks=tuple(Mask(argument=mask.argument, pattern=mask.pattern) for mask in spec.masks),
        simulate_writes=spec.simulate_writes,
        similar_floor=spec.similar_floor,
    )


def _tool_spec(tool: Tool) -> wire.ToolSpec:
    return wire.ToolSpec(
        name=tool.name,
        description=tool.description,
        parameters=dict(tool.parameters),
        effect=tool.effect.value,
        arguments={argument: role.value for argument, role in tool.roles.items()},
        errors_change_state=tool.errors_change_state,
        ttl_s=tool.ttl_s,
        samples=tool.samples,
        masks=tuple(map(_mask, tool.masks)),
        simulate_writes=tool.simulate_writes,
        similar_floor=tool.similar_floor,
    )


def _mask(mask: Mask) -> wire.Mask:
    return wire.Mask(argument=mask.argument, pattern=mask.pattern)


def _tool_stats(report: ToolReport) -> wire.ToolStats:
    profile = report.profile
    return wire.ToolStats(
        name=report.tool.name,
        effect=report.tool.effect.value,
        entries=report.entries,
        conflicts=report.conflicts,
        answers={tier.value: count for tier, count in report.answers.items()},
        roles={argument: role.value for argument, role in profile.roles.items()},
        trust=profile.trusts(),
        evidence=_evidence(profile),
        proposed_masks=tuple(map(_mask, profile.proposed_masks)),
    )


def _evidence(profile: Profile) -> dict[str, wire.Evidence]:
    """What recorded pairs and shadow executions say together, by kind of answer."""
    told: dict[str, wire.Evidence] = {}
    for kind, proven in profile.proofs().items():
        both = profile.evidence.get(kind, NONE) + profile.shadows.get(kind, NONE)
        told[kind] = wire.Evidence(right=both.right, compared=both.served, proven=proven)
    return told
