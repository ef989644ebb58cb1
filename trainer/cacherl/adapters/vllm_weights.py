"""A model's weights as vLLM takes them in place of its own."""

from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel

from cacherl.adapters.lora import merged_weights

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def vllm_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """merged_weights(model) and, where the head is tied to the embedding, the embedding again as the head.

    A vLLM that starts ties the two by itself; one that reloads does not (0.31 and later), and would go on with the
    head of the weights before, telling nobody but its log. Every process must go through to the end.
    """
    embedding: Tensor | None = None
    is_tied = True
    for name, value in merged_weights(model):
        if name == EMBEDDING:
            embedding = value
        is_tied = is_tied and name != HEAD
        yield name, value
    if is_tied and embedding is not None:
        yield HEAD, embedding
