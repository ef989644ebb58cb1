"""The GPU check in small, on the CPU: the same code path, its numbers, and what becomes of a part that fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.gpu_check import __main__ as program
from benchmarks.gpu_check.chip import Chip, measured
from benchmarks.gpu_check.policy import ScriptedPolicy, random_model, said_in_turn, tokenizer_of
from benchmarks.gpu_check.sizes import TINY, Shape, plan
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.errors import EngineFailed
from cacherl.rollout.engine import Generation, Sampling
from cacherl.rollout.loop import opening
from cacherl.rollout.parser import Parser
from cacherl.rollout.renderer import Renderer
from cacherl.worlds.support_desk import SupportDesk

WORLD = SupportDesk(seed=0)
TASKS = WORLD.tasks("train", 3)


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_the_weights_are_counted_as_the_model_counts_them() -> None:
    shape = TINY.shape
    model = random_model(shape, tokenizer_of(400), torch.device("cpu"), torch.float32)
    assert sum(each.numel() for each in model.parameters()) == shape.parameters


def test_qwen3_4b_has_four_billion_weights_and_tied_embeddings() -> None:
    with torch.device("meta"):
        shape = Shape()
        config = Qwen3Config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            head_dim=shape.head_dim,
            intermediate_size=shape.feed_forward,
            tie_word_embeddings=True,
        )
        assert sum(each.numel() for each in Qwen3ForCausalLM(config).parameters()) == shape.parameters == 4_022_468_096


def test_adapters_are_two_thin_matrices_a_linear_map() -> None:
    one_layer = Shape(layers=1, hidden=4, heads=2, key_value_heads=1, head_dim=3, feed_forward=5)
    # queries 4x6, keys and values 4x3, output 6x4, gate and up 4x5, down 5x4
    assert one_layer.adapter_parameters(2) == 2 * (10 + 7 + 7 + 10 + 9 + 9 + 9)


@pytest.mark.parametrize(
    ("part", "method", "gigabytes", "dtype"),
    [
        ("sft", "full", 141, "float32"),
        ("sft", "full", 85, "float32"),  # what a GPU of "80 GB" has
        ("sft", "full", 80, "bfloat16"),
        ("sft", "full", 24, None),
        ("sft", "lora", 24, "bfloat16"),
        ("sft", "lora", 8, None),
        ("sft", "full", None, "float32"),
        ("grpo", "full", 141, "float32"),
        ("grpo", "full", 85, None),  # never bfloat16, which the trainer refuses
        ("grpo", "lora", 85, "bfloat16"),
        ("grpo", "full", None, "float32"),
    ],
)
def test_the_widest_weights_that_fit_are_chosen(
    part: Any, method: Any, gigabytes: int | None, dtype: str | None
) -> None:
    memory_bytes = None if gigabytes is None else gigabytes * 10**9
    assert plan(part, method, Shape(), rank=128, memory_bytes=memory_bytes).dtype == dtype


# -- the chip ----------------------------------------------------------------------------------------------------------


def test_the_probes_give_rates() -> None:
    chip = measured(torch.device("cpu"), side=32, copied_bytes=4096)
    assert (chip.name, chip.memory_bytes) == ("cpu", None)
    assert min(chip.matmul_flops, chip.copy_bytes) > 0


def test_twice_the_time_is_half_the_utilisation() -> None:
    chip = Chip(name="", memory_bytes=None, matmul_flops=1e12, copy_bytes=1e9)
    assert chip.utilisation(flops_per_token=6e9, tokens=100, seconds=1.2) == pytest.approx(0.5)
    assert chip.utilisation(flops_per_token=6e9, tokens=100, seconds=2.4) == pytest.approx(0.25)


# -- the script --------------------------------------------------------------------------------------------------------


class Babble:
    """An engine that samples one id over and over, and remembers what it was asked."""

    weight_version = 3
    is_the_model = True

    def __init__(self, *, missing: int = 0) -> None:
        self.asked: list[Sampling] = []
        self._missing = missing

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        self.asked.append(sampling)
        count = sampling.max_tokens - self._missing
        return Generation(ids=(9,) * count, logprobs=(-2.0,) * count, finish_reason="length", weight_version=3)

    def follow(self, model: Any, version: int) -> None: ...

    def close(self) -> None: ...


def scripted(engine: Babble) -> tuple[ScriptedPolicy, Renderer]:
    tokenizer = HFTokenizer(tokenizer_of(600))
    renderer = Renderer(tokenizer)
    thoughts = tokenizer.encode("first this and then that, " * 100)
    return ScriptedPolicy(engine, renderer, TASKS, turn_tokens=80, thoughts=thoughts), renderer


def test_the_script_says_the_milestones_and_then_the_answer_to_every_second_seed() -> None:
    task = TASKS[0]
    calls = [said_in_turn(task, turn, seed=0) for turn in range(len(task.milestones))]
    parsed = [Parser(WORLD.tools).parse(f"</think>{said}").calls for said in calls]
    assert [(call.name, call.arguments) for (call,) in parsed] == [(m.tool, m.arguments) for m in task.milestones]
    assert said_in_turn(task, len(task.milestones), seed=1) == task.expected_answer
    assert said_in_turn(task, len(task.milestones), seed=2) != task.expected_answer


def test_as_many_tokens_are_sampled_as_the_script_says_and_the_script_s_ids_stand_in_their_place() -> None:
    engine = Babble()
    policy, renderer = scripted(engine)
    task = TASKS[1]
    prompt = renderer.prompt_ids(opening(WORLD.system_prompt, task.prompt))
    said = asyncio.run(policy.generate(prompt, Sampling(max_tokens=500, stop_id=renderer.end_of_turn_id, seed=1)))
    (asked,) = engine.asked
    assert asked.min_tokens == asked.max_tokens == len(said.ids) == len(said.logprobs)
    assert 60 <= len(said.ids) <= 100
    assert (said.finish_reason, said.weight_version) == ("stop", 3)
    (call,) = Parser(WORLD.tools).parse(renderer.tokenizer.decode(said.ids)).calls
    assert (call.name, call.arguments) == (task.milestones[0].tool, task.milestones[0].arguments)


def test_the_second_turn_is_known_by_the_prompt_whatever_the_rollout_is_called() -> None:
    policy, renderer = scripted(Babble())
    task = TASKS[1]
    prompt = renderer.prompt_ids(opening(WORLD.system_prompt, task.prompt))
    sampling = Sampling(max_tokens=500, stop_id=renderer.end_of_turn_id, seed=1)
    first = asyncio.run(policy.generate(prompt, sampling))
    longer = [*prompt, *first.ids, *renderer.tool_delta_ids(["order 12"])]
    second = asyncio.run(policy.generate(longer, replace(sampling, seed=8)))
    (call,) = Parser(WORLD.tools).parse(renderer.tokenizer.decode(second.ids)).calls
    assert (call.name, call.arguments) == (task.milestones[1].tool, task.milestones[1].arguments)


def test_an_engine_that_samples_fewer_tokens_than_asked_for_is_found_out() -> None:
    policy, renderer = scripted(Babble(missing=1))
    prompt = renderer.prompt_ids(opening(WORLD.system_prompt, TASKS[0].prompt))
    with pytest.raises(EngineFailed, match="asked for exactly"):
        asyncio.run(policy.generate(prompt, Sampling(max_tokens=500, stop_id=renderer.end_of_turn_id)))


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of everything."""
    out = tmp_path_factory.mktemp("gpu-check") / "found.json"
    status = program.main(["--tiny", "--out", str(out)])
    found: dict[str, Any] = json.loads(out.read_text())
    assert status == 0, {name: part.get("error") for name, part in found["parts"].items()}
    return found


@pytest.mark.slow
def test_every_part_runs_and_tells_its_rate(told: dict[str, Any]) -> None:
    assert list(told["parts"]) == list(program.PARTS)
    assert all(part["tokens_per_s"] > 0 and part["took_s"] > 0 for part in told["parts"].values())
    assert told["chip"]["name"] == "cpu"
    assert "script" in told["what_is_said"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft_lora", "sft_full"])
def test_sft_trains_tokens_of_the_recordings(told: dict[str, Any], name: str) -> None:
    part = told["parts"][name]
    assert part["trained_tokens_a_step"] > 0 and part["first_loss"] > 0
    assert part["tokens_a_step"] == TINY.sft_batch * TINY.sft_example_tokens
    assert part["utilisation"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rollouts", "grpo_lora", "grpo_full"])
def test_rollouts_are_played_to_their_answer_by_the_cache_and_live_tools(told: dict[str, Any], name: str) -> None:
    part = told["parts"][name]
    assert part["stops"] == {"answered": part["rollouts"]}
    assert part["tier_mix"]["exact"] > 0
    assert 0 < part["cache_share"] <= part["tool_share"] < part["generation_share"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo_lora", "grpo_full"])
def test_a_grpo_step_learns_and_is_split_into_what_it_did(told: dict[str, Any], name: str) -> None:
    part = told["parts"][name]
    assert part["grad_norm"] > 0
    assert set(part["split_s"]) == {"follow", "rollouts", "update"}
    assert 0 < part["scoring_s"] < part["step_s"]
    assert part["update_tokens"] == pytest.approx(part["rollout_tokens"] * part["rollouts"])


def test_a_part_that_fails_is_told_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(check: Any) -> Any:
        raise EngineFailed("out of memory")

    monkeypatch.setattr("benchmarks.gpu_check.parts.rollouts", broken)
    out = tmp_path / "found.json"
    assert program.main(["--tiny", "--only", "rollouts,sft_full", "--out", str(out)]) == 1
    parts = json.loads(out.read_text())["parts"]
    assert parts["rollouts"]["error"] == "EngineFailed: out of memory"
    assert parts["sft_full"]["tokens_per_s"] > 0
    assert "out of memory" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_check_says_so_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--out", str(tmp_path / "none.json")]) == 1
    assert "--tiny" in capsys.readouterr().out
    assert not (tmp_path / "none.json").exists()


def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "NEEDED", ("torch", "no_such_package"))
    if torch.cuda.is_available():
        pytest.skip("it would go on to the check itself")
    program.main([])
    assert "not installed: no_such_package" in capsys.readouterr().out
