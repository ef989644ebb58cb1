"""What the core needs from outside: a store, leases, an index over vectors, an embedder. Adapters keep the promises.

Every store and every lease desk passes the same contract tests (tests/cache/adapters).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from toolcache.core.access import ApiKey
from toolcache.core.entries import Entry, Outcome, Place, Sample
from toolcache.core.profile import Profile
from toolcache.core.tools import Namespace
from toolcache.core.trust import Evidence

Vector = bytes
"""Little-endian float32 values of unit length, as they are stored."""
Partition = tuple[str, str]
"""Namespace and tool: vectors of two tools are never compared."""
ONCE_S = 900.0
"""Seconds a request's name is remembered: many times what the SDK spends on retries."""


class StoreUnavailable(Exception):
    """The store gave no answer, or could not write. The message says which store and what to do."""


class EmbedderUnavailable(Exception):
    """No vectors can be made. Exact answers go on; the others become misses that say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """Names a request that may be sent again: what it stores is stored, but counted no second time."""

    name: str
    keep_s: float = ONCE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """All that decides answers in a namespace beside its entries, as of one revision."""

    namespace: Namespace
    revision: int
    """Grows with every change of namespace, profiles or shadow evidence, by whatever process; 0 is none."""
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    """By tool: what was learned from its recordings."""
    shadows: Mapping[str, Mapping[str, Evidence]] = field(default_factory=dict)
    """By tool and kind of answer: what shadow executions found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Samples by key, in the order of the keys asked, and the namespace's revision at that moment (0: no such)."""

    revision: int
    samples: Sequence[Sequence[Sample]]
    """Oldest first; empty where nothing is recorded. Expired ones may still be among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedVector:
    """A vector of an entry, with what an index must know of the entry."""

    order: int
    guard: str
    vector: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What happened to a namespace's vectors after a cursor, in order."""

    cursor: str
    """Pass it as `after` to go on from here."""
    is_complete: bool
    """False: changes were lost or nothing was followed yet; read the vectors of every tool anew."""
    added: Sequence[tuple[str, IndexedVector]] = ()
    """(tool, vector)"""
    removed: Sequence[tuple[str, int]] = ()
    """(tool, order of the entry)"""
    moved: frozenset[str] = frozenset()
    """Tools whose entries' places were written anew: read their vectors anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which entries to remove; what is given must all hold."""

    tool: str | None = None
    tag: str | None = None
    environment: str | None = None
    recorded_before_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a namespace holds."""

    entries: int
    size_bytes: int
    environments: int
    tools: Mapping[str, tuple[int, int]]
    """By tool: entries, and keys with more than one result."""


class Store(Protocol):
    """Where entries live. What `put` returned is durable. All methods raise StoreUnavailable.

    Times are handed in: a store reads no clock, except where the server expires names of requests by itself.
    """

    # -- namespaces ----------------------------------------------------------------------------------------------------

    async def namespaces(self) -> list[str]:
        """Sorted names."""
        ...

    async def known(self, namespace: str) -> Known | None: ...
    async def put_namespace(self, namespace: Namespace) -> None: ...
    async def delete_namespace(self, namespace: str) -> int | None:
        """Forget it with all it holds; how many entries went, or None if there is no such namespace."""
        ...

    async def put_profiles(self, namespace: str, profiles: Mapping[str, Profile]) -> None:
        """Replace the profiles of these tools."""
        ...

    async def add_evidence(
        self, namespace: str, tool: str, evidence: Mapping[str, Evidence], *, once: Once | None = None
    ) -> None:
        """Add to what shadow executions found, by kind of answer; concurrent additions all count.

        Where evidence of that tool was added under this `once` before, nothing is. What `put` was given under the same
        name does not matter here.
        """
        ...

    async def clear_evidence(self, namespace: str, tool: str) -> None:
        """Forget what shadow executions found of a tool whose rules have changed."""
        ...

    # -- entries -------------------------------------------------------------------------------------------------------

    async def get(self, namespace: str, keys: Sequence[str]) -> Found:
        """One round trip, however many keys."""
        ...

    async def put(self, namespace: str, entries: Sequence[Entry], *, once: Once | None = None) -> list[Outcome]:
        """Add entries, in order.

        A known key and result adds to `seen` (by the entry's own `seen`) and takes the new `recorded_at_s` with its
        `expires_at_s`, unless its own is later by at most CLOCK_SKEW_S (by more: the clock that set it was wrong); tags
        are united; its place stays. Results of the key that had expired when this entry was recorded are removed first.
        A key keeps MOST_RESULTS different results: for a new one the least seen of the others go, oldest first. Where
        `once` was put before, known entries are left as they are.

        Orders grow within a namespace, are never given twice while it lives, and tell nothing of other namespaces.
        """
        ...

    async def with_equal(self, namespace: str, equal: str) -> list[Entry]:
        """Entries of that `place.equal`, oldest first, at most 8 of them; none for ""."""
        ...

    async def with_call(self, namespace: str, call: str) -> list[Entry]:
        """Entries of that `place.call`, newest first, at most 8 of them; none for ""."""
        ...

    async def by_order(self, namespace: str, orders: Sequence[int]) -> dict[int, Entry]: ...

    def entries(self, namespace: str, tool: str | None = None, *, after: int = 0) -> AsyncIterator[Entry]:
        """Entries of a tool, or of the namespace, whose order is greater, oldest first; read in pages, off the loop."""
        ...

    async def remove(self, namespace: str, orders: Collection[int]) -> int:
        """How many of them were there. Their vectors go with them."""
        ...

    async def remove_where(self, namespace: str, which: Filter) -> int: ...

    async def remove_expired(self, now_s: float) -> int:
        """In all namespaces, those with `expires_at_s` in 0 < ... <= now_s."""
        ...

    async def rekey(self, namespace: str, places: Mapping[int, tuple[str, str, Place]]) -> None:
        """Give entries another (key, canonical arguments, place), by their order.

        Where two come to have the same key and result, `seen` is added to the older one and the younger goes.
        """
        ...

    async def touch(self, namespace: str, keys: Collection[str], at_s: float) -> None:
        """These keys were used; unknown ones are passed over."""
        ...

    async def evict(self, namespace: str, max_bytes: int, *, spare: Collection[str]) -> int:
        """Remove the keys used (or recorded) longest ago, spared ones excepted, until the namespace's size is at most
        `max_bytes`; how many entries went."""
        ...

    async def size(self, namespace: str) -> Size: ...
    async def size_bytes(self, namespace: str) -> int:
        """The same number as `size` has, kept up to date with every write, so that asking costs next to nothing."""
        ...

    # -- vectors -------------------------------------------------------------------------------------------------------

    async def put_vectors(self, namespace: str, tool: str, vectors: Mapping[int, Vector], *, version: str) -> None:
        """Add vectors, by the order of their entries; one of the same version is kept, one of another is replaced."""
        ...

    async def vectors(self, namespace: str, tool: str, *, version: str) -> list[IndexedVector]: ...

    async def changes(self, namespace: str, *, after: str, version: str) -> Changes:
        """What happened to vectors of this version after a cursor; "" asks for the cursor of now."""
        ...

    # -- access --------------------------------------------------------------------------------------------------------

    async def api_keys(self) -> list[ApiKey]: ...
    async def put_api_key(self, key: ApiKey) -> None: ...
    async def delete_api_key(self, key_id: str) -> bool: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Permission to execute one missing call."""

    id: str
    """`key.secret`: the key tells where it is kept, the secret that it is the caller's."""
    key: str


class Leases(Protocol):
    """Who executes what, across all replicas. All methods raise StoreUnavailable.

    Lives as long as its leases do: it need not outlive a crash, after which a call is at worst executed twice.
    """

    async def acquire(self, namespace: str, keys: Sequence[str], *, ttl_s: float) -> list[Lease | None]:
        """A lease for each key, None where another holds it (or an earlier one of these very keys)."""
        ...

    async def settle(self, namespace: str, lease_ids: Collection[str]) -> None:
        """Their results are recorded: end them and wake who waits. Those that had passed on are left alone."""
        ...

    async def extend(self, namespace: str, lease_id: str, ttl_s: float) -> bool:
        """Give it `ttl_s` from now; whether it was still held."""
        ...

    async def release(self, namespace: str, lease_id: str) -> bool:
        """End it unexecuted, so that it passes on; whether it was still held."""
        ...

    async def held(self, namespace: str, keys: Collection[str]) -> frozenset[str]:
        """Those of the keys that are under a lease, or were settled within the last seconds: who waited for them on
        another replica may not have read them yet."""
        ...

    async def holding(self, namespace: str) -> frozenset[str]:
        """All keys of which `held` is true now, for eviction to spare."""
        ...

    async def wait(self, namespace: str, keys: Collection[str], timeout_s: float) -> None:
        """Return when one of the keys is no longer under a lease, or the time is over."""
        ...

    async def draw(self, namespace: str, key: str, group: str, *, have: int, keep_s: float) -> tuple[int, int]:
        """How often this was asked before for the same key and group: 0, 1, 2, ...; and the `have` of the first time.

        Both are forgotten `keep_s` after the last time.
        """
        ...

    async def close(self) -> None: ...


class VectorIndex(Protocol):
    """Nearest entries by cosine similarity. Derived: rebuilt from the store."""

    async def add(self, partition: Partition, vectors: Sequence[IndexedVector]) -> None:
        """An order that is there already is replaced: its guard may have changed."""
        ...

    async def remove(self, partition: Partition, orders: Collection[int]) -> None: ...
    async def drop(self, partition: Partition) -> None: ...
    def size(self, partition: Partition) -> int: ...

    async def nearest(
        self, partition: Partition, vector: Vector, count: int, *, guard: str | None = None
    ) -> list[tuple[int, float]]:
        """Up to `count` (entry order, cosine similarity), nearest first; only of that guard where given."""
        ...


class Embedder(Protocol):
    """Texts to unit vectors. Raises EmbedderUnavailable."""

    @property
    def version(self) -> str:
        """Names the model; vectors of two versions are never compared."""
        ...

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Vector]:
        """What one tenant asked before is not told to another, not even by the time it takes."""
        ...
