"""An engine that follows a model in training: what GRPO needs beyond generating."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cacherl.rollout.engine import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PolicyEngine(Engine, Protocol):
    """Samples from a policy whose weights change between rollouts, never while any is under way."""

    @property
    def weight_version(self) -> int:
        """Version of the weights that sample now; every generation carries it."""
        ...

    @property
    def is_the_model(self) -> bool:
        """Whether it runs the trained model itself, so that its logprobs need no importance correction."""
        ...

    def follow(self, model: PreTrainedModel, version: int) -> None:
        """Sample from the model's weights as they are now, adapters merged. Blocks; called when nothing is generated.

        Nothing computed with older weights (a prefix cache) is used afterwards. Raises EngineFailed.
        """
        ...

    def close(self) -> None:
        """Let go of threads, memory and connections. What is under way fails with EngineFailed."""
        ...
