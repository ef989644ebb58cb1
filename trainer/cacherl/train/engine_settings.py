"""How vLLM is run: apart from the engines, so that a run file is read without loading torch or vLLM."""

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """vLLM in the trainer's process, on the trainer's device. Sizes are those of one process."""

    max_model_tokens: int = 16_384
    """Longest prompt and answer together; a generation that reaches it is cut like one at its token limit. Not less
    than the budgets' `context_tokens`."""
    max_rows: int = 256
    """Rollouts that decode at once; more wait."""
    gpu_memory_utilization: float = 0.35
    """Share of the GPU's memory for vLLM's weights and cache together; the trainer lives in the rest. Ignored on a
    CPU, where VLLM_CPU_KVCACHE_SPACE says how many GiB the cache takes."""
    dtype: Dtype = "bfloat16"
    eager: bool = False
    """No compilation and no CUDA graphs: starts a minute sooner, decodes slower."""

    def __post_init__(self) -> None:
        _check(self.max_model_tokens)
        if self.max_rows < 1:
            raise ValueError(f"max_rows is {self.max_rows}; it must be at least 1")
        if not 0.0 < self.gpu_memory_utilization < 1.0:
            raise ValueError(f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must lie between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmServerSettings:
    """vLLM servers of their own, which the trainer asks over HTTP."""

    max_model_tokens: int = 16_384
    """As in VllmSettings; the servers' --max-model-len must not be less."""
    dtype: Dtype = "bfloat16"
    """Of the weights as they are written for the servers, which load them in the dtype they were started with."""
    answer_timeout_s: float = 600.0
    """Longest wait for one generation. Then the rollout is void."""
    reload_timeout_s: float = 600.0
    """Longest wait for a server to load the weights of a step. Then the run ends."""

    def __post_init__(self) -> None:
        _check(self.max_model_tokens)
        if min(self.answer_timeout_s, self.reload_timeout_s) <= 0:
            raise ValueError("answer_timeout_s and reload_timeout_s must be more than 0")


def _check(max_model_tokens: int) -> None:
    if max_model_tokens < 2:
        raise ValueError(f"max_model_tokens is {max_model_tokens}; a prompt and an answer need at least 2")
