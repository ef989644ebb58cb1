"""A tokenizer with one token a byte and one for each mark of the chat format: made on the spot, knows any text.

For tests and for looking at what a renderer does; a model that is to learn wants a vocabulary (tiny_qwen3.py).
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cacherl.rollout.chat_format import END_OF_TURN, MARKS


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer of 256 bytes and the marks.

    >>> make_byte_tokenizer().encode("a<|im_end|>") == [64, 258]
    True
    """
    vocabulary = {symbol: place for place, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers' own
        tokenizer_object=inner, eos_token=END_OF_TURN, pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
