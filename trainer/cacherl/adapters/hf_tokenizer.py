"""A Hugging Face tokenizer as the renderer's Tokenizer: nothing added at the ends, nothing left out, no clean-up."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class HFTokenizer:
    """Wraps a Hugging Face tokenizer; `inner` is the wrapped one."""

    def __init__(self, inner: PreTrainedTokenizerBase) -> None:
        self.inner = inner

    def encode(self, text: str) -> list[int]:
        """Ids of the text, special tokens recognised, none added."""
        return list(self.inner.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens included."""
        return str(self.inner.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
