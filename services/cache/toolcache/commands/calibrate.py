"""`toolcache calibrate`: learn a namespace anew, and show what its recordings prove, tool by tool."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from toolcache.commands.reach import cache
from toolcache.core.trust import Reason
from toolcache.settings import Settings
from toolcache_client.messages import Evidence, NamespaceSpec, Stats, ToolSpec, ToolStats

_NEEDS_PROOF = (Reason.FREE_TEXT, Reason.IRRELEVANT, Reason.SIMULATED)
"""Similar answers, which are served from the tool's floor on."""
_GUESSES = (Reason.OTHER_STATE, Reason.NEAREST)


async def calibrate(settings: Settings, namespace: str) -> None:
    """Learn, then print a row for each tool and kind of answer. Raises CacheError, StoreUnavailable."""
    console = Console()
    async with cache(settings) as client:
        with Console(stderr=True).status(f"learning {namespace} from its recordings"):
            stats = await client.calibrate(namespace)
        spec = await client.namespace(namespace)
    console.print(_table(stats, spec))
    masks = [_text(tool, mask.argument, mask.pattern) for tool in stats.tools for mask in tool.proposed_masks]
    if masks:
        console.print("masks the recordings speak for (put them into the tool's policy to confirm them):")
        for mask in masks:
            console.print(f"  {mask}", markup=False, highlight=False)


def _table(stats: Stats, spec: NamespaceSpec) -> Table:
    table = Table(title=f"{stats.namespace}: what {stats.entries} entries prove", title_justify="left")
    table.add_column("tool", no_wrap=True)
    table.add_column("kind of answer", no_wrap=True)
    for name in ("right / compared", "proven", "floor", "trust"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("served")
    tools = {tool.name: tool for tool in spec.tools}
    for tool in stats.tools:
        for row in _rows(tool, tools[tool.name], spec):
            table.add_row(*row)
    return table


def _rows(tool: ToolStats, policy: ToolSpec, spec: NamespaceSpec) -> Iterator[tuple[str, ...]]:
    """One for each kind of answer of which anything is known, or one that says that there is none."""
    name = tool.name
    for kind, trust in tool.trust.items():
        found = tool.evidence.get(kind, Evidence(right=0, compared=0))
        reason = Reason(kind.partition("@")[0])
        needs_proof = reason in _NEEDS_PROOF
        yield (
            name,
            kind,
            f"{found.right} / {found.compared}",
            f"{found.proven:.3f}" if needs_proof else "-",
            f"{policy.similar_floor:g}" if needs_proof else "-",
            f"{trust:.3f}",
            _served(reason, spec, is_proven=found.proven >= policy.similar_floor),
        )
        name = ""


def _served(reason: Reason, spec: NamespaceSpec, *, is_proven: bool) -> str:
    if reason in _GUESSES:
        return "on" if "approximate" in spec.tiers else "off: not a tier of the namespace"
    if reason in _NEEDS_PROOF:
        if "similar" not in spec.tiers:
            return "off: not a tier of the namespace"
        return "on" if is_proven else "off: not proven"
    return "on"


def _text(tool: ToolStats, argument: str, pattern: str) -> str:
    return f"{tool.name}.{argument}={pattern}" if pattern else f"{tool.name}.{argument}"
