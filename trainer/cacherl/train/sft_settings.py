"""How to fine-tune: apart from sft.py, so that a run file is read without loading torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSettings:
    """How to fine-tune."""

    steps: int
    """Optimizer steps; the examples are gone through as often as that takes."""
    batch_size: int = 16
    learning_rate: float = 1e-3
    """Peak. Fits a model of a million parameters; billions want 1e-5."""
    warmup_share: float = 0.05
    """Share of the steps with a rising learning rate."""
    final_share: float = 0.1
    """Learning rate of the last step, as a share of the peak."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0
