"""Adapters start as nothing, are trained alone, and come out merged under the plain model's own names."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

pytest.importorskip("peft")

from cacherl.adapters.lora import merged_weights, save_model, with_lora
from cacherl.rollout.renderer import Example
from cacherl.train.lora_settings import LoraSettings
from cacherl.train.sft import train_sft
from cacherl.train.sft_settings import SftSettings

IDS = torch.tensor([[1, 2, 3, 4, 5]])
SETTINGS = LoraSettings(rank=2, alpha=6)


def moved(model: Qwen3ForCausalLM) -> torch.nn.Module:
    """The model with adapters that do something: a fresh one's B is zero."""
    adapted = with_lora(model, SETTINGS, seed=0)
    torch.manual_seed(9)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return adapted


def saved_names(folder: Path) -> set[str]:
    return {
        key
        for file in folder.glob("*.safetensors")
        for key in safe_open(file, framework="pt").keys()  # noqa: SIM118  # not a mapping
    }


def test_fresh_adapters_change_nothing_and_only_they_can_be_trained(model: Qwen3ForCausalLM) -> None:
    before = model(IDS).logits
    adapted = with_lora(model, SETTINGS, seed=0)
    assert torch.equal(adapted(input_ids=IDS).logits, before)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in trained}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_equal_seeds_give_equal_adapters_and_leave_the_global_seed_alone(model: Qwen3ForCausalLM) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = (
        {n: p for n, p in with_lora(copy.deepcopy(model), SETTINGS, seed=seed).named_parameters() if "lora_A" in n}
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_merged_weights_are_the_base_plus_the_scaled_product_and_the_base_stays(model: Qwen3ForCausalLM) -> None:
    plain = {name: value.clone() for name, value in model.named_parameters()}
    adapted = moved(model)
    state = {name: value.clone() for name, value in adapted.state_dict().items()}
    merged = dict(merged_weights(adapted))
    assert merged.keys() == plain.keys()
    q_proj = adapted.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    product = q_proj.lora_B["default"].weight @ q_proj.lora_A["default"].weight
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(merged[name], plain[name] + 6 / 2 * product)
    assert (merged[name] - plain[name]).abs().max() > 0.05
    assert torch.equal(merged["model.embed_tokens.weight"], plain["model.embed_tokens.weight"])
    assert all(torch.equal(value, state[name]) for name, value in adapted.state_dict().items())


def test_a_plain_model_with_merged_weights_says_what_the_adapted_one_says(model: Qwen3ForCausalLM) -> None:
    other = copy.deepcopy(model)
    adapted = moved(model)
    missing, unexpected = other.load_state_dict(dict(merged_weights(adapted)), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied: one tensor, once
    torch.testing.assert_close(other(IDS).logits, adapted(input_ids=IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_names_are_those_of_save_pretrained(model: Qwen3ForCausalLM, tied: bool, tmp_path: Path) -> None:
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = tied
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(tmp_path)
    assert {name for name, _ in merged_weights(model)} == saved_names(tmp_path)
    assert {name for name, _ in merged_weights(moved(model))} == saved_names(tmp_path)


def test_a_bfloat16_weight_is_rounded_once_after_the_sum_and_adapters_are_float32(model: Qwen3ForCausalLM) -> None:
    model = model.to(torch.bfloat16)
    plain = {name: value.clone() for name, value in model.named_parameters()}
    adapted = moved(model)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    v_proj = adapted.get_submodule("base_model.model.model.layers.0.self_attn.v_proj")
    product = v_proj.lora_B["default"].weight @ v_proj.lora_A["default"].weight
    name = "model.layers.0.self_attn.v_proj.weight"
    assert torch.equal(dict(merged_weights(adapted))[name], (plain[name].float() + 3 * product).bfloat16())


@pytest.mark.parametrize("adapted", [True, False])
def test_a_saved_model_loads_as_a_plain_one_and_says_the_same(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, adapted: bool, tmp_path: Path
) -> None:
    trained = moved(model) if adapted else model
    save_model(trained, tokenizer, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(loaded) is Qwen3ForCausalLM
    torch.testing.assert_close(loaded(IDS).logits, trained(input_ids=IDS).logits, atol=1e-5, rtol=0)
    text = "<think>\nZoë\n</think>"
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(text).input_ids == tokenizer(text).input_ids
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert not any("lora" in name for name in saved_names(tmp_path / "model"))
    assert {each.name for each in tmp_path.iterdir()} == {"model"}
    assert trained(input_ids=IDS).logits.isfinite().all()  # and can go on


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_training_moves_the_adapters_only_and_learns(model: Qwen3ForCausalLM, gradient_checkpointing: bool) -> None:
    before = {name: value.clone() for name, value in model.named_parameters()}
    adapted = with_lora(model, LoraSettings(rank=8, alpha=16), seed=0)
    settings = SftSettings(steps=30, batch_size=1, learning_rate=0.02, gradient_checkpointing=gradient_checkpointing)
    report = train_sft(adapted, [Example(ids=(4, 5, 6, 7), loss_mask=(0, 1, 1, 1))], settings)
    assert report.losses[-1] < report.losses[0] / 4
    bases = {
        name.removeprefix("base_model.model.").replace("base_layer.", ""): value
        for name, value in adapted.named_parameters()
        if "lora_" not in name
    }
    assert bases.keys() == before.keys()
    assert all(torch.equal(bases[name], before[name]) for name in before)
