"""What we rely on in the pinned TRL, and what we make of it, by values."""

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from cacherl.adapters.trl_grpo import (
    Asked,
    RolloutTrainer,
    check_scored,
    correction,
    give_patience,
    make_trainer,
    run_grpo,
    token_advantages,
    trimmed,
)
from cacherl.errors import EngineFailed, RunMisconfigured, RunStopped, TrainerContractBroken
from cacherl.rollout.loop import Budgets
from cacherl.train.checkpoints import last_checkpoint
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.scoring import TrainingRow
from cacherl.train.token_sums import TokenSums

SETTINGS = GrpoSettings(
    steps=1,
    prompts_per_step=2,
    group_size=2,
    micro_batch=2,
    learning_rate=0.01,
    temperature=0.8,
    max_grad_norm=1e9,
)


def row(prompt: Sequence[int], completion: Sequence[int], credit: Sequence[float], reward: float | None) -> TrainingRow:
    logprobs = [-1.0 if each else 0.0 for each in credit]
    return TrainingRow(prompt_ids=prompt, completion_ids=completion, logprobs=logprobs, credit=credit, reward=reward)


# Two groups of two; the third row is void. Prompts and completions differ in length, so padding is in play.
ROWS = [
    row([1, 2], [3, 4, 5, 6], [1, 0, 0, 1], 1.0),
    row([1, 2], [7, 8], [1, 1], 0.0),
    row([9], [258], [0], None),
    row([9], [10, 11, 12], [1, 1, 0], 0.7),
]
ADVANTAGES = [0.5, -0.5, 0.0, 0.0]


def trainer_for(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    rows: Sequence[TrainingRow] = ROWS,
    settings: GrpoSettings = SETTINGS,
    *,
    engine_is_the_model: bool = True,
    on_step: Callable[[Mapping[str, float], TokenSums], None] = lambda logs, tokens: None,
    play: Callable[[Asked], list[TrainingRow]] | None = None,
) -> RolloutTrainer:
    return make_trainer(
        model=model,
        tokenizer=tokenizer,
        prompts=["first", "second"],
        order=[0, 1] * settings.steps,
        settings=settings,
        engine_is_the_model=engine_is_the_model,
        play=play or (lambda asked: list(rows)),
        on_step=on_step,
        output_dir=out,
    )


def gradients(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    rows: Sequence[TrainingRow] = ROWS,
    settings: GrpoSettings = SETTINGS,
    *,
    engine_is_the_model: bool = True,
) -> dict[str, torch.Tensor]:
    """Gradients of one step as TRL's loss makes them, by parameter; the model itself stays as it is."""
    model = copy.deepcopy(model)
    trainer = trainer_for(model, tokenizer, out, rows, settings, engine_is_the_model=engine_is_the_model)
    caught: dict[str, torch.Tensor] = {}

    def keep(optimizer: Any, *_: Any) -> None:
        caught.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    return caught


def logprobs_by_hand(model: Qwen3ForCausalLM, row: TrainingRow) -> torch.Tensor:
    """Of the completion's tokens, at the sampling temperature."""
    ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
    logprobs = torch.log_softmax(model(ids).logits[0] / SETTINGS.temperature, -1)
    begin = len(row.prompt_ids)
    return logprobs[begin - 1 : -1].gather(-1, ids[0, begin:, None]).squeeze(-1)


def gradients_by_hand(
    model: Qwen3ForCausalLM, weights: Sequence[Sequence[float]], rows: Sequence[TrainingRow] = ROWS
) -> dict[str, torch.Tensor]:
    """Of -sum of weight * logprob over the tokens of all rows."""
    model.zero_grad()
    loss = torch.zeros(())
    for one, weight in zip(rows, weights, strict=True):
        loss = loss - (torch.tensor(weight) * logprobs_by_hand(model, one)).sum()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(got: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0
        assert torch.allclose(got[name], gradient, atol=1e-5), name


# ---- what is trained: tokens and advantages


def test_the_pin_is_the_one_this_was_written_against() -> None:
    assert trl.__version__.startswith("1.16.")


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_the_gradient_is_that_of_the_formula_and_nothing_else(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, micro_batch: int
) -> None:
    # On-policy the ratio is 1, so the gradient is that of -sum(A * logprob) / count of trained tokens, however the
    # step is cut into passes.
    count = sum(sum(each.mask) for each in ROWS)
    weights = [
        [advantage * mask / count for mask in each.mask] for each, advantage in zip(ROWS, ADVANTAGES, strict=True)
    ]
    settings = replace(SETTINGS, micro_batch=micro_batch)
    assert_same(gradients(model, tokenizer, tmp_path, settings=settings), gradients_by_hand(model, weights))


def test_gradient_checkpointing_leaves_the_gradient_as_it_is(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plain = gradients(model, tokenizer, tmp_path / "a")
    saving = gradients(model, tokenizer, tmp_path / "b", settings=replace(SETTINGS, gradient_checkpointing=True))
    assert_same(saving, plain)


def test_credit_weighs_the_advantage_token_by_token(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [replace(ROWS[0], credit=[1.0, 0.0, 0.0, 0.25]), *ROWS[1:]]
    # Six trained tokens: what counts a quarter still counts as one in the mean.
    weights = [[0.5 / 6, 0, 0, 0.125 / 6], [-0.5 / 6, -0.5 / 6], [0.0], [0.0] * 3]
    assert_same(gradients(model, tokenizer, tmp_path, rows), gradients_by_hand(model, weights))


def test_gspo_moves_each_rollout_by_the_mean_over_its_tokens(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    # Mean over four rollouts of A * mean over the trained tokens: two in the first row, two in the second.
    weights = [[0.5 / 8, 0, 0, 0.5 / 8], [-0.5 / 8, -0.5 / 8], [0.0], [0.0] * 3]
    gspo = gradients(model, tokenizer, tmp_path / "a", settings=replace(SETTINGS, loss="gspo"))
    assert_same(gspo, gradients_by_hand(model, weights))
    uneven = [replace(ROWS[0], completion_ids=[3, 4, 5, 6], credit=[1, 1, 1, 1], logprobs=[-1.0] * 4), *ROWS[1:]]
    one = gradients(model, tokenizer, tmp_path / "b", uneven, replace(SETTINGS, loss="gspo"))
    other = gradients(model, tokenizer, tmp_path / "c", uneven)
    assert any(not torch.allclose(one[name], other[name] * 8 / 4, atol=1e-4) for name in one)


def test_a_tool_token_that_nothing_trained_follows_leaves_the_gradient_as_it_is(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    one = gradients(model, tokenizer, tmp_path / "a", [row([1, 2], [3, 4, 20], [1, 1, 0], 1.0), *ROWS[1:]])
    other = gradients(model, tokenizer, tmp_path / "b", [row([1, 2], [3, 4, 200], [1, 1, 0], 1.0), *ROWS[1:]])
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_of_void_rollouts_only_does_not_fall_over(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before = [p.clone() for p in model.parameters()]
    logged: list[Mapping[str, float]] = []
    trainer_for(
        model, tokenizer, tmp_path, [ROWS[2]] * 4, on_step=lambda logs, tokens: logged.append(dict(logs))
    ).train()
    assert logged[0]["loss"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# ---- updates that would only do harm


class Steps:
    """Of each step: what TRL told of it, and the weights after it."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        self.logs: list[Mapping[str, float]] = []
        self.weights = [self._weights(model)]
        """With those before the first step."""
        self._model = model

    def __call__(self, logs: Mapping[str, float], tokens: TokenSums) -> None:
        self.logs.append(dict(logs))
        self.weights.append(self._weights(self._model))

    def moved(self) -> list[bool]:
        return [not torch.equal(a, b) for a, b in zip(self.weights[:-1], self.weights[1:], strict=True)]

    @staticmethod
    def _weights(model: Qwen3ForCausalLM) -> torch.Tensor:
        return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def break_gradients(trainer: RolloutTrainer, steps: Sequence[int]) -> None:
    """Have the loss of these steps (from 0) be no number."""
    sound = trainer._compute_loss

    def broken(*arguments: Any) -> torch.Tensor:
        loss = sound(*arguments)
        return loss * math.nan if trainer.state.global_step in steps else loss

    trainer._compute_loss = broken


def test_a_gradient_that_is_not_finite_touches_neither_weights_nor_momentum(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    twin = copy.deepcopy(model)
    seen, sound = Steps(model), Steps(twin)
    trainer = trainer_for(model, tokenizer, tmp_path / "a", settings=replace(SETTINGS, steps=4), on_step=seen)
    break_gradients(trainer, [1, 2])
    trainer.train()
    trainer_for(twin, tokenizer, tmp_path / "b", settings=replace(SETTINGS, steps=2), on_step=sound).train()
    assert seen.moved() == [True, False, False, True]
    assert [logs["skipped_updates"] for logs in seen.logs] == [0, 1, 1, 0]
    assert [math.isnan(logs["loss"]) for logs in seen.logs] == [False, True, True, False]
    # The step after them is the second one of a run that never had them.
    assert torch.allclose(seen.weights[4], sound.weights[2], atol=1e-5)


def test_a_third_gradient_in_a_row_that_is_not_finite_ends_the_run_with_sound_weights(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=9, checkpoint_every=1, keep_checkpoints=9)
    seen = Steps(model)
    trainer = trainer_for(model, tokenizer, tmp_path, settings=settings, on_step=seen)
    break_gradients(trainer, [1, 2, 4, 5, 6])  # step 3 is sound in between
    with pytest.raises(RunStopped, match=r"step 7: the gradient is not finite \(norm nan\).*--resume"):
        trainer.train()
    assert seen.moved() == [True, False, False, True, False, False]
    last = last_checkpoint(tmp_path)
    assert last is not None
    assert last.name == "checkpoint-4"


def test_momentum_does_not_move_the_weights_in_a_step_that_teaches_nothing(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    seen = Steps(model)
    equal = [replace(each, reward=0.7) for each in ROWS]
    trainer_for(
        model,
        tokenizer,
        tmp_path,
        settings=replace(SETTINGS, steps=3),
        on_step=seen,
        play=lambda asked: equal if asked.step == 1 else list(ROWS),
    ).train()
    assert seen.moved() == [True, False, True]
    assert [logs["skipped_updates"] for logs in seen.logs] == [0, 1, 0]


def test_an_update_whose_gradient_nobody_measured_is_caught(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trainer = trainer_for(model, tokenizer, tmp_path)
    trainer._get_grad_norm = lambda *_, **__: 1.0  # as if transformers called it by another name
    with pytest.raises(TrainerContractBroken, match="without asking for the norm"):
        trainer.train()


def test_a_learning_rate_that_was_lowered_holds_from_the_resumption_on(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=1, checkpoint_every=1)
    trainer_for(model, tokenizer, tmp_path, settings=settings).train()
    seen = Steps(model)
    lower = replace(settings, steps=3, learning_rate=0.004)
    trainer_for(model, tokenizer, tmp_path, settings=lower, on_step=seen).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-1")
    )
    assert [logs["learning_rate"] for logs in seen.logs] == [0.004, 0.004]


def test_logprobs_that_are_no_numbers_are_the_engines_fault() -> None:
    for odd in (math.nan, -math.inf):
        rows = [*ROWS[:3], replace(ROWS[3], logprobs=[-1.0, odd, 0.0])]
        with pytest.raises(EngineFailed, match=rf"the engine gave a logprob of {odd} \(rollout 3 of 4\)"):
            check_scored(scored(), rows, 2)


# ---- several processes


def test_processes_wait_for_as_long_as_rollouts_may_last(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    # 8 * 8 rollouts, 24 at once, are three waves of 600 s; with one and a half replacements a place, three times.
    settings = GrpoSettings(concurrency=24, extra_groups=1.5, budgets=Budgets(seconds=600))
    assert settings.patience_s(1) == 3 * 600 * 3 + 1800
    assert settings.patience_s(4) == 1 * 600 * 3 + 1800  # 16 rollouts each
    trainer = trainer_for(model, tokenizer, tmp_path, settings=replace(SETTINGS, budgets=Budgets(seconds=7000)))
    assert trainer.args.ddp_timeout == 2 * 7000 + 1800


def test_a_group_of_processes_that_was_there_before_becomes_as_patient(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        give_patience(7200)
        group = torch.distributed.distributed_c10d._get_default_group()
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(hours=2)
    finally:
        torch.distributed.destroy_process_group()


# ---- the importance correction: an engine that is not quite the trainer


RATIOS = [[1.5, 1.0, 1.0, 0.06], [8.0, 8.0], [1.0], [1.0, 1.0, 1.0]]
"""How much likelier each token of ROWS is in the trainer's eyes than in the engine's."""


def seen_by_engine(model: Qwen3ForCausalLM) -> list[TrainingRow]:
    """ROWS with the logprobs of an engine that is off by RATIOS."""
    return [
        replace(
            one,
            logprobs=[
                logprob - math.log(ratio) if mask else 0.0
                for logprob, ratio, mask in zip(logprobs_by_hand(model, one).tolist(), ratios, one.mask, strict=True)
            ],
        )
        for one, ratios in zip(ROWS, RATIOS, strict=True)
    ]


@pytest.mark.parametrize(
    ("loss", "weights"),
    [
        # Mean over six tokens; the second row's 8 is cut to 2.
        ("dapo", [[1.5 * 0.5 / 6, 0, 0, 0.06 * 0.5 / 6], [-2 * 0.5 / 6] * 2]),
        # Mean over four rollouts of means over two tokens; the first row's ratio is the root of 1.5 * 0.06.
        ("gspo", [[0.3 * 0.5 / 8, 0, 0, 0.3 * 0.5 / 8], [-2 * 0.5 / 8] * 2]),
    ],
)
def test_what_is_likelier_in_the_trainer_counts_more_up_to_the_cap(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, loss: Any, weights: list[list[float]]
) -> None:
    settings = replace(SETTINGS, loss=loss, correction_cap=2.0)
    got = gradients(model, tokenizer, tmp_path, seen_by_engine(model), settings, engine_is_the_model=False)
    assert_same(got, gradients_by_hand(model, [*weights, [0.0], [0.0] * 3]))


@pytest.mark.parametrize(("correction", "engine_is_the_model"), [("none", False), ("token", True)])
def test_without_a_correction_the_engines_logprobs_do_not_matter(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    correction: Any,
    engine_is_the_model: bool,
) -> None:
    settings = replace(SETTINGS, correction=correction)
    other = [replace(each, logprobs=[2 * logprob for logprob in each.logprobs]) for each in ROWS]
    one = gradients(model, tokenizer, tmp_path / "a", ROWS, settings, engine_is_the_model=engine_is_the_model)
    two = gradients(model, tokenizer, tmp_path / "b", other, settings, engine_is_the_model=engine_is_the_model)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_model_that_samples_itself_is_corrected_where_the_update_computes_in_bfloat16(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trainer_for(model, tokenizer, tmp_path)
    monkeypatch.setattr("cacherl.adapters.trl_grpo._trains_on_cpu", lambda model: False)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    halved = trainer_for(model, tokenizer, tmp_path)
    unwanted = trainer_for(model, tokenizer, tmp_path, settings=replace(SETTINGS, correction="none"))
    assert [one.args.bf16 for one in (plain, halved, unwanted)] == [False, True, True]
    assert [one._corrects for one in (plain, halved, unwanted)] == [False, True, False]


def test_the_mismatch_of_a_step_is_that_of_its_trained_tokens(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = seen_by_engine(model)  # two trained tokens in each row but the third
    found: list[TokenSums] = []
    settings = replace(SETTINGS, steps=2, learning_rate=0.0)
    trainer_for(model, tokenizer, tmp_path, rows, settings, on_step=lambda logs, tokens: found.append(tokens)).train()
    assert [(each.tokens, each.truncated) for each in found] == [(6, 2), (6, 2)]
    log_ratios = [math.log(ratio) for ratio in (1.5, 0.06, 8.0, 8.0, 1.0, 1.0)]
    for metrics in (each.metrics() for each in found):
        assert metrics["mismatch_k1"] == pytest.approx(-sum(log_ratios) / 6, abs=1e-5)
        assert metrics["mismatch_k3"] == pytest.approx(sum(math.exp(d) - 1 - d for d in log_ratios) / 6, abs=1e-5)
        assert metrics["correction_ratio"] == pytest.approx((1.5 + 0.06 + 16.0 + 2.0) / 6, abs=1e-5)
        assert metrics["mismatch_max"] == pytest.approx(-math.log(0.06), abs=1e-5)
        assert metrics["entropy"] == pytest.approx(entropy_by_hand(model), abs=1e-5)


def entropy_by_hand(model: Qwen3ForCausalLM) -> float:
    """Mean over the trained tokens of ROWS, at the sampling temperature."""
    found: list[torch.Tensor] = []
    for one in ROWS:
        logits = model(torch.tensor([[*one.prompt_ids, *one.completion_ids]])).logits[0]
        logprobs = torch.log_softmax(logits[len(one.prompt_ids) - 1 : -1] / SETTINGS.temperature, -1)
        found.append(-(logprobs.exp() * logprobs).sum(-1)[torch.tensor(one.mask).bool()])
    return torch.cat(found).mean().item()


def test_the_correction_by_rollout_is_the_exponential_of_its_mean() -> None:
    log_ratio = torch.tensor([[0.2, 0.0, 0.4], [3.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 0, 1], [1, 0, 0]])
    by_rollout = correction(log_ratio, mask, cap=2.0, by_rollout=True)
    assert torch.allclose(by_rollout, torch.tensor([[math.exp(0.3)], [2.0]]))
    by_token = correction(log_ratio, mask, cap=2.0, by_rollout=False)
    assert torch.allclose(by_token, torch.tensor([[math.exp(0.2), 1.0, math.exp(0.4)], [2.0, 1.0, 1.0]]))


# ---- the clipped objective, by hand: off-policy ratios as TRL would see them in a second step on one batch


def loss_at(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    ratios: Sequence[float],
    advantage: float,
    settings: GrpoSettings,
) -> float:
    """TRL's loss of one rollout whose tokens have become `ratios` times as likely since they were sampled."""
    trainer = trainer_for(model, tokenizer, out, settings=replace(settings, micro_batch=4))
    trainer.current_gradient_accumulation_steps = 1  # what training would set: all four rollouts in one pass
    one = row([1, 2], [3, 4, 5][: len(ratios)], [1.0] * len(ratios), 1.0)
    now = logprobs_by_hand(model, one).detach()
    width = len(ratios)
    inputs = {
        "prompt_ids": torch.tensor([[1, 2]]),
        "prompt_mask": torch.ones(1, 2, dtype=torch.long),
        "completion_ids": torch.tensor([list(one.completion_ids)]),
        "completion_mask": torch.ones(1, width, dtype=torch.long),
        "tool_mask": torch.ones(1, width, dtype=torch.long),
        "advantages": torch.full((1, width), advantage),
        "num_items_in_batch": torch.tensor(width),
        "old_per_token_logps": (now - torch.tensor(ratios).log())[None],
        "sampling_per_token_logps": now[None],
    }
    model.train()
    return trainer._compute_loss(model, inputs).item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "wanted"),
    [
        (1.0, 1.0, -1.0),
        (1.25, 1.0, -1.25),
        (1.5, 1.0, -1.28),  # above: at clip_high
        (0.5, 1.0, -0.5),  # never clipped on this side
        (0.5, -1.0, 0.8),  # below: at 1 - clip_low
        (1.5, -1.0, 1.5),  # never clipped on this side
    ],
)
@pytest.mark.parametrize("loss", ["dapo", "gspo"])
def test_the_loss_is_clipped_higher_above_than_below(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    ratio: float,
    advantage: float,
    wanted: float,
    loss: Any,
) -> None:
    settings = replace(SETTINGS, loss=loss)
    got = loss_at(model, tokenizer, tmp_path, [ratio] * 3, advantage, settings)
    assert got == pytest.approx(wanted, abs=1e-5)


def test_gspo_clips_the_rollouts_ratio_and_dapo_each_tokens(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    # Ratios 2 and 1/2: each beyond a clip, their geometric mean 1.
    dapo = loss_at(model, tokenizer, tmp_path / "a", [2.0, 0.5], 1.0, SETTINGS)
    gspo = loss_at(model, tokenizer, tmp_path / "b", [2.0, 0.5], 1.0, replace(SETTINGS, loss="gspo"))
    assert dapo == pytest.approx(-(1.28 + 0.5) / 2, abs=1e-5)
    assert gspo == pytest.approx(-1.0, abs=1e-5)


# ---- a KL term


def test_the_divergence_is_from_the_weights_that_training_began_with(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    # The model's config says it came from elsewhere: it has been trained in memory since.
    model.config._name_or_path = "someone/elses-weights"
    logged: list[Mapping[str, float]] = []
    settings = replace(SETTINGS, kl=0.1, steps=2)
    trainer_for(
        model, tokenizer, tmp_path, settings=settings, on_step=lambda logs, tokens: logged.append(dict(logs))
    ).train()
    assert logged[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert logged[1]["kl"] > 1e-4
    assert model.config._name_or_path == "someone/elses-weights"
    assert not (tmp_path / "starting-weights").exists()


# ---- what TRL is told, and what it is checked for


def test_the_rows_of_the_dataset_reach_the_rollouts_in_order_and_in_whole_groups(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    asked: list[Asked] = []

    def play(one: Asked) -> list[TrainingRow]:
        assert not model.training
        assert one.model is model
        asked.append(one)
        return list(ROWS)

    run_grpo(
        model=model,
        tokenizer=tokenizer,
        prompts=["first", "second", "third"],
        order=[2, 0, 1, 2, 0, 1],
        settings=replace(SETTINGS, steps=3, micro_batch=1),
        engine_is_the_model=True,
        play=play,
        on_step=lambda logs, tokens: None,
        output_dir=tmp_path,
    )
    assert [(one.step, list(one.task_indices), one.first_place) for one in asked] == [
        (0, [2, 2, 0, 0], 0),
        (1, [1, 1, 2, 2], 0),
        (2, [0, 0, 1, 1], 0),
    ]
    assert not model.training


def test_trl_is_told_the_published_settings(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    args = trainer_for(model, tokenizer, tmp_path).args
    assert (args.epsilon, args.epsilon_high, args.beta, args.loss_type) == (0.2, 0.28, 0.0, "dapo")
    assert (args.scale_rewards, args.num_iterations, args.use_vllm) == ("none", 1, False)
    assert args.steps_per_generation == args.gradient_accumulation_steps == 2
    assert (args.mask_truncated_completions, args.temperature) == (False, 0.8)


def scored(**changes: Any) -> dict[str, Any]:
    width = max(len(each.completion_ids) for each in ROWS)

    def padded(rows: Sequence[Sequence[float]], filler: float) -> torch.Tensor:
        return torch.tensor([[*each, *[filler] * (width - len(each))] for each in rows])

    whole = {
        "tool_mask": padded([each.mask for each in ROWS], 1),
        "completion_mask": padded([[1] * len(each.mask) for each in ROWS], 0),
        "advantages": torch.tensor(ADVANTAGES),
        "sampling_per_token_logps": padded([each.logprobs for each in ROWS], 0.0),
    }
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tool_mask": None}, "dropped env_mask"),
        ({"tool_mask": torch.ones(4, 4)}, "loss mask is not"),
        ({"advantages": torch.tensor([0.5, -0.5, 0.1, 0.0])}, "advantages are not"),
        ({"advantages": torch.tensor([-0.5, 0.5, 0.0, 0.0])}, "advantages are not"),
        ({"sampling_per_token_logps": torch.zeros(4, 4)}, "sampling logprobs are not"),
    ],
)
def test_a_trl_that_does_otherwise_is_caught_at_its_first_step(changes: dict[str, Any], said: str) -> None:
    check_scored(scored(), ROWS, 2)
    with pytest.raises(TrainerContractBroken, match=said):
        check_scored(scored(**changes), ROWS, 2)


def test_a_trl_that_loses_its_place_in_the_dataset_is_caught(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trainer = trainer_for(model, tokenizer, tmp_path)
    trainer._rows = [{"row": 0, "place": 0, "task_index": 0}] * 4
    trainer.play()
    trainer.state.global_step = 1
    with pytest.raises(TrainerContractBroken, match="row 0 of the dataset at step 1"):
        trainer.play()


def test_advantages_by_token_are_the_rollouts_times_the_credit() -> None:
    rows = [row([1], [2, 3], [1.0, 0.25], 1.0), row([1], [2], [1.0], 0.0)]
    assert token_advantages(rows, 2, width=3).tolist() == [[0.5, 0.125, 0.0], [-0.5, 0.0, 0.0]]


def test_only_columns_that_are_padding_in_every_row_are_trimmed() -> None:
    inputs = {
        "prompt_ids": torch.tensor([[0, 0, 1], [0, 2, 3]]),
        "prompt_mask": torch.tensor([[0, 0, 1], [0, 1, 1]]),
        "completion_ids": torch.tensor([[4, 5, 0, 0], [6, 0, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]),
        "advantages": torch.tensor([[1.0, 2.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]),
        "num_items_in_batch": torch.tensor(3),
    }
    got = {name: value.tolist() for name, value in trimmed(inputs).items()}
    assert got == {
        "prompt_ids": [[0, 1], [2, 3]],
        "prompt_mask": [[0, 1], [1, 1]],
        "completion_ids": [[4, 5], [6, 0]],
        "completion_mask": [[1, 1], [1, 0]],
        "advantages": [[1.0, 2.0], [3.0, 0.0]],
        "num_items_in_batch": 3,
    }


@pytest.mark.parametrize("forbidden", ["tools", "environment_factory"])
def test_what_would_switch_env_mask_off_is_refused(forbidden: str) -> None:
    given: dict[str, Any] = {forbidden: lambda: None}
    with pytest.raises(RunMisconfigured, match=forbidden):
        RolloutTrainer(play=lambda asked: [], settings=SETTINGS, corrects=False, **given)


def test_weights_trained_in_half_precision_are_refused(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(RunMisconfigured, match=r"trained in torch\.bfloat16"):
        trainer_for(model.bfloat16(), tokenizer, tmp_path)


def test_the_global_random_state_decides_nothing_that_is_trained(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    found = []
    for seed in (1, 2):
        random.seed(seed)
        torch.manual_seed(seed)
        found.append(gradients(model, tokenizer, tmp_path / str(seed), settings=replace(SETTINGS, micro_batch=1)))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
