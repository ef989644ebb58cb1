"""How the groups of a step are played, scored and replaced; the engine says what a script tells it."""

import asyncio
import gc
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.adapters.memory_cache import MemoryCache
from cacherl.adapters.scripted_engine import ScriptedEngine
from cacherl.errors import EngineFailed
from cacherl.reward.process import ProcessWeights
from cacherl.reward.tier_aware import TierAwareReward
from cacherl.rollout.engine import Engine, Generation, Sampling
from cacherl.rollout.loop import Budgets, CacheAgentLoop
from cacherl.rollout.parser import Parser
from cacherl.rollout.renderer import Renderer
from cacherl.rollout.rollout import Rollout
from cacherl.rollout.tools import CacheLookup, writing_tools
from cacherl.train.collector import Collector, FromCache, FromWorld, ToolSource
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.scoring import ScoredRollout, Scorer
from cacherl.worlds.support_desk import SupportDesk
from cacherl.worlds.world import Task
from toolcache_client.errors import CacheRefused, CacheUnavailable
from toolcache_client.messages import Answer, LookupItem, OnMiss
from toolcache_client.resolve import LEASE_S

WORLD = SupportDesk(seed=0)
TASKS = WORLD.tasks("train", 8)
TOKENIZER = HFTokenizer(make_byte_tokenizer())
SETTINGS = GrpoSettings(prompts_per_step=2, group_size=2, micro_batch=1)
ASKS = '\n</think>\n\n<tool_call>\n{"name": "get_order", "arguments": {"order_id": "1"}}\n</tool_call>'


class DiffersFor:
    """Scores 0, 1, 0, 1, ... for the tasks it is told, 1 for all others."""

    def __init__(self, *indices: int) -> None:
        self._ids = {TASKS[index].id for index in indices}
        self._count = itertools.count()

    def score(self, rollout: Rollout, task: Task) -> float:
        return float(next(self._count) % 2) if task.id in self._ids else 1.0


class Sampled:
    """Answers at once and notes whom it was asked by."""

    def __init__(self, reply: Callable[[str], str] = lambda prompt: "\n</think>\n\nHi.") -> None:
        self.asked: list[Sampling] = []
        self.under_way = self.most_under_way = 0
        self._engine = ScriptedEngine(TOKENIZER, reply)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        self.asked.append(sampling)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        return await self._engine.generate(prompt_ids, sampling)


def collector(
    engine: Engine,
    judge: DiffersFor,
    settings: GrpoSettings = SETTINGS,
    source: ToolSource | None = None,
    progress: Callable[[Rollout, int, int], None] | None = None,
) -> Collector:
    loop = CacheAgentLoop(engine, Renderer(TOKENIZER), Parser(WORLD.tools), budgets=Budgets())
    scorer = Scorer(judge, TierAwareReward(), ProcessWeights())
    return Collector(loop, WORLD, TASKS, source or FromWorld(), scorer, settings, progress)


def tasks_of(scored: Sequence[ScoredRollout]) -> list[int]:
    ids = [task.id for task in TASKS]
    return [ids.index(one.rollout.task_id) for one in scored]


async def test_rollouts_come_back_in_the_order_asked_for_in_groups_with_seeds_and_names_of_their_own() -> None:
    engine = Sampled()
    scored = await collector(engine, DiffersFor()).collect([3, 3, 1, 1], step=5)
    assert tasks_of(scored) == [3, 3, 1, 1]
    groups = [one.rollout.group.partition("/")[2] for one in scored]
    assert groups == [f"5/{TASKS[3].id}"] * 2 + [f"5/{TASKS[1].id}"] * 2
    assert len({asked.seed for asked in engine.asked}) == len({asked.rollout for asked in engine.asked}) == 4
    assert not any(one.is_replaced for one in scored)


async def test_a_share_of_a_step_is_played_as_it_would_be_in_the_whole_step() -> None:
    whole, first, second = Sampled(), Sampled(), Sampled()
    await collector(whole, DiffersFor()).collect([3, 3, 1, 1], step=5)
    await collector(first, DiffersFor()).collect([3, 3], step=5)
    await collector(second, DiffersFor()).collect([1, 1], step=5, first_place=1)

    def asked(*engines: Sampled) -> set[tuple[str, int]]:
        return {(one.rollout.partition("/")[2], one.seed) for engine in engines for one in engine.asked}

    assert asked(whole) == asked(first, second)


async def test_a_step_that_is_played_again_bears_other_names_and_the_same_seeds() -> None:
    """Groups and rollouts of two jobs, or of a step and its replay, must not share draws of a stochastic tool."""
    once, again = Sampled(), Sampled()
    groups = []
    for engine in (once, again):
        scored = await collector(engine, DiffersFor()).collect([3, 3], step=5)
        groups.append({one.rollout.group for one in scored})
    assert [one.seed for one in once.asked] == [one.seed for one in again.asked]
    assert len(groups[0]) == len(groups[1]) == 1
    assert not groups[0] & groups[1]
    assert not {one.rollout for one in once.asked} & {one.rollout for one in again.asked}


async def test_a_group_with_equal_rewards_makes_way_for_its_stand_in_and_others_stay() -> None:
    engine = Sampled()
    scored = await collector(engine, DiffersFor(1, 4)).collect([3, 3, 1, 1], step=0, stand_ins=[[4], [5]])
    assert tasks_of(scored) == [4, 4, 1, 1, 3, 3]
    assert [one.is_replaced for one in scored] == [False] * 4 + [True] * 2
    assert len({asked.seed for asked in engine.asked}) == 6


async def test_after_its_last_try_a_place_keeps_what_it_has() -> None:
    scored = await collector(Sampled(), DiffersFor()).collect([3, 3], step=0, stand_ins=[[4, 5]])
    assert tasks_of(scored) == [5, 5, 3, 3, 4, 4]
    assert [one.is_replaced for one in scored] == [False] * 2 + [True] * 4


async def test_a_group_that_is_all_void_is_replaced_and_stays_counted() -> None:
    class FailsFor(Sampled):
        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
            if TASKS[3].prompt in TOKENIZER.decode(prompt_ids):
                raise EngineFailed("out of memory")
            return await super().generate(prompt_ids, sampling)

    scored = await collector(FailsFor(), DiffersFor(4)).collect([3, 3], step=0, stand_ins=[[4]])
    assert tasks_of(scored) == [4, 4, 3, 3]
    assert [one.reward is None for one in scored] == [False, False, True, True]


async def test_a_group_whose_tokens_are_all_masked_is_replaced_though_its_rewards_differ() -> None:
    engine = Sampled(lambda prompt: "." * 200 if TASKS[3].prompt in prompt else "\n</think>\n\nHi.")
    short = replace(SETTINGS, budgets=Budgets(turn_tokens=50))
    judge = DiffersFor(3, 4)
    loop = CacheAgentLoop(engine, Renderer(TOKENIZER), Parser(WORLD.tools), budgets=short.budgets)
    cut = Collector(loop, WORLD, TASKS, FromWorld(), Scorer(judge, TierAwareReward(), ProcessWeights()), short)
    assert tasks_of(await cut.collect([3, 3], step=0, stand_ins=[[4]])) == [4, 4, 3, 3]


async def test_a_replacement_plays_while_other_groups_still_do() -> None:
    class Waiting(Sampled):
        """Task 1 is held until the stand-in has been asked for: with a barrier between them nobody would ever go on."""

        seen = asyncio.Event()

        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
            prompt = TOKENIZER.decode(prompt_ids)
            if TASKS[4].prompt in prompt:
                self.seen.set()
            if TASKS[1].prompt in prompt:
                await self.seen.wait()
            return await super().generate(prompt_ids, sampling)

    played = collector(Waiting(), DiffersFor(1, 4)).collect([3, 3, 1, 1], step=0, stand_ins=[[4], []])
    assert tasks_of(await asyncio.wait_for(played, 20)) == [4, 4, 1, 1, 3, 3]


async def test_no_more_rollouts_are_under_way_than_is_allowed_replacements_included() -> None:
    engine = Sampled()
    settings = replace(SETTINGS, concurrency=3)
    await collector(engine, DiffersFor(), settings).collect([0, 0, 1, 1, 2, 2], step=0, stand_ins=[[3], [4], [5]])
    assert len(engine.asked) == 12
    assert engine.most_under_way == 3


async def test_progress_counts_replacements_as_they_are_decided() -> None:
    told: list[tuple[int, int]] = []
    await collector(Sampled(), DiffersFor(), progress=lambda _, done, of: told.append((done, of))).collect(
        [3, 3], step=0, stand_ins=[[4]]
    )
    assert told == [(1, 2), (2, 2), (3, 4), (4, 4)]


# ---- the cache: one client a run


def cached(cache: CacheLookup, closed: list[bool]) -> FromCache:
    @asynccontextmanager
    async def open_cache() -> AsyncIterator[CacheLookup]:
        yield cache
        closed.append(True)

    return FromCache(open_cache=open_cache, namespace="support_desk", outage_patience_s=0.0)


class Down(MemoryCache):
    def __init__(self, error: Exception) -> None:
        super().__init__(writing_tools(WORLD.tools))
        self._error = error

    async def lookup(
        self,
        namespace: str,
        items: Sequence[LookupItem],
        *,
        on_miss: OnMiss = "fail",
        wait_s: float = 0.0,
        lease_s: float = LEASE_S,
    ) -> list[Answer]:
        raise self._error


async def test_a_cache_that_is_down_voids_the_rollouts_that_ask_it_and_no_others() -> None:
    closed: list[bool] = []
    engine = Sampled(lambda prompt: ASKS if TASKS[0].prompt in prompt else "\n</think>\n\nHi.")
    down = collector(engine, DiffersFor(), source=cached(Down(CacheUnavailable("no answer in 2 s")), closed))
    scored = await down.collect([0, 0, 1, 1], step=0)
    assert [one.rollout.stop.value for one in scored] == ["infrastructure"] * 2 + ["answered"] * 2
    assert [one.reward is None for one in scored] == [True, True, False, False]
    assert down.outage_log.count == 2
    assert not closed
    await down.aclose()
    assert closed == [True]


async def test_a_cache_that_refuses_the_run_ends_it_with_its_own_words() -> None:
    refused = Down(CacheRefused(status=404, code="unknown_namespace", detail="no namespace support_desk"))
    run = collector(Sampled(lambda prompt: ASKS), DiffersFor(), source=cached(refused, []))
    with pytest.raises(CacheRefused, match="no namespace support_desk"):
        await run.collect([0, 0, 1, 1], step=0)
    await run.aclose()


async def test_two_shares_that_begin_together_open_one_client() -> None:
    opened = 0

    @asynccontextmanager
    async def open_cache() -> AsyncIterator[CacheLookup]:
        nonlocal opened
        opened += 1
        await asyncio.sleep(0)
        yield MemoryCache(writing_tools(WORLD.tools))

    run = collector(Sampled(), DiffersFor(), source=FromCache(open_cache=open_cache, namespace="support_desk"))
    await asyncio.gather(run.collect([0, 0], step=0), run.collect([1, 1], step=0, first_place=1))
    assert opened == 1
    await run.aclose()


async def test_what_lives_when_the_first_rollout_begins_is_out_of_later_collections_and_that_once() -> None:
    run = collector(Sampled(), DiffersFor())
    gc.unfreeze()
    await run.collect([0, 0], step=0)
    frozen = gc.get_freeze_count()
    await run.collect([0, 0], step=1)
    assert frozen > 1000
    assert gc.get_freeze_count() <= frozen


# ---- the judge


async def test_a_judge_that_gives_no_score_in_time_voids_its_rollout_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacherl.train.collector.JUDGE_PATIENCE_S", 0.2)
    may_end = threading.Event()

    class Stuck(DiffersFor):
        def score(self, rollout: Rollout, task: Task) -> float:
            if task.id == TASKS[3].id:
                assert may_end.wait(20.0)
            return super().score(rollout, task)

    told: list[bool] = []
    run = collector(Sampled(), Stuck(), progress=lambda rollout, done, of: told.append(rollout.stop.is_void))
    try:
        scored = await run.collect([3, 3, 1, 1], step=0)
    finally:
        may_end.set()
    assert [one.reward is None for one in scored] == [True, True, False, False]
    assert [one.rollout.why for one in scored] == ["the judge gave no score in 0.2 s"] * 2 + [""] * 2
    assert [one.rollout.stop.is_void for one in scored] == [True, True, False, False]
    assert sorted(told) == [False, False, True, True]


@pytest.mark.parametrize("error", [KeyError("no choices in the reply"), TimeoutError("the judge's own")])
async def test_a_judge_that_fails_ends_the_run_and_names_the_rollout(error: Exception) -> None:
    class Failing(DiffersFor):
        def score(self, rollout: Rollout, task: Task) -> float:
            raise error

    engine = Sampled()
    with pytest.raises(type(error)) as raised:
        await collector(engine, Failing()).collect([3], step=0)
    assert raised.value.__notes__ == [f"task {TASKS[3].id}, rollout {engine.asked[0].rollout}: judging it failed"]


async def test_as_many_judges_work_at_once_as_rollouts_do() -> None:
    many = 40  # more than the threads that asyncio keeps for a machine of few cores
    together = threading.Barrier(many)

    class Meeting(DiffersFor):
        def score(self, rollout: Rollout, task: Task) -> float:
            together.wait(20.0)
            return super().score(rollout, task)

    settings = replace(SETTINGS, group_size=many, concurrency=many)
    assert len(await collector(Sampled(), Meeting(), settings).collect([3] * many, step=0)) == many
