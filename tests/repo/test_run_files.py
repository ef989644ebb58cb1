"""Run files: every published one parses, slips are refused with the key's name, the resolved run reads back equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from cacherl.cli import RUN_FILES
from cacherl.config import read_run, write_run
from cacherl.demo.settings import DemoRun
from cacherl.errors import RunMisconfigured


def test_the_demo_run_file_parses() -> None:
    assert read_run(RUN_FILES / "demo.toml", DemoRun).grpo.steps > 0


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 3\n[grpo]\nsteps = 7\nlearning_rate = 0.5\n")
    run = read_run(file, DemoRun, ["--grpo.steps", "9", "--reward.over", "mean"])
    assert (run.seed, run.grpo.steps, run.grpo.learning_rate, run.reward.over) == (3, 9, 0.5, "mean")
    assert run.record == DemoRun().record


@pytest.mark.parametrize(
    ("text", "flags", "named"),
    [
        ("[grpo]\nsteps_ = 1", [], "grpo.steps_"),
        ("[grpoo]\nsteps = 1", [], "grpoo"),
        ("", ["--grpo.stepz", "1"], "grpo.stepz"),
        ("[grpo]\nsteps = 'many'", [], "grpo.steps"),
        ("[reward]\nover = 'best'", [], "reward.over"),
        ("seed = ", [], "not TOML"),
        ("", ["--seed"], "--seed"),
        ("", ["seed", "1"], "'seed'"),
        ("seed = 1", ["--seed.deeper", "1"], "seed.deeper"),
        ("", ["--grpo.steps", "0"], "steps is 0"),
        ("", ["--grpo.group_size", "1"], "group_size is 1"),
        ("", ["--grpo.micro_batch", "7"], "micro_batch 7"),
        ("", ["--grpo.temperature", "0.0"], "temperature is 0"),
        ("", ["--threads", "0"], "threads is 0"),
        ("", ["--evaluate.tasks", "0"], "at least 1"),
        ("", ["--reward.weights.exact", "7.0"], "tier weights"),
    ],
)
def test_a_slip_is_refused_by_name(tmp_path: Path, text: str, flags: list[str], named: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(RunMisconfigured, match=named.replace(".", r"\.")):
        read_run(file, DemoRun, flags)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RunMisconfigured, match="not TOML"):
        read_run(tmp_path / "run.toml", DemoRun)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunMisconfigured, match=r"absent\.toml"):
        read_run(tmp_path / "absent.toml", DemoRun)


def test_the_resolved_run_reads_back_equal(tmp_path: Path) -> None:
    run = read_run(RUN_FILES / "demo.toml", DemoRun, ["--seed", "5"])
    write_run(tmp_path / "resolved.toml", run)
    assert read_run(tmp_path / "resolved.toml", DemoRun) == run
