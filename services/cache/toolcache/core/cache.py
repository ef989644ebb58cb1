"""The cache as one object: fetches candidates, lets tiers.py decide, threads states, records, learns.

It owns no data: entries are the store's, vectors the index's. Any number of these can stand over one store.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolcache.core import calibration, tiers
from toolcache.core.calls import Call, call_digest, entry_key, scope
from toolcache.core.canonical import NotCanonical
from toolcache.core.entries import MOST_SECONDS, Entry, Outcome, Result
from toolcache.core.ports import Embedder, EmbedderUnavailable, Store, Vector, VectorIndex
from toolcache.core.profile import Profile, unlearned
from toolcache.core.roles import guard, text_of
from toolcache.core.state import initial_state, state_after
from toolcache.core.tiers import Candidate, Guess, Hit, Miss
from toolcache.core.tools import Namespace, Tier, Tool
from toolcache.core.trust import Reason

EMBED_BATCH = 64
"""Texts embedded at once while calibrating: larger batches gain nothing on a CPU and hold the progress back."""


class UnknownNamespace(LookupError):
    """No such namespace; the message names those that exist."""


class CallRefused(ValueError):
    """A call that cannot be recorded; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One call to answer."""

    tool: str
    arguments: Mapping[str, Any]
    environment: str
    state: str = ""
    follows: bool = False
    tiers: frozenset[Tier] = frozenset(Tier)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer, the state in which the call was asked and the one it leads to ("" where unknown)."""

    answer: Hit | Guess | Miss
    state: str
    state_after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One executed call."""

    tool: str
    arguments: Mapping[str, Any]
    environment: str
    result: Result
    state: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of a recording; a refused one says why and has neither entry nor state."""

    outcome: Outcome | None
    entry: str = ""
    state_after: str = ""
    refused: str = ""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A namespace as of one revision of the store."""

    namespace: Namespace
    profiles: Mapping[str, Profile]

    def profile(self, tool: Tool) -> Profile:
        """What was learned, under the operator's word of today: roles may have been given since."""
        learned = self.profiles.get(tool.name)
        return unlearned(tool) if learned is None else learned.under(tool.roles, self.namespace.similar_threshold)

    def needs_vectors_now(self, tool: str) -> bool:
        profile = self.profile(self.namespace.tools[tool])
        rewords = Tier.SIMILAR in self.namespace.tiers and profile.serves_rewordings
        return rewords or Tier.APPROXIMATE in self.namespace.tiers


@dataclass(slots=True, kw_only=True)
class _Asked:
    """A question on its way through the tiers."""

    question: Question
    state: str
    tool: Tool
    call: Call
    profile: Profile
    answer: Hit | Guess | Miss | None = None
    candidates: list[Entry] = field(default_factory=list)
    equal: Candidate | None = None
    """The candidate that differs in nothing that matters, if there is one."""

    @property
    def scope(self) -> str:
        return scope(self.tool, self.question.environment, self.state)


class ToolCache:
    """Lookup and record over one store. Methods raise UnknownNamespace and StoreUnavailable."""

    def __init__(self, store: Store, index: VectorIndex, embedder: Embedder, clock: Callable[[], float]) -> None:
        self._store = store
        self._index = index
        self._embedder = embedder
        self._clock = clock
        self._revision = -1
        self._known: dict[str, _Known] = {}
        self._answers: Counter[tuple[str, str, Tier]] = Counter()
        self._seconds_saved: dict[str, float] = defaultdict(float)

    # -- namespaces ---------------------------------------------------------------------------------------------------

    async def namespaces(self) -> list[str]:
        await self._refresh()
        return sorted(self._known)

    async def namespace(self, name: str) -> Namespace:
        return (await self._of(name)).namespace

    async def put_namespace(self, namespace: Namespace) -> None:
        """Create it, or replace its tools and policy. Its entries stay; calibrate afterwards to use new roles."""
        await self._store.put_namespace(namespace)

    # -- lookup -------------------------------------------------------------------------------------------------------

    async def lookup(self, namespace: str, questions: Sequence[Question]) -> list[Answered]:
        """One answer a question, in their order.

        Questions that follow others are answered wave by wave, since an answer can change the state; all others
        share one round trip to the store.
        """
        known = await self._of(namespace)
        answered: dict[int, Answered] = {}
        for wave in _waves(questions):
            states = {i: _state(questions[i], answered.get(i - 1)) for i in wave}
            answered |= await self._answer(known, {i: questions[i] for i in wave}, states)
        self._count(namespace, questions, answered)
        return [answered[i] for i in range(len(questions))]

    async def _answer(
        self, known: _Known, questions: Mapping[int, Question], states: Mapping[int, str]
    ) -> dict[int, Answered]:
        refused: dict[int, Answered] = {}
        asked: dict[int, _Asked] = {}
        for i, question in questions.items():
            one = _asked(known, question, states[i])
            if isinstance(one, Miss):
                refused[i] = Answered(answer=one, state=states[i], state_after="")
            else:
                asked[i] = one
        await self._exact(known, list(asked.values()))
        await self._similar(known, [one for one in asked.values() if one.answer is None])
        await self._approximate(known, [one for one in asked.values() if not isinstance(one.answer, Hit)])
        return refused | {i: _answered(one) for i, one in asked.items()}

    async def _exact(self, known: _Known, asked: Sequence[_Asked]) -> None:
        allowed = [one for one in asked if Tier.EXACT in known.namespace.tiers & one.question.tiers]
        if not allowed:
            return
        samples = await self._store.get(known.namespace.name, [entry_key(one.scope, one.call) for one in allowed])
        for one, found in zip(allowed, samples, strict=True):
            one.answer = tiers.exact(found, one.profile)

    async def _similar(self, known: _Known, asked: Sequence[_Asked]) -> None:
        for one in asked:
            one.answer = tiers.miss(one.tool, one.call)
            may = Tier.SIMILAR in known.namespace.tiers & one.question.tiers and one.profile.can_be_similar
            if one.answer.reason is not Reason.NOT_RECORDED or not may:
                continue
            digest = guard(one.scope, one.tool.name, one.call.arguments, one.profile.roles)
            passed = await self._store.with_guard(known.namespace.name, digest)
            one.candidates = [entry for entry in passed if not entry.result.is_error]
            one.equal = tiers.equal_where_it_matters(one.call, one.candidates, one.profile)
            if one.equal is not None:
                one.answer = tiers.similar(
                    one.call, one.equal, one.profile, threshold=known.namespace.similar_threshold
                )
            elif one.candidates and not one.profile.serves_rewordings:
                one.answer = tiers.below_floor(Reason.FREE_TEXT, one.profile)  # before the encoder, which costs most
        reworded = [one for one in asked if one.candidates and _misses(one, Reason.NOT_RECORDED)]
        vectors = await self._vectors(reworded)
        for one in reworded:
            best = None if vectors is None else await self._nearest_of(known, one, vectors[id(one)])
            if best is None:
                detail = "no vectors to compare; exact answers go on, and calibrating makes what vectors are missing"
                one.answer = Miss(reason=Reason.NO_VECTORS, detail=detail)
            else:
                one.answer = tiers.similar(one.call, best, one.profile, threshold=known.namespace.similar_threshold)

    async def _nearest_of(self, known: _Known, one: _Asked, vector: Vector) -> Candidate | None:
        partition = (known.namespace.name, one.tool.name)
        await self._follow(partition)
        entries = {entry.order: entry for entry in one.candidates}
        near = self._index.nearest(partition, vector, 1, among=list(entries))
        return Candidate(entry=entries[near[0][0]], score=near[0][1]) if near else None

    async def _approximate(self, known: _Known, asked: Sequence[_Asked]) -> None:
        guessable = [
            one
            for one in asked
            if one.tool.reads
            and Tier.APPROXIMATE in known.namespace.tiers & one.question.tiers
            and not _misses(one, Reason.INVALID_ARGUMENTS)  # a live call would be an error, and errors are not guessed
        ]
        missing: list[_Asked] = []
        for one in guessable:
            digest = call_digest(one.question.environment, one.call)
            others = await self._store.with_call(known.namespace.name, digest)
            guess = tiers.approximate([entry for entry in others if not entry.result.is_error], None, one.profile)
            if guess is None:
                missing.append(one)
            else:
                one.answer = guess
        vectors = await self._vectors(missing)
        for one in missing:
            if vectors is not None:
                one.answer = await self._nearest_guess(known, one, vectors[id(one)]) or one.answer

    async def _nearest_guess(self, known: _Known, one: _Asked, vector: Vector) -> Guess | None:
        partition = (known.namespace.name, one.tool.name)
        await self._follow(partition)
        near = self._index.nearest(partition, vector, calibration.GUESS_CANDIDATES)
        entries = await self._store.by_order(known.namespace.name, [order for order, _ in near])
        usable = [
            Candidate(entry=entries[order], score=score)
            for order, score in near
            if order in entries and not entries[order].result.is_error
        ]
        return tiers.approximate([], usable[0] if usable else None, one.profile)

    async def _vectors(self, asked: Sequence[_Asked]) -> dict[int, Vector] | None:
        """A vector for each, by its identity; None if the embedder is away."""
        if not asked:
            return {}
        try:
            vectors = await self._embedder.embed([text_of(one.tool.name, one.call.arguments) for one in asked])
        except EmbedderUnavailable:
            return None
        return {id(one): vector for one, vector in zip(asked, vectors, strict=True)}

    async def _follow(self, partition: tuple[str, str]) -> None:
        """Bring the index up to the store, whoever wrote to it."""
        new = await self._store.vectors(*partition, after=self._index.last(partition))
        if new:
            self._index.add(partition, new)

    # -- record -------------------------------------------------------------------------------------------------------

    async def record(self, namespace: str, recordings: Sequence[Recording]) -> list[Recorded]:
        """Store executed calls; what comes back as anything but refused is durable."""
        known = await self._of(namespace)
        entries: dict[int, Entry] = {}
        refused: dict[int, Recorded] = {}
        for i, recording in enumerate(recordings):
            try:
                entries[i] = self._entry(known, recording)
            except CallRefused as error:
                refused[i] = Recorded(outcome=None, refused=str(error))
        outcomes = await self._store.put(namespace, list(entries.values()))
        await self._embed_new(known, [e for e, o in zip(entries.values(), outcomes, strict=True) if o != Outcome.KNOWN])
        done = {
            i: Recorded(outcome=outcome, entry=entry.id, state_after=_after_recording(known, recordings[i], entry))
            for (i, entry), outcome in zip(entries.items(), outcomes, strict=True)
        }
        return [(done | refused)[i] for i in range(len(recordings))]

    def _entry(self, known: _Known, recording: Recording) -> Entry:
        """Raises CallRefused."""
        tool = known.namespace.tools.get(recording.tool)
        if tool is None:
            raise CallRefused(_no_such_tool(known, recording.tool))
        try:
            call = Call.of(recording.tool, recording.arguments)
        except NotCanonical as error:
            raise CallRefused(f"arguments of {recording.tool}: {error}") from error
        if not 0.0 <= recording.result.took_s <= MOST_SECONDS:
            raise CallRefused(f"result of {recording.tool}: took_s must lie in 0..{MOST_SECONDS:g}")
        try:
            recording.result.content.encode()
            recording.environment.encode()
        except UnicodeEncodeError as error:
            raise CallRefused(f"result of {recording.tool}: not Unicode text ({error})") from error
        where = scope(tool, recording.environment, recording.state or initial_state(recording.environment))
        is_donor = tool.reads and tool.violation(call.arguments) is None
        return Entry(
            key=entry_key(where, call),
            scope=where,
            environment=recording.environment,
            tool=tool.name,
            arguments=call.arguments,
            canonical=call.canonical,
            result=recording.result,
            result_digest=recording.result.digest(),
            guard=guard(where, tool.name, call.arguments, known.profile(tool).roles) if is_donor else "",
            call_digest=call_digest(recording.environment, call),
            recorded_at_s=self._clock(),
        )

    async def _embed_new(self, known: _Known, entries: Sequence[Entry]) -> None:
        """Vectors for new entries that could be served by them at once. The others get theirs when calibrating."""
        wanted = [entry for entry in entries if entry.guard and known.needs_vectors_now(entry.tool)]
        if not wanted:
            return
        try:
            vectors = await self._embedder.embed([text_of(entry.tool, entry.arguments) for entry in wanted])
        except EmbedderUnavailable:
            return
        stored = await self._store.get(known.namespace.name, [entry.key for entry in wanted])
        for entry, vector, samples in zip(wanted, vectors, stored, strict=True):
            orders = [each.order for each in samples if each.result_digest == entry.result_digest]
            await self._store.put_vectors(known.namespace.name, entry.tool, dict.fromkeys(orders, vector))

    # -- learning and looking at it -----------------------------------------------------------------------------------

    async def calibrate(self, namespace: str, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Learn every tool's roles and trust from what is recorded. `progress(tool, done, of)` counts tools."""
        known = await self._of(namespace)
        learned: dict[str, Profile] = {}
        for done, tool in enumerate(known.namespace.tools.values()):
            if progress is not None:
                progress(tool.name, done, len(known.namespace.tools))
            learned[tool.name] = await self._learn(known.namespace, tool)
        await self._store.put_profiles(namespace, learned)

    async def _learn(self, namespace: Namespace, tool: Tool) -> Profile:
        entries = [entry async for entry in self._store.entries(namespace.name, tool.name)]
        lesson = calibration.lesson(tool, entries)
        await self._store.set_guards(namespace.name, lesson.changed_guards)
        if calibration.wants_vectors(namespace, lesson.profile):
            await self._embed_missing(namespace.name, tool, entries)
        partition = (namespace.name, tool.name)

        def nearest(entry: Entry, among: Sequence[int] | None) -> list[tuple[int, float]]:
            vector = vectors.get(entry.order)
            count = 1 if among is not None else calibration.GUESS_CANDIDATES
            return [] if vector is None else self._index.nearest(partition, vector, count, among=among)

        await self._follow(partition)
        vectors = {each.entry_order: each.vector for each in await self._store.vectors(*partition, after=0)}
        return calibration.measured(lesson, namespace, nearest)

    async def _embed_missing(self, namespace: str, tool: Tool, entries: Sequence[Entry]) -> None:
        have = {each.entry_order for each in await self._store.vectors(namespace, tool.name, after=0)}
        missing = [entry for entry in entries if entry.order not in have]
        for start in range(0, len(missing), EMBED_BATCH):
            batch = missing[start : start + EMBED_BATCH]
            try:
                vectors = await self._embedder.embed([text_of(tool.name, entry.arguments) for entry in batch])
            except EmbedderUnavailable:
                return
            orders = [entry.order for entry in batch]
            await self._store.put_vectors(namespace, tool.name, dict(zip(orders, vectors, strict=True)))

    async def report(self, namespace: str) -> Report:
        known = await self._of(namespace)
        counts = await self._store.counts(namespace)
        tools = tuple(
            ToolReport(
                tool=tool,
                entries=counts.get(tool.name, (0, 0))[0],
                conflicts=counts.get(tool.name, (0, 0))[1],
                answers={tier: self._answers[namespace, tool.name, tier] for tier in Tier},
                profile=known.profile(tool),
            )
            for tool in known.namespace.tools.values()
        )
        served = {
            tier: sum(n for (ns, _, t), n in self._answers.items() if (ns, t) == (namespace, tier)) for tier in Tier
        }
        return Report(
            namespace=namespace,
            entries=sum(entries for entries, _ in counts.values()),
            environments=await self._store.environments(namespace),
            tools=tools,
            answers=served,
            seconds_saved=self._seconds_saved[namespace],
        )

    # -- helpers ------------------------------------------------------------------------------------------------------

    async def _of(self, name: str) -> _Known:
        await self._refresh()
        known = self._known.get(name)
        if known is None:
            have = ", ".join(sorted(self._known)) or "none yet"
            raise UnknownNamespace(
                f"no namespace {name!r} (there are: {have}); create it with PUT /v1/namespaces/{name}"
            )
        return known

    async def _refresh(self) -> None:
        revision = await self._store.revision()
        if revision == self._revision:
            return
        self._known = {
            name: _Known(namespace=namespace, profiles=await self._store.profiles(name))
            for name, namespace in (await self._store.namespaces()).items()
        }
        self._revision = revision

    def _count(self, namespace: str, questions: Sequence[Question], answered: Mapping[int, Answered]) -> None:
        for i, each in answered.items():
            tier = _tier(each.answer)
            self._answers[namespace, questions[i].tool, tier] += 1
            if not isinstance(each.answer, Miss):
                self._seconds_saved[namespace] += each.answer.result.took_s


def _tier(answer: Hit | Guess | Miss) -> Tier:
    match answer:
        case Hit():
            return answer.tier
        case Guess():
            return Tier.APPROXIMATE
        case Miss():
            return Tier.MISS


def _waves(questions: Sequence[Question]) -> list[list[int]]:
    """Indices by how many questions they follow: wave 0 follows none, wave 1 follows one of wave 0, ..."""
    waves: list[list[int]] = []
    depth = 0
    for i, question in enumerate(questions):
        depth = depth + 1 if question.follows and i > 0 else 0
        if depth == len(waves):
            waves.append([])
        waves[depth].append(i)
    return waves


def _state(question: Question, previous: Answered | None) -> str:
    """The state to look up in; "" where it is not known, as for a batch's first item if that follows another."""
    if question.follows:
        return "" if previous is None else previous.state_after
    return question.state or initial_state(question.environment)


def _asked(known: _Known, question: Question, state: str) -> _Asked | Miss:
    if not state:
        return Miss(reason=Reason.STATE_UNKNOWN, detail="it follows a call whose effect is not known yet")
    tool = known.namespace.tools.get(question.tool)
    if tool is None:
        return Miss(reason=Reason.UNKNOWN_TOOL, detail=_no_such_tool(known, question.tool))
    try:
        call = Call.of(question.tool, question.arguments)
    except NotCanonical as error:
        return Miss(reason=Reason.NOT_CANONICAL, detail=str(error))
    return _Asked(question=question, state=state, tool=tool, call=call, profile=known.profile(tool))


def _misses(one: _Asked, reason: Reason) -> bool:
    return isinstance(one.answer, Miss) and one.answer.reason is reason


def _answered(one: _Asked) -> Answered:
    answer = one.answer if one.answer is not None else tiers.miss(one.tool, one.call)
    if isinstance(answer, Miss):
        after = one.state if one.tool.reads else ""
    else:
        after = state_after(one.state, one.call, tool=one.tool, is_error=answer.result.is_error)
    return Answered(answer=answer, state=one.state, state_after=after)


def _after_recording(known: _Known, recording: Recording, entry: Entry) -> str:
    call = Call(tool=entry.tool, arguments=entry.arguments, canonical=entry.canonical)
    state = recording.state or initial_state(recording.environment)
    return state_after(state, call, tool=known.namespace.tools[entry.tool], is_error=recording.result.is_error)


def _no_such_tool(known: _Known, tool: str) -> str:
    have = ", ".join(sorted(known.namespace.tools)) or "none"
    return f"namespace {known.namespace.name} has no tool {tool!r} (it has: {have})"
