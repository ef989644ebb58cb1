"""The worker against what TRL's async trainer is made of: its protocol, its dataset, its batchers, its collation."""

import asyncio
import inspect
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer, async_grpo_trainer, packing
from trl.experimental.async_grpo.async_grpo_trainer import (
    DataCollatorForRollout,
    FixedCountBatcher,
    RolloutQueueDataset,
    RolloutWorkerProtocol,
    _reduce_metric,
)
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.hf_engine import HFEngine
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.adapters.memory_cache import MemoryCache
from cacherl.adapters.scripted_engine import LOGPROB
from cacherl.adapters.trl_async_grpo import CacheRolloutWorker, _samples
from cacherl.adapters.vllm_server_engine import VllmServerEngine
from cacherl.errors import EngineFailed, RunMisconfigured
from cacherl.reward.answer import MilestoneJudge
from cacherl.reward.process import ProcessWeights
from cacherl.reward.tier_aware import Reward, TierAwareReward
from cacherl.rollout.engine import Generation, Sampling
from cacherl.rollout.loop import Budgets, CacheAgentLoop
from cacherl.rollout.parser import Parser
from cacherl.rollout.renderer import Renderer
from cacherl.rollout.rollout import Rollout, StopReason
from cacherl.rollout.tools import writing_tools
from cacherl.train.collector import FromCache, FromWorld
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.scoring import ScoredRollout, Scorer, TrainingRow
from cacherl.worlds.support_desk import SupportDesk
from toolcache_client.errors import CacheRefused

WORLD = SupportDesk(seed=0)
TOKENIZER = HFTokenizer(make_byte_tokenizer())
[ASK] = [task for task in WORLD.tasks("train", 8) if task.details["kind"] == "ask"][:1]
RIGHT = f"so\n</think>\n\n{ASK.expected_answer}"
WRONG = "no\n</think>\n\nNo idea."
HALF = 0.6 * 0.4 / 2
"""The truth is worth 0.4 of the answer, which is worth 0.6 of the reward; half of it lies above the mean."""


class Engine:
    """Says what `reply` says to a turn's number since the start; counts them from any thread."""

    def __init__(self, reply: Callable[[int], str]) -> None:
        self.seeds: list[int] = []
        self._reply = reply

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        await asyncio.sleep(0)
        self.seeds.append(sampling.seed)
        ids = TOKENIZER.encode(self._reply(len(self.seeds) - 1) + "<|im_end|>")
        return Generation(ids=tuple(ids), logprobs=(LOGPROB,) * len(ids), finish_reason="stop")


def alternately(turn: int) -> str:
    return (RIGHT, WRONG)[turn % 2]


def a_worker(
    engine: Engine | HFEngine | VllmServerEngine,
    *,
    source: FromCache | FromWorld | None = None,
    max_staleness: int = 4,
    **changes: Any,
) -> CacheRolloutWorker:
    fields = {"prompts_per_step": 2, "group_size": 2, "micro_batch": 2, "concurrency": 4, "extra_groups": 0.0}
    settings = GrpoSettings(**{"budgets": Budgets(turns=3, turn_tokens=300), **fields, **changes})
    return CacheRolloutWorker(
        loop=CacheAgentLoop(engine, Renderer(TOKENIZER), Parser(WORLD.tools), budgets=settings.budgets),
        world=WORLD,
        tasks=[ASK],
        source=source or FromWorld(),
        scorer=Scorer(MilestoneJudge(writes=writing_tools(WORLD.tools)), TierAwareReward(), ProcessWeights()),
        settings=settings,
        max_staleness=max_staleness,
    )


@contextmanager
def running(worker: CacheRolloutWorker) -> Iterator[CacheRolloutWorker]:
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def take(worker: CacheRolloutWorker, count: int) -> list[RolloutSample]:
    return [worker.rollout_buffer.get(timeout=20) for _ in range(count)]


def metrics_until(worker: CacheRolloutWorker, key: str) -> dict[str, list[Any]]:
    """All metrics up to the first group that has this one."""
    found: dict[str, list[Any]] = defaultdict(list)
    while key not in found:
        for name, value in worker.metrics_queue.get(timeout=20).items():
            found[name].append(value)
    return found


# ---- what TRL takes


def test_the_worker_has_every_member_of_trls_protocol_with_its_parameters() -> None:
    worker = a_worker(Engine(alternately))
    for name, wanted in inspect.getmembers(RolloutWorkerProtocol, inspect.isfunction):
        if not name.startswith("_"):
            given = inspect.signature(getattr(CacheRolloutWorker, name))
            assert list(given.parameters) == list(inspect.signature(wanted).parameters), name
    for name in RolloutWorkerProtocol.__annotations__:
        assert isinstance(getattr(worker, name), queue.Queue)


def test_trls_own_batches_hold_our_tokens_masks_logprobs_and_centred_advantages() -> None:
    with running(a_worker(Engine(alternately))) as worker:
        sink: dict[str, list[Any]] = defaultdict(list)
        dataset = RolloutQueueDataset(worker.rollout_buffer, lambda: 0, worker.check_health, 60.0, sink)
        [row] = next(iter(FixedCountBatcher(dataset, num_processes=1, microbatch_size=2)))
        batch = DataCollatorForRollout(pad_token_id=0, metrics=sink)([[row]])
    right, wrong = sorted(row.samples, key=lambda sample: -sample["advantage"])
    assert (right["advantage"], wrong["advantage"]) == (pytest.approx(HALF), pytest.approx(-HALF))
    for sample, text in ((right, RIGHT), (wrong, WRONG)):
        sampled = sample["input_ids"][sample["completion_mask"] == 1]
        assert TOKENIZER.decode(sampled.tolist()) == f"{text}<|im_end|>"
    lengths = [len(TOKENIZER.encode(f"{text}<|im_end|>")) for text in (RIGHT, WRONG)]
    assert batch["token_index"].numel() == batch["global_n_tokens"].item() == sum(lengths)
    assert batch["advantages"].sum().item() == pytest.approx(HALF * (lengths[0] - lengths[1]), abs=1e-5)
    assert set(batch["old_log_probs"][0].tolist()) == {LOGPROB}
    shared = sum(len(sample["input_ids"]) for sample in row.samples) - batch["input_ids"].numel()
    assert shared > len(ASK.prompt)  # one group, one prompt: forwarded once


def test_the_metrics_are_reduced_by_trl_to_means_over_rollouts_and_to_sums() -> None:
    with running(a_worker(Engine(alternately))) as worker:
        take(worker, 4)
        found = metrics_until(worker, "reward")
        while len(found["reward"]) < 2:
            for name, value in worker.metrics_queue.get(timeout=20).items():
                found[name].append(value)
    wrong = 0.6 * 0.3 + 0.4 * 0.4
    assert _reduce_metric("reward", found["reward"]) == pytest.approx(wrong + HALF)
    assert _reduce_metric("rollout/turns", found["rollout/turns"]) == 1.0
    assert _reduce_metric("rollout/stop_answered", found["rollout/stop_answered"]) == 1.0
    assert _reduce_metric("rollout/played_total", found["rollout/played_total"]) == 2.0 * len(found["reward"])


class PlainAttention:
    """What TRL's tree packing asks of a kernel that wants a GPU: each query sees the keys of its own path."""

    @staticmethod
    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, *_: Any, softmax_scale: float, **__: Any
    ) -> Tensor:
        """q [N, heads, size]; k, v [K, fewer heads, size]; borders of the segments in both."""
        out = torch.empty_like(q)
        share = q.shape[1] // k.shape[1]
        for (a, b), (c, d) in zip(pairwise(q_ends.tolist()), pairwise(k_ends.tolist()), strict=True):
            seen = torch.ones(b - a, d - c, dtype=torch.bool).tril((d - c) - (b - a))
            keys, values = (x[c:d].transpose(0, 1).repeat_interleave(share, 0) for x in (k, v))
            heads = scaled_dot_product_attention(
                q[a:b].transpose(0, 1), keys, values, attn_mask=seen, scale=softmax_scale
            )
            out[a:b] = heads.transpose(0, 1)
        return out


class NoTransfer:
    """Leaves the engine with its first weights."""

    def init_weight_transfer(self) -> None: ...

    def pause(self) -> None: ...

    def send_weights(self, iterator: Iterator[tuple[str, Tensor]]) -> None:
        for _ in iterator:
            pass

    def resume(self) -> None: ...

    def destroy(self) -> None: ...


def test_trls_whole_trainer_takes_a_step_on_our_rollouts_and_finds_their_logprobs_to_be_its_own(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_flash_attn", lambda: PlainAttention)
    monkeypatch.setattr(async_grpo_trainer, "get_peak_flops_per_device", lambda *_: None)  # asks CUDA for its name
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with HFEngine(model) as engine:
        # A model of random weights never ends a turn: every rollout is cut, and scored all the same.
        budgets = Budgets(turns=2, turn_tokens=12)
        worker = a_worker(engine, budgets=budgets, overlong="score", void_turns="score")
        trainer = AsyncGRPOTrainer(
            str(tmp_path / "model"),
            args=AsyncGRPOConfig(
                str(tmp_path),
                max_steps=1,
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                num_generations=2,
                token_budget=0,
                use_cpu=True,
                bf16=False,
                dtype="float32",
                logging_steps=1,
                save_strategy="no",
                report_to=[],
            ),
            train_dataset=Dataset.from_list([{"prompt": "not played"}]),
            processing_class=tokenizer,
            rollout_worker=worker,
            weight_transfer=NoTransfer(),
        )
        trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["ratio"] == pytest.approx(1.0, abs=1e-4)
    assert logged["kl"] == pytest.approx(0.0, abs=1e-4)
    assert logged["rollout/stop_token_budget"] == 1.0
    assert logged["batch/trained_tokens_per_step"] == 4 * 12
    assert worker._thread is None  # TRL stopped it


# ---- what is not handed over


def test_a_void_rollout_is_out_of_the_baseline_and_not_handed_over() -> None:
    def reply(turn: int) -> str:
        if turn % 3 == 2:
            raise EngineFailed("server died")
        return alternately(turn % 3)

    with running(a_worker(Engine(reply), group_size=3, micro_batch=3, concurrency=3)) as worker:
        samples = take(worker, 4)
        found = metrics_until(worker, "rollout/void_total")
    assert sorted(sample.advantage for sample in samples) == pytest.approx([-HALF, -HALF, HALF, HALF])
    assert found["rollout/void_total"][0] == 1.0
    assert found["reward"][0][1] == 2  # the mean is over the scored ones


def test_a_rollout_that_ran_out_of_time_is_out_of_the_baseline_too() -> None:
    """With it the mean would be that of three rewards, and the advantages no longer HALF."""

    class Slow(Engine):
        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
            said = await super().generate(prompt_ids, sampling)
            if len(self.seeds) == 3:
                await asyncio.Event().wait()
            return said

    budgets = Budgets(turns=3, turn_tokens=300, seconds=1.0)
    engine = Slow(lambda turn: alternately(turn % 3))
    with running(a_worker(engine, group_size=3, micro_batch=3, concurrency=3, budgets=budgets)) as worker:
        found = metrics_until(worker, "reward")
        samples = take(worker, 2)
    assert found["rollout/void_total"][0] == 1.0
    assert sorted(sample.advantage for sample in samples) == pytest.approx([-HALF, HALF])


@pytest.mark.parametrize("adapters", [[], [{"id": "trl-policy-v1", "parent": "policy"}]], ids=["merged", "adapter"])
def test_the_engine_knows_of_new_weights_and_refuses_those_published_as_an_adapter(
    tmp_path: Path, adapters: list[dict[str, str]]
) -> None:
    models = {"data": [{"id": "policy", "parent": None}, *adapters]}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=models))
    with VllmServerEngine("http://one", model="policy", weights_dir=tmp_path, transport=transport) as engine:
        worker = a_worker(engine)
        if adapters:
            with pytest.raises(RunMisconfigured, match="without --enable-lora"):
                worker.update_model_version(1)
        else:
            worker.update_model_version(1)
        assert engine.weight_version == (0 if adapters else 1)


def test_groups_without_variance_make_way_as_often_as_the_settings_allow() -> None:
    def reply(turn: int) -> str:  # group after group: equal, differing, equal, equal, ...
        return WRONG if turn // 2 != 1 else alternately(turn)

    with running(a_worker(Engine(reply), extra_groups=1.0, concurrency=2)) as worker:
        samples = take(worker, 4)
    groups = [sample.group_id for sample in samples]
    # Group 0 makes way; 1 differs; 2 makes way, one for each handed over; 3 is handed over though it teaches nothing.
    assert groups == [1, 1, 3, 3]
    assert [sample.advantage for sample in samples[2:]] == [0.0, 0.0]


def test_a_sample_bears_the_weights_its_group_began_with_and_a_stale_group_is_dropped() -> None:
    goes_on = threading.Event()
    began = threading.Event()

    def reply(turn: int) -> str:
        if turn == 0:
            began.set()
            assert goes_on.wait(20)
        return alternately(turn)

    worker = a_worker(Engine(reply), max_staleness=1, concurrency=2)
    worker.update_model_version(5)
    with running(worker):
        assert began.wait(20)
        worker.update_model_version(7)
        goes_on.set()
        samples = take(worker, 2)
        found = metrics_until(worker, "rollout/groups_handed_over_total")
    assert [(sample.group_id, sample.model_version) for sample in samples] == [(1, 7), (1, 7)]
    assert found["rollout/groups_stale_total"] == [1.0]


def test_rollouts_of_a_group_and_of_the_next_pass_have_seeds_of_their_own() -> None:
    engine = Engine(alternately)
    with running(a_worker(engine)) as worker:
        take(worker, 8)
    assert len(set(engine.seeds)) == len(engine.seeds) >= 8


async def test_a_group_starts_only_where_the_trainer_takes_what_is_there_and_slots_are_free() -> None:
    worker = a_worker(Engine(alternately), concurrency=2)
    for _ in range(worker.rollout_buffer.maxsize):
        worker.rollout_buffer.put_nowait(None)  # type: ignore[arg-type]
    starting = asyncio.create_task(worker._room())
    await turns_of_the_event_loop(50)
    assert not starting.done()
    worker.rollout_buffer.get_nowait()
    await asyncio.wait_for(starting, 20)

    second = asyncio.create_task(worker._room())
    await turns_of_the_event_loop(50)
    assert not second.done()  # both slots are the first group's
    for _ in range(2):
        worker._collector._progress(None, 0, 0)  # type: ignore[misc,arg-type]
    await asyncio.wait_for(second, 20)


async def turns_of_the_event_loop(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# ---- credit by trust


def test_uneven_credit_makes_samples_whose_masks_part_the_rollout() -> None:
    rollout = Rollout(
        task_id="t",
        group="g",
        ids=(1, 2, 3, 4, 5),
        loss_mask=(0, 1, 1, 0, 1),
        logprobs=(0.0, -1.0, -2.0, 0.0, -3.0),
        prompt_length=1,
        turns=(),
        calls=(),
        stop=StopReason.ANSWERED,
        answer="Hi.",
        seconds=0.0,
        generate_seconds=0.0,
        tool_seconds=0.0,
    )
    reward = Reward(total=1.0, answer=1.0, process=1.0, answer_weight=0.6, process_weight=0.4)
    row = TrainingRow(
        prompt_ids=(1,),
        completion_ids=(2, 3, 4, 5),
        logprobs=(-1.0, -2.0, 0.0, -3.0),
        credit=(1.0, 1.0, 0.0, 0.25),
        reward=1.0,
    )
    scored = ScoredRollout(rollout=rollout, reward=reward)
    trusted, guessed = _samples(scored, row, 0.8, group_id=3, version=2)
    assert (trusted.advantage, guessed.advantage) == (0.8, 0.2)
    assert trusted.completion_mask.tolist() == [0, 1, 1, 0, 0]
    assert guessed.completion_mask.tolist() == [0, 0, 0, 0, 1]
    for sample in (trusted, guessed):
        assert sample.input_ids.tolist() == [1, 2, 3, 4, 5]
        np.testing.assert_allclose(sample.old_log_probs, [0.0, -1.0, -2.0, 0.0, -3.0])
    row_without = TrainingRow(prompt_ids=(1,), completion_ids=(2,), logprobs=(0.0,), credit=(0.0,), reward=1.0)
    assert list(_samples(scored, row_without, 0.8, group_id=3, version=2)) == []


# ---- life and death


def test_a_cache_that_refuses_the_run_is_told_by_the_health_check_with_its_cause() -> None:
    class Refusing(MemoryCache):
        async def lookup(self, *_: Any, **__: Any) -> Any:
            raise CacheRefused(status=404, code="unknown_namespace", detail="support_desk")

    class Open:
        async def __aenter__(self) -> Refusing:
            return Refusing(writing_tools(WORLD.tools))

        async def __aexit__(self, *_: object) -> None:
            closed.set()

    closed = threading.Event()
    asks = '\n</think>\n\n<tool_call>\n{"name": "get_order", "arguments": {"order_id": "1"}}\n</tool_call>'
    source = FromCache(open_cache=Open, namespace="support_desk")
    worker = a_worker(Engine(lambda _: asks), source=source)
    with running(worker):
        assert closed.wait(20)  # the client is closed, whatever ended the play
        assert worker._thread is not None
        worker._thread.join(20)
        with pytest.raises(EngineFailed, match="unknown_namespace") as told:
            worker.check_health(300.0)
        assert isinstance(told.value.__cause__, CacheRefused)


def test_an_event_loop_that_stands_still_is_unhealthy_and_one_that_turns_is_not() -> None:
    worker = a_worker(Engine(alternately))
    with running(worker):
        take(worker, 1)
        worker.check_health(60.0)
        worker._beat -= 120.0
        with pytest.raises(EngineFailed, match="stood still for 120 s"):
            worker.check_health(60.0)


def test_stopping_ends_the_thread_in_the_middle_of_play_and_is_no_failure() -> None:
    worker = a_worker(Engine(alternately))
    with running(worker):
        take(worker, 1)
        thread = worker._thread
    assert thread is not None and not thread.is_alive()
    worker.check_health(60.0)
    worker.stop()  # as TRL does after an error: once more is no harm


def test_stopping_before_the_start_or_at_once_after_it_is_clean() -> None:
    worker = a_worker(Engine(alternately))
    worker.stop()
    other = a_worker(Engine(alternately))
    other.start()
    other.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "cacherl-rollouts"]


def test_a_worker_without_tasks_is_refused() -> None:
    with pytest.raises(RunMisconfigured, match="no tasks"):
        CacheRolloutWorker(
            loop=CacheAgentLoop(Engine(alternately), Renderer(TOKENIZER), Parser(WORLD.tools), budgets=Budgets()),
            world=WORLD,
            tasks=[],
            source=FromWorld(),
            scorer=Scorer(MilestoneJudge(writes=frozenset()), TierAwareReward(), ProcessWeights()),
            settings=GrpoSettings(),
        )
