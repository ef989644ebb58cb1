"""The engines' log-probabilities are the trainer's: a plain forward pass agrees to 1e-4 nats in float32."""

import asyncio
from collections.abc import Callable

import pytest

from cacherl.rollout.engine import Sampling
from tests.trainer.adapters.engines import KINDS, STOP, Opened, mismatch, prompts

TURNS = 4
"""Of each rollout; a later turn's prompt holds the earlier ones, as an agent's does, and may hit a prefix cache."""


@pytest.fixture(params=KINDS)
def one(request: pytest.FixtureRequest, open_once: Callable[..., Opened], temperature: float) -> Opened:
    if request.param == "vllm-server" and temperature != 1.0:
        pytest.skip("a second server takes a minute to start and would show what vllm in process shows")
    return open_once(request.param, temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("is_greedy", [False, True])
async def test_logprobs_of_rollouts_that_join_and_leave_are_those_of_a_plain_forward(
    one: Opened, temperature: float, is_greedy: bool
) -> None:
    sampled_at = 0.0 if is_greedy else temperature

    async def play(place: int, ids: list[int]) -> float:
        worst = 0.0
        for turn in range(TURNS):
            sampling = Sampling(
                max_tokens=5 + 11 * ((place + turn) % 5),
                stop_id=STOP,
                temperature=sampled_at,
                rollout=str(place),
                seed=100 * place + turn,
            )
            said = await one.engine.generate(ids, sampling)
            worst = max(worst, mismatch(one.model, ids, said, sampled_at))
            ids = [*ids, *said.ids, *prompts(place + 1)[-1][:20]]
        return worst

    worst = max(await asyncio.gather(*(play(i, prompt) for i, prompt in enumerate(prompts(16)))))
    assert worst < 1e-4
