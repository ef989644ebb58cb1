"""`toolcache namespaces`: list, put and delete namespaces; and how a file of tools becomes namespaces."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console

from toolcache.adapters.tool_files import Toolset, toolsets
from toolcache.commands.failure import CommandFailed
from toolcache.commands.reach import cache, where
from toolcache.http import wire as translate
from toolcache.settings import Settings
from toolcache_client import AsyncCacheClient


async def show(settings: Settings) -> None:
    """Print the names, one a line. Raises CacheError, StoreUnavailable."""
    async with cache(settings) as client:
        for name in await client.namespaces():
            print(name)  # noqa: T201 - the command's output


async def put(settings: Settings, tools: Path, namespace: str | None, domain: str | None) -> None:
    """Raises CommandFailed, ToolFileInvalid, CacheError, StoreUnavailable."""
    toolsets_by_name = chosen(tools, namespace, domain)
    console = Console(soft_wrap=True)
    async with cache(settings) as client:
        for name, toolset in toolsets_by_name.items():
            await put_tools(client, name, toolset, console)
            console.print(f"{name}: {len(toolset.tools)} tools in {where(settings)}")


async def delete(settings: Settings, name: str, *, is_meant: bool) -> None:
    """Raises CommandFailed unless it is meant; CacheError, StoreUnavailable."""
    async with cache(settings) as client:
        if not is_meant:
            entries = (await client.stats(name)).entries
            raise CommandFailed(f"this forgets {name} with its {entries} entries for good; say --yes if you mean it")
        removed = await client.delete_namespace(name)
    Console(soft_wrap=True).print(f"{name} is deleted with its {removed} entries")


def chosen(path: Path, namespace: str | None, domain: str | None) -> dict[str, Toolset]:
    """The toolsets of a file by the namespace they are for. Raises CommandFailed, ToolFileInvalid."""
    found = toolsets(path)
    if domain is not None:
        if domain not in found:
            raise CommandFailed(f"{path} has no domain {domain!r} (it has: {', '.join(sorted(found))})")
        found = {domain: found[domain]}
    if namespace is not None:
        if len(found) > 1:
            raise CommandFailed(f"{path} has the domains {', '.join(sorted(found))}: choose one with --domain")
        return {namespace: next(iter(found.values()))}
    if "" in found:
        raise CommandFailed(f"{path} holds one toolset without a name: name it with --namespace")
    return found


async def put_tools(client: AsyncCacheClient, name: str, toolset: Toolset, console: Console) -> None:
    """Create the namespace, or bring its tools up to date.

    Of a policy that stands there already, what the file says nothing about is kept.
    """
    spec = translate.spec(toolset.namespace(name))
    if name in await client.namespaces():
        told = {word: getattr(spec, word) for word in ("tools", *toolset.policy)}
        spec = msgspec.structs.replace(await client.namespace(name), **told)
    await client.put_namespace(name, spec)
    if toolset.unannotated:
        console.print(
            f"[yellow]{name}: no effect given for {', '.join(toolset.unannotated)}; taken for writes. "
            "That costs hits: add `effect` to the tools, or `write_tools` to the file.[/]"
        )
