"""What a demo run is told, section by section of its run file (trainer/runs/demo.toml)."""

from __future__ import annotations

from dataclasses import dataclass, field

from cacherl.adapters.tiny_size import TinyQwen3
from cacherl.reward.answer import JudgeWeights
from cacherl.reward.tier_aware import TierAwareReward
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.sft_settings import SftSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSettings:
    seed: int = 0
    """Another seed is another set of desks and requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSettings:
    tasks: int = 2000
    """Training tasks that are recorded; GRPO trains on the same ones, since only they have answers in the cache."""
    runs_per_task: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    tasks: int = 300
    """Held-out tasks, played with the cache off."""
    untrained_tasks: int = 50
    """The untrained model babbles up to its token budget and always fails: fewer tasks say as much."""
    samples_per_task: int = 1
    """Sampled rollouts a task; one keeps them independent, as the intervals assume."""

    def __post_init__(self) -> None:
        if min(self.tasks, self.untrained_tasks, self.samples_per_task) < 1:
            raise ValueError("tasks, untrained_tasks and samples_per_task must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRun:
    seed: int = 0
    """Added to the seeds of all sections: another one is another world, recording, start of weights and sampling."""
    threads: int = 1
    """Threads of torch. Two gain a third on an idle machine with two cores, and lose tenfold where another program
    holds one of them, because they wait for each other by spinning."""
    world: WorldSettings = field(default_factory=WorldSettings)
    record: RecordSettings = field(default_factory=RecordSettings)
    model: TinyQwen3 = field(default_factory=TinyQwen3)
    vocabulary_size: int = 1200
    sft: SftSettings = field(default_factory=lambda: SftSettings(steps=600))
    grpo: GrpoSettings = field(default_factory=GrpoSettings)
    judge: JudgeWeights = field(default_factory=JudgeWeights)
    reward: TierAwareReward = field(default_factory=TierAwareReward)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}; it must be at least 1")
        if self.grpo.prompts_per_step > self.record.tasks:
            raise ValueError(f"prompts_per_step {self.grpo.prompts_per_step} exceeds the {self.record.tasks} tasks")
