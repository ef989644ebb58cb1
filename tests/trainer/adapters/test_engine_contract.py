"""What every engine that follows a model keeps, whoever samples."""

import asyncio
from collections.abc import Callable

import pytest
import torch

from cacherl.errors import EngineFailed
from cacherl.rollout.engine import Generation, Sampling
from tests.trainer.adapters.engines import KINDS, STOP, Opened, mismatch, opened, prompts, trainer_logprobs

LONG = prompts(1, longest=1)[0] * 300
"""Several blocks of any prefix cache."""


@pytest.fixture(params=KINDS)
def one(request: pytest.FixtureRequest, open_once: Callable[..., Opened]) -> Opened:
    return open_once(request.param)


def how(**changes: float) -> Sampling:
    return Sampling(**{"max_tokens": 12, "stop_id": STOP, **changes})  # type: ignore[arg-type]


async def together(one: Opened, asked: list[tuple[list[int], Sampling]]) -> list[Generation]:
    """All at once, but every third one a little later, so that it joins what is under way."""

    async def later(place: int, prompt: list[int], sampling: Sampling) -> Generation:
        if place % 3 == 2:
            await one.engine.generate(prompt[:3], how(max_tokens=3))
        return await one.engine.generate(prompt, sampling)

    return await asyncio.gather(*(later(i, p, s) for i, (p, s) in enumerate(asked)))


async def test_a_generation_ends_with_the_stop_token_or_at_the_limit(one: Opened) -> None:
    free = await one.engine.generate([1, 2, 3], how())
    stop = free.ids[5]
    cut = await one.engine.generate([1, 2, 3], how(stop_id=stop))
    assert (len(free.ids), free.finish_reason) == (12, "length")
    assert (cut.ids, cut.finish_reason) == (free.ids[: free.ids.index(stop) + 1], "stop")


async def test_a_stop_token_at_the_very_limit_is_a_stop(one: Opened) -> None:
    free = await one.engine.generate([1, 2, 3], how())
    first = free.ids.index(free.ids[5])
    last = await one.engine.generate([1, 2, 3], how(stop_id=free.ids[5], max_tokens=first + 1))
    assert last.finish_reason == "stop"


async def test_only_the_stop_token_ends_a_generation(one: Opened) -> None:
    """What the model's own configuration calls its end is a token like any other."""
    free = await one.engine.generate([1, 2, 3], how(temperature=0.0))
    assert one.model.config.eos_token_id in free.ids[:-1]
    assert free.finish_reason == "length"


async def test_equal_seeds_sample_equal_tokens_alone_and_in_company(one: Opened) -> None:
    asked = [(prompt, how(max_tokens=5 + 13 * (i % 5), seed=i)) for i, prompt in enumerate(prompts(8))]
    company = await together(one, asked)
    alone = [await one.engine.generate(prompt, sampling) for prompt, sampling in asked]
    assert [said.ids for said in alone] == [said.ids for said in company]


async def test_different_seeds_sample_different_tokens(one: Opened) -> None:
    said = await asyncio.gather(*(one.engine.generate([1, 2, 3], how(seed=seed)) for seed in range(4)))
    assert len({each.ids for each in said}) == 4


async def test_greedy_takes_the_likeliest_token_each_time(one: Opened) -> None:
    ids = list(prompts(1)[0])
    for token in (await one.engine.generate(ids, how(temperature=0.0))).ids:
        with torch.no_grad():
            assert one.model(torch.tensor([ids])).logits[0, -1].argmax().item() == token
        ids.append(token)


async def test_the_stop_token_does_not_come_before_min_tokens_and_logprobs_are_those_without_the_constraint(
    one: Opened,
) -> None:
    likeliest = (await one.engine.generate([7], how(temperature=0.0))).ids[0]
    for seed in range(6):
        said = await one.engine.generate([7], how(stop_id=likeliest, min_tokens=4, seed=seed))
        assert likeliest not in said.ids[:4]
        assert mismatch(one.model, [7], said, 1.0) < 1e-4
    unconstrained = trainer_logprobs(one.model, [7], [likeliest], 1.0).exp().item()
    assert unconstrained > 0.01  # else the test could not tell the two distributions apart


async def test_greedy_keeps_min_tokens_too(one: Opened) -> None:
    likeliest = (await one.engine.generate([7], how(temperature=0.0))).ids[0]
    said = await one.engine.generate([7], how(temperature=0.0, stop_id=likeliest, min_tokens=3))
    assert likeliest not in said.ids[:3]
    assert mismatch(one.model, [7], said, 1.0) < 1e-4


async def test_after_an_update_it_samples_from_the_new_weights_and_nothing_of_the_old_ones(one: Opened) -> None:
    kept = {name: value.clone() for name, value in one.model.state_dict().items()}
    before = await one.engine.generate(LONG, how())
    try:
        change(one.model)
        assert mismatch(one.model, LONG, before, 1.0) > 0.01
        one.engine.follow(one.model, 7)
        after = await one.engine.generate(LONG, how())
        assert (before.weight_version, after.weight_version, one.engine.weight_version) == (0, 7, 7)
        assert mismatch(one.model, LONG, after, 1.0) < 1e-4
    finally:
        one.model.load_state_dict(kept)
        one.engine.follow(one.model, 0)
    again = await one.engine.generate(LONG, how())
    assert again.ids == before.ids


async def test_prompts_that_are_too_many_for_one_step_are_all_served(one: Opened) -> None:
    asked = [[place, *LONG] for place in range(12)]  # 3600 tokens
    said = await asyncio.gather(*(one.engine.generate(prompt, how(max_tokens=2)) for prompt in asked))
    assert max(mismatch(one.model, prompt, each, 1.0) for prompt, each in zip(asked, said, strict=True)) < 1e-4


async def test_a_generation_that_nobody_waits_for_any_more_leaves_the_others_alone(one: Opened) -> None:
    given_up = asyncio.ensure_future(one.engine.generate([1, 2], how(max_tokens=400)))
    other = asyncio.ensure_future(one.engine.generate([1, 2, 3], how()))
    await one.engine.generate([5], how(max_tokens=2))
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert len((await other).ids) == 12
    one.engine.follow(one.model, 0)  # nothing is under way any more


async def test_a_prompt_it_cannot_take_fails_alone(one: Opened) -> None:
    bad, good = await asyncio.gather(
        one.engine.generate([10**6], how()), one.engine.generate([1, 2, 3], how()), return_exceptions=True
    )
    assert isinstance(bad, EngineFailed)
    assert isinstance(good, Generation)


def test_only_the_model_itself_needs_no_correction(one: Opened) -> None:
    assert one.engine.is_the_model == (one.kind == "hf")


@pytest.mark.parametrize("kind", ["hf", "http"])
async def test_a_closed_engine_fails_what_is_under_way_and_what_comes(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with opened(kind, tmp_path_factory.mktemp("closed")) as one:  # type: ignore[arg-type]
        under_way = asyncio.ensure_future(one.engine.generate([1, 2], how(max_tokens=400)))
        await one.engine.generate([5], how(max_tokens=2))
        await asyncio.to_thread(one.engine.close)
        with pytest.raises(EngineFailed, match="closed"):
            await under_way
        with pytest.raises(EngineFailed, match="closed"):
            await one.engine.generate([1], how())


def change(model: torch.nn.Module) -> None:
    """Another policy, in place, as an optimizer step leaves it."""
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=chance)
