"""From a run's settings to the things it needs: world, tasks, judge, recordings, model, engine, tool answers.

torch is imported only where a model is made, so that a slip in a run, or a cache that is away, is told at once.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from cacherl.data.trajectories import Trajectory, read_trajectories, texts
from cacherl.errors import RunMisconfigured
from cacherl.evaluate.milestones import FreeText
from cacherl.reward.answer import AnswerJudge, MilestoneJudge
from cacherl.rollout.chat_format import ChatFormat
from cacherl.rollout.engine import Engine
from cacherl.rollout.loop import CacheAgentLoop
from cacherl.rollout.parser import Parser
from cacherl.rollout.renderer import Renderer
from cacherl.rollout.tools import Drop, ExecuteLive, MissPolicy, ToolError, Wait, writing_tools
from cacherl.run.cache import namespace_of
from cacherl.run.settings import SUPPORT_DESK, Run, WorldSettings
from cacherl.worlds.record import record_runs, write_ndjson
from cacherl.worlds.recorded import RecordedWorld, read_tools, task_id_of
from cacherl.worlds.support_desk import FREE_TEXT, SupportDesk
from cacherl.worlds.world import Task, World
from toolcache_client import AsyncCacheClient

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cacherl.train.collector import ToolSource
    from cacherl.train.policy_engine import PolicyEngine

WORLD_MEMBERS = ("name", "tools", "system_prompt", "tasks", "open")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A model with its tokenizer and the format it chats in."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat


def make_world(run: Run) -> World:
    """The world of the run. Raises RunMisconfigured, TrajectoriesUnreadable."""
    settings = run.world
    match settings.kind:
        case "support_desk":
            return SupportDesk(seed=settings.seed)
        case "recorded":
            return _recorded_world(settings, run.cache.namespace)
        case _:
            return _own_world(settings)


def has_live_tools(world: World) -> bool:
    """Whether the world can execute a call."""
    return not isinstance(world, RecordedWorld)


def training_tasks(run: Run, world: World) -> list[Task]:
    """The tasks that training plays. Raises RunMisconfigured where the world has too few."""
    if isinstance(world, RecordedWorld):
        return _tasks(world, "train", run.world.tasks or world.count("train"))
    if run.world.tasks == 0:
        raise RunMisconfigured(f"{world.name}: say with world.tasks how many training tasks to play")
    return _tasks(world, "train", run.world.tasks)


def held_out_tasks(run: Run, world: World) -> list[Task]:
    """The tasks that evaluation plays. Raises RunMisconfigured where the world has none or too few."""
    count = run.evaluate.tasks
    if isinstance(world, RecordedWorld):
        count = min(count, world.count("held_out"))
    if count == 0:
        raise RunMisconfigured(f"{world.name}: no task is held out; raise world.held_out_share")
    return _tasks(world, "held_out", count)


def make_judge(run: Run, world: World) -> AnswerJudge:
    """Who scores the answers. Raises RunMisconfigured."""
    if run.world.judge:
        judge: AnswerJudge = _called(run.world.judge, "world.judge", world)
        if not callable(getattr(judge, "score", None)):
            raise RunMisconfigured(f"world.judge: what {run.world.judge} made has no score(rollout, task)")
        return judge
    return MilestoneJudge(writes=writing_tools(world.tools), free_text=free_text(run), weights=run.judge)


def free_text(run: Run) -> FreeText:
    """Arguments whose wording is free."""
    said = {(tool, argument) for tool, argument in (name.split(".") for name in run.world.free_text)}
    return frozenset(said | FREE_TEXT) if run.world.kind == SUPPORT_DESK else frozenset(said)


def recordings(run: Run, world: World, folder: Path) -> list[Path]:
    """Files of recorded trajectories: the user's, or those the support desk's agents leave in the folder."""
    if run.world.trajectories:
        return [Path(each) for each in run.world.trajectories]
    if run.world.kind != SUPPORT_DESK:
        raise RunMisconfigured(f"{world.name}: name recordings in world.trajectories")
    path = folder / "recordings.ndjson"
    if not path.exists():
        tasks = training_tasks(run, world)
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}")  # several processes record the same at once
        write_ndjson(aside, record_runs(world, tasks, runs_per_task=run.world.runs_per_task, seed=run.world.seed))
        aside.replace(path)
    return [path]


def training_trajectories(run: Run, world: World, paths: Sequence[Path]) -> tuple[list[Trajectory], dict[str, int]]:
    """The trajectories SFT may learn from, and how many others there are and why: held-out tasks are among those."""
    recordings = [read_trajectories(path) for path in paths]
    found = [trajectory for recording in recordings for trajectory in recording.trajectories]
    mine = [each for each in found if run.world.domain in ("", each.domain)]
    if isinstance(world, RecordedWorld):
        train = [each for each in mine if world.split_of(task_id_of(each)) == "train"]
    else:
        held_out = {task.id for task in held_out_tasks(run, world)}
        train = [each for each in mine if each.task_id not in held_out]
    return train, {
        "unreadable": sum(len(recording.rejected) for recording in recordings),
        "of another domain": len(found) - len(mine),
        "of held-out tasks": len(mine) - len(train),
    }


def left_out(world: World) -> dict[str, int]:
    """Lines and tasks of recordings that a recorded world is made without, by reason; nothing for another world."""
    if not isinstance(world, RecordedWorld):
        return {}
    told = {"unreadable lines": len(world.rejected), **{f"tasks: {why}": n for why, n in world.left_out.items()}}
    return {why: count for why, count in told.items() if count}


def told_left_out(world: World) -> str:
    """The same as a sentence; empty where nothing is left out."""
    text = ", ".join(f"{count:,} {why}" for why, count in left_out(world).items())
    first = world.rejected[0] if isinstance(world, RecordedWorld) and world.rejected else None
    return text and f"left out: {text}" + (f" (first: line {first.line}: {first.why})" if first else "")


def load_policy(run: Run, trajectories: Sequence[Trajectory] = ()) -> Policy:
    """The model of the run, on this process's GPU where there is one, without adapters.

    What shards it over several GPUs (FSDP, DeepSpeed) gets it on the CPU: no GPU need hold it whole. A tiny model and
    its tokenizer are made from the trajectories. Raises RunMisconfigured where the model cannot be loaded,
    RendererMisfit where its chat format is not known.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # one bar is enough
    if run.threads:
        torch.set_num_threads(run.threads)
    if has_gpu := torch.cuda.is_available():
        # Before anything else: whoever says only "cuda", as vLLM does, would take the first GPU in every process.
        torch.cuda.set_device(_local_rank())
    model, tokenizer = _loaded(run) if run.model.path else _tiny(run, trajectories)
    if has_gpu and not _is_sharded():
        torch.nn.Module.to(model, torch.device("cuda", _local_rank()))
    return Policy(model=model, tokenizer=tokenizer, chat=chat_format(run, tokenizer))


def chat_format(run: Run, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """The format the run says, or that of the tokenizer's template. Raises RunMisconfigured, RendererMisfit."""
    if run.model.chat != "auto":
        return ChatFormat(run.model.chat)
    template = tokenizer.chat_template
    if isinstance(template, str):
        from cacherl.rollout.chat_format import recognise

        return recognise(template)
    if run.model.tiny is not None:  # a tokenizer of our own has no template
        return ChatFormat.QWEN3_THINKING
    raise RunMisconfigured(f"{run.model.path}: its tokenizer has no chat template; set model.chat")


def renderer(run: Run, world: World, policy: Policy) -> Renderer:
    """Messages to the policy's tokens, the same in SFT, GRPO and evaluation."""
    from cacherl.adapters.hf_tokenizer import HFTokenizer

    tools = world.tools if run.grpo.tools_in_prompt else None
    return Renderer(HFTokenizer(policy.tokenizer), tools=tools, chat=policy.chat)


def agent_loop(run: Run, world: World, policy: Policy, engine: Engine, *, temperature: float) -> CacheAgentLoop:
    """Who plays the policy's rollouts."""
    parser = Parser(world.tools, chat=policy.chat)
    return CacheAgentLoop(
        engine, renderer(run, world, policy), parser, budgets=run.grpo.budgets, temperature=temperature
    )


def open_engine(run: Run, policy: Policy, folder: Path, *, temperature: float) -> PolicyEngine:
    """Who samples from the policy, once it was told to follow it; it wants closing.

    Its library is there (`check_installed`). Raises EngineFailed.
    """
    match run.engine.kind:
        case "hf":
            from cacherl.adapters.hf_engine import HFEngine

            return HFEngine(policy.model, max_rows=run.grpo.concurrency)
        case "vllm":
            from cacherl.adapters.vllm_engine import VllmEngine

            return VllmEngine(run.model.path, settings=run.engine.vllm, temperature=temperature)
        case "vllm-server":
            from cacherl.adapters.vllm_server_engine import VllmServerEngine

            weights = Path(run.engine.weights_dir) if run.engine.weights_dir else folder / "weights"
            return VllmServerEngine(
                run.engine.urls,
                model=run.engine.served_model,
                weights_dir=weights,
                settings=run.engine.server,
                temperature=temperature,
            )
        case _:
            assert_never(run.engine.kind)


def check_installed(run: Run) -> None:
    """Raises RunMisconfigured where the engine's library is not installed: told before a model is loaded."""
    if run.engine.kind == "vllm" and find_spec("vllm") is None:
        raise RunMisconfigured(
            "engine.kind is vllm, which is not installed: in an environment of its own, "
            "pip install -c constraints-vllm.txt vllm==0.31.0"
        )


def tool_source(run: Run, world: World, url: str) -> ToolSource:
    """Who answers tool calls."""
    from cacherl.train.collector import FromCache, FromWorld

    if not run.cache.is_used:
        return FromWorld()
    return FromCache(
        open_cache=lambda: AsyncCacheClient(url, job=run.job),
        namespace=namespace_of(run, world),
        on_miss=_miss_policy(run),
        on_outage=ExecuteLive() if run.cache.on_outage == "live" else Drop(),
        outage_patience_s=run.cache.outage_patience_s,
        tiers=run.cache.tiers,
    )


def _miss_policy(run: Run) -> MissPolicy:
    match run.cache.on_miss:
        case "live":
            return ExecuteLive()
        case "wait":
            return Wait(wait_s=run.cache.wait_s, then=ToolError())
        case "error":
            return ToolError()
        case "drop":
            return Drop()
        case _:
            assert_never(run.cache.on_miss)


def _recorded_world(settings: WorldSettings, namespace: str) -> RecordedWorld:
    found = [read_trajectories(Path(path)) for path in settings.trajectories]
    trajectories = [trajectory for recording in found for trajectory in recording.trajectories]
    domains = sorted({t.domain for t in trajectories})
    domain = settings.domain or (domains[0] if len(domains) == 1 else "")
    if len(domains) > 1 and not domain:
        raise RunMisconfigured(f"world.trajectories hold {', '.join(domains)}: set world.domain to one of them")
    return RecordedWorld(
        namespace or domain,
        [t for t in trajectories if t.domain == domain or not settings.domain],
        read_tools(Path(settings.tools), domain),
        good_above=settings.good_above,
        held_out_share=settings.held_out_share,
        seed=settings.seed,
        rejected=[line for recording in found for line in recording.rejected],
    )


def _own_world(settings: WorldSettings) -> World:
    world: World = _called(settings.kind, "world.kind", **{k: _unveiled(v) for k, v in settings.options.items()})
    if missing := [name for name in WORLD_MEMBERS if not hasattr(world, name)]:
        raise RunMisconfigured(
            f"world.kind: what {settings.kind} made lacks {', '.join(missing)} of a World (worlds/world.py)"
        )
    return world


def _unveiled(option: Any) -> Any:
    """What the environment holds for "env:NAME"; anything else as it is."""
    if not (isinstance(option, str) and option.startswith("env:")):
        return option
    name = option.removeprefix("env:")
    if name not in os.environ:
        raise RunMisconfigured(f"world.options: the environment variable {name} is not set")
    return os.environ[name]


def _called(place: str, setting: str, *arguments: Any, **options: Any) -> Any:
    """What the factory package.module:name makes."""
    module, _, name = place.partition(":")
    try:
        factory: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise RunMisconfigured(f"{setting}: {module} cannot be imported ({error}); is it installed here?") from error
    except AttributeError as error:
        raise RunMisconfigured(f"{setting}: {module} has no {name}") from error
    try:
        return factory(*arguments, **options)
    except TypeError as error:
        raise RunMisconfigured(f"{setting}: {place} cannot be called like this: {error}") from error


def _tasks(world: World, split: Any, count: int) -> list[Task]:
    try:
        return world.tasks(split, count)
    except ValueError as error:
        raise RunMisconfigured(f"{world.name}: {error}") from error


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _is_sharded() -> bool:
    """Whether the launcher asks for a model in shards; it does not come to that where it starts one process plainly."""
    asked = (os.environ.get(f"ACCELERATE_USE_{name}", "") for name in ("FSDP", "DEEPSPEED"))
    return "LOCAL_RANK" in os.environ and any(each.lower() == "true" for each in asked)


def _loaded(run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = run.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.path)
        model = AutoModelForCausalLM.from_pretrained(
            settings.path, dtype=getattr(torch, settings.dtype), attn_implementation=settings.attention
        )
    except (OSError, ValueError, ImportError) as error:
        raise RunMisconfigured(f"model.path {settings.path}: cannot be loaded ({error})") from error
    return model, tokenizer


def _tiny(run: Run, trajectories: Sequence[Trajectory]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from cacherl.adapters.tiny_qwen3 import make_model, make_tokenizer

    if not trajectories:
        raise RunMisconfigured("a tiny model is made by `cacherl sft`; then give its folder: --model.path OUT/model")
    tokenizer = make_tokenizer(texts(trajectories), vocabulary_size=run.model.tiny_vocabulary)
    return make_model(tokenizer, seed=run.seed, size=run.model.tiny), tokenizer
