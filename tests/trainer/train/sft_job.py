"""A tiny SFT run as a program of its own, to be killed or run by several processes. Not a test module.

sft_job.py FOLDER KIND STEPS [resume] [die=STEP] [packing] [torn=STEP] [fsdp2] [save]
die: SIGKILL to itself when that step is done. torn: SIGKILL in the middle of writing that step's checkpoint.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import Qwen3Config, Qwen3ForCausalLM

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.lora import save_model, with_lora
from cacherl.rollout.renderer import Example
from cacherl.train import sft
from cacherl.train.lora_settings import LoraSettings
from cacherl.train.sft_settings import SftSettings

VOCABULARY: Final = 40


def make(kind: str) -> Any:
    """A model; but for the "still" kinds its training has a random part, so that a lost random state would show."""
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
        attention_dropout=0.0 if "still" in kind else 0.2,
    )
    model = Qwen3ForCausalLM(config)
    if "lora" in kind:
        return with_lora(model, LoraSettings(rank=4, alpha=8, dropout=0.0 if "still" in kind else 0.1), seed=1)
    return model


def examples() -> list[Example]:
    rng = random.Random(5)
    return [
        Example(
            ids=tuple(rng.randrange(VOCABULARY) for _ in range(length)),
            loss_mask=tuple([0] + [rng.randint(0, 1) for _ in range(length - 2)] + [1]),
        )
        for length in (rng.randint(3, 20) for _ in range(23))
    ]


def shard() -> None:
    """Make accelerate shard by FSDP2 on CPUs too, which it does for accelerators alone when it is launched so."""
    Accelerator(cpu=True)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
        state_dict_type="SHARDED_STATE_DICT",
    )
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def main(folder: Path, kind: str, steps: int, *words: str) -> None:
    flags = dict(word.partition("=")[::2] for word in words)

    def die_at(metrics: Mapping[str, Any]) -> None:
        if metrics["step"] == int(flags.get("die", -1)):
            os.kill(os.getpid(), signal.SIGKILL)

    if "torn" in flags:
        plain = sft.mark_complete

        def mark(checkpoint: Path) -> None:
            if checkpoint.name == f"checkpoint-{flags['torn']}":
                os.kill(os.getpid(), signal.SIGKILL)
            plain(checkpoint)

        sft.mark_complete = mark
    if "fsdp2" in flags:
        shard()
    model = make(kind)
    report = sft.train_sft(
        model,
        examples(),
        SftSettings(
            steps=steps,
            batch_size=4,
            learning_rate=1e-2,
            checkpoint_every=3,
            micro_batch_tokens=30,
            packing="packing" in flags,
        ),
        output_dir=folder,
        resume="resume" in flags,
        progress=die_at,
    )
    if "save" in flags:
        save_model(model, make_byte_tokenizer(), folder / "model")
    if int(os.environ.get("RANK", "0")) == 0:
        (folder / "losses.json").write_text(json.dumps(report.losses))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
