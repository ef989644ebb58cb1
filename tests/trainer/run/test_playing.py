"""`cacherl sample` and `cacherl eval` with an engine that says a script: what is kept, played once, refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.adapters.scripted_engine import ScriptedEngine
from cacherl.adapters.tiny_size import TinyQwen3
from cacherl.data.rejection import read_samples
from cacherl.errors import EngineFailed, RunStopped
from cacherl.rollout.chat_format import ChatFormat
from cacherl.rollout.engine import Generation, Sampling
from cacherl.rollout.loop import Budgets
from cacherl.run.build import Policy
from cacherl.run.evaluate import run_evaluate
from cacherl.run.folder import finished_stage
from cacherl.run.sample import run_sample
from cacherl.run.settings import CacheSettings, EvaluateSettings, IterateSettings, ModelSettings, Run, WorldSettings
from cacherl.train.grpo_settings import GrpoSettings

TASKS = 10
RUN = Run(
    name="r",
    model=ModelSettings(tiny=TinyQwen3()),
    world=WorldSettings(tasks=TASKS),
    cache=CacheSettings(is_used=False),
    grpo=GrpoSettings(concurrency=1, prompts_per_step=2, budgets=Budgets(turns=2, turn_tokens=99, context_tokens=9999)),
    evaluate=EvaluateSettings(tasks=4),
    iterate=IterateSettings(samples_per_task=2, keep_above=0.0),
)
"""Parts of two tasks: four rollouts for the one under way."""


class Engine:
    """Answers every prompt at once, and is dead after `lives` of them."""

    def __init__(self, lives: int) -> None:
        self.prompts: list[str] = []
        self._lives = lives
        self._tokenizer = HFTokenizer(make_byte_tokenizer())
        self._script = ScriptedEngine(self._tokenizer, lambda prompt: "So it is.\n</think>\n\nDone.")

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        if len(self.prompts) >= self._lives:
            raise EngineFailed("out of memory")
        self.prompts.append(self._tokenizer.decode(prompt_ids))
        return await self._script.generate(prompt_ids, sampling)

    def follow(self, model: Any, version: int) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts an engine that all commands use from now on."""
    model: Any = SimpleNamespace(train=lambda is_on: None)
    policy = Policy(model=model, tokenizer=make_byte_tokenizer(), chat=ChatFormat.QWEN3_THINKING)

    def start(lives: int = 10**6) -> Engine:
        started = Engine(lives)
        for command in ("sample", "evaluate"):
            monkeypatch.setattr(f"cacherl.run.{command}.load_policy", lambda run: policy)
            monkeypatch.setattr(f"cacherl.run.{command}.open_engine", lambda *_, **__: started)
        return started

    return start


def parts(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "parts").glob("*.ndjson"))


def test_the_best_rollout_of_every_task_is_kept_as_the_tokens_it_was(engine: Any, tmp_path: Path) -> None:
    prompts = engine().prompts
    run_sample(RUN, tmp_path, "")
    samples = read_samples(tmp_path / "samples.ndjson")
    assert len(prompts) == 2 * TASKS
    assert len({sample.task_id for sample in samples}) == len(samples) == TASKS  # the same words count as one
    decode = HFTokenizer(make_byte_tokenizer()).decode
    said = [token for token, mask in zip(samples[0].ids, samples[0].loss_mask, strict=True) if mask]
    assert decode(said) == "So it is.\n</think>\n\nDone.<|im_end|>"
    assert (finished_stage(tmp_path) or {})["samples"] == TASKS


@pytest.mark.parametrize("concurrency", [1, 2, 100])
def test_a_stopped_sampling_plays_every_task_once_at_whatever_concurrency_it_goes_on(
    engine: Any, tmp_path: Path, concurrency: int
) -> None:
    first = engine(lives=8)  # two parts of two tasks, twice each
    with pytest.raises(RunStopped):
        run_sample(RUN, tmp_path, "")
    assert parts(tmp_path) == ["0-2", "2-4"]
    second = engine()
    run_sample(replace(RUN, grpo=replace(RUN.grpo, concurrency=concurrency)), tmp_path, "")
    played = first.prompts + second.prompts
    assert sorted(played.count(prompt) for prompt in set(played)) == [2] * TASKS
    assert len(read_samples(tmp_path / "samples.ndjson")) == TASKS
    steps = [json.loads(line)["step"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert (steps[:2], steps[-1]) == ([2, 4], TASKS)


def test_sampling_from_a_dead_engine_fails_with_its_reason_and_keeps_nothing(engine: Any, tmp_path: Path) -> None:
    engine(lives=0)
    with pytest.raises(RunStopped, match=r"4 of 4 rollouts broke off, 4 of them with: .*out of memory"):
        run_sample(RUN, tmp_path, "")
    assert parts(tmp_path) == []
    assert finished_stage(tmp_path) is None


def test_an_evaluation_that_mostly_broke_off_is_none(engine: Any, tmp_path: Path) -> None:
    engine(lives=1)
    with pytest.raises(RunStopped, match="3 of 4 rollouts broke off"):
        run_evaluate(RUN, tmp_path, "")
    assert finished_stage(tmp_path) is None
    assert not (tmp_path / "evaluation.json").exists()


def test_an_evaluation_counts_the_half_that_broke_off(engine: Any, tmp_path: Path) -> None:
    engine(lives=2)
    run_evaluate(RUN, tmp_path, "")
    numbers = json.loads((tmp_path / "evaluation.json").read_text())
    assert (numbers["rollouts"], numbers["void"]) == (2, 2)
