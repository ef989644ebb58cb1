"""A GRPO run that is killed and resumed ends as the run that was not: same rollouts, same updates, same weights."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

JOB = Path(__file__).with_name("grpo_job.py")
CLOCKED = ("seconds", "per_second", "idle")
"""What the clock says differs from run to run."""
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": True, "kl": 0.1},
    "scripted": {"scripted": True, "kl": 0.1, "extra_groups": 1.0},
}


def play(folder: Path, options: dict[str, Any], *, dies: bool = False) -> None:
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, str(JOB), str(folder), json.dumps({"steps": 5, "checkpoint_every": 2, **options})],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == (-signal.SIGKILL if dies else 0), ended.stderr[-3000:]


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics of each step but for those of the clock, in which rounding is left aside.

    The engine decodes what happens to be pending together as one batch, which moves its logprobs by a rounding.
    """
    found = [json.loads(line) for line in (folder / "grpo.jsonl").read_text().splitlines()]
    return [
        {
            name: round(value, 5) if name.startswith(("mismatch", "correction")) and value is not None else value
            for name, value in line.items()
            if not any(word in name for word in CLOCKED)
        }
        for line in found
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(folder / "weights.pt", weights_only=True))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_after_a_checkpoint_and_resumed_is_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    if kind == "lora":
        pytest.importorskip("peft")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    play(whole, KINDS[kind])
    # Step 3 is done and in the log, but the last checkpoint is that of step 2; the tasks' second pass begins at step 4.
    play(cut, {**KINDS[kind], "die": 3}, dies=True)
    assert [line["step"] for line in lines(cut)] == [1, 2, 3]
    assert not (cut / "weights.pt").exists()
    play(cut, {**KINDS[kind], "resume": True})
    assert lines(cut) == lines(whole)
    assert [line["step"] for line in lines(cut)] == [1, 2, 3, 4, 5]
    assert any(line["grad_norm"] > 0 for line in lines(whole)[2:])
    for name, value in weights(whole).items():
        assert torch.equal(weights(cut)[name], value), name
    assert sorted(each.name for each in cut.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
