"""GRPO on low-rank adapters: they move, the model beneath them does not."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from cacherl.train.lora_settings import LoraSettings
from cacherl.train.token_sums import TokenSums
from tests.trainer.adapters.test_trl_grpo import SETTINGS, gradients, trainer_for

lora = pytest.importorskip("cacherl.adapters.lora", reason="peft is not installed")


@pytest.fixture
def adapted(model: Qwen3ForCausalLM) -> Any:
    return lora.with_lora(model, LoraSettings(rank=4, alpha=4), seed=1)


def trained_values(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def test_only_the_adapters_move(adapted: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    before = {name: value.detach().clone() for name, value in adapted.named_parameters()}
    assert trained_values(adapted)
    trainer_for(adapted, tokenizer, tmp_path).train()
    for name, value in adapted.named_parameters():
        # A starts at random and B at zero, so that in the first step only B has a gradient.
        assert torch.equal(value, before[name]) is ("lora_B" not in name), name


def test_saving_activations_leaves_the_adapters_gradient_as_it_is(
    adapted: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plain = gradients(adapted, tokenizer, tmp_path / "a")
    saving = gradients(adapted, tokenizer, tmp_path / "b", settings=replace(SETTINGS, gradient_checkpointing=True))
    assert plain.keys() == saving.keys() == trained_values(adapted).keys()
    assert any(value.abs().max() > 0 for value in plain.values())
    assert all(torch.allclose(saving[name], value, atol=1e-6) for name, value in plain.items())


def test_the_reference_of_adapters_is_how_they_began_and_no_second_model(
    adapted: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    logged: list[Mapping[str, float]] = []

    def on_step(logs: Mapping[str, float], tokens: TokenSums) -> None:
        logged.append(dict(logs))

    with torch.no_grad():  # adapters that have been trained already, as by SFT
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.2)
    trainer = trainer_for(adapted, tokenizer, tmp_path, settings=replace(SETTINGS, kl=0.1, steps=2), on_step=on_step)
    assert trainer.ref_model is None
    trainer.train()
    assert logged[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert logged[1]["kl"] > 1e-4
