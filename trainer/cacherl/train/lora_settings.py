"""Low-rank adapters: apart from adapters/lora.py, so that a run file is read without loading torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters on every linear layer but the head (arXiv:2106.09685)."""

    rank: int = 128
    alpha: int = 128
    """The update is scaled by alpha / rank. CacheRL takes 128 / 128."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}: no such adapter")
