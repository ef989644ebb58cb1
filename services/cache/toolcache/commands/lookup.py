"""`toolcache lookup`: ask for one call and print the whole answer as JSON."""

from __future__ import annotations

import json

import msgspec

from toolcache.commands.failure import CommandFailed
from toolcache.commands.reach import cache
from toolcache.settings import Settings
from toolcache_client.messages import LookupItem


def item(tool: str, arguments: str, environment: str, state: str) -> LookupItem:
    """The call as words of a command line give it. Raises CommandFailed for arguments that are no JSON object."""
    try:
        parsed = json.loads(arguments)
    except ValueError as error:
        raise CommandFailed(f"--arguments is not JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise CommandFailed(f"--arguments must be a JSON object, not {type(parsed).__name__}")
    return LookupItem(tool=tool, arguments=parsed, environment=environment, state=state)


async def lookup(settings: Settings, namespace: str, asked: LookupItem) -> None:
    """Print the answer. Raises CacheError, StoreUnavailable."""
    async with cache(settings) as client:
        (answer,) = await client.lookup(namespace, [asked])
    print(msgspec.json.format(msgspec.json.encode(answer)).decode())  # noqa: T201 - the command's output
