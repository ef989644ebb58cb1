"""GRPO end to end on a byte model: nothing is learned in two steps, but every number must be the right one."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from cacherl.adapters.memory_cache import MemoryCache
from cacherl.errors import RunMisconfigured, RunStopped
from cacherl.reward.answer import MilestoneJudge
from cacherl.rollout.loop import Budgets
from cacherl.rollout.tools import CacheLookup, writing_tools
from cacherl.train.checkpoints import MARKER
from cacherl.train.grpo import FromCache, FromWorld, GrpoReport, ToolSource, train_grpo
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.step_metrics import METRICS
from cacherl.worlds.support_desk import SupportDesk
from tests.trainer.train.grpo_job import Parity, SeededEngine, make_model

WORLD = SupportDesk(seed=0)
WRITES = writing_tools(WORLD.tools)
SETTINGS = GrpoSettings(
    steps=2,
    prompts_per_step=2,
    group_size=3,
    micro_batch=3,
    learning_rate=1e-4,
    overlong="score",
    void_turns="score",
    extra_groups=0,
    budgets=Budgets(turns=2, turn_tokens=12),
)


def run(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    source: ToolSource | None = None,
    judge: Any = None,
    engine: SeededEngine | None = None,
    resume: bool = False,
    sleep: Callable[[float], None] = lambda seconds: None,
    **changes: Any,
) -> GrpoReport:
    return train_grpo(
        model=model,
        tokenizer=tokenizer,
        world=WORLD,
        tasks=WORLD.tasks("train", 6),
        source=source or FromWorld(),
        judge=judge or MilestoneJudge(writes=WRITES),
        settings=replace(SETTINGS, **changes),
        output_dir=out,
        engine=engine,
        resume=resume,
        sleep=sleep,
    )


def test_two_steps_leave_two_lines_of_metrics(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    opened: list[MemoryCache] = []

    @asynccontextmanager
    async def open_cache() -> AsyncIterator[CacheLookup]:
        opened.append(MemoryCache(WRITES))
        yield opened[-1]

    report = run(model, tokenizer, tmp_path, FromCache(open_cache=open_cache, namespace="support_desk"))
    assert len(opened) == 1
    logged = [json.loads(line) for line in (tmp_path / "grpo.jsonl").read_text().splitlines()]
    assert logged == list(report.steps)
    assert [line["step"] for line in logged] == [1, 2]
    assert all(set(line) == set(METRICS) for line in logged)
    assert all(line["rollouts"] == 6 and sum(line["stops"].values()) == 6 for line in logged)
    assert all(line["loss"] is not None and line["update_seconds"] > 0 for line in logged)
    assert all(0 < line["rollout_seconds"] + line["update_seconds"] <= line["step_seconds"] for line in logged)
    assert not model.training


def test_the_model_itself_samples_as_the_trainer_sees_it(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    report = run(model, tokenizer, tmp_path, judge=Parity(), learning_rate=1e-2)
    for line in report.steps:
        assert line["trained_tokens"] == line["sampled_tokens"] > 0
        assert line["mismatch_max"] < 1e-4
        assert line["correction_truncated"] == line["weight_version_spread"] == 0
        assert 0 <= line["engine_idle_share"] < 1


def test_an_engine_follows_the_weights_before_every_step_and_stays_the_callers(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    engine = SeededEngine()
    report = run(model, tokenizer, tmp_path, judge=Parity(), engine=engine, steps=3)
    assert engine.followed == [0, 1, 2]
    assert not engine.closed
    for line in report.steps:
        assert line["weight_version_spread"] == 0
        assert line["mismatch_max"] > 0.1  # its logprobs are made up
        assert line["mismatch_k3"] > 0


def test_groups_that_teach_nothing_are_replaced_and_counted(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    class Equal:
        def score(self, *_: Any) -> float:
            return 0.7

    [line] = run(model, tokenizer, tmp_path, judge=Equal(), engine=SeededEngine(), steps=1, extra_groups=1.5).steps
    assert line["rollouts"] == 6 + 9  # both places once, one of them twice
    assert (line["groups_replaced"], line["zero_variance_groups"], line["trained_rollouts"]) == (3, 2, 0)


def test_a_step_that_infrastructure_spoiled_is_played_again_until_it_can_be_trained(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def play(out: Path, engine: SeededEngine) -> tuple[GrpoReport, list[float]]:
        slept: list[float] = []
        model = make_model(len(tokenizer))
        return run(model, tokenizer, out, judge=Parity(), engine=engine, sleep=slept.append), slept

    away = SeededEngine(away=range(4))
    late, slept = play(tmp_path / "late", away)
    undisturbed, _ = play(tmp_path / "undisturbed", SeededEngine())
    assert away.followed == [0, 0, 0, 0, 1]  # a server that was restarted has old weights
    assert slept == [30.0] * 3
    assert [line["replays"] for line in late.steps] == [3, 0]
    for name in ("step", "reward", "rollouts", "void", "loss", "grad_norm"):
        assert [line[name] for line in late.steps] == [line[name] for line in undisturbed.steps], name


def test_a_step_that_stays_void_ends_the_run_saying_what_is_down(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    slept: list[float] = []
    engine = SeededEngine(away=range(2, 99))
    said = r"step 2 was played 10 times.* of the last 6 6 ended by infrastructure \(connection refused\).*--resume"
    with pytest.raises(RunStopped, match=said):
        run(make_model(len(tokenizer)), tokenizer, tmp_path, judge=Parity(), engine=engine, sleep=slept.append)
    assert engine.followed == [0] + [1] * 10
    assert slept == [30.0] * 9
    assert len((tmp_path / "grpo.jsonl").read_text().splitlines()) == 1


def test_a_step_of_equal_rewards_is_not_played_again_and_updates_nothing(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    class Equal:
        def score(self, *_: Any) -> float:
            return 0.7

    engine, model = SeededEngine(), make_model(len(tokenizer))
    before = [p.clone() for p in model.parameters()]
    report = run(model, tokenizer, tmp_path, judge=Equal(), engine=engine)
    assert engine.followed == [0, 1]
    assert [(line["replays"], line["skipped_updates"]) for line in report.steps] == [(0, 1), (0, 1)]
    assert all((a == b).all() for a, b in zip(before, model.parameters(), strict=True))


def test_to_import_the_trainer_loads_no_framework() -> None:
    code = "import sys, cacherl.train.grpo; print([m for m in ('torch', 'transformers', 'trl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_of_one_seed_plays_and_trains_the_same_again(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    seen = []
    for name in ("a", "b"):
        report = run(
            make_model(len(tokenizer)),
            tokenizer,
            tmp_path / name,
            judge=Parity(),
            engine=SeededEngine(),
            extra_groups=1.0,
            steps=3,
        )
        names = ("reward", "loss", "grad_norm", "groups_replaced", "entropy")
        seen.append([[line[name] for name in names] for line in report.steps])
    assert seen[0] == seen[1]


# ---- what is refused before anything starts


@pytest.mark.parametrize(
    ("changes", "processes", "said"),
    [
        ({"prompts_per_step": 7, "micro_batch": 1}, "1", "6 tasks are fewer than prompts_per_step = 7"),
        ({"prompts_per_step": 3}, "2", "no multiple of the 2 processes"),
        ({"prompts_per_step": 2, "micro_batch": 6}, "2", "micro_batch 6 does not divide the 3 rollouts of a process"),
    ],
)
def test_sizes_that_cannot_be_shared_out_are_refused(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    processes: str,
    said: str,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(RunMisconfigured, match=said):
        run(model, tokenizer, tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_rollouts_ratio_cannot_weigh_its_turns() -> None:
    with pytest.raises(ValueError, match="gspo has one ratio a rollout"):
        replace(SETTINGS, loss="gspo", credit="trust")


def test_a_folder_with_another_runs_checkpoint_is_refused_unless_that_run_goes_on(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    first = run(model, tokenizer, tmp_path, steps=1, checkpoint_every=1)
    with pytest.raises(RunMisconfigured, match="checkpoint-1 of an earlier run"):
        run(model, tokenizer, tmp_path, steps=1)
    again = run(model, tokenizer, tmp_path, steps=1, checkpoint_every=1, resume=True)
    assert again.steps == first.steps


def test_a_checkpoint_whose_writing_was_cut_short_is_passed_over(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def play(resume: bool) -> list[float]:
        model = make_model(len(tokenizer))
        report = run(
            model,
            tokenizer,
            tmp_path,
            judge=Parity(),
            engine=SeededEngine(),
            resume=resume,
            checkpoint_every=1,
        )
        return [line["grad_norm"] for line in report.steps]

    whole = play(resume=False)
    (tmp_path / "checkpoint-2" / MARKER).unlink()
    (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"half of it")
    assert play(resume=True) == whole
    assert (tmp_path / "checkpoint-2" / MARKER).exists()
