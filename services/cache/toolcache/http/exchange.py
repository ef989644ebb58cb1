"""One request on its way: who asks, what arrives, and what of it metrics and logs may tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.types import Message, Receive, Scope

from toolcache.core.access import EVERYWHERE, ApiKey, ApiRole
from toolcache.http.problems import ClientGone, Code, Refused, unknown_namespace

EVERYONE = ApiKey(id="", name="", role=ApiRole.ADMIN, namespaces=(EVERYWHERE,), secret_hash="", created_at_s=0.0)
"""Who asks where no key is asked for."""


class Exchange:
    """A request in work. Made for every one of them, so it only holds what is at hand already."""

    __slots__ = (
        "_receive",
        "ended",
        "items",
        "job",
        "key",
        "namespace",
        "query",
        "reading_since_s",
        "scope",
        "sending_since_s",
        "task",
        "waited_s",
    )

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self._receive = receive
        self.key = EVERYONE
        self.query: dict[str, str] = {}
        self.namespace = ""
        self.job = ""
        self.items = 0
        self.waited_s = 0.0
        """Seconds it waited for results that others executed."""
        self.reading_since_s = 0.0
        """Since when it waits for the next piece of its body, by time.monotonic; 0: it does not."""
        self.sending_since_s = 0.0
        """Since when it waits for its client to read the next piece of the reply, by the same clock; 0: it does not."""
        self.task: asyncio.Task[Any] | None = None
        self.ended: Exception | None = None

    # -- who asks ------------------------------------------------------------------------------------------------------

    def needs(self, role: ApiRole, namespace: str) -> None:
        """Raises Refused unless the key has the role there.

        Where the key may do nothing at all, the answer is that of a namespace which does not exist.
        """
        self.namespace = namespace
        if self.key.may(role, namespace):
            return
        if not self.key.may(ApiRole.READ, namespace):
            raise unknown_namespace(namespace)
        raise Refused(
            Code.FORBIDDEN, f"this takes the role {role.name.lower()}; the key's role is {self.key.role.name.lower()}"
        )

    def needs_everywhere(self, role: ApiRole) -> None:
        """Raises Refused unless the key has the role in the whole service."""
        if not self.key.may(role, None):
            raise Refused(Code.FORBIDDEN, f'this takes a key with the role {role.name.lower()} in "{EVERYWHERE}"')

    # -- what arrives --------------------------------------------------------------------------------------------------

    @property
    def path_parameters(self) -> dict[str, str]:
        parameters: dict[str, str] = self.scope["path_params"]
        return parameters

    async def body(self, most_bytes: int) -> bytes:
        """The whole body. Raises Refused, ClientGone."""
        message = await self._next()
        body: bytes = message.get("body", b"")
        if message.get("more_body", False):
            parts, size_bytes = [body], len(body)
            async for part in self.pieces():
                size_bytes += len(part)
                if size_bytes > most_bytes:
                    raise too_large("body", most_bytes)
                parts.append(part)
            body = b"".join(parts)
        if len(body) > most_bytes:
            raise too_large("body", most_bytes)
        return body

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body (or what is left of it) piece by piece. Raises Refused, ClientGone."""
        has_more = True
        while has_more:
            message = await self._next()
            has_more = message.get("more_body", False)
            yield message.get("body", b"")

    async def lines(self, most_bytes: int) -> AsyncIterator[tuple[int, bytes]]:
        """Numbered lines that are not blank, as they arrive; the limit is on a line, not on the whole."""
        rest, number = bytearray(), 0  # grows in place: a line of many pieces is not copied with each of them
        async for piece in self.pieces():
            start = len(rest)
            rest += piece
            end = rest.rfind(b"\n", start)
            complete = bytes(rest[:end]).split(b"\n") if end >= 0 else []
            del rest[: end + 1]
            for line in complete:
                number += 1
                if len(line) > most_bytes:
                    raise too_large(f"line {number}", most_bytes)
                if line.strip():
                    yield number, line
            if len(rest) > most_bytes:
                raise too_large(f"line {number + 1}", most_bytes)
        if rest.strip():
            yield number + 1, bytes(rest)

    async def _next(self) -> Message:
        self.reading_since_s = time.monotonic()
        message = await self._receive()
        self.reading_since_s = 0.0
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    # -- an end before its time ----------------------------------------------------------------------------------------

    def end(self, error: Exception) -> None:
        """Stop the work on it; `error` says why, to whoever is still there."""
        if self.task is not None and self.ended is None:
            self.ended = error
            self.task.cancel()

    @contextmanager
    def while_connected(self) -> Iterator[None]:
        """What is done in here ends when the client goes away."""
        watcher = asyncio.ensure_future(self._watch())
        try:
            yield
        finally:
            watcher.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.end(ClientGone())


def too_large(what: str, limit_bytes: int) -> Refused:
    return Refused(
        Code.BODY_TOO_LARGE,
        f"the {what} exceeds {limit_bytes} bytes; send less at once, or raise TOOLCACHE_MAX_BODY_BYTES",
    )
