"""What is vLLM's own, in process; what every engine keeps is in test_engine_contract.py and test_logprob_parity.py."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cacherl.adapters.lora import with_lora
from cacherl.errors import EngineFailed
from cacherl.rollout.engine import Sampling
from cacherl.train.engine_settings import VllmSettings
from cacherl.train.lora_settings import LoraSettings
from tests.trainer.adapters.engines import CONTEXT_TOKENS, STOP, Opened, mismatch, tiny_model

pytest.importorskip("vllm", reason="needs vLLM: requirements-vllm.txt")


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_its_start_leaves_the_random_generators_as_they_were(open_once: Callable[..., Opened]) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = draws()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    open_once("vllm", is_new=True)
    assert draws() == expected


def test_a_folder_without_a_model_is_told_with_the_cause(tmp_path: Path) -> None:
    from cacherl.adapters.vllm_engine import VllmEngine

    with pytest.raises(EngineFailed, match=f"vLLM did not start with {tmp_path}"):
        VllmEngine(tmp_path, settings=VllmSettings())


async def test_a_generation_reaches_to_the_last_position_of_the_context(open_once: Callable[..., Opened]) -> None:
    one = open_once("vllm")
    prompt = [7] * (CONTEXT_TOKENS - 3)
    said = await one.engine.generate(prompt, Sampling(max_tokens=100, min_tokens=100, stop_id=STOP))
    assert (len(said.ids), said.finish_reason) == (3, "length")
    assert mismatch(one.model, prompt, said, 1.0) < 1e-4


async def test_it_follows_a_model_with_adapters(open_once: Callable[..., Opened]) -> None:
    one = open_once("vllm")
    adapted = with_lora(tiny_model(), LoraSettings(rank=4, alpha=8), seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:  # zero at the start
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    try:
        one.engine.follow(adapted, 1)
        said = await one.engine.generate([1, 2, 3], Sampling(max_tokens=40, stop_id=STOP))
        assert mismatch(adapted, [1, 2, 3], said, 1.0) < 1e-4
        assert mismatch(one.model, [1, 2, 3], said, 1.0) > 0.01
    finally:
        one.engine.follow(one.model, 0)


async def test_weights_wait_for_no_generation_that_is_under_way(open_once: Callable[..., Opened]) -> None:
    """Its first tokens would be the old policy's and its last the new one's: refused, and it goes on undisturbed."""
    one = open_once("vllm")
    long = Sampling(max_tokens=300, min_tokens=300, stop_id=STOP)
    under_way = asyncio.ensure_future(one.engine.generate([1, 2], long))
    await one.engine.generate([5], Sampling(max_tokens=2, stop_id=STOP))
    with pytest.raises(EngineFailed, match="1 generations are still under way"):
        one.engine.follow(one.model, 1)
    assert len((await under_way).ids) == 300
    assert one.engine.weight_version == 0


async def test_closing_fails_what_is_under_way_and_what_comes_and_another_can_be_opened(
    open_once: Callable[..., Opened],
) -> None:
    one = open_once("vllm", is_new=True)
    under_way = asyncio.ensure_future(one.engine.generate([1, 2], Sampling(max_tokens=500, stop_id=STOP)))
    await one.engine.generate([5], Sampling(max_tokens=2, stop_id=STOP))
    await asyncio.to_thread(one.engine.close)
    with pytest.raises(EngineFailed, match="closed"):
        await under_way
    with pytest.raises(EngineFailed, match="closed"):
        await one.engine.generate([1], Sampling(max_tokens=1, stop_id=STOP))
    other = open_once("vllm", is_new=True)
    assert len((await other.engine.generate([1], Sampling(max_tokens=1, stop_id=STOP))).ids) == 1
