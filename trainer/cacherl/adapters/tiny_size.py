"""The tiny model's size: apart from tiny_qwen3.py, so that a run file is read without loading torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyQwen3:
    """Size and start of the model. The defaults are what was found to learn in minutes on two cores: DECISIONS.md."""

    layers: int = 2
    hidden: int = 128
    heads: int = 4
    key_value_heads: int = 2
    head_dim: int = 64
    feed_forward: int = 384
    context_tokens: int = 1024
    weight_std: float = 0.08
    """Standard deviation of the initial weights; with the usual 0.02 copying was not learned in our budget."""
    rope_base: float = 100.0
    """Base of the rotary positions. Low, since what is copied stands within a few hundred tokens: DECISIONS.md."""
    attention_gain: float = 1.5
    """Start of the norms of queries and keys: sharper attention from the first step on."""
