"""TRL's GRPOTrainer as the update step: we play the rollouts, TRL computes advantages, loss and update.

The only file that imports trl. It relies on trl 1.16 internals (`rollout_func`, `env_mask`, a row's extra keys
reaching the reward, `_generate_and_score_completions`) and checks at every step that they held: a mask that is
ignored would train on the tools' words without a sound. Traps it is built around:

* `tools` or `environment_factory` beside `rollout_func` make TRL ignore `env_mask`: never passed, and checked.
* `rollout_func` gets prompts without their rows: a small subclass keeps them.
* A void rollout gets reward None (out of the baseline, advantage 0) and an all-zero mask.
* TRL's own overlong masking looks at the last token only; ours comes from the stop reason, in the mask we send.
* Without vLLM the sampling logprobs we send are not used, and need not be: one optimizer step a batch of rollouts,
  sampled from the very weights that are updated.

Not covered: several processes; per-token advantages; a KL term (the loss runs without a reference model).
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from cacherl.errors import RunMisconfigured, TrainerContractBroken
from cacherl.train.advantages import group_advantages


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """One rollout as TRL needs it. The four sequences after the prompt have equal length, at least 1."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    logprobs: Sequence[float]
    env_mask: Sequence[int]
    """1 where the policy sampled the token and it is to be trained."""
    reward: float | None
    """None: void, no part in the baseline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSettings:
    """What TRL is told. rollouts a step = prompts_per_step * group_size."""

    steps: int
    prompts_per_step: int
    group_size: int
    micro_batch: int
    """Rollouts of one forward and backward pass; divides the rollouts of a step."""
    learning_rate: float
    warmup_steps: int
    clip_low: float
    clip_high: float
    temperature: float
    """Must be the sampling temperature: the loss takes log-probabilities at it."""
    max_grad_norm: float
    gradient_checkpointing: bool
    seed: int


Collect = Callable[[Sequence[int], int], list[TrainingRow]]
"""Plays one rollout for each task index (groups stand together), given the step from 0."""
OnStep = Callable[[Mapping[str, float]], None]
"""Told of TRL's metrics after each optimizer step."""


def run_grpo(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: UpdateSettings,
    collect: Collect,
    on_step: OnStep,
    output_dir: Path,
) -> None:
    """Train the model in place. `prompts` name the tasks by index; what is played for them is `collect`'s affair."""
    trainer = make_trainer(
        model=model,
        tokenizer=tokenizer,
        prompts=prompts,
        settings=settings,
        collect=collect,
        on_step=on_step,
        output_dir=output_dir,
    )
    with _without_known_warnings():
        trainer.train()
    model.train(False)


def make_trainer(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: UpdateSettings,
    collect: Collect,
    on_step: OnStep,
    output_dir: Path,
) -> "RowKeepingTrainer":
    """The trainer, ready to train. Raises RunMisconfigured for sizes that do not divide."""
    if len(prompts) < settings.prompts_per_step:
        raise RunMisconfigured(f"{len(prompts)} tasks are fewer than prompts_per_step = {settings.prompts_per_step}")
    rows = [{"prompt": prompt, "task_index": index} for index, prompt in enumerate(prompts)]
    with _without_known_warnings():
        trainer = RowKeepingTrainer(
            model=model,
            reward_funcs=[_given_reward],
            args=_config(settings, output_dir, model.device),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            rollout_func=_rollout_func(model, collect),
            callbacks=[_Report(on_step)],
        )
    # It prints every metric as a dict; ours go to the log of the run.
    trainer.remove_callback(PrinterCallback)
    return trainer


@contextmanager
def _without_known_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'")  # known: the pin and the checks
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")  # TRL's default sets it
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # and asks for it
        yield


class RowKeepingTrainer(GRPOTrainer):
    """GRPOTrainer that keeps the dataset rows of a batch for the rollouts and checks what TRL made of them."""

    def __init__(self, **arguments: Any) -> None:
        for forbidden in ("tools", "environment_factory"):
            if arguments.get(forbidden) is not None:
                raise RunMisconfigured(f"{forbidden} must not be set beside rollout_func: env_mask would be ignored")
        super().__init__(**arguments)
        self._group_size: int = arguments["args"].num_generations
        self.batch_rows: Sequence[Mapping[str, Any]] = ()
        self.played: list[TrainingRow] = []
        logging.getLogger("trl.trainer.grpo_trainer").addFilter(_is_not_void_warning)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.batch_rows = inputs
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        check_scored(scored, self.played, self._group_size)
        return scored


def check_scored(scored: Mapping[str, Any], played: Sequence[TrainingRow], group_size: int) -> None:
    """Raise TrainerContractBroken unless TRL trains exactly the tokens of our masks with our advantages."""
    if "tool_mask" not in scored:
        raise TrainerContractBroken("TRL dropped env_mask: it would train on tool results")
    trained = scored["completion_mask"] * scored["tool_mask"]  # [B, T]
    expected = _padded([row.env_mask for row in played], trained.shape[1]).to(trained.device)
    if not torch.equal(trained.long(), expected):
        raise TrainerContractBroken("TRL's loss mask is not the env_mask of the rollouts")
    advantages = [
        advantage
        for begin in range(0, len(played), group_size)
        for advantage in group_advantages([row.reward for row in played[begin : begin + group_size]])
    ]
    given = scored["advantages"].float().cpu()
    if not torch.allclose(given, torch.tensor(advantages, dtype=torch.float32), atol=1e-4):
        raise TrainerContractBroken("TRL's advantages are not reward minus the mean of its group")


def _rollout_func(model: PreTrainedModel, collect: Collect) -> Callable[[list[str], RowKeepingTrainer], dict[str, Any]]:
    def play(prompts: list[str], trainer: RowKeepingTrainer) -> dict[str, Any]:
        if len(prompts) != len(trainer.batch_rows):
            raise TrainerContractBroken(f"{len(prompts)} prompts but {len(trainer.batch_rows)} rows in the batch")
        was_training = model.training
        model.train(False)
        try:
            trainer.played = collect([row["task_index"] for row in trainer.batch_rows], trainer.state.global_step)
        finally:
            model.train(was_training)
        return {
            "prompt_ids": [list(row.prompt_ids) for row in trainer.played],
            "completion_ids": [list(row.completion_ids) for row in trainer.played],
            "logprobs": [list(row.logprobs) for row in trainer.played],
            "env_mask": [list(row.env_mask) for row in trainer.played],
            "given_reward": [row.reward for row in trainer.played],
        }

    return play


def _given_reward(given_reward: list[float | None], **_: Any) -> list[float | None]:
    """The rewards that were worked out with the rollouts."""
    return given_reward


def _config(settings: UpdateSettings, output_dir: Path, device: torch.device) -> GRPOConfig:
    rollouts = settings.prompts_per_step * settings.group_size
    if rollouts % settings.micro_batch:
        raise RunMisconfigured(f"micro_batch {settings.micro_batch} does not divide {rollouts} rollouts a step")
    return GRPOConfig(
        output_dir=str(output_dir),
        max_steps=settings.steps,
        num_generations=settings.group_size,
        per_device_train_batch_size=settings.micro_batch,
        # With steps_per_generation left alone the two are equal: one optimizer step a batch of rollouts.
        gradient_accumulation_steps=rollouts // settings.micro_batch,
        num_iterations=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings.warmup_steps,
        loss_type="dapo",
        scale_rewards="none",
        beta=0.0,
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        temperature=settings.temperature,
        max_grad_norm=settings.max_grad_norm,
        mask_truncated_completions=False,
        use_vllm=False,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=device.type == "cuda",
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        save_strategy="no",
        eval_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=settings.seed,
    )


class _Report(TrainerCallback):
    """Hands the metrics of each optimizer step on; the summary at the end is not one."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._on_step(logs)


def _is_not_void_warning(record: logging.LogRecord) -> bool:
    """Drops TRL's warning about rewards that are all None: void rollouts are expected, counted, and it prints them."""
    return "All reward functions returned None" not in record.getMessage()


def _padded(masks: Sequence[Sequence[int]], width: int) -> Tensor:
    """[B, T], zeros on the right."""
    return torch.tensor([list(mask) + [0] * (width - len(mask)) for mask in masks], dtype=torch.long)
