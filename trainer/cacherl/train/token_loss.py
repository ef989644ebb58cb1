"""The loss of fine-tuning: cross-entropy of the tokens a model is to say, in memory that does not grow with V * T.

Examples stand one a row, padded on the right, or behind one another in a single row: there positions start anew with
each example, which transformers takes as the border that attention does not cross.

Covered: causal models that end in their output embeddings (Qwen3 and its like). Not covered: models that change the
logits after the head (soft caps, scales); attention kernels that do not see borders in positions.

B examples, T tokens of a row, N tokens with mask 1, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cacherl.rollout.renderer import Example

LOGITS_AT_ONCE = 2**27
"""Logits computed at a time, half a gigabyte in float32: 883 tokens of Qwen3's vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What one forward pass reads."""

    ids: Tensor  # [B, T], or [1, T] when packed
    wanted: Tensor  # bool, as ids: this token is to be said; never the first of an example
    positions: Tensor | None  # as ids, from 0 anew in each example; None: one example a row


def padded_rows(examples: Sequence[Example], device: torch.device) -> Rows:
    """One example a row. Padding stands on the right, where a causal model never looks: no attention mask is needed."""
    width = max(len(example.ids) for example in examples)
    ids = [list(example.ids) + [0] * (width - len(example.ids)) for example in examples]
    wanted = [_wanted(example) + [0] * (width - len(example.ids)) for example in examples]
    return Rows(ids=torch.tensor(ids, device=device), wanted=torch.tensor(wanted, device=device).bool(), positions=None)


def packed_row(examples: Sequence[Example], device: torch.device) -> Rows:
    """All examples behind one another in one row."""
    if len(examples) == 1:
        return padded_rows(examples, device)
    ids = [token for example in examples for token in example.ids]
    wanted = [value for example in examples for value in _wanted(example)]
    positions = [position for example in examples for position in range(len(example.ids))]
    return Rows(
        ids=torch.tensor([ids], device=device),
        wanted=torch.tensor([wanted], device=device).bool(),
        positions=torch.tensor([positions], device=device),
    )


def trained_tokens(example: Example) -> int:
    """Tokens of the example that have a loss: mask 1, and something before them to say them from."""
    return sum(example.loss_mask[1:])


def summed_nats(model: torch.nn.Module, head: torch.nn.Linear, rows: Rows) -> Tensor:
    """Cross-entropy in nats, summed over the wanted tokens; scalar, float32.

    `model` may be what data-parallel training wraps around the model whose output embeddings `head` is.
    """
    labels = rows.ids[:, 1:][rows.wanted[:, 1:]]  # [N]
    vocabulary_size = head.out_features

    def nats_of(logits_of: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        # Only the wanted positions go through the vocabulary, which is most of the memory of a big one.
        said_from = hidden[:, :-1][rows.wanted[:, 1:]]  # [N, H]
        return chunked_nats(logits_of, said_from, labels, max(1, LOGITS_AT_ONCE // vocabulary_size))

    # Inside the head's own call, so that whoever shards or gathers its weights by hooks around that call finds it so.
    with _head_gives(head, nats_of):
        nats: Tensor = model(input_ids=rows.ids, position_ids=rows.positions, use_cache=False).logits
    return nats


def chunked_nats(logits_of: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """Cross-entropy of labels [N] from hidden states [N, H], summed, `chunk` of them at a time.

    Logits of a chunk are thrown away and computed again in the backward pass, so that never more than one chunk's are
    there. What fits one chunk is kept.
    """

    def nats(states: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits_of(states).float(), targets, reduction="sum")

    if len(labels) <= chunk:
        return nats(hidden, labels)
    parts = [
        checkpoint(nats, states, targets, use_reentrant=False, preserve_rng_state=False)
        for states, targets in zip(torch.split(hidden, chunk), torch.split(labels, chunk), strict=True)
    ]
    return torch.stack(parts).sum()


def _wanted(example: Example) -> list[int]:
    """The mask without its first value: behind another example, that token would be guessed from the other's end."""
    return [0, *example.loss_mask[1:]]


@contextmanager
def _head_gives(
    head: torch.nn.Module, result: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
) -> Iterator[None]:
    """For a while the head answers with `result(its own forward, hidden states)` in place of logits."""
    plain = head.forward
    was_own = "forward" in vars(head)
    head.forward = lambda hidden: result(plain, hidden)
    try:
        yield
    finally:
        if was_own:
            head.forward = plain
        else:
            del head.forward
