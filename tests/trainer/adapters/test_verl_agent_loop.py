"""The agent loop inside verl's own worker, replay buffer and advantages; only the model servers are scripted.

TransferQueue, verl's store between workers and trainer, is a dictionary here, as the real one wants Ray; but for one
slow test with both.
"""

import asyncio
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl")

import numpy as np
import ray
import torch
import transfer_queue
import verl.trainer.ppo.v1.agent_loop_tq as agent_loop_tq
import verl.trainer.ppo.v1.replay_buffer as replay_buffer
import yaml
from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, Qwen3Config
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.protocol import DataProto
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils import tensordict_utils
from verl.utils.config import validate_config
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.workers.rollout.replica import TokenOutput

import cacherl.adapters.verl_agent_loop as plugin
from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.memory_cache import MemoryCache
from cacherl.config import read_run
from cacherl.data.verl_rows import verl_rows, write_rows
from cacherl.errors import EngineFailed, RunMisconfigured
from cacherl.rollout.engine import Sampling
from cacherl.rollout.rollout import Rollout
from cacherl.rollout.tools import CacheLookup, Drop, ExecuteLive, writing_tools
from cacherl.run.settings import Run
from cacherl.train.collector import FromCache
from cacherl.worlds.support_desk import SupportDesk
from cacherl.worlds.world import Task

RUNS = Path(__file__).parents[3] / "trainer" / "runs"
WORLD = SupportDesk(seed=0)
LOGPROB = -0.25
STEP = 4
TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
RUN = """
name = "verl-test"
[model]
path = "unused"
chat = "qwen3-thinking"
[world]
kind = "support_desk"
tasks = 8
[grpo]
prompts_per_step = 2
[grpo.budgets]
turns = 6
turn_tokens = 400
context_tokens = 2048
first_turn_min_tokens = 7
"""


class Servers:
    """verl's client of its model servers, scripted: what a rollout says depends on its session and its turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, script: dict[int, list[str | Exception]]) -> None:
        self.asked: list[tuple[str, list[int], dict[str, Any]]] = []
        self._tokenizer = tokenizer
        self._script = script

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        turn = sum(request_id == earlier for earlier, _, _ in self.asked)
        self.asked.append((request_id, list(prompt_ids), dict(sampling_params)))
        said = self._script[int(request_id.split("/")[1])][turn]
        if isinstance(said, Exception):
            raise said
        ids = self._tokenizer.encode(said + "<|im_end|>", add_special_tokens=False)[: sampling_params["max_tokens"]]
        return TokenOutput(
            token_ids=ids,
            log_probs=[LOGPROB] * len(ids),
            stop_reason="completed",
            num_preempted=1,
            extra_fields={"global_steps": 3, "min_global_steps": 3, "max_global_steps": 3 + turn},
        )


class Store:
    """TransferQueue as a dictionary, with the calls that verl's worker and replay buffer make."""

    def __init__(self) -> None:
        self.tags: dict[str, dict[str, dict[str, Any]]] = {}
        self.rows: dict[str, dict[str, Any]] = {}

    def init(self) -> None:
        """Nothing to connect to."""

    async def async_kv_put(self, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        self.kv_batch_put([key], partition_id, [tag])

    async def async_kv_batch_put(
        self, keys: list[str], fields: TensorDict, tags: list[dict[str, Any]], partition_id: str
    ) -> None:
        self.kv_batch_put(keys, partition_id, tags)
        for place, key in enumerate(keys):
            row = {name: value[place] for name, value in fields.items()}
            self.rows[key] = {name: getattr(value, "data", value) for name, value in row.items()}

    def kv_batch_put(self, keys: list[str], partition_id: str, tags: list[dict[str, Any]]) -> None:
        for key, tag in zip(keys, tags, strict=True):
            self.tags.setdefault(partition_id, {}).setdefault(key, {}).update(tag)

    def kv_list(self) -> dict[str, dict[str, dict[str, Any]]]:
        return {partition: {key: dict(tag) for key, tag in kept.items()} for partition, kept in self.tags.items()}

    def kv_clear(self, keys: list[str], partition_id: str) -> None:
        for key in keys:
            self.tags[partition_id].pop(key, None)

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        rows = [{name: self.rows[key][name] for name in select_fields} for key in keys]
        return tensordict_utils.list_of_dict_to_tensordict(rows)


# ---- one step of verl, from the dataset's file to advantages


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(agent_loop_tq, "tq", store)
    monkeypatch.setattr(replay_buffer, "tq", store)
    return store


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> MemoryCache:
    """Answers the plugin's lookups; misses are executed live."""
    cache = MemoryCache(writing_tools(WORLD.tools))

    @asynccontextmanager
    async def open_cache() -> AsyncIterator[CacheLookup]:
        yield cache

    source = FromCache(
        open_cache=open_cache, namespace=WORLD.name, on_miss=ExecuteLive(), on_outage=Drop(), outage_patience_s=0.0
    )
    monkeypatch.setattr(plugin, "tool_source", lambda run, world, url: source)
    return cache


@pytest.fixture
def config(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> DictConfig:
    """The published configuration with a tiny model's folder and a run file of its own."""
    model = tmp_path / "model"
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    Qwen3Config(architectures=["Qwen3ForCausalLM"], vocab_size=len(tokenizer)).save_pretrained(model)
    (tmp_path / "run.toml").write_text(RUN)
    entry = {
        "name": "cache_agent",
        "_target_": "cacherl.adapters.verl_agent_loop.VerlCacheAgentLoop",
        "run": str(tmp_path / "run.toml"),
        "cache_url": "http://cache:1",
    }
    (tmp_path / "agent_loop.yaml").write_text(yaml.safe_dump([entry]))
    return published(
        f"actor_rollout_ref.model.path={model}",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={tmp_path / 'agent_loop.yaml'}",
        f"trainer.default_local_dir={tmp_path / 'checkpoints'}",
        "actor_rollout_ref.rollout.n=3",
        "data.max_prompt_length=1024",
        "data.max_response_length=1024",
    )


def published(*overrides: str) -> DictConfig:
    with initialize_config_dir(config_dir=str(RUNS / "verl"), version_base=None):
        return compose("grpo", overrides=["hydra.searchpath=[pkg://verl.trainer.config]", *overrides])


def a_worker(config: DictConfig, servers: Servers) -> Any:
    """verl's worker as Ray would run it, in this process."""
    return agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class(config, servers)


def batch_of(
    config: DictConfig, tokenizer: PreTrainedTokenizerFast, path: Path, tasks: list[Task], *, validate: bool = False
) -> TensorDict:
    """Tasks as verl's trainer hands them to its workers: through its own dataset and collation."""
    write_rows(path, verl_rows(WORLD, tasks, validate=validate))
    dataset = RLHFDataset([str(path)], tokenizer, config.data)
    rows = next(iter(DataLoader(dataset, batch_size=len(tasks), collate_fn=collate_fn)))
    rows["uid"] = np.array([f"uid{place}" for place in range(len(tasks))], dtype=object)
    batch = tensordict_utils.get_tensordict(rows)
    tensordict_utils.assign_non_tensor_data(batch, "global_steps", STEP)
    tensordict_utils.assign_non_tensor_data(batch, "validate", validate)
    return batch


async def play(worker: Any, store: Store, batch: TensorDict, *, validate: bool = False) -> None:
    partition = "val" if validate else "train"
    tags = [{"is_prompt": True, "status": "pending", "global_steps": STEP} for _ in range(len(batch))]
    store.kv_batch_put(list(batch["uid"]), partition, tags)
    await worker.generate_sequences(batch)
    await asyncio.gather(*worker.background_tasks)


def says(tool: str, **arguments: Any) -> str:
    call = json.dumps({"name": tool, "arguments": arguments})
    return f"hm\n</think>\n\n<tool_call>\n{call}\n</tool_call>"


def solution(task: Task) -> list[str | Exception]:
    """What a right rollout of the task says, turn by turn."""
    calls: list[str | Exception] = [says(step.tool, **step.arguments) for step in task.milestones]
    return [*calls, f"so\n</think>\n\n{task.expected_answer}"]


NO_IDEA: list[str | Exception] = ["no\n</think>\n\nNo idea."]
[ASK] = [task for task in WORLD.tasks("train", 8) if task.details["kind"] == "ask"][:1]
RIGHT, WRONG = 1.0, 0.6 * 0.3 + 0.4 * (0.25 + 0.15)
"""R = 0.6 answer + 0.4 process. Wrong: it wrote nothing, as was right (0.3), answered (0.25) and thought (0.15)."""


async def test_one_step_through_verl_gives_centred_advantages_on_the_sampled_tokens_only(
    config: DictConfig,
    tokenizer: PreTrainedTokenizerFast,
    store: Store,
    cache: MemoryCache,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    servers = Servers(tokenizer, {0: solution(ASK), 1: NO_IDEA, 2: [RuntimeError("server died")]})
    worker = a_worker(config, servers)
    await play(worker, store, batch_of(config, tokenizer, tmp_path / "train.jsonl", [ASK]))

    # The void rollout is nowhere, and its group says that one failed.
    assert store.tags["train"]["uid0"]["status"] == "failure"
    keys = ["uid0_0_0", "uid0_1_0"]
    assert sorted(store.rows) == keys
    assert "rollout uid0/2 of " in caplog.text and "is void (infrastructure)" in caplog.text

    buffer = replay_buffer.ReplayBuffer("sync", config.trainer.v1.sync, 8, "drop", {}, poll_interval=0.0)
    sampled, _ = buffer.sample(global_steps=STEP, partition_id="train", batch_size=1)
    assert sorted(sampled.keys) == keys

    fields = ["uid", "prompts", "responses", "response_mask", "rm_scores", "rollout_log_probs"]
    got = store.kv_batch_get(keys, "train", fields)
    rewards = [row.sum().item() for row in got["rm_scores"]]
    assert rewards == pytest.approx([RIGHT, WRONG])
    for responses, mask, logprobs in zip(got["responses"], got["response_mask"], got["rollout_log_probs"], strict=True):
        assert len(responses) == len(mask) == len(logprobs)
        assert logprobs.tolist() == pytest.approx([LOGPROB * bit for bit in mask.tolist()])
    sampled_text = tokenizer.decode(got["responses"][0][got["response_mask"][0].bool()])
    assert sampled_text == "".join(f"{said}<|im_end|>" for said in solution(ASK))
    unsampled = tokenizer.decode(got["responses"][0][~got["response_mask"][0].bool()])
    assert unsampled.count("<tool_response>") == len(ASK.milestones)

    data = DataProto(batch=got.exclude("uid").to_padded_tensor())
    data.batch["token_level_rewards"] = data.batch["rm_scores"]
    data.non_tensor_batch["uid"] = np.array(["uid0", "uid0"], dtype=object)
    compute_advantage_for_multi_trajectories(
        data, keys, adv_estimator="grpo", num_repeat=3, norm_adv_by_std_in_grpo=False, config=config.algorithm
    )
    half = (RIGHT - WRONG) / 2
    expected = torch.stack([half * data.batch["response_mask"][0], -half * data.batch["response_mask"][1]])
    torch.testing.assert_close(data.batch["advantages"], expected.float())


async def test_every_rollout_carries_the_same_numbers_and_what_verl_wants_to_know(
    config: DictConfig, tokenizer: PreTrainedTokenizerFast, store: Store, cache: MemoryCache, tmp_path: Path
) -> None:
    servers = Servers(tokenizer, {0: solution(ASK), 1: NO_IDEA, 2: solution(ASK)})
    await play(a_worker(config, servers), store, batch_of(config, tokenizer, tmp_path / "train.jsonl", [ASK]))
    extra = [store.rows[f"uid0_{session}_0"]["extra_fields"] for session in range(3)]
    numbers = [each["reward_extra_info"] for each in extra]
    assert numbers[0].keys() == numbers[1].keys() == numbers[2].keys()
    assert all(isinstance(value, float) for each in numbers for value in each.values())
    calls = len(ASK.milestones)
    assert [each["calls"] for each in numbers] == [calls, 0.0, calls]
    # Of two rollouts that miss alike, whoever came first executed a call, the other one was served.
    assert sum(each["tier_live"] for each in numbers) == calls
    assert sum(each["tier_exact"] for each in numbers) == calls
    assert [each["stop_answered"] for each in numbers] == [1.0] * 3
    assert (extra[0]["min_global_steps"], extra[0]["max_global_steps"]) == (3, 3 + calls)
    assert store.tags["train"]["uid0_0_0"]["max_global_steps"] == 3 + calls
    turns = [store.rows[f"uid0_{session}_0"]["num_turns"] for session in range(3)]
    assert turns == [2 * calls + 2, 2, 2 * calls + 2]
    metrics = store.rows["uid0_0_0"]["metrics"]
    assert metrics["num_preempted"] == calls + 1
    assert metrics["generate_sequences"] > 0


async def test_turns_of_a_rollout_share_a_sticky_key_and_only_its_first_has_a_least_length(
    config: DictConfig, tokenizer: PreTrainedTokenizerFast, store: Store, cache: MemoryCache, tmp_path: Path
) -> None:
    servers = Servers(tokenizer, {0: solution(ASK), 1: NO_IDEA, 2: NO_IDEA})
    await play(a_worker(config, servers), store, batch_of(config, tokenizer, tmp_path / "train.jsonl", [ASK]))
    asked = [(ids, params) for name, ids, params in servers.asked if name == "uid0/0"]
    assert len(asked) == len(ASK.milestones) + 1
    assert [params["min_tokens"] for _, params in asked] == [7] + [0] * len(ASK.milestones)
    for (earlier, _), (later, _) in pairwise(asked):
        assert later[: len(earlier)] == earlier  # ids are only ever appended, so a prefix cache is used
    for _, params in asked:
        assert (params["temperature"], params["top_p"], params["top_k"]) == (1.0, 1.0, -1)
        assert params["stop_token_ids"] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
        assert params["logprobs"] and params["ignore_eos"]


async def test_validation_rows_are_scored_by_the_fixed_formula_whatever_training_uses(
    config: DictConfig, tokenizer: PreTrainedTokenizerFast, store: Store, cache: MemoryCache, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(RUN + "[reward.weights]\nexact = 0.2\n")
    scores = {}
    for validate in (False, True):
        store.rows.clear()
        servers = Servers(tokenizer, {0: NO_IDEA, 1: NO_IDEA, 2: NO_IDEA})
        batch = batch_of(config, tokenizer, tmp_path / f"{validate}.jsonl", [ASK], validate=validate)
        await play(a_worker(config, servers), store, batch, validate=validate)
        scores[validate] = [row["rm_scores"].sum().item() for row in store.rows.values()]
    assert scores[False] == pytest.approx([0.2 * 0.3 + 0.8 * 0.4] * 3)
    assert scores[True] == pytest.approx([WRONG])  # one rollout a task: val_kwargs.n
    assert set(store.tags) == {"train", "val"}


async def test_a_cut_turn_is_told_from_a_stopped_one_and_masked_but_counts_in_the_baseline(
    config: DictConfig, tokenizer: PreTrainedTokenizerFast, store: Store, cache: MemoryCache, tmp_path: Path
) -> None:
    servers = Servers(tokenizer, {0: ["on and on " * 60], 1: NO_IDEA, 2: NO_IDEA})
    await play(a_worker(config, servers), store, batch_of(config, tokenizer, tmp_path / "train.jsonl", [ASK]))
    cut = store.rows["uid0_0_0"]
    assert cut["extra_fields"]["reward_extra_info"]["stop_token_budget"] == 1.0
    assert cut["response_mask"].tolist() == [0] * 400
    assert cut["rm_scores"].sum().item() == pytest.approx(0.6 * 0.3 + 0.4 * 0.15)  # wrote nothing, thought


async def test_each_rollout_leaves_a_line_in_the_log_the_void_ones_too(
    config: DictConfig, tokenizer: PreTrainedTokenizerFast, store: Store, cache: MemoryCache, tmp_path: Path
) -> None:
    servers = Servers(tokenizer, {0: solution(ASK), 1: NO_IDEA, 2: [RuntimeError("server died")]})
    await play(a_worker(config, servers), store, batch_of(config, tokenizer, tmp_path / "train.jsonl", [ASK]))
    [log] = (tmp_path / "checkpoints" / "rollouts").glob("*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    rewards = sorted((line["reward"] for line in lines), key=lambda reward: -1.0 if reward is None else reward)
    assert rewards == [None, pytest.approx(WRONG), pytest.approx(RIGHT)]
    assert sum(line["stop_infrastructure"] for line in lines) == 1.0
    assert {(line["step"], line["task"]) for line in lines} == {(STEP, ASK.id)}
    assert not any(
        f'"{argument}"' in log.read_text() for step in ASK.milestones for argument in step.arguments.values()
    )


async def test_a_rollout_that_ran_out_of_time_is_void_in_training_and_scored_in_validation(
    config: DictConfig, tokenizer: PreTrainedTokenizerFast, store: Store, cache: MemoryCache, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(RUN + "seconds = 1e-9\n")
    counts = {}
    for validate in (False, True):
        servers = Servers(tokenizer, {0: NO_IDEA, 1: NO_IDEA, 2: NO_IDEA})
        batch = batch_of(config, tokenizer, tmp_path / f"{validate}.jsonl", [ASK], validate=validate)
        await play(a_worker(config, servers), store, batch, validate=validate)
        counts[validate] = len(store.rows)
    assert counts == {False: 0, True: 1}
    lines = [json.loads(line) for log in (tmp_path / "checkpoints").rglob("*.jsonl") for line in log.open()]
    assert [line["stop_time_budget"] for line in lines] == [1.0] * 4
    assert [line["reward"] is None for line in lines if not line["is_validation"]] == [True] * 3


async def test_a_judge_that_does_not_come_back_makes_its_rollout_void(
    config: DictConfig,
    tokenizer: PreTrainedTokenizerFast,
    store: Store,
    cache: MemoryCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    enough = threading.Event()

    class Judge:
        def score(self, rollout: Rollout, task: Task) -> float:
            return 1.0 if rollout.answer != "No idea." or enough.wait(20) else 0.0

    monkeypatch.setattr(plugin, "JUDGE_S", 0.2)
    monkeypatch.setattr(plugin, "make_judge", lambda run, world: Judge())
    servers = Servers(tokenizer, {0: solution(ASK), 1: NO_IDEA, 2: solution(ASK)})
    try:
        await play(a_worker(config, servers), store, batch_of(config, tokenizer, tmp_path / "train.jsonl", [ASK]))
    finally:
        enough.set()
    assert sorted(store.rows) == ["uid0_0_0", "uid0_2_0"]
    assert "is void (infrastructure): the judge took longer than 0.2 s" in caplog.text


async def test_a_run_that_goes_on_leaves_the_log_of_the_one_before(
    config: DictConfig, tokenizer: PreTrainedTokenizerFast, store: Store, cache: MemoryCache, tmp_path: Path
) -> None:
    for step in range(2):
        servers = Servers(tokenizer, dict.fromkeys(range(3), NO_IDEA))
        batch = batch_of(config, tokenizer, tmp_path / f"{step}.jsonl", [ASK])
        await play(a_worker(config, servers), store, batch)
    logs = sorted((tmp_path / "checkpoints" / "rollouts").glob("*.jsonl"))
    assert [len(log.read_text().splitlines()) for log in logs] == [3, 3]


async def test_all_rollouts_of_a_worker_share_one_cache_client_and_a_miss_by_policy_voids(
    config: DictConfig,
    tokenizer: PreTrainedTokenizerFast,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[MemoryCache] = []

    @asynccontextmanager
    async def open_cache() -> AsyncIterator[CacheLookup]:
        await asyncio.sleep(0)  # a client that takes a turn of the event loop to open
        opened.append(MemoryCache(writing_tools(WORLD.tools)))
        yield opened[-1]

    source = FromCache(open_cache=open_cache, namespace=WORLD.name, on_miss=Drop(), on_outage=Drop())
    monkeypatch.setattr(plugin, "tool_source", lambda run, world, url: source)
    servers = Servers(tokenizer, {0: solution(ASK), 1: solution(ASK), 2: NO_IDEA})
    await play(a_worker(config, servers), store, batch_of(config, tokenizer, tmp_path / "train.jsonl", [ASK]))
    assert len(opened) == 1
    assert sorted(store.rows) == ["uid0_2_0"]


async def test_a_step_without_a_scored_rollout_ends_the_run_and_is_not_asked_for_without_end(
    config: DictConfig, tokenizer: PreTrainedTokenizerFast, store: Store, cache: MemoryCache, tmp_path: Path
) -> None:
    servers = Servers(tokenizer, {session: [RuntimeError("server died")] for session in range(3)})
    await play(a_worker(config, servers), store, batch_of(config, tokenizer, tmp_path / "train.jsonl", [ASK]))
    buffer = replay_buffer.ReplayBuffer(
        "sync",
        config.trainer.v1.sync,
        8,
        "drop",
        {},
        poll_interval=0.0,
        refill_fn=lambda count: pytest.fail("asked again"),
        filter_groups_metric=config.algorithm.filter_groups.metric,
        train_batch_size=1,
        gen_batch_size=1,
        sync_refill_failed_groups=config.trainer.v1.sampler.sync_refill_failed_groups,
    )
    with pytest.raises(RuntimeError, match="no materializable trajectories"):
        buffer.sample(global_steps=STEP, partition_id="train", batch_size=1)


def test_importing_the_plugin_leaves_the_entry_with_its_settings_alone(config: DictConfig, store: Store) -> None:
    a_worker(config, Servers(make_byte_tokenizer(), {}))
    entry = _agent_loop_registry["cache_agent"]
    importlib.reload(plugin)
    assert _agent_loop_registry["cache_agent"] is entry
    assert entry["run"].endswith("run.toml")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_under_real_ray_and_transfer_queue_the_rewards_arrive_at_the_trainer(
    config: DictConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker actor plays live, without a cache service; the servers travel to it as a copy."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (tmp_path / "run.toml").write_text(RUN + "[cache]\nis_used = false\n")
    for key, value in {
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "actor_rollout_ref.rollout.agent.num_workers": 1,
        "actor_rollout_ref.rollout.n": 2,
    }.items():
        OmegaConf.update(config, key, value)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(num_cpus=4, include_dashboard=False, _node_ip_address="127.0.0.1")
    try:
        transfer_queue.init(config.transfer_queue)
        servers = Servers(tokenizer, {0: solution(ASK), 1: NO_IDEA})
        manager = agent_loop_tq.AgentLoopManagerTQ.create(config=config, llm_client=servers)
        batch = batch_of(config, tokenizer, tmp_path / "train.jsonl", [ASK])
        tags = [{"is_prompt": True, "status": "pending", "global_steps": STEP}]
        transfer_queue.kv_batch_put(keys=list(batch["uid"]), partition_id="train", tags=tags)
        manager.generate_sequences(batch)
        buffer = replay_buffer.ReplayBuffer("sync", config.trainer.v1.sync, 8, "drop", {}, poll_interval=0.2)
        sampled, _ = buffer.sample(global_steps=STEP, partition_id="train", batch_size=1)
        got = transfer_queue.kv_batch_get(keys=sampled.keys, partition_id="train", select_fields=["rm_scores"])
        rewards = dict(zip(sampled.keys, (row.sum().item() for row in got["rm_scores"]), strict=True))
        assert rewards == {"uid0_0_0": pytest.approx(RIGHT), "uid0_1_0": pytest.approx(WRONG)}
    finally:
        transfer_queue.close()
        ray.shutdown()


# ---- the engine


def sampling(**changes: Any) -> Sampling:
    return replace(Sampling(max_tokens=4, stop_id=9, rollout="g/1"), **changes)


class OneAnswer:
    def __init__(self, **fields: Any) -> None:
        self._output = TokenOutput(**{"token_ids": [1, 9], "log_probs": [-1.0, -2.0], **fields})

    async def generate(self, **_: Any) -> TokenOutput:
        return self._output


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"stop_reason": "aborted"}, "gave up rollout g/1"),
        ({"token_ids": [], "log_probs": []}, "gave up rollout g/1"),
        ({"log_probs": None}, "0 log-probabilities for 2 tokens"),
        ({"log_probs": [-1.0]}, "1 log-probabilities for 2 tokens"),
        ({"log_probs": [-1.0, float("nan")]}, "not finite"),
        ({"log_probs": [float("-inf"), -1.0]}, "not finite"),
    ],
)
async def test_an_answer_that_cannot_be_trained_on_is_a_failed_engine(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(EngineFailed, match=complaint):
        await plugin.VerlEngine(OneAnswer(**fields)).generate([5], sampling())


async def test_a_generation_knows_its_weights_and_the_rollout_those_of_all_its_turns() -> None:
    first = {"min_global_steps": 3, "max_global_steps": 3}
    engine = plugin.VerlEngine(OneAnswer(extra_fields=first, num_preempted=2))
    generation = await engine.generate([5], sampling())
    assert (generation.ids, generation.logprobs) == ((1, 9), (-1.0, -2.0))
    assert (generation.finish_reason, generation.weight_version) == ("stop", 3)
    assert (await engine.generate([5], sampling(stop_id=8))).finish_reason == "length"
    served = engine.take("g/1")
    assert (served.preempted, served.oldest_weights, served.newest_weights) == (4, 3, 3)
    assert engine.take("g/1").preempted is None  # forgotten


# ---- configuration


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("trainer.use_v1=False", "legacy trainer"),
        ("actor_rollout_ref.rollout.name=sglang", "only vllm"),
        ("actor_rollout_ref.rollout.top_p=0.9", "top_p and top_k"),
        ("actor_rollout_ref.rollout.temperature=0.7", "temperature is 1.0"),
        ("actor_rollout_ref.rollout.logprobs_mode=processed_logprobs", "first_turn_min_tokens needs"),
        ("data.max_response_length=512", "context_tokens is 2048, the servers hold 1536"),
    ],
)
def test_a_configuration_that_contradicts_the_run_is_refused(
    config: DictConfig, override: str, complaint: str, tmp_path: Path
) -> None:
    key, value = override.split("=")
    OmegaConf.update(config, key, yaml.safe_load(value))
    with pytest.raises(RunMisconfigured, match=complaint):
        plugin._check(config, read_run(tmp_path / "run.toml", Run))


def test_raw_logprobs_are_refused_at_another_temperature_and_credit_by_trust_always(
    config: DictConfig, tmp_path: Path
) -> None:
    run = read_run(tmp_path / "run.toml", Run)
    with pytest.raises(RunMisconfigured, match="credit is trust"):
        plugin._check(config, replace(run, grpo=replace(run.grpo, credit="trust")))
    config.actor_rollout_ref.rollout.temperature = 0.7
    with pytest.raises(RunMisconfigured, match="right at temperature 1 only"):
        plugin._check(config, replace(run, grpo=replace(run.grpo, temperature=0.7)))


def test_the_published_configuration_agrees_with_its_run_file() -> None:
    plugin._check(published(), read_run(RUNS / "verl.toml", Run))


def test_every_key_of_the_published_configuration_exists_in_verl_and_passes_its_checks() -> None:
    own = yaml.safe_load((RUNS / "verl" / "grpo.yaml").read_text())
    own.pop("defaults")
    with initialize_config_module("verl.trainer.config", version_base=None):
        theirs = compose("ppo_trainer")
    for key in leaves(own):
        assert exists(theirs, key), key
    composed = published()
    for key, value in leaves(own).items():
        assert OmegaConf.select(composed, ".".join(key)) == value, key
    validate_config(composed, use_reference_policy=False, use_critic=False)


def leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for name, value in tree.items():
        found |= leaves(value, (*above, name)) if isinstance(value, dict) else {(*above, name): value}
    return found


def exists(config: DictConfig, key: tuple[str, ...]) -> bool:
    inner = OmegaConf.select(config, ".".join(key[:-1]))
    return isinstance(inner, DictConfig) and key[-1] in inner._content


@pytest.mark.slow
def test_the_published_command_is_understood_by_verls_program(tmp_path: Path) -> None:
    command = ["-m", "verl.trainer.main_ppo", "--config-dir", str(RUNS / "verl"), "--config-name", "grpo"]
    done = subprocess.run(
        [sys.executable, *command, "--cfg", "job", "--resolve", f"hydra.run.dir={tmp_path}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    composed = yaml.safe_load(done.stdout)
    assert composed["algorithm"]["rollout_correction"]["rollout_is"] == "token"
    assert composed["actor_rollout_ref"]["rollout"]["prompt_length"] == 2048


def test_the_published_entry_names_this_loop_and_a_run_file_that_is_there() -> None:
    [entry] = yaml.safe_load((RUNS / "verl" / "agent_loop.yaml").read_text())
    assert entry["_target_"] == f"{plugin.VerlCacheAgentLoop.__module__}.{plugin.VerlCacheAgentLoop.__name__}"
    assert (RUNS.parents[1] / entry["run"]).is_file()
    assert entry["name"] == "cache_agent"


@pytest.fixture(autouse=True)
def _registry_as_it_was() -> Iterator[None]:
    before = dict(_agent_loop_registry)
    yield
    _agent_loop_registry.clear()
    _agent_loop_registry.update(before)
