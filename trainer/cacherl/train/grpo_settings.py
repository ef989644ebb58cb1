"""How to train with GRPO: apart from grpo.py, so that a run file is read without loading torch."""

import math
from dataclasses import dataclass, field
from typing import Literal

from cacherl.errors import RunMisconfigured
from cacherl.rollout.loop import Budgets

MARGIN_S = 1800
"""What a step may take beside its rollouts: judging them, taking over the weights, writing a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoSettings:
    """How to train. Defaults are the published recipe's where there is one, else they fit one GPU."""

    steps: int = 40
    prompts_per_step: int = 8
    """Tasks whose rollouts make one optimizer step, over all processes."""
    group_size: int = 8
    """Rollouts of one task a step."""
    micro_batch: int = 16
    """Rollouts of one forward and backward pass of one process; divides its share of prompts_per_step * group_size."""
    learning_rate: float = 1e-6
    warmup_steps: int = 0
    temperature: float = 1.0
    loss: Literal["dapo", "gspo"] = "dapo"
    """dapo: token ratios, mean over the tokens of the batch (arXiv:2503.14476). gspo: one ratio a rollout, the
    exponential of its tokens' mean log ratio, mean over the rollouts of the batch (arXiv:2507.18071); wants
    clip_low = 3e-4, clip_high = 4e-4."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    """Higher than clip_low, so that unlikely tokens can become likely (DAPO)."""
    kl: float = 0.0
    """Weight of the divergence from the starting weights. 0 needs no reference model; 1e-3 is the fallback for a policy
    that drifts, CacheRL took 0.15."""
    correction: Literal["none", "token"] = "token"
    """What makes up for an engine whose probabilities are not quite the trainer's: nothing, or each token's ratio
    trainer / engine, truncated at `correction_cap` (under gspo: the rollout's, formed as its loss forms it). An engine
    that runs the trained model itself needs none, unless the trainer computes in bfloat16 (as it does on a GPU): the
    engine then rounds elsewhere than the update does, and is corrected too."""
    correction_cap: float = 2.0
    credit: Literal["uniform", "trust"] = "uniform"
    """How an advantage is laid on a rollout's turns: alike, or times the lowest trust among the answers read so far."""
    overlong: Literal["mask", "score"] = "mask"
    """Rollouts cut by tokens: no gradient of their own, yet in the baseline; or like any other. Those cut by time are
    void under both (no reward, in no baseline), as a slow cache or engine may have been the reason."""
    void_turns: Literal["mask", "score"] = "mask"
    """Turns with neither a usable call nor an answer (thinking that never ends, broken calls only): no gradient, or
    like any other."""
    extra_groups: float = 1.0
    """Replacements a step, at most this share of prompts_per_step: a group that teaches nothing (equal rewards, all
    void, all masked) makes way for another task's, played as soon as it is over. 1: once for each of them; 0.5: once
    for every other one, 2: twice. Which may be replaced is fixed beforehand, not first come first served, so that a
    run can be repeated. 0 leaves them."""
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    checkpoint_every: int = 0
    """Steps between checkpoints, from which a killed run goes on; there is one after the last step too. 0: none."""
    keep_checkpoints: int = 2
    """The latest ones that stay on disk."""
    budgets: Budgets = field(default_factory=Budgets)
    concurrency: int = 64
    """Trajectories under way at once, a process."""
    tools_in_prompt: bool = False
    """Whether the tool schemas stand in the system message. As in SFT and evaluation."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "prompts_per_step", "micro_batch", "concurrency", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.group_size < 2:
            raise ValueError(f"group_size is {self.group_size}; an advantage needs at least 2 rollouts of a task")
        if self.prompts_per_step * self.group_size % self.micro_batch:
            rollouts = self.prompts_per_step * self.group_size
            raise ValueError(f"micro_batch {self.micro_batch} does not divide the {rollouts} rollouts of a step")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; sampling needs more than 0")
        if self.correction_cap < 1.0:
            raise ValueError(f"correction_cap is {self.correction_cap}; below 1 it would cut every token")
        if min(self.kl, self.extra_groups, self.checkpoint_every) < 0:
            raise ValueError("kl, extra_groups and checkpoint_every cannot be negative")
        if self.loss == "gspo" and self.credit == "trust":
            raise ValueError(
                "gspo has one ratio a rollout and cannot weigh its turns: set credit to uniform, or use dapo"
            )

    def share(self, processes: int) -> int:
        """Prompts of each of so many processes a step. Raises RunMisconfigured where groups or batches would be cut."""
        prompts, rest = divmod(self.prompts_per_step, processes)
        if rest:
            raise RunMisconfigured(
                f"prompts_per_step {self.prompts_per_step} is no multiple of the {processes} processes: "
                "a group must not be cut between two"
            )
        if prompts * self.group_size % self.micro_batch:
            raise RunMisconfigured(
                f"micro_batch {self.micro_batch} does not divide the {prompts * self.group_size} rollouts of a process"
            )
        return prompts

    def patience_s(self, processes: int) -> int:
        """Seconds after which a process may take another one for dead: more than its rollouts can last.

        They are played in waves of `concurrency`, each as long as the time budget, and again where groups are
        replaced. Raises RunMisconfigured where groups or batches would be cut.
        """
        waves = math.ceil(self.share(processes) * self.group_size / self.concurrency)
        return math.ceil(self.budgets.seconds * waves * (1 + math.ceil(self.extra_groups))) + MARGIN_S
