"""The rollout benchmark in miniature: each part runs and tells what it is there to tell. No time is judged here."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cache import servers
from benchmarks.cache.servers import Server
from benchmarks.rollout import __main__ as program
from benchmarks.rollout.callbacks import Watch, watched
from benchmarks.rollout.lockstep import lockstep
from benchmarks.rollout.long_prompts import LongSizes
from benchmarks.rollout.paced import PacedEngine, quantile_ms
from benchmarks.rollout.shop import Shop, Sizes, make_shop, turns
from benchmarks.rollout.waiting import waiting
from cacherl.rollout.engine import Sampling
from cacherl.rollout.loop import turn_seed

FEW = Sizes(groups=2, group_size=3, tokens_per_s=4000.0, live_s=0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.toolcache(str(tmp_path_factory.mktemp("rollout") / "cache.sqlite3")) as running:
        yield running


@pytest.fixture(scope="module")
def shop() -> Shop:
    return make_shop(FEW)


@pytest.fixture(scope="module")
def played(server: Server, shop: Shop) -> dict[str, Any]:
    fresh = replace(shop, namespace="played")
    fresh.fill(server.url)
    return asyncio.run(waiting(server, fresh, batched=True))


# -- the shop ----------------------------------------------------------------------------------------------------------


def test_every_turn_of_every_rollout_has_a_line_that_ends_the_turn(shop: Shop) -> None:
    end = shop.tokenizer.encode("<|im_end|>")
    assert len(shop.lines) == FEW.rollouts * 6
    assert all(ids[-1:] == tuple(end) and end[0] not in ids[:-1] for ids in shop.lines.values())


def test_a_turn_is_as_long_as_drawn_whatever_it_says(shop: Shop) -> None:
    same_length = Shop(replace(FEW, sigma=0.0), shop.tokenizer)
    assert {len(ids) for ids in same_length.lines.values()} == {180}


def test_rollouts_of_a_group_ask_the_same_but_for_the_wording_of_their_search() -> None:
    one, other = turns(0, 0), turns(0, 1)
    assert one[1] != other[1]
    assert [each for n, each in enumerate(one) if n != 1] == [each for n, each in enumerate(other) if n != 1]
    assert turns(1, 0)[0] != one[0]


def test_the_engine_takes_its_tokens_divided_by_its_rate(shop: Shop) -> None:
    slept: list[float] = []

    async def generate() -> int:
        loop = asyncio.get_running_loop()
        engine = PacedEngine({7: (1,) * 100}, tokens_per_s=50.0)
        task = asyncio.create_task(engine.generate([1], Sampling(max_tokens=200, stop_id=0, seed=7)))
        await asyncio.sleep(0)
        slept.extend(handle.when() - loop.time() for handle in loop._scheduled)  # type: ignore[attr-defined]
        task.cancel()
        return len(slept)

    assert asyncio.run(generate()) == 1
    assert 1.5 < slept[0] <= 2.0


def test_a_line_beyond_the_budget_is_an_error_and_not_cut() -> None:
    engine = PacedEngine({turn_seed(0, 0): (1,) * 9}, tokens_per_s=1e9)
    with pytest.raises(ValueError, match="9 tokens"):
        asyncio.run(engine.generate([1], Sampling(max_tokens=8, stop_id=0, seed=turn_seed(0, 0))))


# -- waiting for the cache ---------------------------------------------------------------------------------------------


def test_a_feed_is_executed_once_a_group_and_everything_else_is_answered_by_the_cache(played: dict[str, Any]) -> None:
    mix = played["tier_mix"]
    assert played["calls"] == 10 * FEW.rollouts
    assert mix["live"] == FEW.groups
    assert mix["similar"] == FEW.rollouts
    assert mix["exact"] == played["calls"] - mix["live"] - mix["similar"]


def test_the_share_is_the_cache_s_time_over_the_rollouts_time(played: dict[str, Any]) -> None:
    assert played["cache_share"] == pytest.approx(played["cache_s"] / played["rollout_s"])
    assert 0.0 < played["cache_s"] <= played["tool_s"] < played["rollout_s"]
    assert played["generate_s"] + played["tool_s"] <= played["rollout_s"]


def test_every_turn_with_calls_is_a_lookup_whose_time_is_told(played: dict[str, Any]) -> None:
    assert played["lookups"] >= 5 * FEW.rollouts
    assert 0.0 < played["lookup_p50_ms"] <= played["lookup_p99_ms"]
    assert played["service_cores"] >= 0.0 < played["trainer_cores"]


def test_the_step_is_not_shorter_than_its_longest_rollout(played: dict[str, Any]) -> None:
    assert 0.0 < played["longest_rollout_s"] <= played["step_s"]


def test_rollouts_in_lockstep_play_the_same_calls_and_wait_for_each_other(server: Server, shop: Shop) -> None:
    fresh = replace(shop, namespace="lockstep")
    fresh.fill(server.url)
    told = asyncio.run(lockstep(server, fresh))
    longest_turns_s = sum(
        max(len(shop.lines[turn_seed(shop.rollout_seed(*place), turn)]) for place in shop.places) / FEW.tokens_per_s
        for turn in range(6)
    )
    assert told["step_s"] >= longest_turns_s
    assert 0.0 < told["longest_rollout_s"] <= told["step_s"]


def test_rollouts_that_did_not_go_as_planned_are_an_error(server: Server, shop: Shop) -> None:
    absent = replace(shop, namespace="never filled")
    with pytest.raises(Exception, match="never filled"):
        asyncio.run(waiting(server, absent, batched=False))


# -- callbacks ---------------------------------------------------------------------------------------------------------


def test_a_callback_that_works_is_seen_by_name_and_one_that_sleeps_in_wall_time_only() -> None:
    async def busy() -> None:
        await asyncio.sleep(0)
        until_s = time.thread_time() + 0.02
        while time.thread_time() < until_s:
            pass

    async def asleep() -> None:
        await asyncio.sleep(0)
        time.sleep(0.02)  # noqa: ASYNC251 - holding the loop is what is to be seen

    async def both() -> Watch:
        async with watched() as watch:
            await asyncio.create_task(busy())
            await asyncio.create_task(asleep())
        return watch

    told = asyncio.run(both()).told()
    assert told["where"][0]["name"].endswith("busy after sleep")
    assert told["where"][0]["longest_ms"] >= 20.0
    assert told["above_5_ms"] == 1
    assert told["wall"]["above_5_ms"] >= 2


def test_callbacks_of_another_thread_s_loop_are_not_counted_and_nothing_is_after_the_watch() -> None:
    async def elsewhere() -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    async def watch_while_another_runs() -> Watch:
        async with watched() as watch:
            thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
            thread.start()
            await asyncio.to_thread(thread.join)
        seen = len(watch.names)
        await elsewhere()
        assert len(watch.names) <= seen + 1  # the callback in which the watch itself ended
        return watch

    assert not any("elsewhere" in name for name in asyncio.run(watch_while_another_runs()).names)


def test_a_garbage_collection_is_told_by_itself_and_not_as_the_callback_s_own_work() -> None:
    kept = [[n] for n in range(200_000)]  # out here: to let go of it is work of its own

    async def collect() -> Watch:
        async with watched() as watch:
            await asyncio.sleep(0)
            gc.collect()
            await asyncio.sleep(0)
        return watch

    watch = asyncio.run(collect())
    assert len(kept) == 200_000
    assert max(watch.collecting_s) > 0.0
    assert max(watch.own_s) < max(watch.collecting_s) / 2


def test_a_quantile_is_the_value_that_the_share_does_not_exceed() -> None:
    assert quantile_ms([0.004, 0.001, 0.003, 0.002], 0.5) == 3.0
    assert quantile_ms([0.001, 0.002], 1.0) == 2.0
    assert quantile_ms([], 0.5) is None


# -- long prompts, and the program -------------------------------------------------------------------------------------


def test_long_prompts_are_played_with_a_scripted_and_with_a_real_model(shop: Shop) -> None:
    sizes = LongSizes(
        prompt_tokens=300,
        turn_tokens=50,
        result_tokens=40,
        scripted_rollouts=3,
        hf_rollouts=2,
        hf_result_tokens=20,
        hf_turn_tokens=2,
    )
    told = program.measure_long_prompts(shop, sizes)
    for name, rollouts in (("scripted", 3), ("hugging_face", 2)):
        assert told[name]["rollouts"] == rollouts
        assert told[name]["stops"] == ["answered"]
        assert 300 <= told[name]["prompt_tokens"] < 340
        assert told[name]["event_loop"]["callbacks"] > 0
    assert told["scripted"]["longest_rollout_tokens"] > 300 + 6 * 50 + 10 * 40


def test_the_table_tells_each_reach_with_what_was_measured(played: dict[str, Any], tmp_path: Path) -> None:
    lockstep_told = {"step_s": 3 * played["longest_rollout_s"], "longest_rollout_s": 1.0}
    rounds = [{"load_before": 0.0, "batched": played, "one_by_one": played, "lockstep": lockstep_told}]
    made = program.table({"machine": {"cpu": "a", "cores": 1, "python": "3"}, "waiting": {"rounds": rounds}})
    told = dict(zip(made.columns[0].cells, zip(made.columns[1].cells, made.columns[2].cells, strict=True), strict=True))
    assert told["waiting for the cache, 6 rollouts, batched"] == (f"{played['cache_share']:.3%}", "< 2 %")
    assert told["step time / longest rollout, lockstep"] == ("3.000x", "")
    assert told["longest callback, 6 rollouts, round 1"][1] == "<= 5 ms"
