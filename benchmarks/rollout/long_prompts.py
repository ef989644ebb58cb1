"""What holds the event loop when prompts and results are long: tokenizer, parser and model are at work beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.rollout.callbacks import watched
from benchmarks.rollout.paced import PacedEngine
from benchmarks.rollout.shop import Shop, texts, tool_objects
from benchmarks.rollout.waiting import BUDGETS
from cacherl.adapters.hf_engine import HFEngine
from cacherl.adapters.tiny_qwen3 import make_model
from cacherl.adapters.tiny_size import TinyQwen3
from cacherl.rollout.engine import Engine, Generation, Sampling
from cacherl.rollout.loop import CacheAgentLoop, Episode
from cacherl.rollout.parser import Parser
from cacherl.rollout.renderer import Renderer
from cacherl.rollout.tools import LiveTools
from toolcache_client.messages import ToolResult


@dataclass(frozen=True, slots=True, kw_only=True)
class LongSizes:
    """How long, and how many."""

    prompt_tokens: int = 16_384
    turn_tokens: int = 4_096
    """Least length of a turn of the scripted engine; thinking models write as much."""
    result_tokens: int = 2_048
    scripted_rollouts: int = 64
    hf_rollouts: int = 4
    hf_result_tokens: int = 256
    hf_turn_tokens: int = 32


async def scripted(shop: Shop, sizes: LongSizes) -> dict[str, Any]:
    """The loop's own work: long prompts, long turns, long results, an engine that costs nothing."""
    thought = _text_ids(shop, sizes.turn_tokens)
    lines = {seed: (*thought, *ids) for seed, ids in shop.lines.items()}
    engine = PacedEngine(lines, tokens_per_s=shop.sizes.tokens_per_s * 10)  # the same work in less time
    return await _watched(engine, shop, sizes.prompt_tokens, sizes.result_tokens, sizes.scripted_rollouts)


async def hugging_face(shop: Shop, sizes: LongSizes) -> dict[str, Any]:
    """With a model in the same process: its prefill of the long prompt goes on beside the loop.

    A model without training says nothing sensible, so after each of its generations the scripted turn is put in the
    place of what it sampled: the tools are called, and the next prompt is longer still.
    """
    size = TinyQwen3(layers=1, hidden=64, heads=1, key_value_heads=1, head_dim=32, context_tokens=65_536)
    model = make_model(shop.tokenizer.inner, seed=0, size=size)  # type: ignore[arg-type]
    model.train(False)
    with HFEngine(model, max_rows=1) as engine:  # one row: a batch of such prompts has a mask of gigabytes
        spoken = Spoken(engine, shop.lines, most_tokens=sizes.hf_turn_tokens)
        return await _watched(spoken, shop, sizes.prompt_tokens, sizes.hf_result_tokens, sizes.hf_rollouts)


class Spoken:
    """Lets the engine generate a few tokens, then says the line that belongs to the turn's seed."""

    def __init__(self, engine: Engine, lines: Mapping[int, Sequence[int]], *, most_tokens: int) -> None:
        self._engine = engine
        self._lines = lines
        self._most_tokens = most_tokens

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        await self._engine.generate(prompt_ids, replace(sampling, max_tokens=self._most_tokens))
        ids = tuple(self._lines[sampling.seed])
        return Generation(ids=ids, logprobs=(-0.5,) * len(ids), finish_reason="stop")


async def _watched(engine: Engine, shop: Shop, prompt_tokens: int, result_tokens: int, count: int) -> dict[str, Any]:
    loop = CacheAgentLoop(engine, Renderer(shop.tokenizer), Parser(tool_objects()), budgets=BUDGETS)
    prompt = shop.tokenizer.decode(_text_ids(shop, prompt_tokens))
    result = shop.tokenizer.decode(_text_ids(shop, result_tokens))
    episodes = [
        Episode(
            task_id=f"{group}/{member}",
            messages=({"role": "user", "content": f"{group}/{member}: {prompt}"},),
            open_tools=lambda: LiveTools(LongSession(result)),
            seed=shop.rollout_seed(group, member),
        )
        for group, member in shop.places[:count]
    ]
    async with watched() as watch:
        rollouts = await loop.play_all(episodes, concurrency=len(episodes))
        await asyncio.sleep(0)
    return {
        "rollouts": len(rollouts),
        "stops": sorted({rollout.stop.value for rollout in rollouts}),
        "prompt_tokens": max(rollout.prompt_length for rollout in rollouts),
        "longest_rollout_tokens": max(len(rollout.ids) for rollout in rollouts),
        "event_loop": watch.told(),
    }


class LongSession:
    """Every tool returns the same long text at once."""

    def __init__(self, content: str) -> None:
        self._content = content

    def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        return ToolResult(content=self._content)


def _text_ids(shop: Shop, count: int) -> list[int]:
    """So many ids of plain text."""
    ids = shop.tokenizer.encode(" ".join(texts()))
    return (ids * (count // len(ids) + 1))[:count]
