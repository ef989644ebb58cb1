"""A model of the Qwen3 architecture small enough to be made and trained on two CPU cores, with a tokenizer of its own.

It exists so that the whole path (recordings, SFT, GRPO, evaluation) runs anywhere in minutes; what it learns says
nothing about a language model's ability. Nothing is downloaded: both parts are made on the spot from the recordings.
"""

import re
from collections.abc import Iterable
from typing import Final

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from cacherl.adapters.tiny_size import TinyQwen3

CONTROL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Left out when text is decoded without special tokens, as Qwen3's tokenizer does."""
MARKUP_TOKENS: Final = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""One token each and kept in decoded text: a parser reads them."""
PIECES: Final = r"[A-Za-z]+|[0-9]{1,2}|[^A-Za-z0-9]+"
"""Words without the space before them, digits in pairs, and runs of anything else. No merge crosses a piece, so that a
name or number is the same token wherever it stands: else copying must be learned for each one anew."""
_WHOLE_TOKENS: Final = re.compile("|".join(re.escape(token) for token in (*CONTROL_TOKENS, *MARKUP_TOKENS)))


def make_tokenizer(texts: Iterable[str], *, vocabulary_size: int = 1200) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the texts; any text can be encoded, whatever it was trained on.

    >>> tokenizer = make_tokenizer(["call 4821 <tool_call>"] * 3)
    >>> tokenizer.tokenize("<tool_call>482")
    ['<tool_call>', '48', '2']
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[*CONTROL_TOKENS, *MARKUP_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain = (part for text in texts for part in _WHOLE_TOKENS.split(text))
    tokenizer.train_from_iterator(plain, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves its constructor unannotated
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, *, seed: int, size: TinyQwen3 | None = None) -> Qwen3ForCausalLM:
    """An untrained model for the tokenizer, in float32 and training mode; equal seeds give equal weights.

    The global random state of torch is left as it was found.
    """
    chosen = size or TinyQwen3()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(_config(tokenizer, chosen))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_norm.weight.fill_(chosen.attention_gain)
            layer.self_attn.k_norm.weight.fill_(chosen.attention_gain)
    model.train()
    return model


def _config(tokenizer: PreTrainedTokenizerFast, size: TinyQwen3) -> Qwen3Config:
    vocabulary = tokenizer.get_vocab()
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        head_dim=size.head_dim,
        intermediate_size=size.feed_forward,
        max_position_embeddings=size.context_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": size.rope_base},
        initializer_range=size.weight_std,
        tie_word_embeddings=True,
        eos_token_id=vocabulary["<|im_end|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
        bos_token_id=None,
        dtype="float32",
    )
