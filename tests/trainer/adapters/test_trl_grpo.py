"""What we rely on in the pinned TRL, and what we make of it, by values."""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from cacherl.adapters.trl_grpo import (
    RowKeepingTrainer,
    TrainingRow,
    UpdateSettings,
    check_scored,
    make_trainer,
    run_grpo,
)
from cacherl.errors import RunMisconfigured, TrainerContractBroken

SETTINGS = UpdateSettings(
    steps=1,
    prompts_per_step=2,
    group_size=2,
    micro_batch=2,
    learning_rate=0.01,
    warmup_steps=0,
    clip_low=0.2,
    clip_high=0.28,
    temperature=0.8,
    max_grad_norm=1e9,
    gradient_checkpointing=False,
    seed=0,
)
# Two groups of two; the third row is void. Prompts and completions differ in length, so padding is in play.
ROWS = [
    TrainingRow(prompt_ids=[1, 2], completion_ids=[3, 4, 5, 6], logprobs=[0.0] * 4, env_mask=[1, 0, 0, 1], reward=1.0),
    TrainingRow(prompt_ids=[1, 2], completion_ids=[7, 8], logprobs=[0.0] * 2, env_mask=[1, 1], reward=0.0),
    TrainingRow(prompt_ids=[9], completion_ids=[258], logprobs=[0.0], env_mask=[0], reward=None),
    TrainingRow(prompt_ids=[9], completion_ids=[10, 11, 12], logprobs=[0.0] * 3, env_mask=[1, 1, 0], reward=0.7),
]
ADVANTAGES = [0.5, -0.5, 0.0, 0.0]


def trained(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    rows: Sequence[TrainingRow] = ROWS,
    settings: UpdateSettings = SETTINGS,
) -> tuple[list[list[int]], list[Mapping[str, float]]]:
    asked: list[list[int]] = []
    logs: list[Mapping[str, float]] = []

    def collect(task_indices: Sequence[int], step: int) -> list[TrainingRow]:
        assert not model.training
        asked.append(list(task_indices))
        return list(rows)

    run_grpo(
        model=model,
        tokenizer=tokenizer,
        prompts=["first", "second", "third"],
        settings=settings,
        collect=collect,
        on_step=logs.append,
        output_dir=out,
    )
    return asked, logs


def gradients(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, rows: Sequence[TrainingRow]
) -> Any:
    """Gradients of one step as TRL's loss makes them, by parameter; the model itself stays as it is."""
    model = copy.deepcopy(model)
    trainer = make_trainer(
        model=model,
        tokenizer=tokenizer,
        prompts=["first", "second"],
        settings=replace(SETTINGS, micro_batch=4),
        collect=lambda indices, step: list(rows),
        on_step=lambda logs: None,
        output_dir=out,
    )
    caught: dict[str, torch.Tensor] = {}

    def keep(optimizer: Any, *_: Any) -> None:
        caught.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    return caught


def test_the_pin_is_the_one_this_was_written_against() -> None:
    assert trl.__version__.startswith("1.16.")


def test_the_rows_of_the_dataset_reach_the_rollouts_in_whole_groups(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    [asked], _ = trained(model, tokenizer, tmp_path)
    assert asked[0] == asked[1] != asked[2] == asked[3]


def test_the_gradient_is_that_of_the_formula_and_nothing_else(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    # On-policy the ratio is 1, so the gradient is that of -sum(A * logprob) / count of trained tokens.
    count = sum(sum(row.env_mask) for row in ROWS)
    loss = torch.zeros(())
    for row, advantage in zip(ROWS, ADVANTAGES, strict=True):
        ids = [*row.prompt_ids, *row.completion_ids]
        logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0] / SETTINGS.temperature, -1)
        for place, mask in enumerate(row.env_mask):
            at = len(row.prompt_ids) + place
            loss = loss - mask * advantage * logprobs[at - 1, ids[at]] / count
    loss.backward()
    by_hand = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    got = gradients(model, tokenizer, tmp_path, ROWS)
    assert got.keys() == by_hand.keys()
    for name, gradient in by_hand.items():
        assert gradient.abs().max() > 0
        assert torch.allclose(got[name], gradient, atol=1e-5), name


def test_a_tool_token_that_nothing_trained_follows_leaves_the_gradient_as_it_is(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def with_last_token(token: int) -> list[TrainingRow]:
        rewarded = TrainingRow(
            prompt_ids=[1, 2], completion_ids=[3, 4, token], logprobs=[0.0] * 3, env_mask=[1, 1, 0], reward=1.0
        )
        return [rewarded, *ROWS[1:]]

    one = gradients(model, tokenizer, tmp_path / "a", with_last_token(20))
    other = gradients(model, tokenizer, tmp_path / "b", with_last_token(200))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_logprobs_sent_are_not_needed_for_the_ratio(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    wrong = [replace(row, logprobs=[-9.0] * len(row.logprobs)) for row in ROWS]
    one = gradients(model, tokenizer, tmp_path / "a", ROWS)
    other = gradients(model, tokenizer, tmp_path / "b", wrong)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_of_void_rollouts_only_does_not_fall_over(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before = [p.clone() for p in model.parameters()]
    _, [logs] = trained(model, tokenizer, tmp_path, [ROWS[2]] * 4)
    assert logs["loss"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_trl_is_told_the_published_settings(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    # On-policy the ratio is 1 and no clip binds, so the gradient tests cannot see these.
    trainer = make_trainer(
        model=model,
        tokenizer=tokenizer,
        prompts=["a", "b"],
        settings=SETTINGS,
        collect=lambda indices, step: list(ROWS),
        on_step=lambda logs: None,
        output_dir=tmp_path,
    )
    args = trainer.args
    assert (args.epsilon, args.epsilon_high, args.beta, args.loss_type) == (0.2, 0.28, 0.0, "dapo")
    assert (args.scale_rewards, args.num_iterations, args.use_vllm) == ("none", 1, False)
    assert args.steps_per_generation == args.gradient_accumulation_steps == 2


def test_one_optimizer_step_a_batch_of_rollouts(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    asked, logs = trained(model, tokenizer, tmp_path, settings=replace(SETTINGS, steps=3, micro_batch=1))
    assert len(asked) == len(logs) == 3


def scored(**changes: Any) -> dict[str, Any]:
    width = max(len(row.completion_ids) for row in ROWS)
    mask = torch.tensor([[*row.env_mask, *[1] * (width - len(row.env_mask))] for row in ROWS])
    present = torch.tensor([[1] * len(row.env_mask) + [0] * (width - len(row.env_mask)) for row in ROWS])
    whole = {"tool_mask": mask, "completion_mask": present, "advantages": torch.tensor(ADVANTAGES)}
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tool_mask": None}, "dropped env_mask"),
        ({"tool_mask": torch.ones(4, 4)}, "loss mask is not"),
        ({"advantages": torch.tensor([0.5, -0.5, 0.1, 0.0])}, "advantages are not"),
        ({"advantages": torch.tensor([-0.5, 0.5, 0.0, 0.0])}, "advantages are not"),
    ],
)
def test_a_trl_that_does_otherwise_is_caught_at_its_first_step(changes: dict[str, Any], said: str) -> None:
    check_scored(scored(), ROWS, 2)
    with pytest.raises(TrainerContractBroken, match=said):
        check_scored(scored(**changes), ROWS, 2)


@pytest.mark.parametrize("forbidden", ["tools", "environment_factory"])
def test_what_would_switch_env_mask_off_is_refused(forbidden: str) -> None:
    given: dict[str, Callable[[], None]] = {forbidden: lambda: None}
    with pytest.raises(RunMisconfigured, match=forbidden):
        RowKeepingTrainer(**given)


def test_sizes_that_do_not_divide_are_refused(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(RunMisconfigured, match="does not divide 4"):
        trained(model, tokenizer, tmp_path, settings=replace(SETTINGS, micro_batch=3))
    with pytest.raises(RunMisconfigured, match="fewer than prompts_per_step"):
        trained(model, tokenizer, tmp_path, settings=replace(SETTINGS, prompts_per_step=4, micro_batch=1))


def test_seeds_give_the_same_order_of_tasks(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    random.seed(1)
    first, _ = trained(model, tokenizer, tmp_path / "a", settings=replace(SETTINGS, steps=3))
    random.seed(2)
    second, _ = trained(model, tokenizer, tmp_path / "b", settings=replace(SETTINGS, steps=3))
    assert first == second
