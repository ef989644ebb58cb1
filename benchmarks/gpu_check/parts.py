"""The parts of the check: each makes its own model and service, runs the trainer's public functions, and gives numbers.

A part stands alone: what one leaves broken does not reach the next.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.gpu_check import service
from benchmarks.gpu_check.chip import Chip
from benchmarks.gpu_check.policy import ScriptedPolicy, random_model
from benchmarks.gpu_check.sizes import Method, Part, Plan, Sizes, plan
from benchmarks.rollout.shop import texts
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.data.sft_examples import sft_examples
from cacherl.data.trajectories import read_trajectories
from cacherl.reward.answer import AnswerJudge, MilestoneJudge
from cacherl.rollout.loop import Budgets, CacheAgentLoop, Episode, opening
from cacherl.rollout.parser import Parser
from cacherl.rollout.renderer import Example, Renderer
from cacherl.rollout.rollout import Rollout, tier_mix
from cacherl.rollout.tools import CacheSetup, CacheTools, Drop, ExecuteLive, OutageLog, ToolAnswerer, writing_tools
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.lora_settings import LoraSettings
from cacherl.train.policy_engine import PolicyEngine
from cacherl.train.sft_settings import SftSettings
from cacherl.worlds.support_desk import FREE_TEXT, SupportDesk
from cacherl.worlds.world import Task

if TYPE_CHECKING:
    from cacherl.train.grpo import GrpoReport

EngineKind = Literal["hf", "vllm"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """What all parts share."""

    device: torch.device
    chip: Chip
    sizes: Sizes
    engine: EngineKind
    tokenizer: PreTrainedTokenizerFast
    folder: Path

    @property
    def world(self) -> SupportDesk:
        return SupportDesk(seed=0)

    @property
    def tasks(self) -> list[Task]:
        """With prompts that differ, since the script knows a task by its prompt."""
        by_prompt = {task.prompt: task for task in self.world.tasks("train", 8 * self.sizes.tasks)}
        return list(by_prompt.values())[: self.sizes.tasks]

    @property
    def renderer(self) -> Renderer:
        return Renderer(HFTokenizer(self.tokenizer), tools=self.world.tools)

    @property
    def budgets(self) -> Budgets:
        """Wide enough that no line of the script is cut."""
        line = 2 * self.sizes.turn_tokens + 256
        return Budgets(turns=8, turn_tokens=line, sampled_tokens=8 * line, context_tokens=16 * line + 4096)

    def planned(self, part: Part, method: Method) -> Plan:
        return plan(part, method, self.sizes.shape, rank=self.sizes.lora_rank, memory_bytes=self.chip.memory_bytes)

    def flops_per_token(self, method: Method) -> float:
        """Of forward and backward pass, by weights: six a trained weight, four a frozen one. Neither attention's own
        nor those of recomputed activations are counted."""
        base = self.sizes.shape.parameters
        if method == "full":
            return 6.0 * base
        return 4.0 * base + 6.0 * self.sizes.shape.adapter_parameters(self.sizes.lora_rank)


def sft(check: Check, method: Method) -> dict[str, Any]:
    """Some steps of fine-tuning; the first one warms up and is not counted."""
    from cacherl.train.sft import train_sft

    planned = check.planned("sft", method)
    if planned.dtype is None:
        return {"skipped": "it does not fit the memory", "plan": asdict(planned)}
    settings = SftSettings(
        steps=check.sizes.sft_steps,
        batch_size=check.sizes.sft_batch,
        micro_batch_tokens=check.sizes.sft_micro_batch_tokens,
        learning_rate=1e-5,
        gradient_checkpointing=True,
    )
    lines: list[Mapping[str, Any]] = []
    model = _fresh_model(check, method, planned)
    train_sft(model, _examples(check), settings, output_dir=check.folder / f"sft-{method}", progress=lines.append)
    step_s = statistics.median(line["seconds"] for line in lines[1:])
    tokens = check.sizes.sft_batch * check.sizes.sft_example_tokens
    return {
        "plan": asdict(planned),
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
        "trained_tokens_a_step": lines[-1]["trained_tokens"],
        "step_s": step_s,
        "tokens_a_step": tokens,
        "tokens_per_s": tokens / step_s,
        "utilisation": check.chip.utilisation(
            flops_per_token=check.flops_per_token(method), tokens=tokens, seconds=step_s
        ),
        "peak_bytes": _peak_bytes(check.device),
    }


def rollouts(check: Check) -> dict[str, Any]:
    """Rollouts in flight on the engine and a real cache service, misses executed live."""
    dtype: Literal["float32", "bfloat16"] = "float32" if check.device.type == "cpu" else "bfloat16"
    model = _fresh_model(check, None, Plan(dtype=dtype, needed_bytes={}))
    with _filled_cache(check) as url, closing(_engine(check, model)) as engine:
        began_s = time.perf_counter()
        played = asyncio.run(_play(check, engine, url))
        wall_s = time.perf_counter() - began_s
    weight_bytes = sum(each.numel() * each.element_size() for each in model.parameters())
    sampled = sum(rollout.sampled_count for rollout in played)
    generate_s = sum(rollout.generate_seconds for rollout in played)
    bound = check.chip.decode_bound(weight_bytes=weight_bytes, rows=1) * generate_s / wall_s
    return {
        "engine": check.engine,
        "dtype": dtype,
        **_played(played),
        "wall_s": wall_s,
        "longest_rollout_s": max(rollout.seconds for rollout in played),
        "sampled_tokens": sampled,
        "tokens_per_s": sampled / wall_s,
        "rows": generate_s / wall_s,
        "bandwidth_bound_tokens_per_s": bound,
        "share_of_bound": sampled / wall_s / bound,
        "peak_bytes": _peak_bytes(check.device),
    }


def grpo(check: Check, method: Method) -> dict[str, Any]:
    """Steps of GRPO; the last one is told, as the first warms up."""
    planned = check.planned("grpo", method)
    if planned.dtype is None:
        return {"skipped": "it does not fit the memory", "plan": asdict(planned)}
    judge = TimedJudge(MilestoneJudge(writes=writing_tools(check.world.tools), free_text=FREE_TEXT))
    played: list[Rollout] = []
    model = _fresh_model(check, method, planned)
    with _filled_cache(check) as url, closing(_engine(check, model)) as engine:
        report = _train(check, method, model, engine, url, judge, played)
    last = played[-check.sizes.grpo_prompts * check.sizes.grpo_group :]
    line = report.steps[-1]
    tokens = sum(len(rollout.ids) for rollout in last)
    return {
        "plan": asdict(planned),
        "engine": check.engine,
        **_played(last),
        "step_s": line["step_seconds"],
        "split_s": {
            "follow": line["follow_seconds"],
            "rollouts": line["rollout_seconds"],
            "update": line["update_seconds"],
        },
        "scoring_s": sum(judge.seconds) / len(report.steps),
        "sampled_tokens": line["sampled_tokens"],
        "tokens_per_s": line["tokens_per_second"],
        "engine_idle_share": line["engine_idle_share"],
        "reward": line["reward"],
        "grad_norm": line["grad_norm"],
        "update_tokens": tokens,
        "update_utilisation": check.chip.utilisation(
            flops_per_token=check.flops_per_token(method), tokens=tokens, seconds=line["update_seconds"]
        ),
        "peak_bytes": _peak_bytes(check.device),
    }


class TimedJudge:
    """The judge it wraps, and how long each answer took it."""

    def __init__(self, inner: AnswerJudge) -> None:
        self.seconds: list[float] = []
        self._inner = inner

    def score(self, rollout: Rollout, task: Task) -> float:
        began_s = time.perf_counter()
        score = self._inner.score(rollout, task)
        self.seconds.append(time.perf_counter() - began_s)
        return score


def _train(
    check: Check,
    method: Method,
    model: PreTrainedModel,
    engine: PolicyEngine,
    url: str,
    judge: AnswerJudge,
    played: list[Rollout],
) -> GrpoReport:
    from cacherl.train.grpo import FromCache, train_grpo
    from toolcache_client import AsyncCacheClient

    return train_grpo(
        model=model,
        tokenizer=check.tokenizer,
        world=check.world,
        tasks=check.tasks,
        source=FromCache(open_cache=lambda: AsyncCacheClient(url, job="gpu-check"), namespace=check.world.name),
        judge=judge,
        settings=GrpoSettings(
            steps=check.sizes.grpo_steps,
            prompts_per_step=check.sizes.grpo_prompts,
            group_size=check.sizes.grpo_group,
            micro_batch=check.sizes.grpo_micro_batch,
            correction="none",  # the script's ids stand beside log-probabilities of other tokens
            extra_groups=0,
            gradient_checkpointing=True,
            budgets=check.budgets,
            tools_in_prompt=True,
        ),
        engine=engine,
        output_dir=check.folder / f"grpo-{method}",
        rollout_progress=lambda rollout, _, __: played.append(rollout),
    )


async def _play(check: Check, engine: PolicyEngine, url: str) -> list[Rollout]:
    from cacherl.rollout.lookups import LookupBatcher
    from toolcache_client import AsyncCacheClient

    async with AsyncCacheClient(url, job="gpu-check") as client:
        setup = CacheSetup(
            cache=LookupBatcher(client),
            namespace=check.world.name,
            writes=writing_tools(check.world.tools),
            on_miss=ExecuteLive(),
            on_outage=Drop(),
            outage_log=OutageLog(),
        )
        tasks = check.tasks
        episodes = [_episode(check, setup, tasks[n % len(tasks)], n) for n in range(check.sizes.rollouts)]
        loop = CacheAgentLoop(engine, check.renderer, Parser(check.world.tools), budgets=check.budgets)
        return await loop.play_all(episodes, concurrency=len(episodes))


def _episode(check: Check, setup: CacheSetup, task: Task, number: int) -> Episode:
    def open_tools() -> ToolAnswerer:
        return CacheTools(
            setup,
            lambda: check.world.open(task),
            environment=task.environment,
            rollout=f"{task.id}/{number}",
            group=task.id,
        )

    messages = opening(check.world.system_prompt, task.prompt)
    return Episode(task_id=task.id, messages=messages, open_tools=open_tools, group=task.id, seed=number)


def _played(played: Sequence[Rollout]) -> dict[str, Any]:
    """What the rollouts did, and where their time went."""
    wall_s = sum(rollout.seconds for rollout in played)
    return {
        "rollouts": len(played),
        "stops": dict(Counter(rollout.stop.value for rollout in played)),
        "tier_mix": tier_mix([call for rollout in played for call in rollout.calls]),
        "rollout_tokens": statistics.mean(len(rollout.ids) for rollout in played),
        "generation_share": sum(rollout.generate_seconds for rollout in played) / wall_s,
        "tool_share": sum(rollout.tool_seconds for rollout in played) / wall_s,
        "cache_share": sum(rollout.cache_seconds for rollout in played) / wall_s,
    }


def _examples(check: Check) -> list[Example]:
    """Recordings end to end, cut to one length: as many tokens in every step. Without the tools' schemas, which nobody
    is to say and which would be most of it."""
    path = check.folder / "sft.ndjson"
    service.record(check.world, check.tasks, path)
    renderer = Renderer(HFTokenizer(check.tokenizer))
    found = sft_examples(read_trajectories(path).trajectories, renderer, max_tokens=10**6).examples
    ids = [token for example in found for token in example.ids]
    mask = [value for example in found for value in example.loss_mask]
    length = check.sizes.sft_example_tokens
    repeats = check.sizes.sft_batch * length // len(ids) + 1
    ids, mask = ids * repeats, mask * repeats
    begins = range(0, check.sizes.sft_batch * length, length)
    return [Example(ids=tuple(ids[at : at + length]), loss_mask=tuple(mask[at : at + length])) for at in begins]


def _fresh_model(check: Check, method: Method | None, planned: Plan) -> PreTrainedModel:
    """With adapters for LoRA. What the part before left is let go first, and the peak memory is counted from here."""
    gc.collect()  # models and their trainers refer to one another in circles
    if check.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(check.device)
    dtype = torch.float32 if planned.dtype == "float32" else torch.bfloat16
    model: Any = random_model(check.sizes.shape, check.tokenizer, check.device, dtype)
    if method == "lora":
        from cacherl.adapters.lora import with_lora

        model = with_lora(model, LoraSettings(rank=check.sizes.lora_rank, alpha=check.sizes.lora_rank), seed=0)
    model.train(False)
    trained: PreTrainedModel = model
    return trained


@contextmanager
def _filled_cache(check: Check) -> Iterator[str]:
    recordings = check.folder / "recordings.ndjson"
    service.record(check.world, check.tasks, recordings)
    (check.folder / "cache.sqlite3").unlink(missing_ok=True)
    with service.cache_service(check.folder) as url:
        service.import_into(url, check.world, recordings)
        yield url


def _engine(check: Check, model: PreTrainedModel) -> ScriptedPolicy:
    thoughts = check.renderer.tokenizer.encode(" ".join(texts()[:500]))
    return ScriptedPolicy(
        _real_engine(check, model),
        check.renderer,
        check.tasks,
        turn_tokens=check.sizes.turn_tokens,
        thoughts=thoughts,
    )


def _real_engine(check: Check, model: PreTrainedModel) -> PolicyEngine:
    if check.engine == "hf":
        from cacherl.adapters.hf_engine import HFEngine

        return HFEngine(model, max_rows=max(check.sizes.rollouts, check.sizes.grpo_prompts * check.sizes.grpo_group))
    from cacherl.adapters.lora import save_model
    from cacherl.adapters.vllm_engine import VllmEngine
    from cacherl.train.engine_settings import VllmSettings

    save_model(model, check.tokenizer, check.folder / "model")
    settings = VllmSettings(max_model_tokens=check.budgets.context_tokens, gpu_memory_utilization=0.3)
    return VllmEngine(check.folder / "model", settings=settings)


def _peak_bytes(device: torch.device) -> int | None:
    """Most memory held since the part began; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
