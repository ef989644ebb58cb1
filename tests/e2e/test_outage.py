"""The cache service dies while a run trains, and comes back: real processes, a real kill -9."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.adapters.scripted_engine import ScriptedEngine, by_turn
from cacherl.demo.service import fill
from cacherl.reward.answer import MilestoneJudge
from cacherl.reward.process import ProcessWeights
from cacherl.reward.tier_aware import TierAwareReward
from cacherl.rollout.loop import Budgets, CacheAgentLoop
from cacherl.rollout.parser import Parser
from cacherl.rollout.renderer import Renderer
from cacherl.rollout.tools import Drop, ToolError, writing_tools
from cacherl.train.collector import Collector, FromCache
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.scoring import Scorer
from cacherl.worlds.record import record_runs, write_ndjson
from cacherl.worlds.support_desk import SupportDesk
from toolcache_client import AsyncCacheClient, CacheClient

WORLD = SupportDesk(seed=0)
TASK = next(task for task in WORLD.tasks("train", 20) if task.details["kind"] == "undo")


class Service:
    """A real `toolcache serve` on one store and port, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        program = Path(sys.executable).with_name("toolcache")
        self._command = [str(program), "serve", "--port", str(port), "--store", str(folder / "cache.sqlite3")]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        assert json.loads(self._process.stderr.readline())["event"] == "serving"

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.kill()


@pytest.fixture
def recorded(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many entries the cache holds; the client and the rollouts try again without long pauses."""
    monkeypatch.setattr("toolcache_client.client.RETRY_PAUSES_S", (0.0,))
    monkeypatch.setattr("cacherl.rollout.tools.OUTAGE_PAUSE_S", 0.05)
    recordings = tmp_path / "recordings.ndjson"
    write_ndjson(recordings, record_runs(WORLD, [TASK], runs_per_task=3, seed=0))
    with CacheClient(service.url) as client:
        return fill(client, WORLD, recordings).entries


def collector_of(service: Service, *, outage_patience_s: float) -> Collector:
    first = TASK.milestones[0]
    call = json.dumps({"name": first.tool, "arguments": dict(first.arguments)})
    script = by_turn(f"\n</think>\n\n<tool_call>\n{call}\n</tool_call>", "\n</think>\n\nDone.")
    tokenizer = HFTokenizer(make_byte_tokenizer())
    return Collector(
        CacheAgentLoop(ScriptedEngine(tokenizer, script), Renderer(tokenizer), Parser(WORLD.tools), budgets=Budgets()),
        WORLD,
        [TASK],
        FromCache(
            open_cache=lambda: AsyncCacheClient(service.url),
            namespace=WORLD.name,
            on_miss=ToolError(),
            on_outage=Drop(),
            outage_patience_s=outage_patience_s,
        ),
        Scorer(MilestoneJudge(writes=writing_tools(WORLD.tools)), TierAwareReward(), ProcessWeights()),
        GrpoSettings(),
    )


async def stops_and_tiers(collector: Collector, step: int) -> set[tuple[str, str | None, bool]]:
    played = await collector.collect([0, 0], step=step)
    return {(one.rollout.stop.value, one.rollout.worst_tier, one.reward is None) for one in played}


async def test_rollouts_of_an_outage_are_void_and_training_goes_on_when_the_cache_is_back(
    service: Service, recorded: int
) -> None:
    collector = collector_of(service, outage_patience_s=0.0)
    assert await stops_and_tiers(collector, 0) == {("answered", "exact", False)}
    service.kill()
    assert await stops_and_tiers(collector, 1) == {("infrastructure", None, True)}
    assert collector.outage_log.count == 2
    service.start()
    assert await stops_and_tiers(collector, 2) == {("answered", "exact", False)}
    await collector.aclose()

    with CacheClient(service.url) as client:
        assert client.stats(WORLD.name).entries == recorded > 0


async def test_rollouts_wait_for_a_cache_that_is_restarted_and_lose_nothing(service: Service, recorded: int) -> None:
    collector = collector_of(service, outage_patience_s=60.0)
    service.kill()
    step = asyncio.create_task(stops_and_tiers(collector, 0))
    async with asyncio.timeout(60):
        while True:
            if collector.outage_log.count == 2:  # both have found it away
                break
            await asyncio.sleep(0.01)
    await asyncio.to_thread(service.start)
    assert await step == {("answered", "exact", False)}
    assert (collector.outage_log.count, recorded > 0) == (2, True)
    await collector.aclose()
