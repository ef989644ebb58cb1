"""The cache as a key may write to it: each line of an import can name another namespace, and each may be too large."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from toolcache.core.access import ApiKey, ApiRole
from toolcache.core.cache import Recorded, Recording, ToolCache, UnknownNamespace
from toolcache.core.entries import Outcome, Result
from toolcache.core.exporting import NAMESPACE_KIND, Exported, NoExport
from toolcache.core.ports import Once
from toolcache.core.profile import Profile
from toolcache.core.tools import Namespace
from toolcache.core.trust import Evidence
from toolcache.metrics import Metrics
from toolcache.settings import Limits

NAMESPACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CREATES = f'{{"kind":"{NAMESPACE_KIND}"'.encode()


def creates_namespace(line: bytes) -> bool:
    """Whether it is the first line of an export, which makes the namespace that the others need."""
    return line.lstrip().startswith(_CREATES)


class Permitted:
    """What importing and recording ask of a cache, as far as a key and the limits allow it.

    A namespace that the key may not write to does not exist for it.
    """

    def __init__(self, cache: ToolCache, key: ApiKey, limits: Limits, metrics: Metrics) -> None:
        self._cache = cache
        self._key = key
        self._most_bytes = limits.result_bytes
        self._metrics = metrics

    async def namespaces(self) -> list[str]:
        return [name for name in await self._cache.namespaces() if self._key.may(ApiRole.WRITE, name)]

    async def namespace(self, name: str) -> Namespace:
        self._check(ApiRole.WRITE, name)
        return await self._cache.namespace(name)

    async def put_namespace(self, namespace: Namespace) -> None:
        self._check(ApiRole.ADMIN, namespace.name)
        if not NAMESPACE_NAME.fullmatch(namespace.name):
            raise NoExport(f"{namespace.name[:80]!r} is no namespace name: use {NAMESPACE_NAME.pattern}")
        await self._cache.put_namespace(namespace)

    async def put_learned(
        self, namespace: str, profiles: Mapping[str, Profile], shadows: Mapping[str, Mapping[str, Evidence]]
    ) -> None:
        self._check(ApiRole.ADMIN, namespace)
        await self._cache.put_learned(namespace, profiles, shadows)

    async def record(
        self, namespace: str, recordings: Sequence[Recording], *, once: Once | None = None
    ) -> list[Recorded]:
        """A result that is too large is refused by itself; the others are stored."""
        self._check(ApiRole.WRITE, namespace)
        refused = {i: each for i, each in enumerate(recordings) if self._is_too_large(each.result)}
        fitting = [each for i, each in enumerate(recordings) if i not in refused] if refused else recordings
        stored = iter(await self._cache.record(namespace, fitting, once=once))
        for recording in refused.values():
            if recording.lease:
                await self._cache.release_lease(namespace, recording.lease)
        done = [self._refused(each) if i in refused else next(stored) for i, each in enumerate(recordings)]
        for one in done:
            self._metrics.recorded(namespace, "refused" if one.outcome is None else one.outcome.value)
        return done

    async def import_entries(self, namespace: str, lines: Sequence[Exported]) -> list[Outcome]:
        self._check(ApiRole.WRITE, namespace)
        for each in lines:
            if self._is_too_large(Result(content=each.content)):
                raise NoExport(self._too_large(each.tool))
        outcomes = await self._cache.import_entries(namespace, lines)
        for outcome in outcomes:
            self._metrics.recorded(namespace, outcome.value)
        return outcomes

    def _check(self, role: ApiRole, namespace: str) -> None:
        if not self._key.may(role, namespace):
            raise UnknownNamespace(namespace)

    def _is_too_large(self, result: Result) -> bool:
        # A character takes four bytes at most: most results need not be encoded to know.
        length = len(result.content)
        return length * 4 > self._most_bytes and len(result.content.encode("utf-8", "replace")) > self._most_bytes

    def _refused(self, recording: Recording) -> Recorded:
        return Recorded(outcome=None, refused=self._too_large(recording.tool))

    def _too_large(self, tool: str) -> str:
        return f"result of {tool}: larger than {self._most_bytes} bytes (TOOLCACHE_MAX_RESULT_BYTES)"
