"""What a run is told, section by section of its run file (trainer/runs/*.toml). Imports nothing heavy.

Paths are relative to the folder in which a command is called. A setting that may be absent (`lora`, `model.tiny`,
`cache.tiers`) is turned off by a flag with the value none: `--lora none`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

from cacherl.adapters.tiny_size import TinyQwen3
from cacherl.reward.answer import JudgeWeights
from cacherl.reward.process import ProcessWeights
from cacherl.reward.tier_aware import TierAwareReward
from cacherl.train.engine_settings import VllmServerSettings, VllmSettings
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.lora_settings import LoraSettings
from cacherl.train.sft_settings import SftSettings

Tier = Literal["exact", "similar", "approximate"]
Tracker = Literal["tensorboard", "wandb", "trackio"]

SUPPORT_DESK = "support_desk"
RECORDED = "recorded"
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The model that training starts from, or that is evaluated."""

    path: str = ""
    """A folder or a hub's name that `from_pretrained` loads, such as the `model` folder of another run; empty for a
    tiny model."""
    tiny: TinyQwen3 | None = None
    """Size of a model that SFT makes, with a tokenizer of its own, where there is no `path`."""
    tiny_vocabulary: int = 1200
    """Tokens of the tiny model's tokenizer."""
    chat: Literal["auto", "qwen3-thinking", "qwen3-instruct", "qwen3-hybrid", "qwen3-hybrid-quiet"] = "auto"
    """The chat format; auto recognises it by the tokenizer's template. qwen3-hybrid-quiet is never recognised, only
    said: it is the hybrid model with its thinking turned off."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights as trained. float32 is computed in bfloat16 on a GPU, with the weights as master copy; bfloat16
    halves their memory and is for LoRA, whose base does not move: small steps vanish in bfloat16."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"

    def __post_init__(self) -> None:
        if not self.path and self.tiny is None:
            raise ValueError(
                "no model: set model.path to a folder or a hub's name, or add a section [model.tiny] for a tiny model"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSettings:
    """The tools and the tasks."""

    kind: str = SUPPORT_DESK
    """support_desk: the built-in world, whose scripted agents make the recordings. recorded: your own logs, no live
    tools. package.module:factory: your own World (worlds/world.py), made by calling factory(**options)."""
    seed: int = 0
    """support_desk: another seed is another set of desks and requests. recorded: another split."""
    tasks: int = 0
    """Training tasks, the first of the split; 0 takes all that are recorded. Another World must be told."""
    runs_per_task: int = 4
    """support_desk only: recordings of each training task."""
    trajectories: tuple[str, ...] = ()
    """Recordings (NDJSON, .gz or not): what SFT learns from, and the tasks of a recorded world."""
    tools: str = ""
    """recorded only: JSON file of OpenAI tool objects with `effect`, as `toolcache import --tools` takes."""
    domain: str = ""
    """recorded only: the domain to take from files that hold several."""
    held_out_share: float = 0.1
    """recorded only: share of the tasks kept from training, chosen by their ids."""
    good_above: float = 1.0
    """recorded only: a trajectory with at least this reward shows how its task is done."""
    free_text: tuple[str, ...] = ()
    """Arguments whose wording does not matter to a judge, as "tool.argument"; beside those that the world knows."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the factory. They are saved with the run and shown in its report, so say a secret as "env:NAME": the
    factory gets what the environment variable NAME holds."""
    judge: str = ""
    """package.module:factory of your own AnswerJudge (reward/answer.py), made by calling factory(world). Empty: by
    milestones, writes and the words of the expected answer, weighed by the section judge."""

    def __post_init__(self) -> None:
        if self.kind not in (SUPPORT_DESK, RECORDED) and not _FACTORY.fullmatch(self.kind):
            raise ValueError(
                f"world.kind is {self.kind!r}; it must be {SUPPORT_DESK}, {RECORDED} or package.module:factory"
            )
        if self.kind == RECORDED and not (self.trajectories and self.tools):
            raise ValueError("a recorded world is made of world.trajectories and world.tools; set both")
        if self.kind == SUPPORT_DESK and self.tasks < 1:
            raise ValueError("world.tasks must be at least 1: the support desk has as many tasks as are asked for")
        if self.judge and not _FACTORY.fullmatch(self.judge):
            raise ValueError(f"world.judge is {self.judge!r}; it must be package.module:factory")
        if not 0.0 < self.held_out_share < 1.0:
            raise ValueError(f"world.held_out_share is {self.held_out_share}; it must lie between 0 and 1")
        if self.tasks < 0 or self.runs_per_task < 1:
            raise ValueError("world.tasks cannot be negative, world.runs_per_task must be at least 1")
        if wrong := [name for name in self.free_text if len(name.split(".")) != 2]:
            raise ValueError(f"world.free_text holds {wrong[0]!r}; write tool.argument")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """How the cache answers; where it is, is said by --cache-url or TOOLCACHE_URL."""

    is_used: bool = True
    """false: every call is executed live, the control run."""
    namespace: str = ""
    """Empty: the world's name."""
    job: str = ""
    """Names this run in the cache's metrics. Empty: the run's name."""
    tiers: tuple[Tier, ...] | None = None
    """Tiers accepted; absent: the namespace's policy."""
    on_miss: Literal["live", "wait", "error", "drop"] = "live"
    """What a call without an answer gets: a live execution under a lease, recorded for all others; the answer of
    another rollout or job that executes it just now, within `wait_s`, else an error; an error text; or the rollout is
    dropped unscored."""
    wait_s: float = 30.0
    on_outage: Literal["drop", "live"] = "drop"
    """What a rollout does when the cache has been away for longer than `outage_patience_s`."""
    outage_patience_s: float = 60.0

    def __post_init__(self) -> None:
        if self.wait_s < 0 or self.outage_patience_s < 0:
            raise ValueError("cache.wait_s and cache.outage_patience_s cannot be negative")
        if self.tiers == ():
            raise ValueError("cache.tiers is empty: leave it out for the namespace's policy, or name a tier")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Who samples."""

    kind: Literal["hf", "vllm", "vllm-server"] = "hf"
    """hf: the trained model itself, in this process. vllm: beside it, on the same GPU. vllm-server: over HTTP."""
    vllm: VllmSettings = field(default_factory=VllmSettings)
    urls: tuple[str, ...] = ()
    """vllm-server only: where the servers listen."""
    served_model: str = "policy"
    """vllm-server only: the name they serve the model under (--served-model-name)."""
    weights_dir: str = ""
    """vllm-server only: a folder that this machine and the servers both reach, for the weights of each step. Empty:
    `weights` in the run's folder."""
    server: VllmServerSettings = field(default_factory=VllmServerSettings)

    def __post_init__(self) -> None:
        if self.kind == "vllm-server" and not self.urls:
            raise ValueError("engine.kind is vllm-server: say where it listens with engine.urls")

    @property
    def max_model_tokens(self) -> int | None:
        """Longest prompt and answer together that the engine takes; None: whatever the model takes."""
        match self.kind:
            case "hf":
                return None
            case "vllm":
                return self.vllm.max_model_tokens
            case "vllm-server":
                return self.server.max_model_tokens
            case _:
                assert_never(self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSettings:
    """Which trajectories SFT learns from."""

    min_reward: float = 1.0
    """Recorded trajectories with a lower reward are left out. 0 takes all."""
    samples: tuple[str, ...] = ()
    """Files of kept rollouts (samples.ndjson of `cacherl sample`), trained with their exact tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """How the model is measured on held-out tasks."""

    tasks: int = 100
    """The first of the held-out split, or all where it has fewer."""
    samples_per_task: int = 1
    """One keeps the samples independent, as the intervals assume."""
    temperature: float = 1.0
    """What training samples at. 0 is greedy, which thinking models take badly (they repeat themselves)."""

    def __post_init__(self) -> None:
        if min(self.tasks, self.samples_per_task) < 1 or self.temperature < 0:
            raise ValueError("evaluate.tasks and samples_per_task must be at least 1, temperature at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class IterateSettings:
    """`cacherl train`: SFT, GRPO, rejection sampling, SFT on what was kept, GRPO, ..."""

    rounds: int = 2
    """Times SFT and GRPO; rejection sampling stands between two rounds."""
    restart: bool = False
    """Whether SFT of a later round starts from the run's first model again (arXiv:2203.14465) instead of the policy
    of the round before. It learns from the recordings and all samples kept so far either way."""
    tasks: int = 0
    """Training tasks that rejection sampling plays; 0 is all."""
    samples_per_task: int = 8
    keep_above: float = 0.8
    """Least training reward of a kept rollout."""
    min_trust: float = 0.9
    """Least trust of every tool answer in a kept rollout: what was right by a guess is not imitated."""
    keep_per_task: int = 2
    """At most so many of one task, the best first; rollouts with the same calls and answer count as one."""
    evaluate: bool = True
    """Whether the model of every stage is evaluated."""
    launch: tuple[str, ...] = ()
    """Put before the command of every stage that trains, such as ["accelerate", "launch", "--config_file", "FILE"]
    for several GPUs; empty: this Python, one process."""
    launch_sft: tuple[str, ...] | None = None
    """The same for SFT alone, which does not run under DeepSpeed: give it FSDP2's file, or []. Absent: `launch`."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.samples_per_task, self.keep_per_task) < 1 or self.tasks < 0:
            raise ValueError("iterate.rounds, samples_per_task and keep_per_task must be at least 1, tasks at least 0")
        if not 0.0 <= self.min_trust <= 1.0:
            raise ValueError(f"iterate.min_trust is {self.min_trust}; trust lies in 0..1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackSettings:
    """Who else is told the metrics. JSON lines are written always; no tool's argument or result is sent to anyone."""

    to: tuple[Tracker, ...] = ()
    project: str = "cacherl"
    """Of Weights & Biases and Trackio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run."""

    name: str
    """Names the run in the cache's metrics and in trackers: letters, digits, dots, dashes, underscores."""
    seed: int = 0
    """Added to the seeds of SFT, GRPO and sampling, and of a tiny model's weights; the world has its own."""
    threads: int = 0
    """Threads of torch a process; 0 leaves it to torch."""
    model: ModelSettings
    lora: LoraSettings | None = None
    """Train low-rank adapters, merged into the saved model; absent: all weights."""
    world: WorldSettings
    cache: CacheSettings = field(default_factory=CacheSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    examples: ExampleSettings = field(default_factory=ExampleSettings)
    sft: SftSettings = field(default_factory=lambda: SftSettings(steps=600))
    grpo: GrpoSettings = field(default_factory=GrpoSettings)
    reward: TierAwareReward = field(default_factory=TierAwareReward)
    judge: JudgeWeights = field(default_factory=JudgeWeights)
    process: ProcessWeights = field(default_factory=ProcessWeights)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    iterate: IterateSettings = field(default_factory=IterateSettings)
    track: TrackSettings = field(default_factory=TrackSettings)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name is {self.name!r}; it must be letters, digits, dots, dashes and underscores")
        if self.threads < 0:
            raise ValueError(f"threads is {self.threads}; it cannot be negative")
        if self.world.kind == RECORDED and (self.cache.on_miss == "live" or self.cache.on_outage == "live"):
            raise ValueError(
                "a recorded world has no live tools: set cache.on_miss to error, drop or wait, cache.on_outage to drop"
            )
        if self.world.kind == RECORDED and not self.cache.is_used:
            raise ValueError(
                "a recorded world has no live tools, so its calls need the cache: set cache.is_used to true"
            )
        if 0 < self.world.tasks < self.grpo.prompts_per_step:
            raise ValueError(
                f"grpo.prompts_per_step is {self.grpo.prompts_per_step}, more than world.tasks, {self.world.tasks}"
            )
        longest = self.engine.max_model_tokens
        if longest is not None and longest < self.grpo.budgets.context_tokens:
            raise ValueError(
                f"grpo.budgets.context_tokens is {self.grpo.budgets.context_tokens}, but the engine takes {longest}: "
                "raise its max_model_tokens or lower the budget"
            )
        if self.lora is not None and self.model.tiny is not None and not self.model.path:
            raise ValueError("LoRA on random weights trains nothing: leave [lora] out for a tiny model")

    @property
    def job(self) -> str:
        """How the cache's metrics call this run."""
        return self.cache.job or self.name
