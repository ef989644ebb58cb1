"""What is Hugging Face's own; what every engine keeps is in test_engine_contract.py and test_logprob_parity.py."""

import asyncio

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3ForCausalLM

from cacherl.adapters.hf_engine import HFEngine, sample
from cacherl.errors import EngineFailed
from cacherl.rollout.engine import Generation, Sampling
from tests.trainer.adapters.engines import STOP, mismatch, prompts, tiny_model, trainer_logprobs

ONE = Sampling(max_tokens=1, stop_id=STOP)


def test_more_requests_than_rows_wait_and_get_what_a_plain_forward_gives(model: Qwen3ForCausalLM) -> None:
    asked = [
        (prompt, Sampling(max_tokens=5 + 13 * (i % 9), stop_id=STOP, seed=i)) for i, prompt in enumerate(prompts(24))
    ]

    async def all_at_once(engine: HFEngine) -> list[float]:
        generations = await asyncio.gather(*(engine.generate(prompt, how) for prompt, how in asked))
        return [mismatch(model, prompt, said, 1.0) for (prompt, _), said in zip(asked, generations, strict=True)]

    with HFEngine(model, max_rows=10) as engine:
        assert max(asyncio.run(all_at_once(engine))) < 1e-4


def test_a_model_in_training_mode_fails_loudly(model: Qwen3ForCausalLM) -> None:
    with HFEngine(model) as engine:
        model.train()
        with pytest.raises(EngineFailed, match="training mode"):
            asyncio.run(engine.generate([1], ONE))
        model.eval()
        assert len(asyncio.run(engine.generate([1], ONE)).ids) == 1


def test_it_samples_with_the_numerics_that_the_trainer_put_around_the_model(model: Qwen3ForCausalLM) -> None:
    """As accelerate does for training in bf16: in place, and in whichever thread the model is called."""
    prompt = [1, 2, 3]
    plain = trainer_logprobs(model, prompt, range(250, 251), 1.0)
    with HFEngine(model) as engine:
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
        assert not torch.equal(trainer_logprobs(model, prompt, range(250, 251), 1.0), plain)  # else it tells nothing
        said = asyncio.run(engine.generate(prompt, ONE))
    assert mismatch(model, prompt, said, 1.0) < 1e-6


def test_it_follows_no_model_but_its_own(model: Qwen3ForCausalLM) -> None:
    with HFEngine(model) as engine:
        engine.follow(model, 3)
        with pytest.raises(EngineFailed, match="another model"):
            engine.follow(tiny_model(), 4)
        assert engine.weight_version == 3


@pytest.mark.parametrize("prompt", [[], [10**6], [-1]], ids=str)
def test_a_prompt_without_meaning_is_refused_before_it_reaches_the_batch(
    model: Qwen3ForCausalLM, prompt: list[int]
) -> None:
    with HFEngine(model) as engine, pytest.raises(EngineFailed, match="outside the vocabulary"):
        asyncio.run(engine.generate(prompt, ONE))


def test_a_row_whose_numbers_are_not_finite_fails_alone_and_at_once(model: Qwen3ForCausalLM) -> None:
    """The prompt of 7s would sample for minutes, were it not ended at its first token."""

    def spoil(_: torch.nn.Module, args: tuple[torch.Tensor], embedded: torch.Tensor) -> torch.Tensor:
        return embedded.masked_fill((args[0] == 7)[..., None], float("nan"))

    async def both(engine: HFEngine) -> list[Generation | BaseException]:
        endless, short = Sampling(max_tokens=10**6, stop_id=10**6), Sampling(max_tokens=5, stop_id=STOP)
        asked = [engine.generate([7, 7], endless), engine.generate([1, 2, 3], short)]
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), timeout=20)

    hook = model.model.embed_tokens.register_forward_hook(spoil)
    try:
        with HFEngine(model) as engine:
            spoilt, sound = asyncio.run(both(engine))
    finally:
        hook.remove()
    assert isinstance(spoilt, EngineFailed) and "not finite" in str(spoilt)
    assert isinstance(sound, Generation) and mismatch(model, [1, 2, 3], sound, 1.0) < 1e-4


def test_an_abandoned_generation_makes_room_at_once(model: Qwen3ForCausalLM) -> None:
    """With one row, the next request is served only once the abandoned one has left; it would sample for minutes."""

    async def abandon_then_ask(engine: HFEngine) -> int:
        endless = asyncio.ensure_future(engine.generate([1], Sampling(max_tokens=10**6, stop_id=10**6)))
        await asyncio.sleep(0.05)
        endless.cancel()
        return len((await asyncio.wait_for(engine.generate([1], ONE), timeout=20)).ids)

    with HFEngine(model, max_rows=1) as engine:
        assert asyncio.run(abandon_then_ask(engine)) == 1


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=6), st.floats(0, 1, exclude_max=True))
def test_the_token_drawn_is_where_the_cumulated_probability_passes_the_draw(logits: list[float], draw: float) -> None:
    row = torch.tensor([logits])
    [token], [logprob] = sample(row, temperatures=[1.0], draws=[draw], forbidden=[None])
    cumulated = row[0].double().softmax(-1).cumsum(-1)
    before = cumulated[token - 1].item() if token else 0.0
    assert before - 1e-6 <= draw <= cumulated[token].item() + 1e-6
    assert logprob == pytest.approx(row[0].log_softmax(-1)[token].item(), abs=1e-5)


@pytest.mark.parametrize(("draw", "expected"), [(0.0, 0), (0.59, 0), (0.61, 2), (0.99, 2)])
def test_a_forbidden_token_is_never_drawn_and_the_others_share_what_is_left(draw: float, expected: int) -> None:
    """Probabilities 0.3, 0.5, 0.2: without the second, the first is drawn in 3 of 5 cases, and still told as 0.3."""
    probabilities = [0.3, 0.5, 0.2]
    logits = torch.tensor([probabilities]).log()
    [token], [logprob] = sample(logits, temperatures=[1.0], draws=[draw], forbidden=[1])
    assert token == expected
    assert logprob == pytest.approx(torch.tensor(probabilities[expected]).log().item(), abs=1e-6)


def test_each_row_has_a_forbidden_token_of_its_own() -> None:
    """Of 0.3, 0.5, 0.2 all are left, then the last two (0.71 to 0.29), then the first and the last (0.6 to 0.4)."""
    logits = torch.tensor([[0.3, 0.5, 0.2]] * 4).log()
    tokens, _ = sample(logits, temperatures=[1.0] * 4, draws=[0.45, 0.45, 0.45, 0.75], forbidden=[None, 0, 1, 0])
    assert tokens == [1, 1, 0, 2]


def test_greedy_takes_the_likeliest_token_that_is_allowed() -> None:
    logits = torch.tensor([[0.3, 0.5, 0.2]] * 2).log()
    tokens, _ = sample(logits, temperatures=[0.0, 0.0], draws=[0.9, 0.9], forbidden=[1, None])
    assert tokens == [0, 1]
