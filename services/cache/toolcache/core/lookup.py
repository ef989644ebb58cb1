"""Find the answer to a call: tier by tier, each with as few round trips as there can be.

Decisions are tiers.py's; this fetches what they decide on. Single flight over what is missing is flight.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from toolcache.core import tiers
from toolcache.core.calls import Call, call_digest, entry_key, scope
from toolcache.core.canonical import NotCanonical, digest
from toolcache.core.entries import Entry, Sample, donor_id
from toolcache.core.explaining import LookedAt, Notes
from toolcache.core.following import Following
from toolcache.core.policy import Policies, Policy, ToolPolicy
from toolcache.core.ports import Embedder, EmbedderUnavailable, Leases, Store, Vector, VectorIndex
from toolcache.core.questions import Question
from toolcache.core.roles import equal, guard, text_of
from toolcache.core.tiers import Candidate, Guess, Hit, Miss
from toolcache.core.tools import MOST_SAMPLES, Tier
from toolcache.core.trust import Reason

NEIGHBOURS = 8
"""Nearest entries that are looked at: the first few may be errors, or expired."""
DRAWS_KEPT_S = 3600.0
"""Seconds a group's draws of a stochastic call are remembered: longer than a training step."""
_READINGS = 3
"""How often a batch is read anew because the policy changed under it, before its last reading is taken."""


class Asked(msgspec.Struct, kw_only=True):
    """A question on its way through the tiers."""

    question: Question
    tool: ToolPolicy
    state: str
    lineage: float
    scope: str
    call: Call
    key: str
    answer: Hit | Guess | Miss | None = None
    draw: int | None = None
    """Which of a stochastic call's samples this rollout of the group gets."""
    lease: str | None = None
    shared: bool = False
    notes: Notes | None = None

    @property
    def lease_key(self) -> str:
        """What is executed once: the call, or one sample of it."""
        if self.draw is None:
            return self.key
        return f"{self.key}#{digest(self.question.group)[:16]}#{self.draw}"

    @property
    def was_missed(self) -> bool:
        return self.answer is None or isinstance(self.answer, Miss)

    def allows(self, policy: Policy, tier: Tier) -> bool:
        accepted = self.question.tiers
        return tier in policy.namespace.tiers and (accepted is None or tier in accepted)

    def note(self, step: str) -> None:
        if self.notes is not None:
            self.notes.step(step)


def asked_of(policy: Policy, question: Question, state: str, lineage: float, *, explain: bool) -> Asked | Miss:
    """The question with its keys; a Miss if it has none."""
    if not state:
        return Miss(reason=Reason.STATE_UNKNOWN, detail="it follows a call whose effect is not known yet")
    own = policy.tools.get(question.tool)
    if own is None:
        return Miss(reason=Reason.UNKNOWN_TOOL, detail=no_such_tool(policy, question.tool))
    tool = own.tool
    try:
        call = Call.of(tool.name, question.arguments, tool.masks)
    except NotCanonical as error:
        return Miss(reason=Reason.NOT_CANONICAL, detail=str(error))
    where = scope(tool, question.environment, state)
    return Asked(
        question=question,
        tool=own,
        state=state,
        lineage=lineage,
        scope=where,
        call=call,
        key=entry_key(where, call),
        notes=Notes() if explain else None,
    )


def no_such_tool(policy: Policy, tool: str) -> str:
    have = ", ".join(sorted(policy.tools)) or "none"
    return f"namespace {policy.name} has no tool {tool!r} (it has: {have})"


class Tiers:
    """The tiers over one store, index and embedder."""

    def __init__(
        self,
        store: Store,
        leases: Leases,
        policies: Policies,
        following: Following,
        index: VectorIndex,
        embedder: Embedder,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._store = store
        self._leases = leases
        self._policies = policies
        self._following = following
        self._index = index
        self._embedder = embedder
        self._clock = clock
        self._chance = chance

    async def answer(
        self, policy: Policy, questions: Mapping[int, tuple[Question, str, float]], *, explain: bool
    ) -> tuple[Policy, dict[int, Asked | Miss]]:
        """Each question (with its state and lineage) through the tiers; and the policy that decided, the newest."""
        for reading in range(_READINGS):
            asked = {i: asked_of(policy, *each, explain=explain) for i, each in questions.items()}
            mine = [one for one in asked.values() if isinstance(one, Asked)]
            if await self._exact(policy, mine) or reading == _READINGS - 1:
                break
            policy = await self._policies.newest(policy.name)
        if missed := [one for one in mine if one.answer is None]:
            await self._similar(policy, missed)
            await self._approximate(policy, [one for one in missed if one.was_missed])
        return policy, asked

    # -- exact ---------------------------------------------------------------------------------------------------------

    async def _exact(self, policy: Policy, asked: Sequence[Asked]) -> bool:
        """Answer what is recorded. False: the policy is no longer the newest, and nothing was decided."""
        found = await self._store.get(policy.name, [one.key for one in asked])
        if found.revision != policy.revision:
            return False
        now_s = self._clock()
        for one, samples in zip(asked, found.samples, strict=True):
            if one.notes is not None and not samples:
                one.note(f"exact: nothing is recorded under {one.key[:16]}")
            if not one.allows(policy, Tier.EXACT):
                one.note("exact: not accepted")
            elif one.tool.tool.samples > 1:
                await self._sampled(policy, one, self._fresh(one, samples, now_s))
            elif samples:
                self._decide(one, samples, now_s)
        return True

    async def recorded(self, policy: Policy, asked: Sequence[Asked]) -> None:
        """Answer those of the questions that were recorded since they were missed.

        Not those that want a sample of their own: what others of the group have recorded since is not for them.
        """
        exact = [one for one in asked if one.draw is None and one.allows(policy, Tier.EXACT)]
        found = await self._store.get(policy.name, [one.key for one in exact])
        now_s = self._clock()
        for one, samples in zip(exact, found.samples, strict=True):
            if one.tool.tool.samples > 1:
                await self._sampled(policy, one, self._fresh(one, samples, now_s))
            elif samples:
                self._decide(one, samples, now_s)

    def _decide(self, one: Asked, samples: Sequence[Sample], now_s: float) -> None:
        fresh = self._fresh(one, samples, now_s)
        hit = tiers.exact(one.key, fresh, one.tool.profile, now_s=now_s, is_masked=one.call.may_differ)
        if hit is None:
            one.answer = Miss(reason=Reason.EXPIRED, detail="recorded, but its time is over")
            one.note("exact: recorded, but expired")
            return
        if one.notes is not None:
            self._note_samples(one, samples, hit, now_s)
        one.answer = hit if one.lineage >= 1.0 else _under_lineage(hit, one.lineage)

    def _fresh(self, one: Asked, samples: Sequence[Sample], now_s: float) -> Sequence[Sample]:
        """Those that may be served by today's policy, which can be stricter than the one they were recorded under."""
        ttl_s = one.tool.tool.ttl_s
        return [s for s in samples if s.is_fresh(now_s) and (ttl_s is None or now_s < s.recorded_at_s + ttl_s)]

    def _note_samples(self, one: Asked, samples: Sequence[Sample], hit: Hit, now_s: float) -> None:
        assert one.notes is not None
        one.note(f"exact: {len(samples)} results are recorded under {one.key[:16]}")
        for each in samples:
            donor = donor_id(one.key, each.result_digest)
            verdict = "served" if donor == hit.donor else "less frequent" if each.is_fresh(now_s) else "expired"
            one.notes.candidates.append(
                LookedAt(
                    donor=donor,
                    arguments=dict(one.call.arguments),
                    verdict=f"{verdict} (recorded {each.seen} times)",
                    age_s=max(0.0, now_s - each.recorded_at_s),
                )
            )

    async def _sampled(self, policy: Policy, one: Asked, fresh: Sequence[Sample]) -> None:
        """A sample of a stochastic call: for every rollout of the group another one of those that were recorded when
        the group began, then one that the rollout executes itself, and when there are enough, again from the first."""
        # Repetitions come last, so that a result which is recorded again moves no other one to another place.
        draws = [*fresh, *(sample for sample in fresh for _ in range(min(sample.seen, MOST_SAMPLES) - 1))]
        group = one.question.group
        if not group:
            index, enough = int(self._chance() * len(draws)), bool(draws)
        else:
            index, had = await self._leases.draw(policy.name, one.key, group, have=len(draws), keep_s=DRAWS_KEPT_S)
            one.draw = index
            own = min(had, len(draws))  # some may be gone since the group began
            enough = index < own or (index >= one.tool.tool.samples and bool(draws))
            one.shared = enough and index >= own
        if enough:
            one.answer = _sample(one, draws[index % len(draws)])
            one.note(f"exact: sample {index % len(draws) + 1} of {len(draws)}")
        elif draws:
            wanted = one.tool.tool.samples
            detail = (
                f"the group has had the samples recorded before it began; {wanted} are wanted, {len(draws)} are there"
            )
            one.answer = Miss(reason=Reason.SAMPLES_EXHAUSTED, detail=detail)
            one.note(f"exact: {detail}")

    # -- similar -------------------------------------------------------------------------------------------------------

    async def _similar(self, policy: Policy, asked: Sequence[Asked]) -> None:
        reworded: list[Asked] = []
        for one in asked:
            one.answer = tiers.miss(one.tool.tool, one.call)
            if not (one.tool.may_be_similar and one.allows(policy, Tier.SIMILAR)):
                one.note("similar: not for this tool, by policy or by the roles of its arguments")
                continue
            if one.answer.reason not in _CAN_BE_SIMILAR:
                one.note(f"similar: not asked ({one.answer.reason})")
                continue
            if not await self._equal(policy, one):
                reworded.append(one)
        await self._reworded(policy, [one for one in reworded if self._may_reword(policy, one)])

    async def _equal(self, policy: Policy, one: Asked) -> bool:
        """Serve the oldest entry that differs only in what does not matter, if there is one: no vector is asked."""
        tool = one.tool.tool
        digest = equal(one.scope, tool.name, one.call.kept, one.tool.profile.roles) if tool.reads else ""
        found = await self._store.with_equal(policy.name, digest) if digest else []
        donor = self._first_usable(one, found)
        if donor is None:
            one.note("similar: no entry is equal where it matters")
            return False
        self._serve_similar(policy, one, Candidate(entry=donor))
        return True

    def _may_reword(self, policy: Policy, one: Asked) -> bool:
        profile = one.tool.profile
        if not profile.can_reword:
            one.note("similar: no argument of the tool is free text")
            return False
        if profile.may_reword(one.tool.tool.similar_floor, policy.namespace.similar_threshold):
            return True
        unproven = "rewordings of this tool are not proven to be right often enough; `toolcache calibrate` shows why"
        one.answer = Miss(reason=tiers.miss(one.tool.tool, one.call).reason, detail=unproven)
        one.note(f"similar: {unproven}")
        return False

    async def _reworded(self, policy: Policy, asked: Sequence[Asked]) -> None:
        vectors = await self._vectors(policy, asked)
        for one in asked:
            if vectors is None:
                one.answer = Miss(reason=Reason.NO_VECTORS, detail="no vectors can be made; exact answers go on")
                one.note("similar: the embedder is away")
            else:
                await self._nearest_of_guard(policy, one, vectors[one.key])

    async def _nearest_of_guard(self, policy: Policy, one: Asked, vector: Vector) -> None:
        digest = guard(one.scope, one.tool.tool.name, one.call.kept, one.tool.profile.roles)
        near = await self._near(policy, one, vector, guard_=digest)
        entries = await self._store.by_order(policy.name, [order for order, _ in near])
        scores = dict(near)
        donor = self._first_usable(one, [entries[order] for order, _ in near if order in entries], scores)
        if donor is None:
            one.note(f"similar: {len(near)} entries pass the guard {digest[:16]}, none can be served")
            return
        self._serve_similar(policy, one, Candidate(entry=donor, score=scores[donor.order]))

    def _serve_similar(self, policy: Policy, one: Asked, candidate: Candidate) -> None:
        threshold = policy.namespace.similar_threshold
        answer = tiers.similar(one.call, candidate, one.tool.profile, tool=one.tool.tool, threshold=threshold)
        if isinstance(answer, Hit) and one.lineage < 1.0:
            answer = _under_lineage(answer, one.lineage)
        one.answer = answer
        if one.notes is not None:
            verdict = "served" if isinstance(answer, Hit) else str(answer.reason)
            one.note(f"similar: {candidate.entry.id}: {verdict}")
            self._note_candidate(one, candidate.entry, verdict, candidate.score)

    def _first_usable(
        self, one: Asked, entries: Sequence[Entry], scores: Mapping[int, float] | None = None
    ) -> Entry | None:
        """The first entry that is no error and not expired; the others are noted."""
        now_s = self._clock()
        for entry in entries:
            ttl_s = one.tool.tool.ttl_s
            is_fresh = entry.is_fresh(now_s) and (ttl_s is None or now_s < entry.recorded_at_s + ttl_s)
            unusable = "an error" if entry.result.is_error else "" if is_fresh else "expired"
            if not unusable:
                return entry
            if one.notes is not None:
                self._note_candidate(one, entry, unusable, (scores or {}).get(entry.order))
        return None

    def _note_candidate(self, one: Asked, entry: Entry, verdict: str, score: float | None) -> None:
        assert one.notes is not None
        asked, donor = one.call.arguments, entry.arguments
        one.notes.candidates.append(
            LookedAt(
                donor=entry.id,
                arguments=entry.arguments,
                verdict=verdict,
                differs=tuple(sorted(name for name in {*asked, *donor} if asked.get(name) != donor.get(name))),
                score=score,
                age_s=max(0.0, self._clock() - entry.recorded_at_s),
            )
        )

    # -- approximate ---------------------------------------------------------------------------------------------------

    async def _approximate(self, policy: Policy, asked: Sequence[Asked]) -> None:
        guessable = [
            one
            for one in asked
            if one.tool.may_be_guessed
            and one.allows(policy, Tier.APPROXIMATE)
            and not _misses(one, Reason.INVALID_ARGUMENTS)  # a live call would be an error, and errors are not guessed
        ]
        missing: list[Asked] = []
        for one in guessable:
            digest = call_digest(one.question.environment, one.call)
            other = self._first_usable(one, await self._store.with_call(policy.name, digest))
            guess = tiers.approximate(other, None, one.tool.profile)
            if guess is None:
                missing.append(one)
            else:
                one.answer = _guessed(guess, one)
        vectors = await self._vectors(policy, missing)
        for one in missing:
            if vectors is not None:
                await self._guess(policy, one, vectors[one.key])

    async def _guess(self, policy: Policy, one: Asked, vector: Vector) -> None:
        near = await self._near(policy, one, vector)
        entries = await self._store.by_order(policy.name, [order for order, _ in near])
        scores = dict(near)
        donor = self._first_usable(one, [entries[order] for order, _ in near if order in entries], scores)
        candidate = None if donor is None else Candidate(entry=donor, score=scores[donor.order])
        guess = tiers.approximate(None, candidate, one.tool.profile)
        if guess is not None:
            one.answer = _guessed(guess, one)

    # -- vectors -------------------------------------------------------------------------------------------------------

    async def _near(
        self, policy: Policy, one: Asked, vector: Vector, *, guard_: str | None = None
    ) -> list[tuple[int, float]]:
        partition = (policy.name, one.tool.tool.name)
        await self._following.catch_up(partition)
        return await self._index.nearest(partition, vector, NEIGHBOURS, guard=guard_)

    async def _vectors(self, policy: Policy, asked: Sequence[Asked]) -> dict[str, Vector] | None:
        """A vector for each, by its key; None if the embedder is away."""
        if not asked:
            return {}
        texts = [text_of(one.tool.tool.name, one.call.kept) for one in asked]
        try:
            vectors = await self._embedder.embed(texts, tenant=policy.name)
        except EmbedderUnavailable:
            return None
        return {one.key: vector for one, vector in zip(asked, vectors, strict=True)}


_CAN_BE_SIMILAR = frozenset((Reason.NOT_RECORDED, Reason.WRITE))


def _under_lineage(hit: Hit, lineage: float) -> Hit:
    """What was recorded in this state, but the state follows a guess: right only if the guess was."""
    return Hit(
        tier=Tier.SIMILAR,
        donor=hit.donor,
        result=hit.result,
        trust=min(hit.trust, lineage),
        reason=Reason.LINEAGE if hit.tier is Tier.EXACT else hit.reason,
        score=hit.score,
        was_adapted=hit.was_adapted,
    )


def _sample(one: Asked, drawn: Sample) -> Hit:
    """One draw of the tool's own distribution: as true as any other."""
    donor = donor_id(one.key, drawn.result_digest)
    hit = Hit(tier=Tier.EXACT, donor=donor, result=drawn.result, trust=1.0, reason=Reason.SAMPLED)
    return hit if one.lineage >= 1.0 else _under_lineage(hit, one.lineage)


def _misses(one: Asked, reason: Reason) -> bool:
    return isinstance(one.answer, Miss) and one.answer.reason is reason


def _guessed(guess: Guess, one: Asked) -> Guess:
    one.note(f"approximate: {guess.donor} ({guess.reason})")
    trust = min(guess.trust, one.lineage)
    return Guess(donor=guess.donor, result=guess.result, trust=trust, reason=guess.reason, score=guess.score)
