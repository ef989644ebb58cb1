"""Several processes learn what one learns, whether each holds the whole model or a shard of it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import Qwen3ForCausalLM

from cacherl.errors import RunMisconfigured
from cacherl.rollout.renderer import Example
from cacherl.train.sft import train_sft
from cacherl.train.sft_settings import SftSettings
from tests.trainer.train import sft_job


def play(folder: Path, *words: str) -> list[float]:
    """Run the job in two processes to its end and return its losses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "ACCELERATE_USE_CPU": "true",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    running = [
        subprocess.Popen(
            [sys.executable, sft_job.__file__, str(folder), *words],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for each in running:
            _, stderr = each.communicate(timeout=200)
            assert each.returncode == 0, stderr[-2000:]
    finally:
        for each in running:  # one that waits for the other's part would wait for ever
            each.kill()
    return losses(folder)


def losses(folder: Path) -> list[float]:
    found: list[float] = json.loads((folder / "losses.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "how"), [("still", ["packing"]), ("still-lora", ["fsdp2"])])
def test_two_processes_learn_what_one_does_and_save_and_resume_it(kind: str, how: list[str], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    with torch.random.fork_rng():
        sft_job.main(one, kind, 5, "save")
    both = play(two, kind, "5", "save", *how)
    assert both == pytest.approx(losses(one), abs=1e-5)
    saved, expected = (load_file(folder / "model" / "model.safetensors") for folder in (two, one))
    assert saved.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(saved[name], expected[name], atol=1e-4, rtol=0)
    assert len((two / "sft.jsonl").read_text().splitlines()) == 5
    assert play(two, kind, "5", "resume", *how) == both  # from step 3 on


def test_processes_that_do_not_see_each_other_are_refused(
    model: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    Accelerator()  # what is decided once a process, before the world seems to have grown
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunMisconfigured, match="2 processes"):
        train_sft(model, [Example(ids=(1, 2), loss_mask=(0, 1))], SftSettings(steps=1))
