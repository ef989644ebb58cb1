"""Two processes train as one does on the same rollouts: same metrics, same weights. On the CPU, over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

JOB = Path(__file__).with_name("grpo_job.py")
CONFIGS = Path(__file__).parents[3] / "trainer" / "runs" / "accelerate"
OPTIONS: dict[str, Any] = {
    "scripted": True,
    "steps": 3,
    "prompts_per_step": 4,
    "group_size": 3,
    "micro_batch": 3,
    "extra_groups": 0.5,
}
CLOCKED = ("seconds", "per_second", "idle")
"""What the clock says differs from run to run."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def play(folder: Path, config: str | None = None, *, fails_with: str | None = None, **options: Any) -> Path:
    launch = [sys.executable]
    if config is not None:
        # A GPU computes in bfloat16; here the numbers are to be compared.
        told = {**yaml.safe_load((CONFIGS / config).read_text()), "mixed_precision": "no"}
        folder.mkdir(exist_ok=True)
        (folder / config).write_text(yaml.safe_dump(told))
        launch += ["-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0"]
        launch += ["--config_file", str(folder / config)]
    path = os.pathsep.join(filter(None, sys.path))
    ended = subprocess.run(
        [*launch, str(JOB), str(folder), json.dumps({**OPTIONS, **options})],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (ended.returncode == 0) is (fails_with is None), ended.stderr[-3000:]
    assert (fails_with or "") in ended.stderr
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "grpo.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not any(word in name for word in CLOCKED)} for line in found
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run of one process."""
    return play(tmp_path_factory.mktemp("alone"))


def assert_same(folder: Path, alone: Path, *, tolerance: float) -> None:
    for got, wanted in zip(lines(folder), lines(alone), strict=True):
        assert got == {
            name: pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value
            for name, value in wanted.items()
        }
    weights, wanted_weights = (torch.load(each / "weights.pt", weights_only=True) for each in (folder, alone))
    assert weights.keys() == wanted_weights.keys()
    for name, value in wanted_weights.items():
        assert torch.allclose(weights[name], value, atol=tolerance), name
    # The seeds made some groups differ and others not, and what differed moved the weights.
    assert {line["trained_rollouts"] > 0 for line in lines(alone)} == {True}
    assert sum(line["groups_replaced"] for line in lines(alone)) > 0


def test_each_process_plays_its_share_and_the_update_is_that_of_one(alone: Path, tmp_path: Path) -> None:
    assert_same(play(tmp_path / "ddp", "ddp.yaml"), alone, tolerance=1e-6)


def test_processes_play_a_spoiled_step_again_together(alone: Path, tmp_path: Path) -> None:
    folder = play(tmp_path / "ddp", "ddp.yaml", away=3)
    assert [line["replays"] for line in lines(folder)] == [2, 0, 0]
    weights, wanted = (torch.load(each / "weights.pt", weights_only=True) for each in (folder, alone))
    assert all(torch.allclose(weights[name], value, atol=1e-6) for name, value in wanted.items())


def test_a_model_spread_over_the_processes_learns_the_same(alone: Path, tmp_path: Path) -> None:
    assert_same(play(tmp_path / "fsdp", "fsdp2.yaml", spread=True), alone, tolerance=1e-6)


def test_a_spread_run_that_was_killed_goes_on_from_its_checkpoint(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fsdp"
    play(folder, "fsdp2.yaml", spread=True, checkpoint_every=1, die=2, fails_with="SIGKILL")
    assert [line["step"] for line in lines(folder)] == [1, 2]
    play(folder, "fsdp2.yaml", spread=True, checkpoint_every=1, resume=True)
    assert_same(folder, alone, tolerance=1e-6)


def test_the_model_itself_cannot_sample_where_no_process_holds_all_of_it(tmp_path: Path) -> None:
    play(tmp_path / "fsdp", "fsdp2.yaml", spread=True, scripted=False, fails_with="take vllm or vllm-server as the")
