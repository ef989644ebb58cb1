import json
import random
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM

from cacherl.errors import RunMisconfigured
from cacherl.rollout.renderer import Example
from cacherl.train.sft import SftSettings, batches_by_length, learning_rate, token_mean_loss, train_sft


def example(ids: list[int], mask: list[int]) -> Example:
    return Example(ids=tuple(ids), loss_mask=tuple(mask))


SHORT = example([1, 2, 3], [0, 0, 1])
LONG = example([4, 5, 6, 7, 8], [0, 1, 1, 0, 1])


def test_the_loss_is_the_mean_over_all_trained_tokens_of_the_batch(model: Qwen3ForCausalLM) -> None:
    def nats(one: Example) -> list[float]:
        logprobs = torch.log_softmax(model(torch.tensor([one.ids])).logits[0], dim=-1)
        return [-logprobs[t - 1, one.ids[t]].item() for t, mask in enumerate(one.loss_mask) if mask]

    expected = nats(SHORT) + nats(LONG)
    assert len(expected) == 4
    assert token_mean_loss(model, [SHORT, LONG]).item() == pytest.approx(sum(expected) / 4, abs=1e-5)


def test_what_a_masked_token_would_be_does_not_matter_when_nothing_follows_it(model: Qwen3ForCausalLM) -> None:
    before = token_mean_loss(model, [example([1, 2, 3, 9], [0, 1, 1, 0])]).item()
    assert token_mean_loss(model, [example([1, 2, 3, 77], [0, 1, 1, 0])]).item() == before


def test_a_token_with_mask_0_gets_no_gradient_at_its_logits(model: Qwen3ForCausalLM) -> None:
    caught: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda m, i, out: caught.append(out))
    token_mean_loss(model, [LONG])
    hook.remove()
    assert caught[0].shape[0] == sum(LONG.loss_mask)


def test_training_learns_the_masked_tokens_and_writes_what_it_did(model: Qwen3ForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "sft.jsonl"
    settings = SftSettings(steps=30, batch_size=2, learning_rate=0.02)
    seen: list[object] = []
    report = train_sft(model, [SHORT, LONG], settings, metrics_path=path, progress=lambda m: seen.append(m["step"]))
    assert report.losses[0] > 4.0
    assert report.losses[-1] < 0.2
    assert report.trained_tokens == 30 * 4
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in logged] == seen == list(range(1, 31))
    assert logged[-1]["loss"] == report.losses[-1]


def test_the_learning_rate_rises_then_falls_to_its_share() -> None:
    settings = SftSettings(steps=11, learning_rate=1.0, warmup_share=0.2, final_share=0.1)
    rates = [learning_rate(step, settings) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[-1] == pytest.approx(0.1)


def test_a_pass_takes_each_example_once_and_puts_like_lengths_together() -> None:
    rng = random.Random(1)
    examples = [_of(rng.randint(1, 300)) for _ in range(203)]
    batches = batches_by_length(examples, 8, rng)
    assert sorted(id(e) for b in batches for e in b) == sorted(id(e) for e in examples)
    padded = sum(len(b) * max(len(e.ids) for e in b) for b in batches)
    assert padded < 1.25 * sum(len(e.ids) for e in examples)


def test_nothing_to_learn_from_is_refused(model: Qwen3ForCausalLM) -> None:
    with pytest.raises(RunMisconfigured):
        train_sft(model, [], SftSettings(steps=1))


def _of(length: int) -> Example:
    return example([1] * length, [1] * length)
