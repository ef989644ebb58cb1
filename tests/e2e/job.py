"""One training job of the many-jobs tests, in a process of its own: GRPO of a tiny model whose words are scripted.

    python -m tests.e2e.job '{"url": ..., "namespace": ..., "job": ..., "folder": ..., "hangs": false}'

Its tool is slow and tells what it executes in FOLDER/executed.log, one line a call: which job, which namespace, which
place. It waits for FOLDER/go before it starts, and leaves what its rollouts read in FOLDER/JOB.json.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.adapters.scripted_engine import ScriptedEngine
from cacherl.rollout.loop import Budgets
from cacherl.rollout.rollout import Rollout
from cacherl.rollout.tools import ExecuteLive
from cacherl.train.grpo import FromCache, train_grpo
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.worlds.world import Milestone, Split, Task
from toolcache_client import AsyncCacheClient
from toolcache_client.messages import ToolResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLACES = ("attic", "cellar", "garage", "garden")
TOOL = {
    "type": "function",
    "effect": "read",
    "function": {
        "name": "look",
        "description": "What is at a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
EXECUTION_S = 0.3


@dataclass(frozen=True)
class House:
    """A world whose content depends on the namespace, so that an answer from the wrong one shows."""

    name: str
    job: str
    folder: Path
    hangs: bool
    tools: tuple[Mapping[str, Any], ...] = (TOOL,)
    system_prompt: str = ""

    def tasks(self, split: Split, count: int) -> list[Task]:
        return [
            Task(
                id=place,
                environment="house@1",
                prompt=f"What is in the {place}?",
                milestones=(Milestone(tool="look", arguments={"place": place}),),
                expected_answer=f"{place} of {self.name}",
                details={},
            )
            for place in PLACES[:count]
        ]

    def open(self, task: Task) -> HouseSession:
        return HouseSession(self)


@dataclass(frozen=True)
class HouseSession:
    house: House

    def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        with (self.house.folder / "executed.log").open("a") as log:
            log.write(f"{self.house.job} {self.house.name} {arguments['place']}\n")
        time.sleep(3600 if self.house.hangs else EXECUTION_S)
        return ToolResult(content=f"{arguments['place']} of {self.house.name}", took_s=EXECUTION_S)

    def succeeded(self, answer: str) -> bool:
        return False


class Lookers(ScriptedEngine):
    """A policy that looks where it is asked to, and repeats what it reads."""

    is_the_model = True
    weight_version = 0

    def __init__(self, tokenizer: HFTokenizer) -> None:
        super().__init__(tokenizer, self._reply_of)

    def follow(self, model: PreTrainedModel, version: int) -> None:
        self.weight_version = version

    def close(self) -> None:
        """Nothing is held."""

    @staticmethod
    def _reply_of(prompt: str) -> str:
        read = re.findall(r"<tool_response>\n(.*)\n</tool_response>", prompt)
        if read:
            return f"I read it.\n</think>\n\n{read[0]}"
        (place,) = re.findall(r"What is in the (\w+)\?", prompt)
        call = json.dumps({"name": "look", "arguments": {"place": place}})
        return f"I look.\n</think>\n\n<tool_call>\n{call}\n</tool_call>"


class SaysWhatIsTrue:
    def score(self, rollout: Rollout, task: Task) -> float:
        return float(rollout.answer == task.expected_answer)


def tiny_model(vocabulary: int) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary, tie_word_embeddings=True, **sizes, **heads))


def main(url: str, namespace: str, job: str, folder: str, hangs: bool = False) -> None:
    torch.set_num_threads(1)
    shared = Path(folder)
    world = House(name=namespace, job=job, folder=shared, hangs=hangs)
    tokenizer = make_byte_tokenizer()
    played: list[Rollout] = []
    (shared / f"{job}.ready").touch()
    while not (shared / "go").exists():
        time.sleep(0.01)
    report = train_grpo(
        model=tiny_model(len(tokenizer)),
        tokenizer=tokenizer,
        world=world,
        tasks=world.tasks("train", len(PLACES)),
        source=FromCache(
            open_cache=lambda: AsyncCacheClient(url, job=job, timeout_s=30.0),
            namespace=namespace,
            on_miss=ExecuteLive(),
        ),
        judge=SaysWhatIsTrue(),
        settings=GrpoSettings(
            steps=1, prompts_per_step=4, group_size=4, micro_batch=16, extra_groups=0, budgets=Budgets(turn_tokens=200)
        ),
        engine=Lookers(HFTokenizer(tokenizer)),
        output_dir=shared / job,
        rollout_progress=lambda rollout, _, __: played.append(rollout),
    )
    calls = [call for rollout in played for call in rollout.calls]
    told = {
        "steps": len(report.steps),
        "stops": [rollout.stop.value for rollout in played],
        "tiers": [call.tier for call in calls],
        "read": sorted({call.result for call in calls}),
    }
    (shared / f"{job}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
