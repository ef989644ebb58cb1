"""A run that is killed and resumed ends as the run that was not: same losses, same log, same weights."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3ForCausalLM

from cacherl.errors import RunMisconfigured
from cacherl.rollout.renderer import Example
from cacherl.train.sft import train_sft
from cacherl.train.sft_settings import SftSettings
from tests.trainer.train import sft_job

STEPS = 8


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the job has: sums in another order would be other numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def play(folder: Path, kind: str, *words: str) -> None:
    with torch.random.fork_rng():
        sft_job.main(folder, kind, STEPS, *words)


def play_and_die(folder: Path, kind: str, death: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(
        [sys.executable, sft_job.__file__, str(folder), kind, str(STEPS), death],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]


def outcome(folder: Path) -> tuple[list[float], list[tuple[int, float, float]]]:
    lines = [json.loads(line) for line in (folder / "sft.jsonl").read_text().splitlines()]
    losses = json.loads((folder / "losses.json").read_text())
    return losses, [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


@pytest.fixture(scope="module", params=["full", "lora"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The kind of a run that nobody killed, and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    play(folder, request.param)
    return request.param, folder


@pytest.mark.slow
@pytest.mark.parametrize("death", ["die=2", "die=7", "torn=6"])
def test_a_run_killed_at_any_point_and_resumed_is_the_uninterrupted_one(
    uninterrupted: tuple[str, Path], death: str, tmp_path: Path
) -> None:
    kind, whole = uninterrupted
    play_and_die(tmp_path, kind, death)
    play(tmp_path, kind, "resume")
    assert outcome(tmp_path) == outcome(whole)
    assert [step for step, *_ in outcome(whole)[1]] == list(range(1, STEPS + 1))
    for name in ("checkpoint-6", "checkpoint-3"):
        one, other = (load_file(folder / name / "model.safetensors") for folder in (whole, tmp_path))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert all(("lora_" in key) == (kind == "lora") for key in one)  # what is frozen is not in it


EXAMPLES = [Example(ids=(1, 2, 3, token), loss_mask=(0, 1, 1, 1)) for token in range(6)]
SETTINGS = SftSettings(steps=6, batch_size=2, learning_rate=1e-2, checkpoint_every=2)


@pytest.fixture
def begun(model: Qwen3ForCausalLM, tmp_path: Path) -> Path:
    """A folder in which a run has ended."""
    train_sft(model, EXAMPLES, SETTINGS, output_dir=tmp_path)
    return tmp_path


@pytest.mark.parametrize("change", [{"learning_rate": 0.5}, {"steps": 9}, {"seed": 3}, {"batch_size": 3}])
def test_a_run_of_another_meaning_is_refused_and_told_what_differs(
    model: Qwen3ForCausalLM, begun: Path, change: dict[str, float]
) -> None:
    other = dataclasses.replace(SETTINGS, **change)  # type: ignore[arg-type]
    with pytest.raises(RunMisconfigured, match=next(iter(change))):
        train_sft(model, EXAMPLES, other, output_dir=begun, resume=True)


def test_other_examples_and_other_trained_weights_are_refused(model: Qwen3ForCausalLM, begun: Path) -> None:
    silenced = [*EXAMPLES[:-1], dataclasses.replace(EXAMPLES[-1], loss_mask=(0, 1, 1, 0))]
    with pytest.raises(RunMisconfigured, match="examples"):
        train_sft(model, silenced, SETTINGS, output_dir=begun, resume=True)
    model.model.norm.requires_grad_(False)
    with pytest.raises(RunMisconfigured, match="trained weights"):
        train_sft(model, EXAMPLES, SETTINGS, output_dir=begun, resume=True)


def test_the_same_meaning_in_other_pieces_goes_on_and_a_finished_run_is_finished(
    model: Qwen3ForCausalLM, begun: Path
) -> None:
    before = (begun / "sft.jsonl").read_text().splitlines()
    cut = dataclasses.replace(SETTINGS, micro_batch_tokens=4, packing=True, checkpoint_every=1)
    report = train_sft(model, EXAMPLES, cut, output_dir=begun, resume=True)
    assert report.losses == tuple(json.loads(line)["loss"] for line in before)
    assert report.trained_tokens == 6 * 2 * 3
    assert (begun / "sft.jsonl").read_text().splitlines() == before


def test_a_new_run_does_not_mix_with_an_earlier_ones_checkpoints(model: Qwen3ForCausalLM, begun: Path) -> None:
    with pytest.raises(RunMisconfigured, match="earlier run"):
        train_sft(model, EXAMPLES, SETTINGS, output_dir=begun)


def test_only_the_wanted_number_of_checkpoints_is_kept(begun: Path) -> None:
    assert sorted(each.name for each in begun.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_resuming_where_nothing_is_begins(model: Qwen3ForCausalLM, tmp_path: Path) -> None:
    assert train_sft(model, EXAMPLES, SETTINGS, output_dir=tmp_path, resume=True).steps == 6


def test_a_checkpoint_of_another_kind_is_refused(model: Qwen3ForCausalLM, begun: Path) -> None:
    (begun / "checkpoint-6" / "sft.json").unlink()
    with pytest.raises(RunMisconfigured, match="no checkpoint of SFT"):
        train_sft(model, EXAMPLES, SETTINGS, output_dir=begun, resume=True)
