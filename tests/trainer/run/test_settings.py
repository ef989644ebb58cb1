"""A run file is read with every slip told by name, before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check.sizes import Shape, Sizes
from cacherl.config import differences, read_run, write_run
from cacherl.demo.settings import DemoRun
from cacherl.errors import RunMisconfigured
from cacherl.run.settings import Run

RUNS = Path(__file__).parents[3] / "trainer" / "runs"
SMALL = """
name = "small"
[model.tiny]
[world]
tasks = 100
"""
RECORDED = ("--world.kind", "recorded", "--world.trajectories", "a.jsonl", "--world.tools", "t.json")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_published_run_file_is_a_run(path: Path, tmp_path: Path) -> None:
    kind = DemoRun if path.stem == "demo" else Run
    run = read_run(path, kind)
    write_run(tmp_path / "again.toml", run)
    assert read_run(tmp_path / "again.toml", kind) == run


QWEN = ("qwen3-4b-thinking-sft", "qwen3-4b-thinking-grpo", "qwen3-4b-thinking-iterate")


@pytest.mark.parametrize("name", QWEN)
def test_a_published_run_fits_a_gpu_of_80_gigabytes_and_asks_for_nothing_that_no_extra_installs(name: str) -> None:
    run = read_run(RUNS / f"{name}.toml", Run)
    assert run.model.attention == "sdpa"
    assert not run.sft.packing  # a packed row of sdpa costs a mask of its length squared
    shape = Shape()
    kept_a_token = 4 * shape.layers * shape.hidden  # each layer's input, float32
    if run.lora is None:
        held = 16 * shape.parameters
    else:
        assert run.model.dtype == "bfloat16"
        held = 2 * shape.parameters + 16 * shape.adapter_parameters(run.lora.rank)
    longest = max(run.sft.micro_batch_tokens or 10**9, run.sft.max_example_tokens)
    if "grpo" not in name:
        assert held + kept_a_token * longest < 75e9
    if "sft" not in name:
        row = run.grpo.micro_batch * run.grpo.budgets.context_tokens
        assert held + kept_a_token * row + run.engine.vllm.gpu_memory_utilization * 80e9 < 70e9
        assert run.grpo.learning_rate >= 1e-5  # less is lost in a bfloat16 base


def test_the_sft_file_evaluates_its_model_as_the_grpo_file_does() -> None:
    sft, grpo, _ = (read_run(RUNS / f"{name}.toml", Run) for name in QWEN)
    assert sft.grpo.budgets == grpo.grpo.budgets
    assert (sft.engine, sft.judge, sft.evaluate) == (grpo.engine, grpo.judge, grpo.evaluate)


def test_the_check_on_a_gpu_runs_passes_of_the_published_size() -> None:
    assert Sizes().sft_micro_batch_tokens == read_run(RUNS / f"{QWEN[0]}.toml", Run).sft.micro_batch_tokens


def test_reading_a_run_imports_nothing_heavy() -> None:
    program = (
        "import sys; import cacherl.run.settings, cacherl.cli\n"
        "print([n for n in 'torch transformers trl peft vllm matplotlib numpy'.split() if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--grpo.stepz", "3"), "unknown setting grpo.stepz; did you mean steps?"),
        (("--lora.rang", "3"), "unknown setting lora.rang; did you mean rank?"),
        (("--model.tiny.depth", "3"), "unknown setting model.tiny.depth"),
        (("--grpo.steps", "many"), "grpo.steps: Expected int, got str"),
        (("--lora", "8"), "lora: Expected section | null, got int"),
        (
            ("--cache.on_miss", "guess"),
            "cache.on_miss: Invalid enum value 'guess'; it must be one of live, wait, error, drop",
        ),
        (("--name", "a b"), "name is 'a b'"),
        (
            ("--world.kind", "elsewhere"),
            "world.kind is 'elsewhere'; it must be support_desk, recorded or package.module:factory",
        ),
        (("--world.kind", "recorded"), "a recorded world is made of world.trajectories and world.tools"),
        (RECORDED, "a recorded world has no live tools: set cache.on_miss to error, drop or wait"),
        ((*RECORDED, "--cache.on_miss", "drop", "--cache.is_used", "false"), "set cache.is_used to true"),
        (("--world.tasks", "3"), "grpo.prompts_per_step is 8, more than world.tasks, 3"),
        (("--world.free_text", "question"), "write tool.argument"),
        (("--world.judge", "mine"), "world.judge is 'mine'; it must be package.module:factory"),
        (("--engine.kind", "vllm-server"), "say where it listens with engine.urls"),
        (
            ("--engine.kind", "vllm", "--engine.vllm.max_model_tokens", "100"),
            "grpo.budgets.context_tokens is 16384, but the engine takes 100",
        ),
        (("--lora.rank", "8"), "leave [lora] out for a tiny model"),
        (("--cache.tiers", "[]"), "cache.tiers is empty"),
        (("--seed",), "flag '--seed' has no value"),
        (("seed", "1"), "'seed' is no setting; write --section.key value"),
        (("--name.first", "x"), "name is a value, not a section"),
    ],
)
def test_a_slip_is_told_with_the_name_of_the_setting(small: Path, flags: tuple[str, ...], told: str) -> None:
    with pytest.raises(RunMisconfigured) as caught:
        read_run(small, Run, flags)
    assert told in str(caught.value)


def test_a_model_is_a_path_or_tiny(small: Path) -> None:
    small.write_text(SMALL.replace("[model.tiny]", "[model]"))
    with pytest.raises(RunMisconfigured, match=r"no model: set model\.path"):
        read_run(small, Run)
    assert read_run(small, Run, ["--model.path", "runs/x/model"]).model.path == "runs/x/model"


def test_none_turns_off_what_may_be_absent_and_nothing_else(small: Path) -> None:
    assert read_run(small, Run, ["--model.path", "m", "--lora.rank", "8"]).lora is not None
    assert read_run(small, Run, ["--model.path", "m", "--lora.rank", "8", "--lora", "none"]).lora is None
    assert read_run(small, Run, ["--cache.tiers", "none"]).cache.tiers is None
    assert read_run(small, Run, ["--name", "none"]).name == "none"


def test_a_flag_that_wants_text_takes_digits_as_text_and_one_value_is_a_list_of_one(small: Path) -> None:
    run = read_run(small, Run, ["--name", "2026", "--track.to", "wandb", "--cache.tiers", '["exact", "similar"]'])
    assert (run.name, run.track.to, run.cache.tiers) == ("2026", ("wandb",), ("exact", "similar"))


def test_options_of_an_own_world_are_anybodys_business(small: Path) -> None:
    flags = ["--world.kind", "shop.world:make", "--world.options.url", "http://x", "--world.options.depth", "3"]
    run = read_run(small, Run, flags)
    assert run.world.options == {"url": "http://x", "depth": 3}


def test_differences_name_every_setting_that_differs_and_no_other(small: Path) -> None:
    one = read_run(small, Run)
    other = read_run(small, Run, ["--grpo.budgets.turns", "3", "--seed", "1", "--model.path", "x", "--lora.rank", "8"])
    assert differences(one, one) == []
    assert differences(one, other) == ["seed", "model.path", "lora", "grpo.budgets.turns"]
