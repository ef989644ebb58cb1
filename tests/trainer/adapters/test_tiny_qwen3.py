"""The tokenizer keeps identifiers copyable and markup whole; the model starts as its recipe says."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from cacherl.adapters.tiny_qwen3 import CONTROL_TOKENS, MARKUP_TOKENS, TinyQwen3, make_model, make_tokenizer

TEXT = '<|im_start|>user\nundo lamp48213<|im_end|>\n<tool_call>\n{"name": "get_order"}\n</tool_call>'


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer([TEXT] * 20, vocabulary_size=400)


@pytest.mark.parametrize("token", [*CONTROL_TOKENS, *MARKUP_TOKENS])
def test_control_and_markup_are_single_tokens(tokenizer: PreTrainedTokenizerFast, token: str) -> None:
    assert len(tokenizer(token).input_ids) == 1


def test_an_identifier_is_spelt_the_same_after_a_space_a_quote_and_a_line_break(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    spelt = tokenizer("lamp48213").input_ids
    assert len(spelt) == 4  # the word, two pairs of digits, one digit
    for before in (" ", '"', "\n"):
        assert tokenizer(before + "lamp48213").input_ids[-4:] == spelt


@pytest.mark.parametrize("text", [TEXT, "Zoë costs 7 €\t日本", ""])
def test_text_survives_encoding_and_decoding(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_markup_is_read_back_and_control_is_not(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenizer("<tool_call>a<|im_end|>").input_ids, skip_special_tokens=True) == "<tool_call>a"


def test_equal_seeds_give_equal_weights_and_leave_the_global_seed_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = (make_model(tokenizer, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.model.embed_tokens.weight, two.model.embed_tokens.weight)
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_attention_starts_sharpened_and_weights_with_the_given_spread(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model(tokenizer, seed=0, size=TinyQwen3(attention_gain=1.25, weight_std=0.05))
    for layer in model.model.layers:
        assert layer.self_attn.q_norm.weight.eq(1.25).all()
        assert layer.self_attn.k_norm.weight.eq(1.25).all()
    assert model.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.05, rel=0.02)


def test_generation_stops_at_the_end_of_a_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model(tokenizer, seed=0)
    assert model.config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id
    assert tokenizer.pad_token == "<|endoftext|>"
