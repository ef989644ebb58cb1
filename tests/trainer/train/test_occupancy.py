"""When an engine is busy, by a clock that is moved by hand."""

import asyncio
from collections.abc import Sequence

import pytest

from cacherl.errors import EngineFailed
from cacherl.rollout.engine import Generation, Sampling
from cacherl.train.occupancy import WatchedEngine

SAMPLING = Sampling(max_tokens=1, stop_id=0)
SAID = Generation(ids=(1,), logprobs=(-1.0,), finish_reason="stop")


class Held:
    """Answers when it is let go."""

    def __init__(self) -> None:
        self.answers: list[asyncio.Future[Generation]] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]


async def test_only_time_with_a_request_under_way_is_busy() -> None:
    now = 0.0
    held = Held()
    engine = WatchedEngine(held, clock=lambda: now)
    asked = []
    for begin in (1.0, 2.0):  # two overlap: 1 .. 4
        now = begin
        asked.append(asyncio.create_task(engine.generate([1], SAMPLING)))
        await asyncio.sleep(0)
    for end, answer in ((3.0, held.answers[0]), (4.0, held.answers[1])):
        now = end
        answer.set_result(SAID)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    now = 10.0  # idle since 4
    last = asyncio.create_task(engine.generate([1], SAMPLING))
    await asyncio.sleep(0)
    now = 12.0
    held.answers[2].set_exception(EngineFailed("gone"))
    with pytest.raises(EngineFailed):
        await last
    assert [await each for each in asked] == [SAID, SAID]
    assert engine.busy_seconds == 5.0
