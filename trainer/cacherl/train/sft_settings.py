"""How to fine-tune: apart from sft.py, so that a run file is read without loading torch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSettings:
    """How to fine-tune. Exactly one of `steps` and `epochs` is given."""

    steps: int | None = None
    """Optimizer steps; the examples are gone through as often as that takes."""
    epochs: float | None = None
    """Passes over the examples, rounded up to whole steps."""
    batch_size: int = 16
    """Examples of one optimizer step, over all processes."""
    micro_batch_tokens: int | None = None
    """Most tokens of one forward pass, padding counted; a longer example goes alone. Bounds memory, not the meaning:
    the gradient is that of the whole batch. None: a process's share of the batch at once."""
    packing: bool = False
    """Several examples in one row, none seeing another, instead of one a row with padding. With torch's own attention
    (sdpa) a packed row costs a mask of its length squared; long rows want flash attention."""
    max_example_tokens: int = 131_072
    """Longer examples are left out when trajectories are rendered, and refused by the training itself."""
    learning_rate: float = 1e-3
    """Peak. Fits a model of a million parameters; billions want 1e-5, adapters on them 1e-4."""
    warmup_share: float = 0.05
    """Share of the steps with a rising learning rate."""
    final_share: float = 0.1
    """Learning rate of the last step, as a share of the peak."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass: a third more time, a fraction of the memory."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes none."""
    keep_checkpoints: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps is {self.steps}, epochs is {self.epochs}: give exactly one of them")
        if (self.steps or self.epochs or 0) <= 0:
            raise ValueError("steps or epochs must be more than 0")
        for name in ("batch_size", "max_example_tokens", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.micro_batch_tokens is not None and self.micro_batch_tokens < 1:
            raise ValueError(f"micro_batch_tokens is {self.micro_batch_tokens}; it must be at least 1")
        if self.checkpoint_every < 0:
            raise ValueError("checkpoint_every cannot be negative")

    def steps_for(self, examples: int) -> int:
        """Optimizer steps of a run over that many examples.

        >>> SftSettings(epochs=1.5, batch_size=4).steps_for(10)  # three steps a pass, the last with two examples
        5
        """
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return math.ceil(self.epochs * math.ceil(examples / self.batch_size))
