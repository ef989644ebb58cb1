"""The cache as one object: lookups, records, what is learned from them, and the upkeep in the background.

It owns no data: entries are the store's, leases the lease desk's, vectors the index's. Any number of these, in any
number of processes, can stand over one store. Here it is decided in what order things happen; what may be served is
tiers.py's, who executes a miss flight.py's.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from toolcache.core import exporting, quick
from toolcache.core.calls import masked
from toolcache.core.entries import Entry, Outcome
from toolcache.core.explaining import Explanation
from toolcache.core.flight import Flight
from toolcache.core.following import Following
from toolcache.core.learning import EMBED_BATCH, Learning
from toolcache.core.lookup import Asked, Tiers
from toolcache.core.policy import Policies, Policy, UnknownNamespace
from toolcache.core.ports import (
    Embedder,
    EmbedderUnavailable,
    Filter,
    Known,
    Leases,
    Once,
    Store,
    StoreUnavailable,
    VectorIndex,
)
from toolcache.core.profile import Profile
from toolcache.core.questions import TELL, Answered, Ask, MissPolicy, Question, Recorded, Recording, Served
from toolcache.core.quick import QuickAnswers, QuickHit, Tally
from toolcache.core.recording import CallRefused, entry_of, recorded, shadows
from toolcache.core.roles import guard_contents, text_of
from toolcache.core.state import initial_state, split_lineage, state_after, with_lineage
from toolcache.core.tiers import Guess, Hit, Miss
from toolcache.core.tools import Namespace, Tier, Tool
from toolcache.core.trust import Evidence, Reason

__all__ = [
    "Answered",
    "Ask",
    "MissPolicy",
    "Question",
    "Recorded",
    "Recording",
    "Report",
    "Served",
    "ToolCache",
    "ToolReport",
    "UnknownNamespace",
]

UPKEEP_S = 1.0
"""Seconds between two rounds of upkeep: keys that were used, entries that expired, tools that have grown."""
GATHER_S = 0.05
"""For which new entries are gathered before their vectors are made together."""
MOST_WAITING = 4096
"""New entries that wait for their vectors at most; those beyond get theirs when their tool is learned."""
LEARN_AFTER = 0.25
"""Growth of a tool's entries after which it is learned anew by itself..."""
LEARN_AT_LEAST = 32
"""...and the least number of new entries for that."""
LEARN_UP_TO = 100_000
"""New entries beyond which a tool is not learned by itself: that takes minutes then, and whoever has recorded so many
says when (`toolcache calibrate`)."""
EVICT_TO = 0.95
"""Share of the quota that eviction leaves, so that not every record has to evict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolReport:
    tool: Tool
    entries: int
    conflicts: int
    answers: Mapping[Tier, int]
    profile: Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a namespace holds and has answered since this process started."""

    namespace: str
    entries: int
    environments: int
    tools: tuple[ToolReport, ...]
    answers: Mapping[Tier, int]
    seconds_saved: float
    size_bytes: int


class ToolCache:
    """Lookup and record over one store. Methods raise UnknownNamespace and StoreUnavailable."""

    def __init__(
        self,
        store: Store,
        leases: Leases,
        index: VectorIndex,
        embedder: Embedder,
        *,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        """`clock` tells seconds since 1970, `chance` a number in 0 <= x < 1."""
        self._store = store
        self._leases = leases
        self._embedder = embedder
        self._clock = clock
        self._chance = chance
        self._policies = Policies(store)
        self._following = Following(store, index, embedder.version)
        self._tiers = Tiers(store, leases, self._policies, self._following, index, embedder, clock, chance)
        self._learning = Learning(store, embedder)
        self._answers: Counter[tuple[str, str, Tier]] = Counter()
        self._seconds_saved: dict[str, float] = defaultdict(float)
        self._used: dict[str, set[str]] = defaultdict(set)
        self._grown: Counter[tuple[str, str]] = Counter()
        self._to_embed: list[tuple[str, Tool, Entry]] = []
        self._vector_bytes: int | None = None
        self._wants_vectors = asyncio.Event()
        self._work: set[asyncio.Task[None]] = set()
        self.evicted = 0
        self.expired = 0

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin the upkeep in the background. Without it everything is answered, but nothing learned or tidied."""
        for work in (self._following.run, self._upkeep, self._embedding):
            task = asyncio.ensure_future(_kept_up(work))
            self._work.add(task)
            task.add_done_callback(self._work.discard)

    async def close(self) -> None:
        """Finish what was acknowledged (vectors, used keys), then close store and leases."""
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        with suppress(StoreUnavailable):
            await self.settle()
        await self._leases.close()
        await self._store.close()

    async def settle(self) -> None:
        """Do now what the upkeep would do by and by: vectors of new entries, used keys, expired entries."""
        await self._embed_new()
        await self._touch()
        self.expired += await self._store.remove_expired(self._clock())

    async def _embedding(self) -> None:
        """Vectors of new entries, soon after their record was acknowledged: a caller does not wait for the encoder."""
        while True:
            await self._wants_vectors.wait()
            self._wants_vectors.clear()
            await asyncio.sleep(GATHER_S)
            with suppress(StoreUnavailable, UnknownNamespace):
                await self._embed_new()

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_S)
            with suppress(StoreUnavailable, UnknownNamespace):  # who asks for something meanwhile is told
                await self.settle()
                await self._learn_grown()

    # -- namespaces ----------------------------------------------------------------------------------------------------

    async def namespaces(self) -> list[str]:
        return await self._store.namespaces()

    async def namespace(self, name: str) -> Namespace:
        return (await self._policies.newest(name)).namespace

    async def put_namespace(self, namespace: Namespace) -> None:
        """Create it, or replace its tools and policy. Its entries stay; calibrate afterwards to use new roles."""
        known = await self._store.known(namespace.name)
        if known is None:
            # What was recorded while the namespace of that name was being deleted is not the new owner's.
            await self._store.remove_where(namespace.name, Filter())
        else:
            await self._clear_evidence(known, namespace)
        await self._store.put_namespace(namespace)

    async def _clear_evidence(self, known: Known, namespace: Namespace) -> None:
        """Forget the shadow evidence of tools whose rules change; first, so that none outlives a failure after it."""
        for name in known.shadows:
            before, after = known.namespace.tools.get(name), namespace.tools.get(name)
            if before is None or after is None or _rules(before) != _rules(after):
                await self._store.clear_evidence(namespace.name, name)

    async def delete_namespace(self, name: str) -> int:
        """Forget it with all its entries; how many there were."""
        removed = await self._store.delete_namespace(name)
        if removed is None:
            raise UnknownNamespace(name)
        await self._following.forget(name)
        self._used.pop(name, None)
        self._grown = Counter({key: count for key, count in self._grown.items() if key[0] != name})
        self._to_embed = [each for each in self._to_embed if each[0] != name]
        return removed

    # -- lookup --------------------------------------------------------------------------------------------------------

    async def lookup(
        self,
        namespace: str,
        questions: Sequence[Question],
        *,
        miss: MissPolicy = TELL,
        explain: bool = False,
    ) -> list[Answered]:
        """One answer a question, in their order.

        Questions that follow others are answered wave by wave, since an answer can change the state; all others
        share one round trip to the store.
        """
        policy = await self._policies.of(namespace)
        flight: Flight | None = None
        answered: dict[int, Answered] = {}
        for wave in _waves(questions):
            placed = {i: (questions[i], *_state(questions[i], answered.get(i - 1))) for i in wave}
            policy, asked = await self._tiers.answer(policy, placed, explain=explain)
            if miss.action != "fail":
                flight = flight or Flight(self._leases, self._tiers, policy, miss)
                await flight.take([one for one in asked.values() if isinstance(one, Asked)])
            for i, one in asked.items():
                answered[i] = self._answered(policy, one, placed[i][1])
        self._count(policy, questions, answered)
        return [answered[i] for i in range(len(questions))]

    async def lookup_quickly(
        self, namespace: str, questions: Sequence[Question], *, miss: MissPolicy = TELL
    ) -> QuickAnswers:
        """The same answers as `lookup`, plain exact ones at a quarter of its price."""
        policy = await self._policies.of(namespace)
        if not quick.are_quick(policy, questions):
            return QuickAnswers(items=list(await self.lookup(namespace, questions, miss=miss)))
        keys = quick.keys(policy, questions)
        asked = [key for key in keys if key is not None]
        found = await self._store.get(namespace, asked)
        if found.revision != policy.revision:
            return QuickAnswers(items=list(await self.lookup(namespace, questions, miss=miss)))
        hits, tallies = quick.hits(policy, questions, keys, found.samples)
        self._count_quick(policy, keys, hits, tallies)
        items: list[QuickHit | Answered] = [each for each in hits if each is not None]
        if len(items) < len(hits):
            rest = [i for i, each in enumerate(hits) if each is None]
            others = await self.lookup(namespace, [questions[i] for i in rest], miss=miss)
            for i, each in zip(rest, others, strict=True):
                items.insert(i, each)
        return QuickAnswers(items=items, tallies=tallies)

    def _count_quick(
        self,
        policy: Policy,
        keys: Sequence[str | None],
        hits: Sequence[QuickHit | None],
        tallies: Mapping[str, Tally],
    ) -> None:
        for tool, tally in tallies.items():
            self._answers[policy.name, tool, Tier.EXACT] += tally.count
            self._seconds_saved[policy.name] += tally.saved_s
        if policy.namespace.max_bytes:
            used = (key for key, each in zip(keys, hits, strict=True) if key is not None and each is not None)
            self._used[policy.name].update(used)

    def _answered(self, policy: Policy, one: Asked | Miss, state: str) -> Answered:
        if isinstance(one, Miss):
            return Answered(answer=one, state=state, state_after="")
        assert isinstance(one, Asked) and one.answer is not None
        answer, tool = one.answer, one.tool.tool
        if isinstance(answer, Miss):
            after, lineage = (one.state if tool.reads else ""), one.lineage
        else:
            lineage = one.lineage
            if answer.reason is Reason.SIMULATED:
                lineage = min(lineage, answer.trust)
            after = (
                one.state
                if tool.reads
                else state_after(one.state, one.call, tool=tool, is_error=answer.result.is_error)
            )
            if policy.namespace.max_bytes:
                self._used[policy.name].add(one.key)
        share = policy.namespace.shadow_share
        return Answered(
            answer=answer,
            state=with_lineage(one.state, one.lineage),
            state_after=with_lineage(after, lineage),
            lineage=lineage,
            lease=one.lease,
            shared=one.shared,
            shadow=share > 0.0 and not isinstance(answer, Miss) and self._chance() < share,
            explanation=None if one.notes is None else _explained(policy, one),
        )

    def _count(self, policy: Policy, questions: Sequence[Question], answered: Mapping[int, Answered]) -> None:
        name = policy.name
        for i, each in answered.items():
            answer = each.answer
            # A name that is no tool's would grow the counts for ever.
            tool = questions[i].tool if questions[i].tool in policy.tools else ""
            if isinstance(answer, Miss):
                self._answers[name, tool, Tier.MISS] += 1
            else:
                self._answers[name, tool, tier_of(answer)] += 1
                self._seconds_saved[name] += answer.result.took_s

    # -- leases --------------------------------------------------------------------------------------------------------

    async def extend_lease(self, namespace: str, lease_id: str, ttl_s: float) -> bool:
        return await self._leases.extend(namespace, lease_id, ttl_s)

    async def release_lease(self, namespace: str, lease_id: str) -> bool:
        return await self._leases.release(namespace, lease_id)

    # -- record --------------------------------------------------------------------------------------------------------

    async def record(
        self, namespace: str, recordings: Sequence[Recording], *, once: Once | None = None
    ) -> list[Recorded]:
        """Store executed calls; what comes back as anything but refused is durable."""
        policy = await self._policies.current(namespace)
        now_s = self._clock()
        entries: dict[int, Entry] = {}
        done: dict[int, Recorded] = {}
        for i, recording in enumerate(recordings):
            try:
                entries[i] = entry_of(policy, recording, now_s=now_s)
            except CallRefused as error:
                done[i] = Recorded(outcome=None, refused=str(error))
        outcomes = await self._store.put(namespace, list(entries.values()), once=once)
        for (i, entry), outcome in zip(entries.items(), outcomes, strict=True):
            done[i] = recorded(policy, recordings[i], entry, outcome)
            if outcome is not Outcome.KNOWN:
                self._grown[namespace, entry.tool] += 1
                self._want_vector(policy, entry)
        await self._end_leases(namespace, recordings, done)
        for tool, evidence in shadows(recordings, entries).items():
            await self._store.add_evidence(namespace, tool, evidence, once=once)
        await self._keep_quota(policy)
        return [done[i] for i in range(len(recordings))]

    async def _end_leases(self, namespace: str, recordings: Sequence[Recording], done: Mapping[int, Recorded]) -> None:
        """Leases whose results are stored are settled; one whose result was refused passes on."""
        stored = {recordings[i].lease for i, each in done.items() if each.outcome is not None} - {""}
        refused = {recordings[i].lease for i, each in done.items() if each.outcome is None} - {""}
        if stored:
            await self._leases.settle(namespace, stored)
        for lease in refused:
            await self._leases.release(namespace, lease)

    async def _keep_quota(self, policy: Policy) -> None:
        limit = policy.namespace.max_bytes
        if limit and await self._store.size_bytes(policy.name) > limit:
            await self._touch()
            spare = await self._leases.holding(policy.name)
            self.evicted += await self._store.evict(
                policy.name, int(limit * EVICT_TO), spare={key.partition("#")[0] for key in spare}
            )

    def _want_vector(self, policy: Policy, entry: Entry) -> None:
        """Vectors of new entries that could be served by them now. The others get theirs when their tool is learned."""
        own = policy.tools[entry.tool]
        if entry.place.guard and own.needs_vectors and len(self._to_embed) < MOST_WAITING:
            self._to_embed.append((policy.name, own.tool, entry))
            self._wants_vectors.set()

    async def _embed_new(self) -> None:
        while self._to_embed:
            batch = self._to_embed[:EMBED_BATCH]
            by_tool: dict[tuple[str, str], list[tuple[Tool, Entry]]] = defaultdict(list)
            for namespace, tool, entry in batch:
                by_tool[namespace, tool.name].append((tool, entry))
            for (namespace, name), wanted in by_tool.items():
                await self._embed(namespace, name, wanted)
            # Only now, so that those whose vectors could not be stored are tried again.
            done = {id(entry) for _, _, entry in batch}
            self._to_embed = [each for each in self._to_embed if id(each[2]) not in done]

    async def _embed(self, namespace: str, name: str, wanted: Sequence[tuple[Tool, Entry]]) -> None:
        texts = [text_of(name, masked(entry.arguments, tool.masks)) for tool, entry in wanted]
        try:
            vectors = await self._embedder.embed(texts, tenant=namespace)
        except EmbedderUnavailable:
            return
        orders = await self._orders(namespace, [entry for _, entry in wanted])
        made = {order: vector for order, vector in zip(orders, vectors, strict=True) if order is not None}
        await self._store.put_vectors(namespace, name, made, version=self._embedder.version)

    async def _touch(self) -> None:
        used, self._used = self._used, defaultdict(set)
        for namespace, keys in used.items():
            await self._store.touch(namespace, keys, self._clock())

    # -- learning and looking at it ------------------------------------------------------------------------------------

    async def calibrate(self, namespace: str, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Learn every tool's roles and trust from what is recorded. `progress(tool, done, of)` counts tools."""
        policy = await self._policies.newest(namespace)
        learned: dict[str, Profile] = {}
        for done, (name, own) in enumerate(policy.tools.items()):
            if progress is not None:
                progress(name, done, len(policy.tools))
            self._grown.pop((namespace, name), None)
            learned[name] = await self._learning.learn(policy.namespace, own.tool)
        await self._store.put_profiles(namespace, learned)

    async def _learn_grown(self) -> None:
        """Refit the tools whose recordings have grown enough to tell something new."""
        for (namespace, tool), new in list(self._grown.items()):
            if new < LEARN_AT_LEAST:
                continue
            try:
                policy = await self._policies.current(namespace)
            except UnknownNamespace:
                self._grown.pop((namespace, tool), None)
                continue
            own = policy.tools.get(tool)
            if own is not None and not LEARN_AFTER * own.profile.entries <= new <= LEARN_UP_TO:
                continue
            if own is not None:
                learned = {tool: await self._learning.learn(policy.namespace, own.tool)}
                await self._store.put_profiles(namespace, learned)
            self._grown[namespace, tool] -= new  # what came meanwhile counts for the next time

    async def report(self, namespace: str) -> Report:
        policy = await self._policies.newest(namespace)
        size = await self._store.size(namespace)
        tools = tuple(
            ToolReport(
                tool=own.tool,
                entries=size.tools.get(name, (0, 0))[0],
                conflicts=size.tools.get(name, (0, 0))[1],
                answers={tier: self._answers[namespace, name, tier] for tier in Tier},
                profile=own.profile,
            )
            for name, own in policy.tools.items()
        )
        served = {
            tier: sum(n for (ns, _, t), n in self._answers.items() if (ns, t) == (namespace, tier)) for tier in Tier
        }
        return Report(
            namespace=namespace,
            entries=size.entries,
            environments=size.environments,
            tools=tools,
            answers=served,
            seconds_saved=self._seconds_saved[namespace],
            size_bytes=size.size_bytes,
        )

    # -- entries -------------------------------------------------------------------------------------------------------

    async def browse(self, namespace: str, tool: str | None, after: int, limit: int) -> list[Entry]:
        """Entries in the order they came, from the one after `after` on."""
        await self._policies.of(namespace)
        found: list[Entry] = []
        async for entry in self._store.entries(namespace, tool, after=after):
            found.append(entry)
            if len(found) == limit:
                break
        return found

    async def remove_where(self, namespace: str, which: Filter) -> int:
        await self._policies.newest(namespace)
        return await self._store.remove_where(namespace, which)

    async def export(self, namespace: str) -> AsyncGenerator[bytes, None]:
        """The namespace and its entries with their vectors, one JSON object a line; `import_entries` reads it."""
        policy = await self._policies.newest(namespace)
        known = await self._store.known(namespace)
        if known is None:
            raise UnknownNamespace(namespace)
        yield exporting.namespace_line(known)
        vectors = await self._vectors_by_order(policy)
        async for entry in self._store.entries(namespace):
            yield exporting.entry_line(entry, vectors.get(entry.order), version=self._embedder.version)

    async def _vectors_by_order(self, policy: Policy) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for tool in policy.tools:
            stored = await self._store.vectors(policy.name, tool, version=self._embedder.version)
            found |= {each.order: each.vector for each in stored}
        return found

    async def import_entries(self, namespace: str, lines: Sequence[exporting.Exported]) -> list[Outcome]:
        """Exported entries as they were, with age, counts and vectors; what is known already is left as it is."""
        policy = await self._policies.current(namespace)
        entries = [exporting.entry_of(policy, each) for each in lines]
        have = await self._orders(policy.name, entries)
        new = [entry for entry, order in zip(entries, have, strict=True) if order is None]
        outcomes = iter(await self._store.put(policy.name, new))
        vectors: dict[str, dict[int, bytes]] = defaultdict(dict)
        for line, order in zip(lines, await self._orders(policy.name, entries), strict=True):
            if line.version == self._embedder.version and order is not None and await self._is_vector(line.vector):
                vectors[line.tool][order] = line.vector
        for tool, own in vectors.items():
            await self._store.put_vectors(policy.name, tool, own, version=self._embedder.version)
        for entry, order in zip(entries, have, strict=True):
            self._grown[policy.name, entry.tool] += order is None
        await self._keep_quota(policy)
        return [Outcome.KNOWN if order is not None else next(outcomes) for order in have]

    async def put_learned(
        self, namespace: str, profiles: Mapping[str, Profile], shadows: Mapping[str, Mapping[str, Evidence]]
    ) -> None:
        """What another cache had learned of the namespace's tools."""
        tools = (await self._policies.newest(namespace)).tools
        await self._store.put_profiles(namespace, {name: each for name, each in profiles.items() if name in tools})
        for tool, evidence in shadows.items():
            if tool in tools:
                await self._store.add_evidence(namespace, tool, evidence)

    async def _is_vector(self, vector: bytes) -> bool:
        """Whether it is as long as the embedder's own, and of unit length: what is not would spoil the index."""
        if self._vector_bytes is None:
            try:
                (own,) = await self._embedder.embed([""], tenant="")
            except EmbedderUnavailable:
                return False
            self._vector_bytes = len(own)
        if len(vector) != self._vector_bytes:
            return False
        values = array("f", vector)
        return 0.99 < sum(each * each for each in values) < 1.01  # false for NaN, too

    async def _orders(self, namespace: str, entries: Sequence[Entry]) -> list[int | None]:
        """Under which order each of the results is stored; None if it is not."""
        found = await self._store.get(namespace, [entry.key for entry in entries])
        return [
            next((sample.order for sample in samples if sample.result_digest == entry.result_digest), None)
            for entry, samples in zip(entries, found.samples, strict=True)
        ]


async def _kept_up(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Work that never ends by itself. A defect in it is told (asyncio's exception handler), and it begins anew."""
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - without its upkeep a service would quietly grow old
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": "upkeep of the cache failed and begins anew", "exception": error})
            await asyncio.sleep(UPKEEP_S)


def tier_of(answer: Hit | Guess | Miss) -> Tier:
    match answer:
        case Hit():
            return answer.tier
        case Guess():
            return Tier.APPROXIMATE
        case Miss():
            return Tier.MISS


def _rules(tool: Tool) -> tuple[object, ...]:
    """What, when changed, makes shadow evidence be about another tool."""
    return tool.effect, tool.roles, tool.masks, tool.parameters, tool.simulate_writes


def _waves(questions: Sequence[Question]) -> list[Sequence[int]]:
    """Indices by how many questions they follow: wave 0 follows none, wave 1 follows one of wave 0, ..."""
    if not any(question.follows for question in questions):
        return [range(len(questions))]
    waves: list[list[int]] = []
    depth = 0
    for i, question in enumerate(questions):
        depth = depth + 1 if question.follows and i > 0 else 0
        if depth == len(waves):
            waves.append([])
        waves[depth].append(i)
    return list(waves)


def _state(question: Question, previous: Answered | None) -> tuple[str, float]:
    """The state to look up in, and its lineage; "" where it is not known, as for a batch's first item if that follows
    another."""
    if question.follows:
        return ("", 1.0) if previous is None else split_lineage(previous.state_after)
    return split_lineage(question.state) if question.state else (initial_state(question.environment), 1.0)


def _explained(policy: Policy, one: Asked) -> Explanation:
    assert one.notes is not None
    profile, tool = one.tool.profile, one.tool.tool
    return Explanation(
        key=one.key,
        state=with_lineage(one.state, one.lineage),
        canonical=one.call.canonical,
        roles=profile.roles,
        masked=tuple(f"{mask.argument}={mask.pattern}" if mask.pattern else mask.argument for mask in tool.masks),
        guard=guard_contents(one.call.kept, profile.roles),
        threshold=policy.namespace.similar_threshold,
        floor=tool.similar_floor,
        trust=profile.trusts(),
        steps=tuple(one.notes.steps),
        candidates=tuple(one.notes.candidates),
    )
