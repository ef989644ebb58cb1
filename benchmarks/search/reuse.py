"""What a real ToolCache does with queries it has not seen: what it serves, how often that is right, what it says of it.

Of one part of the needs everything is recorded, so that there is something to learn from; of another only the first
wording; of the rest nothing. Then the cache is asked what it has not seen of the last two. The truth is the search.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from benchmarks.search.needs import Need
from benchmarks.search.overlap import rank_biased_overlap
from benchmarks.search.pairs import ROLES, TOOL, arguments
from benchmarks.search.retrieval import SearchTool
from benchmarks.search.rewording import Kind, Variation
from toolcache.adapters.faiss_index import FaissIndex
from toolcache.adapters.memory_leases import MemoryLeases
from toolcache.adapters.memory_store import MemoryStore
from toolcache.core.cache import Ask, Recording, ToolCache
from toolcache.core.entries import Result
from toolcache.core.ports import Embedder
from toolcache.core.tiers import Guess, Hit, Miss
from toolcache.core.tools import Effect, Namespace, Tier, Tool
from toolcache.core.trust import BAND_EDGES, band

NAMESPACE = "search"
ENVIRONMENT = "docs@1"
KNOWN, HELD_OUT = 0.5, 0.4
"""Shares of the needs of which everything, and of which only the first wording is recorded."""
FLOORS = (0.9, 0.5, 0.0)
"""Of `similar_floor`: the default, and what would be served below it."""
THRESHOLDS = (0.8, 0.9, 0.95, 0.98)
"""Least cosine at which a cache without guards would serve the nearest call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is recorded, and what is asked then. Nothing asked was recorded."""

    recorded: Mapping[str, Need]
    """Queries in the order in which they are recorded, each with the need it was asked for."""
    asked: tuple[Variation, ...]


def trial(needs: Sequence[Need], varied: Sequence[Variation], kinds: Collection[Kind], seed: int) -> Trial:
    """`kinds`: the variations that are recorded of the known needs. All kinds are asked of the held-out ones."""
    first, second = int(KNOWN * len(needs)), int((KNOWN + HELD_OUT) * len(needs))
    known, held_out, new = needs[:first], needs[first:second], needs[second:]
    recorded = [(need.query, need) for need in (*known, *held_out)]
    recorded += [(each.asked, each.need) for each in varied if each.need in known and each.kind in kinds]
    random.Random(f"order/{seed}").shuffle(recorded)
    asked = [each for each in varied if each.need in held_out]
    asked += [Variation(need=need, kind=Kind.NEED, asked=need.query) for need in new]
    by_query = dict(recorded)
    return Trial(recorded=by_query, asked=tuple(each for each in asked if each.asked not in by_query))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one question."""

    kind: Kind
    miss: str = ""
    """Why nothing was served; the following say nothing then."""
    is_right: bool = False
    is_of_need: bool = False
    """Whether the donor had been asked for the same need."""
    overlap: float = 0.0
    """Rank-biased, of what was served with the truth."""
    trust: float = 0.0
    score: float = 0.0


class Replay:
    """One trial over one search, for one value of k: recorded and calibrated once, asked under several policies."""

    def __init__(self, tool: SearchTool, embedder: Embedder, k: int) -> None:
        self._tool = tool
        self._k = k
        chance = random.Random(0)
        self._cache = ToolCache(
            MemoryStore(), MemoryLeases(lambda: 0.0), FaissIndex(), embedder, clock=lambda: 0.0, chance=chance.random
        )
        self._query_of: dict[str, str] = {}
        self._need_of: Mapping[str, Need] = {}

    async def record(self, queries: Mapping[str, Need]) -> None:
        """The queries with their results."""
        self._need_of = queries
        await self._cache.put_namespace(namespace(floor=FLOORS[0]))
        done = await self._cache.record(
            NAMESPACE,
            [
                Recording(
                    tool=TOOL,
                    arguments=arguments(query, self._k),
                    environment=ENVIRONMENT,
                    result=Result(content=self._tool.content(query, self._k)),
                )
                for query in queries
            ],
        )
        self._query_of = {each.entry: query for each, query in zip(done, queries, strict=True)}

    async def learn(self, policy: Namespace) -> None:
        """Trust in the kinds of answers that the policy allows."""
        await self._cache.put_namespace(policy)
        await self._cache.calibrate(NAMESPACE)

    async def ask(self, asked: Sequence[Variation], policy: Namespace) -> list[Outcome]:
        await self._cache.put_namespace(policy)
        questions = [
            Ask(tool=TOOL, arguments=arguments(each.asked, self._k), environment=ENVIRONMENT) for each in asked
        ]
        answered = await self._cache.lookup(NAMESPACE, questions)
        return [self._outcome(each, one.answer) for each, one in zip(asked, answered, strict=True)]

    def _outcome(self, asked: Variation, answer: Hit | Guess | Miss) -> Outcome:
        if isinstance(answer, Miss):
            return Outcome(kind=asked.kind, miss=answer.reason.value)
        donor = self._query_of[answer.donor]
        truth = Result(content=self._tool.content(asked.asked, self._k))
        return Outcome(
            kind=asked.kind,
            is_right=answer.result.digest() == truth.digest(),
            is_of_need=self._need_of[donor] == asked.need,
            overlap=rank_biased_overlap(self._tool.ids(donor, self._k), self._tool.ids(asked.asked, self._k)),
            trust=answer.trust,
            score=answer.score or 0.0,
        )


def namespace(*, floor: float) -> Namespace:
    """The search tool as an operator would declare it."""
    tool = Tool(
        name=TOOL,
        parameters={
            "type": "object",
            "properties": {"query": {"type": "string"}, "k": {"type": "integer"}},
            "required": ["query", "k"],
        },
        effect=Effect.READ,
        roles=ROLES,
        similar_floor=floor,
    )
    return Namespace(name=NAMESPACE, tools={TOOL: tool})


def unguarded() -> Namespace:
    """The nearest recorded call by cosine alone, however far, which the cache serves as a guess."""
    return replace(namespace(floor=FLOORS[0]), tiers=frozenset({Tier.EXACT, Tier.APPROXIMATE}))


async def replayed(tool: SearchTool, embedder: Embedder, k: int, planned: Trial) -> dict[str, Any]:
    """The trial under every policy: `floor 0.9` and lower ones, then `cosine 0.80` and so on, without guards."""
    replay = Replay(tool, embedder, k)
    await replay.record(planned.recorded)
    await replay.learn(namespace(floor=FLOORS[0]))
    found = {f"floor {floor:g}": detailed(await replay.ask(planned.asked, namespace(floor=floor))) for floor in FLOORS}
    await replay.learn(unguarded())
    guesses = await replay.ask(planned.asked, unguarded())
    return found | {f"cosine {least:g}": summary([_at_least(one, least) for one in guesses]) for least in THRESHOLDS}


def _at_least(outcome: Outcome, threshold: float) -> Outcome:
    return outcome if outcome.score >= threshold else Outcome(kind=outcome.kind, miss="below_threshold")


# -- what is told of it ------------------------------------------------------------------------------------------------


def detailed(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The summary, over all, by kind and by band of cosine."""
    served = [one for one in outcomes if not one.miss]
    kinds = {kind.value: [one for one in outcomes if one.kind is kind] for kind in Kind}
    bands = {f"{edge:.2f}": [one for one in served if band(one.score) == n] for n, edge in enumerate(BAND_EDGES)}
    return summary(outcomes) | {"by_kind": _each(kinds), "by_band": _each(bands)}


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts, and what was served: how right, how trusted."""
    served = [one for one in outcomes if not one.miss]
    misleading = [one for one in served if not one.kind.keeps_meaning]
    counts: dict[str, Any] = {
        "asked": len(outcomes),
        "served": len(served),
        "right": sum(one.is_right for one in served),
        "near_misses_served": len(misleading),
        "near_misses_right": sum(one.is_right for one in misleading),
        "of_another_need": sum(not one.is_of_need for one in served),
        "misses": dict(sorted(Counter(one.miss for one in outcomes if one.miss).items())),
    }
    if served:
        counts |= {
            "precision": fmean(one.is_right for one in served),
            "mean_trust": fmean(one.trust for one in served),
            "calibration_error": calibration_error(served),
            "rank_biased_overlap": fmean(one.overlap for one in served),
        }
    return counts


def _each(parts: Mapping[str, Sequence[Outcome]]) -> dict[str, dict[str, Any]]:
    """Of each part that there is, what tells it from the others."""
    names = ("asked", "served", "right", "misses", "mean_trust")
    summaries = {name: summary(part) for name, part in parts.items() if part}
    return {part: {name: each[name] for name in names if name in each} for part, each in summaries.items()}


def calibration_error(served: Sequence[Outcome]) -> float:
    """How far trust is from the truth: over the bands of cosine, weighted by answers, the distance between the mean
    trust and the share that was right (expected calibration error; Naeini, Cooper and Hauskrecht, AAAI 2015, with the
    cache's own bands in place of equal ones)."""
    bands = [[one for one in served if band(one.score) == n] for n in range(len(BAND_EDGES))]
    return sum(abs(sum(one.trust - one.is_right for one in own)) for own in bands) / len(served)
