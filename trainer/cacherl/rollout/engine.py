"""What the agent loop needs of a model: continue token ids, say with which log-probability."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cacherl.errors import EngineFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to continue one prompt."""

    max_tokens: int
    """Most tokens to sample, the stop token included."""
    stop_id: int
    """Sampling ends after this token, which is part of the generation."""
    temperature: float = 1.0
    """0 is greedy. No top-p, no top-k: they would bias the logprobs the policy gradient needs."""
    min_tokens: int = 0
    """The stop token cannot be sampled before this many tokens. Logprobs stay those of the unconstrained
    distribution, so that they equal what the trainer computes."""
    rollout: str = ""
    """Names the rollout: engines with several replicas send its turns to the one that has its prefix cached."""
    seed: int = 0
    """Same seed, same prompt, same weights: same tokens, whatever else is in the batch (up to rounding)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Sampled ids and, for each, its log-probability in nats under the sampling distribution.

    For temperature 0 the log-probabilities are those at temperature 1: greedy has no distribution of its own.
    Raises EngineFailed for log-probabilities that are missing or not finite: one such row would spoil a whole update.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    weight_version: int = 0

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.logprobs):
            raise EngineFailed(f"{len(self.ids)} ids but {len(self.logprobs)} logprobs")
        if not all(map(math.isfinite, self.logprobs)):
            raise EngineFailed("a sampled token's log-probability is not finite: the weights may hold NaN")


class Engine(Protocol):
    """Continues prompts. Many calls may be under way at once; batching them is the engine's affair."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """Continue one prompt. Raises EngineFailed."""
        ...
