"""What is vLLM's own, in process; what every engine keeps is in test_engine_contract.py and test_logprob_parity.py."""

import asyncio
import math
import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


class _Step:
    """vLLM's engine, whose next steps are scripted: an exception is raised, the rest is what it puts out."""

    def __init__(self, real: Any, *steps: Any) -> None:
        self._real, self._steps = real, list(steps)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def step(self) -> Any:
        if not self._steps:
            return self._real.step()
        said = self._steps.pop(0)
        if isinstance(said, BaseException):
            raise said
        return said


def _said(name: str, logprobs: list[Any]) -> Any:
    answer = SimpleNamespace(finish_reason="length", token_ids=[5, 6], logprobs=logprobs)
    return SimpleNamespace(request_id=name, outputs=[answer])


@pytest.mark.parametrize(
    "logprobs",
    [
        [{5: SimpleNamespace(logprob=-1.0)}],
        [{5: SimpleNamespace(logprob=-1.0)}, {7: SimpleNamespace(logprob=-1.0)}],
        [{5: SimpleNamespace(logprob=-1.0)}, {6: SimpleNamespace(logprob=math.nan)}],
        None,
    ],
    ids=["too few", "of another token", "not finite", "none"],
)
async def test_an_answer_that_makes_no_sense_fails_alone(open_once: Callable[..., Opened], logprobs: Any) -> None:
    engine: Any = open_once("vllm").engine
    real, name = engine._pump._engine, next(engine._names)
    engine._pump._engine = _Step(real, [_said("nobody asked", []), _said(str(name + 1), logprobs)])
    try:
        bad = engine.generate([1, 2], Sampling(max_tokens=2, stop_id=STOP))
        with pytest.raises(EngineFailed, match="cannot be trained on"):
            await asyncio.wait_for(bad, 20)
        real.abort_request([str(name + 1)])  # the real one was never stepped
    finally:
        engine._pump._engine = real
    assert len((await engine.generate([1], Sampling(max_tokens=1, stop_id=STOP))).ids) == 1


@pytest.mark.parametrize("error", [RuntimeError("illegal access"), SystemExit(1)], ids=repr)
async def test_an_engine_that_broke_down_says_so_to_everybody_and_blocks_nobody(
    open_once: Callable[..., Opened], error: BaseException
) -> None:
    one = open_once("vllm")
    pump: Any = one.engine._pump  # type: ignore[attr-defined]
    real = pump._engine
    pump._engine = _Step(real, error)
    how = Sampling(max_tokens=2, stop_id=STOP)
    try:
        for _ in range(2):  # under way, and later
            with pytest.raises(EngineFailed, match="resume the run from its last checkpoint") as told:
                await asyncio.wait_for(one.engine.generate([1, 2], how), 20)
            assert told.value.__cause__ is error
        with pytest.raises(EngineFailed, match="resume the run from its last checkpoint"):
            one.engine.follow(one.model, 1)
    finally:
        for request in list(real.output_processor.request_states):
            real.abort_request([request])
        pump._engine, pump._broken = real, None
    assert len((await one.engine.generate([1], how)).ids) == 2


async def test_nobody_waits_for_a_thread_that_is_dead(
    open_once: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = open_once("vllm", is_new=True)
    engine: Any = one.engine
    monkeypatch.setattr(vllm_engine(), "LOOK_S", 0.01)
    engine._inbox.put(None)  # as close does, but it may be asked on
    engine._worker.join(20)
    with pytest.raises(EngineFailed, match="thread has ended"):
        await asyncio.wait_for(engine.generate([1], Sampling(max_tokens=1, stop_id=STOP)), 20)
    with pytest.raises(EngineFailed, match="thread has ended"):
        engine.follow(one.model, 1)
    engine.close()


def test_with_several_processes_the_group_is_there_before_the_thread_and_its_gpu_is_the_processs_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    current: dict[threading.Thread, int] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(vllm_engine(), "PartialState", lambda: SimpleNamespace(device=1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.update({threading.current_thread(): device}))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current.get(threading.current_thread(), 0))
    opened: list[tuple[threading.Thread, int | None]] = []

    def fake_open(pump: Any, arguments: Any) -> None:
        opened.append((threading.current_thread(), torch.cuda.current_device()))
        pump._device = None  # nothing to give back to a GPU

    monkeypatch.setattr(vllm_engine()._Pump, "open", fake_open)
    monkeypatch.setattr(vllm_engine(), "_arguments", lambda *_: None)
    vllm_engine().VllmEngine("model", settings=VllmSettings()).close()
    [(thread, device)] = opened
    assert (thread is threading.current_thread(), device) == (False, 1)
    assert torch.cuda.current_device() == 1


def vllm_engine() -> Any:
    from cacherl.adapters import vllm_engine

    return vllm_engine


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
