"""How large the check is, and what of it fits: numbers only, nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Method = Literal["lora", "full"]
Dtype = Literal["float32", "bfloat16"]

BYTES_PER_TRAINED: dict[Dtype, int] = {"float32": 16, "bfloat16": 8}
"""Weight, gradient and AdamW's two moments: four values of four bytes, or of two."""
Part = Literal["sft", "grpo"]
ROOM_FOR_WORK: dict[Part, float] = {"sft": 0.2, "grpo": 0.5}
"""Share of the memory kept for activations and logits; in GRPO for the engine's weights and KV cache as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Qwen3 architecture. The defaults are Qwen3-4B-Thinking-2507's (its config.json)."""

    layers: int = 36
    hidden: int = 2560
    heads: int = 32
    key_value_heads: int = 8
    head_dim: int = 128
    feed_forward: int = 9728
    vocabulary: int = 151_936
    rope_base: float = 5e6
    context_tokens: int = 262_144

    @property
    def linear_sizes(self) -> list[tuple[int, int]]:
        """(in, out) of each linear map of one layer: queries, keys, values, output, gate, up, down."""
        asked, known = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        attention = [(self.hidden, asked), (self.hidden, known), (self.hidden, known), (asked, self.hidden)]
        return [*attention, *[(self.hidden, self.feed_forward)] * 2, (self.feed_forward, self.hidden)]

    @property
    def parameters(self) -> int:
        """Weights of the model, the embedding (which is the head as well) once.

        >>> round(Shape().parameters / 1e9, 2)
        4.02
        """
        norms = 2 * self.hidden + 2 * self.head_dim
        layer = sum(one * other for one, other in self.linear_sizes) + norms
        return self.layers * layer + self.vocabulary * self.hidden + self.hidden

    def adapter_parameters(self, rank: int) -> int:
        """Weights of low-rank adapters on every linear map but the head."""
        return self.layers * rank * sum(one + other for one, other in self.linear_sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is played and trained."""

    shape: Shape = field(default_factory=Shape)
    tokenizer_entries: int = 8000
    lora_rank: int = 128
    matmul_side: int = 8192
    copied_bytes: int = 2**31
    tasks: int = 16
    sft_steps: int = 4
    sft_batch: int = 8
    sft_example_tokens: int = 4096
    sft_micro_batch_tokens: int = 8192
    rollouts: int = 64
    turn_tokens: int = 160
    """Mean length of a turn; they differ by up to a quarter."""
    grpo_steps: int = 2
    grpo_prompts: int = 4
    grpo_group: int = 8
    grpo_micro_batch: int = 2


TINY = Sizes(
    shape=Shape(
        layers=2,
        hidden=64,
        heads=2,
        key_value_heads=1,
        head_dim=32,
        feed_forward=128,
        vocabulary=4096,
        context_tokens=4096,
    ),
    tokenizer_entries=4000,
    lora_rank=4,
    matmul_side=128,
    copied_bytes=2**20,
    tasks=4,
    sft_steps=2,
    sft_batch=2,
    sft_example_tokens=128,
    sft_micro_batch_tokens=256,
    rollouts=4,
    turn_tokens=64,
    grpo_steps=1,
    grpo_prompts=2,
    grpo_group=2,
    grpo_micro_batch=2,
)
"""The same on a CPU, within a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a method is run, and why so."""

    dtype: Dtype | None
    """Of the model's weights; None: it does not fit."""
    needed_bytes: dict[str, int]
    """By dtype: weights, gradients and optimizer."""


def plan(part: Part, method: Method, shape: Shape, *, rank: int, memory_bytes: int | None) -> Plan:
    """The widest dtype that fits the memory. LoRA's base does not move, so bfloat16 costs it nothing.

    GRPO of all weights is float32 or nothing: its steps are too small for bfloat16, and the trainer refuses them.

    >>> plan("sft", "full", Shape(), rank=128, memory_bytes=48 * 10**9).dtype  # float32 would take 64 GB
    'bfloat16'
    >>> plan("grpo", "full", Shape(), rank=128, memory_bytes=80 * 10**9).dtype is None
    True
    """
    if method == "lora":
        adapters = BYTES_PER_TRAINED["float32"] * shape.adapter_parameters(rank)
        needed: dict[Dtype, int] = {"bfloat16": 2 * shape.parameters + adapters}
    else:
        dtypes: tuple[Dtype, ...] = ("float32", "bfloat16") if part == "sft" else ("float32",)
        needed = {dtype: BYTES_PER_TRAINED[dtype] * shape.parameters for dtype in dtypes}
    told = {str(dtype): each for dtype, each in needed.items()}
    if memory_bytes is None:
        return Plan(dtype="float32", needed_bytes=told)
    room = memory_bytes * (1 - ROOM_FOR_WORK[part])
    return Plan(dtype=next((dtype for dtype, each in needed.items() if each <= room), None), needed_bytes=told)
