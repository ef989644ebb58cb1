"""Every engine that can follow a model, opened the same way: `opened("vllm", folder)` gives an engine and its model.

"vllm" and "vllm-server" are the real ones and need a vllm that can be imported (requirements-vllm.txt); "http" is the
client of "vllm-server" before a fake of its server.
"""

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.hf_engine import HFEngine
from cacherl.adapters.vllm_sampling import logprobs_mode
from cacherl.adapters.vllm_server_engine import VllmServerEngine
from cacherl.rollout.engine import Generation
from cacherl.train.engine_settings import VllmServerSettings, VllmSettings
from cacherl.train.policy_engine import PolicyEngine
from tests.trainer.adapters.fake_vllm_server import FakeVllmServer

Kind = Literal["hf", "http", "vllm", "vllm-server"]
KINDS = ("hf", "http", "vllm", pytest.param("vllm-server", marks=pytest.mark.slow))
CONTEXT_TOKENS = 512
STOP = 258
_START_S = 180
_FOR_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True)
class Opened:
    """An engine, and the model whose weights it has."""

    kind: Kind
    engine: PolicyEngine
    model: Qwen3ForCausalLM


@contextmanager
def opened(kind: Kind, folder: Path, *, temperature: float = 1.0) -> Iterator[Opened]:
    """Skips the test that asks for a vLLM which is not there."""
    model = tiny_model()
    with ExitStack() as stack:
        engine: PolicyEngine
        match kind:
            case "hf":
                engine = stack.enter_context(HFEngine(model))
            case "http":
                server = FakeVllmServer(model, logprobs_mode=logprobs_mode(temperature), context=CONTEXT_TOKENS)
                stack.callback(server.close)
                engine = _client("http://vllm", folder, temperature, server.transport)
                stack.callback(engine.close)
            case "vllm":
                engine = _in_process(_saved(model, folder), temperature)
                stack.callback(engine.close)
            case "vllm-server":
                url = stack.enter_context(_running_server(_saved(model, folder), temperature))
                engine = _client(url, folder, temperature, None)
                stack.callback(engine.close)
        yield Opened(kind, engine, model)


def tiny_model() -> Qwen3ForCausalLM:
    """Two layers over bytes with tied embeddings; sharp, so that some tokens are likely. Equal each time."""
    config = Qwen3Config(
        vocab_size=len(make_byte_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=228,  # second among its greedy tokens after 1, 2, 3
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config).eval()


def prompts(count: int, *, longest: int = 60) -> list[list[int]]:
    chance = random.Random(0)
    return [[chance.randrange(250) for _ in range(chance.randint(1, longest))] for _ in range(count)]


def trainer_logprobs(
    model: torch.nn.Module, prompt: Sequence[int], ids: Sequence[int], temperature: float
) -> torch.Tensor:
    """What a plain forward pass gives the ids, [T] nats, at temperature 1 for a greedy generation."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    plain = torch.log_softmax(logits.float() / (temperature or 1.0), -1)
    return plain.gather(-1, torch.tensor(ids)[:, None]).squeeze(-1)


def mismatch(model: torch.nn.Module, prompt: Sequence[int], said: Generation, temperature: float) -> float:
    """Largest difference in nats between the engine's log-probabilities and the trainer's."""
    expected = trainer_logprobs(model, prompt, said.ids, temperature)
    return (expected - torch.tensor(said.logprobs)).abs().max().item()


def _saved(model: Qwen3ForCausalLM, folder: Path) -> Path:
    path = folder / "model"
    model.save_pretrained(path)
    make_byte_tokenizer().save_pretrained(path)
    return path


def _client(url: str, folder: Path, temperature: float, transport: httpx.AsyncBaseTransport | None) -> VllmServerEngine:
    return VllmServerEngine(
        url,
        model="policy",
        weights_dir=folder / "weights",
        settings=VllmServerSettings(max_model_tokens=CONTEXT_TOKENS, dtype="float32"),
        temperature=temperature,
        transport=transport,
    )


def _in_process(path: Path, temperature: float) -> PolicyEngine:
    pytest.importorskip("vllm", reason="needs vLLM: requirements-vllm.txt")
    for name, value in _FOR_CPU.items():
        os.environ.setdefault(name, value)
    torch.compiler.set_stance("force_eager")  # what vLLM compiles on a CPU takes longer than the tests
    from cacherl.adapters.vllm_engine import VllmEngine

    settings = VllmSettings(max_model_tokens=CONTEXT_TOKENS, max_rows=10, dtype="float32", eager=True)
    return VllmEngine(path, settings=settings, temperature=temperature)


@contextmanager
def _running_server(path: Path, temperature: float) -> Iterator[str]:
    pytest.importorskip("vllm", reason="needs vLLM: requirements-vllm.txt")
    port = _free_port()
    words = f"--served-model-name policy --host 127.0.0.1 --port {port} --dtype float32 --enforce-eager"
    words += " --no-enable-chunked-prefill --max-num-batched-tokens 2048"  # seeds on a CPU: vllm_engine.py
    words += f" --max-model-len {CONTEXT_TOKENS} --logprobs-mode {logprobs_mode(temperature)}"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(path), *words.split()]
    log = path.parent / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command,
            env={**_FOR_CPU, **os.environ, "VLLM_SERVER_DEV_MODE": "1"},
            stdout=out,
            stderr=out,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(server, url, log)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


def _wait_for(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and server.poll() is None:
        try:
            if httpx.get(url + "/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"the vLLM server did not start: {log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
