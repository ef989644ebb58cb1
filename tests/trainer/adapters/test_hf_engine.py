import asyncio
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3ForCausalLM

from cacherl.adapters.hf_engine import HFEngine, sample
from cacherl.errors import EngineFailed
from cacherl.rollout.engine import Generation, Sampling

STOP = 258


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(250) for _ in range(rng.randint(1, 60))] for _ in range(count)]


def sampling(place: int, **changes: float) -> Sampling:
    return Sampling(**{"max_tokens": 5 + 13 * (place % 9), "stop_id": STOP, "seed": place, **changes})  # type: ignore[arg-type]


async def together(engine: HFEngine, asked: list[tuple[list[int], Sampling]]) -> list[Generation]:
    """All at once, but every third one a little later, so that rows join a running batch."""

    async def one(place: int, prompt: list[int], how: Sampling) -> Generation:
        if place % 3 == 2:
            await engine.generate(prompt[:3], Sampling(max_tokens=3, stop_id=STOP))
        return await engine.generate(prompt, how)

    return await asyncio.gather(*(one(i, p, s) for i, (p, s) in enumerate(asked)))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_a_batch_that_rows_join_and_leave_are_those_of_a_plain_forward(
    model: Qwen3ForCausalLM, temperature: float
) -> None:
    asked = [(prompt, sampling(i, temperature=temperature)) for i, prompt in enumerate(prompts(24))]
    with HFEngine(model, max_rows=10) as engine:
        generations = asyncio.run(together(engine, asked))
    worst = 0.0
    for (prompt, _), generation in zip(asked, generations, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + list(generation.ids)])).logits[0, len(prompt) - 1 : -1]
        plain = torch.log_softmax(logits.float() / temperature, -1)
        picked = plain.gather(-1, torch.tensor(generation.ids)[:, None]).squeeze(-1)
        worst = max(worst, (picked - torch.tensor(generation.logprobs)).abs().max().item())
    assert worst < 1e-4


def test_a_row_samples_the_same_alone_and_in_company(model: Qwen3ForCausalLM) -> None:
    asked = [(prompt, sampling(i)) for i, prompt in enumerate(prompts(8))]
    with HFEngine(model) as engine:
        company = asyncio.run(together(engine, asked))
        alone = [asyncio.run(engine.generate(prompt, how)) for prompt, how in asked]
    assert [g.ids for g in alone] == [g.ids for g in company]


def test_greedy_is_the_likeliest_token_each_time(model: Qwen3ForCausalLM) -> None:
    prompt = prompts(1)[0]
    with HFEngine(model) as engine:
        said = asyncio.run(engine.generate(prompt, Sampling(max_tokens=20, stop_id=STOP, temperature=0.0))).ids
    ids = list(prompt)
    for token in said:
        with torch.no_grad():
            assert model(torch.tensor([ids])).logits[0, -1].argmax().item() == token
        ids.append(token)


def test_generation_ends_with_the_stop_token_or_at_the_limit(model: Qwen3ForCausalLM) -> None:
    prompt = [1, 2, 3]
    with HFEngine(model) as engine:
        free = asyncio.run(engine.generate(prompt, Sampling(max_tokens=12, stop_id=STOP)))
        stop = free.ids[5]
        cut = asyncio.run(engine.generate(prompt, Sampling(max_tokens=12, stop_id=stop)))
    assert (len(free.ids), free.finish_reason) == (12, "length")
    assert (cut.ids, cut.finish_reason) == (free.ids[: free.ids.index(stop) + 1], "stop")


def test_generations_carry_the_version_of_the_weights(model: Qwen3ForCausalLM) -> None:
    with HFEngine(model) as engine:
        engine.weight_version = 7
        assert asyncio.run(engine.generate([1], Sampling(max_tokens=1, stop_id=STOP))).weight_version == 7


def test_a_model_in_training_mode_and_a_closed_engine_fail_loudly(model: Qwen3ForCausalLM) -> None:
    one = Sampling(max_tokens=1, stop_id=STOP)
    with HFEngine(model) as engine:
        model.train()
        with pytest.raises(EngineFailed, match="training mode"):
            asyncio.run(engine.generate([1], one))
        model.eval()
        assert len(asyncio.run(engine.generate([1], one)).ids) == 1
    with pytest.raises(EngineFailed, match="closed"):
        asyncio.run(engine.generate([1], one))


def test_a_request_the_model_cannot_serve_fails_alone(model: Qwen3ForCausalLM) -> None:
    one = Sampling(max_tokens=1, stop_id=STOP)
    with HFEngine(model) as engine:
        with pytest.raises(EngineFailed, match="generation failed"):
            asyncio.run(engine.generate([10**6], one))
        assert len(asyncio.run(engine.generate([1], one)).ids) == 1


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=6), st.floats(0, 1, exclude_max=True))
def test_the_token_drawn_is_where_the_cumulated_probability_passes_the_draw(logits: list[float], draw: float) -> None:
    row = torch.tensor([logits])
    [token], [logprob] = sample(row, temperatures=[1.0], draws=[draw])
    cumulated = row[0].double().softmax(-1).cumsum(-1)
    before = cumulated[token - 1].item() if token else 0.0
    assert before - 1e-6 <= draw <= cumulated[token].item() + 1e-6
    assert logprob == pytest.approx(row[0].log_softmax(-1)[token].item(), abs=1e-5)
