"""A Hugging Face tokenizer as the renderer's Tokenizer: nothing added at the ends, nothing left out, no clean-up."""

import copy
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from cacherl.errors import RendererMisfit


class HFTokenizer:
    """Wraps a Hugging Face tokenizer of the fast kind; `inner` is the wrapped one. Threads may share it.

    Tokens that are added to `inner` later are not known here. Raises RendererMisfit for one that is not fast.
    """

    def __init__(self, inner: PreTrainedTokenizerBase) -> None:
        if not inner.is_fast:
            raise RendererMisfit(f"{type(inner).__name__} is not a fast tokenizer, so threads cannot share it")
        self.inner = inner
        # A copy: truncation and padding are state of the original, so that whoever pads a batch with it in another
        # thread would cut what is being encoded here, without a word.
        self._backend = copy.deepcopy(inner.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()

    def encode(self, text: str) -> list[int]:
        """Ids of the text, special tokens recognised, none added."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens included."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))
