"""A model of Qwen3's architecture with random weights, a tokenizer made on the spot, and an engine that says a script.

Random weights babble: no call, no answer, nothing for the cache to do. So each turn is generated for real, as many
tokens of it as the script has, and then the script's ids are put in the place of the sampled ones. Times, memory and
lengths are the model's own; what is said, and the log-probabilities beside it, are not each other's.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from benchmarks.gpu_check.sizes import Shape
from benchmarks.rollout.shop import texts
from cacherl.adapters.tiny_qwen3 import make_tokenizer
from cacherl.errors import EngineFailed
from cacherl.rollout.engine import Generation, Sampling
from cacherl.rollout.renderer import Renderer
from cacherl.train.policy_engine import PolicyEngine
from cacherl.worlds.record import APOLOGY
from cacherl.worlds.world import Task

if TYPE_CHECKING:
    from torch import dtype as Dtype  # noqa: N812


def tokenizer_of(entries: int) -> PreTrainedTokenizerFast:
    """A BPE tokenizer trained on the documentation that comes with Python; a vocabulary of Qwen3's marks and words."""
    return make_tokenizer(texts(), vocabulary_size=entries)


def random_model(
    shape: Shape, tokenizer: PreTrainedTokenizerFast, device: torch.device, dtype: Dtype
) -> Qwen3ForCausalLM:
    """Made on the device itself: four billion weights would take a minute to get there."""
    ids = tokenizer.get_vocab()
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.context_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        tie_word_embeddings=True,
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
        bos_token_id=None,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.train(False)
    return model


class ScriptedPolicy:
    """Another engine, whose every turn is generated and then replaced by what an expert would have said."""

    def __init__(
        self,
        engine: PolicyEngine,
        renderer: Renderer,
        tasks: Sequence[Task],
        *,
        turn_tokens: int,
        thoughts: Sequence[int],
    ) -> None:
        self._engine = engine
        self._renderer = renderer
        self._tasks = {task.prompt: task for task in tasks}
        self._turn_tokens = turn_tokens
        self._thoughts = thoughts

    @property
    def weight_version(self) -> int:
        return self._engine.weight_version

    @property
    def is_the_model(self) -> bool:
        return self._engine.is_the_model

    def follow(self, model: PreTrainedModel, version: int) -> None:
        self._engine.follow(model, version)

    def close(self) -> None:
        self._engine.close()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        ids = await asyncio.to_thread(self._line, prompt_ids, sampling.seed)
        if len(ids) > sampling.max_tokens:
            raise EngineFailed(f"a line of {len(ids)} tokens, but the budget leaves {sampling.max_tokens}")
        sampled = await self._engine.generate(
            prompt_ids, replace(sampling, max_tokens=len(ids), min_tokens=len(ids), stop_id=sampling.stop_id)
        )
        if len(sampled.ids) != len(ids):
            raise EngineFailed(f"asked for exactly {len(ids)} tokens, the engine sampled {len(sampled.ids)}")
        return replace(sampled, ids=tuple(ids), finish_reason="stop")

    def _line(self, prompt_ids: Sequence[int], seed: int) -> list[int]:
        """Thinking out of plain text, then the expert's next call or its answer."""
        prompt = self._renderer.tokenizer.decode(prompt_ids)
        task = self._tasks[prompt.partition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]]
        said = said_in_turn(task, prompt.count("<|im_start|>assistant") - 1, seed)
        spoken = self._renderer.tokenizer.encode(f"\n</think>\n\n{said}<|im_end|>")
        chance = random.Random(seed)
        count = round(self._turn_tokens * chance.uniform(0.75, 1.25)) - len(spoken)
        begin = chance.randrange(len(self._thoughts) // 2)
        return [*self._thoughts[begin : begin + max(1, count)], *spoken]


def said_in_turn(task: Task, turn: int, seed: int) -> str:
    """The milestone's call, or in the end the answer; every second seed gives up, so that rewards differ in a group."""
    if turn < len(task.milestones):
        step = task.milestones[turn]
        call = json.dumps({"name": step.tool, "arguments": dict(step.arguments)})
        return f"<tool_call>\n{call}\n</tool_call>"
    return task.expected_answer if seed % 2 else APOLOGY
