"""A tiny GRPO run as a program of its own, to be killed or run by several processes. Not a test module.

grpo_job.py FOLDER JSON, where the JSON holds settings of GrpoSettings and:
    resume: go on from the last checkpoint       die: SIGKILL to itself once that step's line is written
    lora: train adapters                         scripted: an engine that is not the model
    away: how often the scripted engine is followed before it generates anything
    spread: with several processes, spread the model over them (FSDP2)
"""

import json
import os
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import DistributedType, PartialState
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.errors import EngineFailed
from cacherl.rollout.engine import Generation, Sampling
from cacherl.rollout.loop import Budgets
from cacherl.rollout.rollout import Rollout
from cacherl.train.grpo import FromWorld, GrpoReport, train_grpo
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.lora_settings import LoraSettings
from cacherl.worlds.support_desk import SupportDesk
from cacherl.worlds.world import Task

WORLD = SupportDesk(seed=0)
SETTINGS: Mapping[str, Any] = {
    "steps": 4,
    "prompts_per_step": 2,
    "group_size": 2,
    "micro_batch": 2,
    "learning_rate": 1e-3,
    "overlong": "score",
    "void_turns": "score",
    "budgets": Budgets(turns=2, turn_tokens=12),
}


class Parity:
    """An answer reward that differs within most groups: are the sampled ids' sums odd?"""

    def score(self, rollout: Rollout, task: Task) -> float:
        return float(sum(rollout.completion_ids) % 2)


class SeededEngine:
    """Says bytes drawn by the request's seed alone, with a made-up logprob; takes note of the versions it followed.

    It fails while the number of these is in `away`.
    """

    def __init__(self, away: range = range(0)) -> None:
        self._away = away
        self.weight_version = -1
        self.followed: list[int] = []
        self.closed = False

    @property
    def is_the_model(self) -> bool:
        return False

    def follow(self, model: PreTrainedModel, version: int) -> None:
        assert not model.training
        self.weight_version = version
        self.followed.append(version)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        if len(self.followed) in self._away:
            raise EngineFailed("connection refused")
        chance = random.Random(sampling.seed)
        ids = tuple(chance.randrange(32, 126) for _ in range(chance.randint(2, sampling.max_tokens)))
        return Generation(
            ids=ids,
            logprobs=tuple(-chance.uniform(3.0, 8.0) for _ in ids),
            finish_reason="length",
            weight_version=self.weight_version,
        )

    def close(self) -> None:
        self.closed = True


def make_model(vocabulary: int) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return Qwen3ForCausalLM(config).eval()


def call_cpus_gpus() -> None:
    """Make accelerate take its CPUs for GPUs: else it spreads nothing over them, whatever its configuration says."""
    torch.distributed.init_process_group("gloo")
    state: Any = PartialState
    state._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    state.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


def main(folder: Path, options: dict[str, Any]) -> tuple[GrpoReport, Any]:
    torch.set_num_threads(1)
    if options.pop("spread", False):
        call_cpus_gpus()
    resume, die = bool(options.pop("resume", False)), options.pop("die", None)
    away = range(options.pop("away", 0))
    engine = SeededEngine(away) if options.pop("scripted", False) else None
    tokenizer = make_byte_tokenizer()
    model: Any = make_model(len(tokenizer))
    if options.pop("lora", False):
        from cacherl.adapters.lora import with_lora

        model = with_lora(model, LoraSettings(rank=4, alpha=4), seed=1)

    def watch(metrics: Mapping[str, Any]) -> None:
        if metrics["step"] == die:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = GrpoSettings(**{**SETTINGS, **options})
    report = train_grpo(
        model=model,
        tokenizer=tokenizer,
        world=WORLD,
        tasks=WORLD.tasks("train", 7),
        source=FromWorld(),
        judge=Parity(),
        settings=settings,
        output_dir=folder,
        engine=engine,
        resume=resume,
        progress=watch,
        sleep=lambda seconds: None,
    )
    return report, model


def save_weights(model: Any, folder: Path) -> None:
    """What is trained, whole, from whatever it is spread over; written by the main process."""
    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = parameter.detach()
            weights[name] = (value.full_tensor() if hasattr(value, "full_tensor") else value).cpu().clone()
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(weights, folder / "weights.pt")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    _, trained = main(out, json.loads(sys.argv[2]))
    save_weights(trained, out)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
