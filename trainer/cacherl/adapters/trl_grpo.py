"""TRL's GRPOTrainer as the update step: we play the rollouts, TRL computes advantages, loss and update.

The only file that imports trl. It relies on trl 1.16 internals (`rollout_func`, `env_mask`, a row's extra keys
reaching the reward, `_generate_and_score_completions`, `_compute_loss`) and checks at every step that they held: a mask
that is ignored would train on the tools' words without a sound. Traps it is built around:

* `tools` or `environment_factory` beside `rollout_func` make TRL ignore `env_mask`: never passed, and checked.
* `rollout_func` gets prompts without their rows: a small subclass keeps them.
* A void rollout gets reward None (out of the baseline, advantage 0) and an all-zero mask.
* TRL's own overlong masking looks at the last token only; ours comes from the stop reason, in the mask we send.
* TRL corrects for the engine's logprobs only where its own vLLM generates. Ours is a factor on each token's advantage:
  being positive, it passes through the clipped objective's minimum as if it stood before it.
* TRL's dataset has one row for every group of the run, in order. So nothing is shuffled twice, and a resumed run finds
  its place by counting.
* An optimizer moves weights by its momentum even where the gradient is zero, and loses them for good where it is not
  finite: both kinds of update are left out. Under DeepSpeed the update is made before anyone is asked: there a gradient
  that is not finite is left to DeepSpeed's own check, and one of zero moves by the momentum.
* A loss that is not finite is logged as 0 by transformers, or, where that is switched off, for ever after.
* TRL loads the reference of a KL term from where the model's config says it came from, which may be anything by now:
  it is given the weights that training starts from.

What needs more than one GPU is TRL's and accelerate's affair; here every process plays whole groups, and the engine
that runs the trained model itself is refused where no process holds all of it.

B rollouts, T tokens of the longest completion, P tokens of the longest prompt.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from cacherl.errors import EngineFailed, RunMisconfigured, RunStopped, TrainerContractBroken
from cacherl.train.advantages import group_advantages
from cacherl.train.checkpoints import drop_old, mark_complete
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.processes import launched_processes
from cacherl.train.scoring import TrainingRow
from cacherl.train.token_sums import TokenSums

_T = TypeVar("_T")

NOT_FINITE_IN_A_ROW = 3
"""Updates left out one after another, because their gradient was not finite, that end a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The rollouts that one process is to play for one step."""

    model: PreTrainedModel
    """The weights to sample from; with several processes perhaps only this one's part of them."""
    step: int
    """From 0."""
    task_indices: Sequence[int]
    """One a rollout; groups stand together."""
    first_place: int
    """The step's place of the first of these groups; the places before are other processes'."""


Play = Callable[[Asked], list[TrainingRow]]
"""Plays one rollout for each task index asked for."""
OnStep = Callable[[Mapping[str, float], TokenSums], None]
"""Told of TRL's metrics and of the sums over this process's tokens after each optimizer step, in every process."""


def run_grpo(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    order: Sequence[int],
    settings: GrpoSettings,
    engine_is_the_model: bool,
    play: Play,
    on_step: OnStep,
    output_dir: Path,
    checkpoint: Path | None = None,
) -> None:
    """Train the model in place, or go on from a checkpoint of the same run.

    `order` names the tasks of all steps, `settings.prompts_per_step` each; `prompts` are the tasks' words, which only
    TRL's books read. Raises RunMisconfigured, TrainerContractBroken, EngineFailed (logprobs that are no numbers),
    RunStopped (gradients that stay not finite).
    """
    trainer = make_trainer(
        model=model,
        tokenizer=tokenizer,
        prompts=prompts,
        order=order,
        settings=settings,
        engine_is_the_model=engine_is_the_model,
        play=play,
        on_step=on_step,
        output_dir=output_dir,
    )
    with _without_known_warnings():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    model.train(False)


def make_trainer(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    order: Sequence[int],
    settings: GrpoSettings,
    engine_is_the_model: bool,
    play: Play,
    on_step: OnStep,
    output_dir: Path,
) -> RolloutTrainer:
    """The trainer, ready to train. Raises RunMisconfigured."""
    _check_precision(model)
    rows = [
        {"prompt": prompts[task], "task_index": task, "row": row, "place": row % settings.prompts_per_step}
        for row, task in enumerate(order)
    ]
    with _without_known_warnings():
        arguments = _config(settings, output_dir, on_cpu=_trains_on_cpu(model))
        give_patience(arguments.ddp_timeout)
        with _reference_at_hand(model, output_dir, is_needed=settings.kl > 0):
            trainer = RolloutTrainer(
                play=play,
                settings=settings,
                corrects=settings.correction == "token" and (arguments.bf16 or not engine_is_the_model),
                model=model,
                reward_funcs=[_given_reward],
                args=arguments,
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
            )
    if engine_is_the_model and _is_sharded(trainer):
        raise RunMisconfigured(
            "an engine that runs the trained model itself needs all of it in one process; under FSDP or DeepSpeed "
            "ZeRO-3 take vllm or vllm-server as the engine"
        )
    # It prints every metric as a dict; ours go to the log of the run.
    trainer.remove_callback(PrinterCallback)
    guard = _Guard(trainer)
    trainer.add_callback(guard)
    trainer.add_callback(_Report(trainer, guard, on_step))
    trainer.add_callback(_Checkpoints(settings.keep_checkpoints, guard))
    return trainer


def give_patience(seconds: float) -> None:
    """Let the processes wait that long for each other, also in a group that was there before (an engine's).

    On its own the group gives up after 10 minutes on GPUs, which one slow rollout can take.
    """
    if torch.distributed.is_initialized():
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def gather(items: list[_T]) -> list[_T]:
    """The items of all processes, in the processes' order; in every process. To be called once a trainer exists."""
    return list(gather_object(items))


class RolloutTrainer(GRPOTrainer):
    """GRPOTrainer that has its rollouts played for the rows of the batch and weighs the advantage of every token."""

    def __init__(self, *, play: Play, settings: GrpoSettings, corrects: bool, **arguments: Any) -> None:
        for forbidden in ("tools", "environment_factory"):
            if arguments.get(forbidden) is not None:
                raise RunMisconfigured(f"{forbidden} must not be set beside rollout_func: env_mask would be ignored")
        super().__init__(rollout_func=_rollout_func, **arguments)
        self.tokens = TokenSums()
        """Of the step's micro batches so far."""
        self.grad_norm: float | None = None
        """Of the gradient that the coming update is to use; None while it is not known."""
        self._play = play
        self._settings = settings
        self._corrects = corrects
        self._rows: Sequence[Mapping[str, Any]] = ()
        self._played: list[TrainingRow] = []
        self._micro_batch: dict[str, Tensor] | None = None
        logging.getLogger("trl.trainer.grpo_trainer").addFilter(_is_not_void_warning)

    def play(self) -> dict[str, list[Any]]:
        """What TRL's rollout_func is to give for the rows of this batch."""
        step = self.state.global_step
        if self._rows[0]["row"] // self._settings.prompts_per_step != step:
            raise TrainerContractBroken(f"TRL is at row {self._rows[0]['row']} of the dataset at step {step}")
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.train(False)
        try:
            self._played = self._play(
                Asked(
                    model=model,
                    step=step,
                    task_indices=[row["task_index"] for row in self._rows],
                    first_place=self._rows[0]["place"],
                )
            )
        finally:
            model.train(was_training)
        return {
            "prompt_ids": [list(row.prompt_ids) for row in self._played],
            "completion_ids": [list(row.completion_ids) for row in self._played],
            "logprobs": [list(row.logprobs) for row in self._played],
            "env_mask": [row.mask for row in self._played],
            "given_reward": [row.reward for row in self._played],
        }

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: TRL would write one beside every checkpoint, about what it knows nothing of."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = inputs
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        check_scored(scored, self._played, self._settings.group_size)
        weighed = token_advantages(self._played, self._settings.group_size, width=scored["completion_ids"].shape[1])
        scored["advantages"] = weighed.to(scored["advantages"].device)
        self.tokens = TokenSums()
        return scored

    def _get_grad_norm(self, *arguments: Any, **named: Any) -> Any:
        norm = super()._get_grad_norm(*arguments, **named)  # type: ignore[no-untyped-call]
        self.grad_norm = norm.item() if isinstance(norm, Tensor) else norm
        return norm

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        self._micro_batch = trimmed(inputs)
        loss: Tensor = super()._compute_loss(model, self._micro_batch)  # type: ignore[no-untyped-call]
        if self._micro_batch is not None:
            raise TrainerContractBroken("TRL computed a loss without asking for the logprobs of the tokens")
        return loss

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **named: Any) -> Any:
        """TRL's; where it is for a loss, the correction is formed from it.

        That costs no pass of its own: with one optimizer step a batch of rollouts, the weights are still those that
        were sampled from. TRL reads the advantages only afterwards (tests hold it by values).
        """
        logprobs, entropies, auxiliary = super()._get_per_token_logps_and_entropies(*arguments, **named)
        if self._micro_batch is not None:
            inputs, self._micro_batch = self._micro_batch, None
            mask = inputs["completion_mask"] * inputs["tool_mask"]
            log_ratio = (logprobs.detach().double() - inputs["sampling_per_token_logps"]) * mask  # [B, T] nats
            cap = self._settings.correction_cap
            trained = mask.bool()
            self.tokens += _token_sums(log_ratio[trained], entropies.detach()[trained], cap)
            if self._corrects:
                by_rollout = self._settings.loss == "gspo"
                factor = correction(log_ratio, mask, cap=cap, by_rollout=by_rollout)
                inputs["advantages"] = inputs["advantages"] * factor.to(inputs["advantages"].dtype)
        return logprobs, entropies, auxiliary


def check_scored(scored: Mapping[str, Any], played: Sequence[TrainingRow], group_size: int) -> None:
    """Raise TrainerContractBroken unless TRL trains exactly the tokens of our masks with our advantages.

    Raises EngineFailed where the engine gave logprobs that are no numbers.
    """
    for number, row in enumerate(played):
        odd = next((value for value in row.logprobs if not math.isfinite(value)), None)
        if odd is not None:
            raise EngineFailed(
                f"the engine gave a logprob of {odd} (rollout {number} of {len(played)}): its weights or its numerics "
                "are broken; look at the engine, then go on with --resume"
            )
    if "tool_mask" not in scored:
        raise TrainerContractBroken("TRL dropped env_mask: it would train on tool results")
    trained = scored["completion_mask"] * scored["tool_mask"]  # [B, T]
    expected = _padded([row.mask for row in played], trained.shape[1]).to(trained.device)
    if not torch.equal(trained.double(), expected):
        raise TrainerContractBroken("TRL's loss mask is not the env_mask of the rollouts")
    given = scored["advantages"].double().cpu()
    if not torch.allclose(given, torch.tensor(_advantages(played, group_size), dtype=torch.double), atol=1e-4):
        raise TrainerContractBroken("TRL's advantages are not reward minus the mean of its group")
    logprobs = _padded([row.logprobs for row in played], trained.shape[1]).float()
    if not torch.equal(scored["sampling_per_token_logps"].cpu(), logprobs):
        raise TrainerContractBroken("TRL's sampling logprobs are not those of the rollouts")


def token_advantages(played: Sequence[TrainingRow], group_size: int, *, width: int) -> Tensor:
    """Each rollout's advantage in its group times each token's credit, [B, width]; zeros behind its end."""
    credit = _padded([row.credit for row in played], width)
    return (torch.tensor(_advantages(played, group_size), dtype=torch.double)[:, None] * credit).float()


def correction(log_ratio: Tensor, mask: Tensor, *, cap: float, by_rollout: bool) -> Tensor:
    """Truncated importance ratio trainer / engine, from log_ratio [B, T] nats, 0 where the mask is 0.

    Of each token, [B, T]; or by rollout, the exponential of its tokens' mean log ratio, [B, 1].
    """
    if by_rollout:
        log_ratio = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return log_ratio.exp().clamp(max=cap)


def trimmed(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A micro batch without the columns that are padding in all its rows: TRL pads to the longest of the whole step."""
    prompt = int(inputs["prompt_mask"].sum(-1).max())
    completion = int(inputs["completion_mask"].sum(-1).max())
    cut: dict[str, Tensor] = {}
    for name, value in inputs.items():
        if name in ("prompt_ids", "prompt_mask"):
            cut[name] = value[:, value.shape[1] - prompt :]
        else:
            cut[name] = value[:, :completion] if value.ndim == 2 else value
    return cut


def _rollout_func(_: list[str], trainer: Any) -> dict[str, Any]:
    played: dict[str, Any] = trainer.play()
    return played


def _given_reward(given_reward: list[float | None], **_: Any) -> list[float | None]:
    """The rewards that were worked out with the rollouts."""
    return given_reward


def _config(settings: GrpoSettings, output_dir: Path, *, on_cpu: bool) -> GRPOConfig:
    rollouts = settings.share(launched_processes()) * settings.group_size
    return GRPOConfig(
        output_dir=str(output_dir),
        max_steps=settings.steps,
        num_generations=settings.group_size,
        per_device_train_batch_size=settings.micro_batch,
        # With steps_per_generation left alone the two are equal: one optimizer step a batch of rollouts.
        gradient_accumulation_steps=rollouts // settings.micro_batch,
        num_iterations=1,
        shuffle_dataset=False,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings.warmup_steps,
        # GSPO's objective is TRL's "grpo" (a mean over rollouts of means over tokens) with the ratio of the rollout.
        loss_type="dapo" if settings.loss == "dapo" else "grpo",
        importance_sampling_level="token" if settings.loss == "dapo" else "sequence",
        scale_rewards="none",
        beta=settings.kl,
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        temperature=settings.temperature,
        max_grad_norm=settings.max_grad_norm,
        mask_truncated_completions=False,
        use_vllm=False,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=not on_cpu,
        use_cpu=on_cpu,
        remove_unused_columns=False,
        # Every weight gets a gradient in every pass, and looking for those that do not costs a walk of the graph.
        ddp_find_unused_parameters=False,
        save_strategy="steps" if settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every or 1,
        # Old ones are dropped by us, once the new one is known to be whole.
        save_total_limit=None,
        logging_nan_inf_filter=False,
        ddp_timeout=settings.patience_s(launched_processes()),
        eval_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=settings.seed,
    )


def _trains_on_cpu(model: PreTrainedModel) -> bool:
    """Where the model lies, but for one that a launcher is still to put or to spread on GPUs."""
    if launched_processes() > 1 or os.environ.get("ACCELERATE_USE_FSDP") or os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        return not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return bool(model.device.type == "cpu")


def _check_precision(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise RunMisconfigured(
                f"{name} is trained in {parameter.dtype}, in which a small update rounds to nothing: load the model in "
                "float32 (a GPU computes in bfloat16 all the same), or train adapters on it"
            )


def _is_sharded(trainer: RolloutTrainer) -> bool:
    plugin = trainer.accelerator.state.deepspeed_plugin
    return bool(trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3))


@contextmanager
def _reference_at_hand(model: PreTrainedModel, output_dir: Path, *, is_needed: bool) -> Iterator[None]:
    """While it lasts, the model's config points to a copy of its weights as they are now.

    An adapter's reference is made by TRL from the adapter as it is, without a second model.
    """
    if not is_needed or hasattr(model, "peft_config"):
        yield
        return
    processes, folder, came_from = PartialState(), output_dir / "starting-weights", model.config._name_or_path
    if processes.is_main_process:
        model.save_pretrained(folder)
    processes.wait_for_everyone()
    model.config._name_or_path = str(folder)
    try:
        yield
    finally:
        model.config._name_or_path = came_from
        processes.wait_for_everyone()
        if processes.is_main_process:
            shutil.rmtree(folder)


@contextmanager
def _without_known_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'")  # known: the pin and the checks
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")  # TRL's default sets it
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # and asks for it
        yield


class _Guard(TrainerCallback):
    """Leaves out updates that would only do harm. The norm is that of all processes, so all do the same."""

    def __init__(self, trainer: RolloutTrainer) -> None:
        self.is_skipped = False
        """Whether the last update was left out."""
        self.not_finite = 0
        """Updates left out for a gradient that is not finite, since the last one that was made."""
        self._trainer = trainer

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **_: Any
    ) -> None:
        """A checkpoint brings its learning rate along, but that of the settings is meant: it may have been lowered."""
        if self._trainer.is_deepspeed_enabled:  # whose optimizer keeps copies of its own
            return
        scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)  # accelerate wraps it
        for number, group in enumerate(optimizer.param_groups):
            before = scheduler.base_lrs[number]
            if before not in (0.0, args.learning_rate):
                group["lr"] *= args.learning_rate / before
                group["initial_lr"] = scheduler.base_lrs[number] = args.learning_rate
                scheduler._last_lr[number] = group["lr"]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        norm, self._trainer.grad_norm = self._trainer.grad_norm, None
        if norm is None:
            if self._trainer.is_deepspeed_enabled:  # which tells it only where it clips
                return
            raise TrainerContractBroken("transformers makes an update without asking for the norm of its gradient")
        self.is_skipped = norm == 0.0 or not math.isfinite(norm)
        if self.is_skipped:
            # Without a gradient, a weight's momentum stays as it is too.
            optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(norm):
            self.not_finite += 1
        elif norm > 0.0:
            self.not_finite = 0
        if self.not_finite == NOT_FINITE_IN_A_ROW:
            raise RunStopped(
                f"step {state.global_step + 1}: the gradient is not finite (norm {norm}), "
                f"{NOT_FINITE_IN_A_ROW} times in a row, and was not used; lower learning_rate or max_grad_norm, then "
                "go on with --resume from the last checkpoint"
            )


class _Report(TrainerCallback):
    """Hands the metrics of each optimizer step on; the summary at the end is not one."""

    def __init__(self, trainer: RolloutTrainer, guard: _Guard, on_step: OnStep) -> None:
        self._trainer = trainer
        self._guard = guard
        self._on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            # transformers sets its sum back by taking it from itself, which leaves NaN at NaN.
            self._trainer._tr_loss.zero_()
            self._on_step({**logs, "skipped_updates": int(self._guard.is_skipped)}, self._trainer.tokens)


class _Checkpoints(TrainerCallback):
    """Marks a checkpoint once every process has written its part, then lets old ones go.

    None is marked while gradients are not finite: the weights may be what makes them so.
    """

    def __init__(self, keep: int, guard: _Guard) -> None:
        self._keep = keep
        self._guard = guard

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        processes = PartialState()
        processes.wait_for_everyone()
        if processes.is_main_process and not self._guard.not_finite:
            folder = Path(args.output_dir)
            mark_complete(folder / f"checkpoint-{state.global_step}")
            drop_old(folder, self._keep)


def _is_not_void_warning(record: logging.LogRecord) -> bool:
    """Drops TRL's warning about rewards that are all None: void rollouts are expected, counted, and it prints them."""
    return "All reward functions returned None" not in record.getMessage()


def _token_sums(log_ratios_N: Tensor, entropies_N: Tensor, cap: float) -> TokenSums:
    """Of N trained tokens."""
    if not len(log_ratios_N):
        return TokenSums()
    ratios_N = log_ratios_N.exp()
    parts = (entropies_N, log_ratios_N, ratios_N, ratios_N > cap)
    sums = torch.stack([*(part.double().sum() for part in parts), log_ratios_N.abs().max()])
    entropy, log_ratio, ratio, truncated, largest = sums.tolist()  # one wait for the device
    return TokenSums(
        tokens=len(log_ratios_N),
        entropy=entropy,
        log_ratio=log_ratio,
        ratio=ratio,
        truncated=int(truncated),
        largest=largest,
    )


def _advantages(played: Sequence[TrainingRow], group_size: int) -> list[float]:
    groups = (played[begin : begin + group_size] for begin in range(0, len(played), group_size))
    return [advantage for rows_G in groups for advantage in group_advantages([row.reward for row in rows_G])]


def _padded(rows: Sequence[Sequence[float]], width: int) -> Tensor:
    """[B, width], zeros on the right."""
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.double)
