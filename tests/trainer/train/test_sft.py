import copy
import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM

from cacherl.errors import RunMisconfigured
from cacherl.rollout.renderer import Example
from cacherl.train.sft import batches_by_length, learning_rate, train_sft
from cacherl.train.sft_settings import SftSettings


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
    report = train_sft(model, [SHORT, LONG], SftSettings(steps=1, batch_size=2))
    assert report.losses[0] == pytest.approx(sum(expected) / 4, abs=1e-5)


def test_training_learns_the_masked_tokens_and_writes_what_it_did(model: Qwen3ForCausalLM, tmp_path: Path) -> None:
    settings = SftSettings(steps=30, batch_size=2, learning_rate=0.02)
    seen: list[object] = []
    report = train_sft(model, [SHORT, LONG], settings, output_dir=tmp_path, progress=lambda m: seen.append(m["step"]))
    assert report.losses[0] > 4.0
    assert report.losses[-1] < 0.2
    assert report.trained_tokens == 30 * 4
    logged = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == seen == list(range(1, 31))
    assert logged[-1]["loss"] == report.losses[-1]


def test_the_learning_rate_rises_then_falls_to_its_share() -> None:
    settings = SftSettings(steps=11, learning_rate=1.0, warmup_share=0.2, final_share=0.1)
    rates = [learning_rate(step, 11, settings) for step in range(11)]
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


def test_epochs_are_passes_over_the_examples_rounded_up_to_whole_steps(model: Qwen3ForCausalLM) -> None:
    settings = SftSettings(epochs=2.5, batch_size=2)
    seen: list[object] = []
    report = train_sft(model, [SHORT, LONG, SHORT], settings, progress=lambda m: seen.append(m["steps"]))
    assert report.steps == 5  # two batches a pass
    assert seen == [5] * 5


@pytest.mark.parametrize("given", [{}, {"steps": 3, "epochs": 1.0}, {"steps": 0}, {"epochs": -1.0}])
def test_a_run_is_as_long_as_its_steps_or_its_epochs_say_and_never_both(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="steps"):
        SftSettings(**given)  # type: ignore[arg-type]


def test_what_a_run_cannot_do_is_refused_before_it_starts(model: Qwen3ForCausalLM, tmp_path: Path) -> None:
    for examples, settings in (
        ([], SftSettings(steps=1)),
        ([LONG], SftSettings(steps=1, max_example_tokens=4)),
        ([LONG], SftSettings(steps=1, checkpoint_every=1)),  # and nowhere to write to
    ):
        with pytest.raises(RunMisconfigured):
            train_sft(model, examples, settings)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("most", [6, 9, None])
def test_how_a_batch_is_cut_into_forward_passes_changes_nothing(
    model: Qwen3ForCausalLM, packing: bool, most: int | None
) -> None:
    batch = [SHORT, LONG, example([9, 8, 7, 6], [0, 0, 1, 1]), example([3] * 12, [0] * 6 + [1] * 6)]
    reference = copy.deepcopy(model)
    whole = train_sft(reference, batch, SftSettings(steps=3, batch_size=4, learning_rate=1e-2))
    cut = train_sft(
        model,
        batch,
        SftSettings(steps=3, batch_size=4, learning_rate=1e-2, packing=packing, micro_batch_tokens=most),
    )
    assert cut.losses == pytest.approx(whole.losses, abs=1e-5)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, reference.get_parameter(name), atol=1e-4, rtol=0)


def test_activations_are_computed_twice_where_asked_and_the_training_is_the_same(model: Qwen3ForCausalLM) -> None:
    reference = copy.deepcopy(model)
    settings = SftSettings(steps=3, batch_size=2, learning_rate=1e-2)
    plain = train_sft(reference, [SHORT, LONG], settings)
    runs: list[int] = []
    with model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1)):
        again = train_sft(model, [SHORT, LONG], dataclasses.replace(settings, gradient_checkpointing=True))
    assert len(runs) == 2 * 3
    assert again.losses == pytest.approx(plain.losses, abs=1e-5)
    assert not model.model.layers[0].gradient_checkpointing  # left as it was


def test_what_is_frozen_stays_as_it_was(model: Qwen3ForCausalLM) -> None:
    frozen = model.model.layers[0].mlp
    frozen.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    train_sft(model, [SHORT, LONG], SftSettings(steps=2, batch_size=2))
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) == (".mlp." in name)


def _of(length: int) -> Example:
    return example([1] * length, [1] * length)
