"""What the core needs from outside: a store, an index over vectors, an embedder. One adapter each, more to come.

Every store passes the same contract tests (tests/cache/adapters/test_store_contract.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from toolcache.core.entries import Entry, Outcome
from toolcache.core.profile import Profile
from toolcache.core.tools import Namespace

Vector = bytes
"""Little-endian float32 values of unit length, as they are stored."""


class StoreUnavailable(Exception):
    """The store gave no answer, or could not write. The message says which store and what to do."""


class EmbedderUnavailable(Exception):
    """No vectors can be made. Exact answers go on; the others become misses that say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVector:
    """A vector of an entry. `order` counts vectors, not entries: an old entry can get its vector late."""

    order: int
    entry_order: int
    vector: Vector


class Store(Protocol):
    """Where entries live. What `put` returned is durable. All methods raise StoreUnavailable."""

    async def revision(self) -> int:
        """A number that grows whenever a namespace or a profile is changed, by whatever process."""
        ...

    async def namespaces(self) -> dict[str, Namespace]: ...
    async def put_namespace(self, namespace: Namespace) -> None: ...

    async def profiles(self, namespace: str) -> dict[str, Profile]: ...
    async def put_profiles(self, namespace: str, profiles: Mapping[str, Profile]) -> None: ...

    async def get(self, namespace: str, keys: Sequence[str]) -> list[tuple[Entry, ...]]:
        """For each key its entries, one a different result, oldest first; empty if there are none."""
        ...

    async def put(self, namespace: str, entries: Sequence[Entry]) -> list[Outcome]:
        """Add entries, in order; a known key and result only counts one more `seen`."""
        ...

    async def with_guard(self, namespace: str, guard: str) -> tuple[Entry, ...]: ...
    async def with_call(self, namespace: str, call_digest: str) -> tuple[Entry, ...]: ...
    async def by_order(self, namespace: str, orders: Sequence[int]) -> dict[int, Entry]: ...

    def entries(self, namespace: str, tool: str | None = None) -> AsyncIterator[Entry]:
        """All entries of a tool, or of the namespace, oldest first."""
        ...

    async def set_guards(self, namespace: str, guards: Mapping[int, str]) -> None:
        """Replace the guards of entries, by their order."""
        ...

    async def put_vectors(self, namespace: str, tool: str, vectors: Mapping[int, Vector]) -> None:
        """Add vectors, by the order of their entries; an entry that has one keeps it."""
        ...

    async def vectors(self, namespace: str, tool: str, *, after: int) -> list[StoredVector]:
        """The tool's vectors whose own order is greater than `after`, in that order."""
        ...

    async def counts(self, namespace: str) -> dict[str, tuple[int, int]]:
        """By tool: how many entries, and how many keys with more than one result."""
        ...

    async def environments(self, namespace: str) -> int: ...
    async def close(self) -> None: ...


class VectorIndex(Protocol):
    """Nearest entries by cosine similarity, one partition a (namespace, tool). Derived: rebuilt from the store."""

    def last(self, partition: tuple[str, str]) -> int:
        """The greatest vector order it holds; 0 when empty."""
        ...

    def add(self, partition: tuple[str, str], vectors: Sequence[StoredVector]) -> None: ...

    def nearest(
        self, partition: tuple[str, str], vector: Vector, count: int, among: Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        """Up to `count` (entry order, cosine similarity), nearest first; only `among` these entries where given."""
        ...


class Embedder(Protocol):
    """Texts to unit vectors. Raises EmbedderUnavailable."""

    async def embed(self, texts: Sequence[str]) -> list[Vector]: ...
