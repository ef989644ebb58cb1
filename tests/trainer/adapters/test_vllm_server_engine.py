"""How the client of vLLM's servers bears with them; what every engine keeps is in test_engine_contract.py."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file
from transformers import Qwen3ForCausalLM

from cacherl.adapters import vllm_server_engine
from cacherl.adapters.vllm_server_engine import VllmServerEngine
from cacherl.errors import EngineFailed, RunMisconfigured
from cacherl.rollout.engine import Generation, Sampling
from cacherl.train.engine_settings import VllmServerSettings
from tests.trainer.adapters.engines import CONTEXT_TOKENS, STOP, tiny_model
from tests.trainer.adapters.fake_vllm_server import FakeVllmServer, completion

HOW = Sampling(max_tokens=4, stop_id=STOP, seed=3)
GOOD = completion([5, 6], [-1.0, -2.0], "length")
INFO = {"vllm_config": {"model_config": {"logprobs_mode": "raw_logprobs", "max_model_len": CONTEXT_TOKENS}}}
Open = Callable[..., VllmServerEngine]


@pytest.fixture
def open_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """open_engine(transport, urls=, temperature=): an engine of this test alone, which does not pause."""
    monkeypatch.setattr(vllm_server_engine, "PAUSES_S", (0.0, 0.0))
    engines: list[VllmServerEngine] = []

    def start(transport: httpx.MockTransport, urls: Any = "http://one", temperature: float = 1.0) -> VllmServerEngine:
        settings = VllmServerSettings(max_model_tokens=CONTEXT_TOKENS, dtype="float32")
        engines.append(
            VllmServerEngine(
                urls,
                model="policy",
                weights_dir=tmp_path / "weights",
                settings=settings,
                temperature=temperature,
                transport=transport,
            )
        )
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


class Scripted:
    """Answers with its replies one after the other, the last one ever after; an exception is raised."""

    def __init__(self, *replies: httpx.Response | Exception) -> None:
        self.requests: list[httpx.Request] = []
        self.replies = list(replies)
        self.transport = httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(reply.status_code, content=reply.content)


def ask(engine: VllmServerEngine, sampling: Sampling = HOW) -> Generation:
    return asyncio.run(engine.generate([1, 2], sampling))


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.Response(503, text="loading"),
        httpx.Response(500, text="oh"),
        httpx.Response(429, text="slow"),
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("gone"),
        httpx.ReadError("reset"),
    ],
    ids=str,
)
def test_after_a_passing_trouble_the_same_is_asked_again(
    open_engine: Open, trouble: httpx.Response | Exception
) -> None:
    server = Scripted(trouble, trouble, httpx.Response(200, json=GOOD))
    assert ask(open_engine(server.transport)) == Generation(ids=(5, 6), logprobs=(-1.0, -2.0), finish_reason="length")
    assert len(server.requests) == 3
    assert len({request.content for request in server.requests}) == 1


def test_a_lasting_trouble_is_told_with_who_and_what(open_engine: Open) -> None:
    server = Scripted(httpx.Response(500, text="CUDA error"))
    with pytest.raises(
        EngineFailed, match=r"http://one/v1/completions: 3 attempts, the last one status 500: CUDA error"
    ):
        ask(open_engine(server.transport))
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (httpx.Response(400, text="too long"), "refused: status 400: too long"),
        (httpx.Response(404, text="no such model"), "is the model served under this name"),
        (httpx.ReadTimeout("slow"), "no answer in 600.0 s"),
    ],
)
def test_what_would_only_happen_again_is_not_asked_again(
    open_engine: Open, trouble: httpx.Response | Exception, message: str
) -> None:
    server = Scripted(trouble)
    with pytest.raises(EngineFailed, match=message):
        ask(open_engine(server.transport))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"token_ids": [5], "finish_reason": "stop", "logprobs": null}]}',
        b'{"choices": [{"token_ids": [5], "finish_reason": "stop", "logprobs": {"token_logprobs": [null]}}]}',
        b'{"choices": [{"token_ids": [5, 6], "finish_reason": "stop", "logprobs": {"token_logprobs": [-1.0]}}]}',
        b'{"choices": [{"token_ids": [5], "finish_reason": "stop", "logprobs": {"token_logprobs": [NaN]}}]}',
        b'{"choices": [{"token_ids": [5], "finish_reason": "stop", "logprobs": {"token_logprobs": [-9999.0]}}]}',
        b'{"choices": [{"token_ids": [5], "finish_reason": "abort", "logprobs": {"token_logprobs": [-1.0]}}]}',
    ],
)
def test_an_answer_that_makes_no_sense_is_no_generation(open_engine: Open, answer: bytes) -> None:
    server = Scripted(httpx.Response(200, content=answer))
    with pytest.raises(EngineFailed, match="http://one: an answer that makes no sense"):
        ask(open_engine(server.transport))


def test_the_turns_of_a_rollout_go_to_one_server_and_the_rollouts_to_all(open_engine: Open) -> None:
    server = Scripted(httpx.Response(200, json=GOOD))
    engine = open_engine(server.transport, urls=["http://one", "http://two/"])
    hosts: dict[str, set[str]] = {}
    for turn in range(3):
        for rollout in "abcdefgh":
            ask(engine, Sampling(max_tokens=4, stop_id=STOP, rollout=rollout, seed=turn))
            hosts.setdefault(rollout, set()).add(server.requests[-1].url.host)
    assert all(len(each) == 1 for each in hosts.values())
    assert set.union(*hosts.values()) == {"one", "two"}


def test_a_server_that_was_away_is_not_believed_until_it_has_the_weights_again(open_engine: Open) -> None:
    """It may have come back with the weights it was started with, and its answers would be taken for the policy's."""
    model = tiny_model()
    server = FakeVllmServer(model, context=CONTEXT_TOKENS)
    is_away = False

    async def answer(request: httpx.Request) -> httpx.Response:
        if is_away:
            raise httpx.ConnectError("refused")
        return await server.transport.handle_async_request(request)

    engine = open_engine(httpx.MockTransport(answer))
    engine.follow(model, 1)
    assert ask(engine).weight_version == 1
    is_away = True
    with pytest.raises(EngineFailed, match="is it up"):
        ask(engine)
    is_away = False
    with pytest.raises(EngineFailed, match="may answer with its first weights"):
        ask(engine)
    engine.follow(model, 2)
    assert ask(engine).weight_version == 2
    server.close()


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectTimeout("no route"),
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("gone"),
        httpx.ReadTimeout("silent"),
        httpx.Response(503, text="starting"),
    ],
    ids=str,
)
def test_a_server_that_is_back_within_one_request_is_not_believed_either(
    open_engine: Open, trouble: httpx.Response | Exception
) -> None:
    loaded = [httpx.Response(200, json=INFO), httpx.Response(200, json={})]
    server = Scripted(*loaded, trouble, *[httpx.Response(200, json=GOOD)] * 2, httpx.Response(200, json={}))
    engine = open_engine(server.transport)
    engine.follow(tiny_model(), 1)
    for _ in range(2):
        with pytest.raises(EngineFailed, match=r"first weights|no answer"):
            ask(engine)
    asked = len(server.requests)
    with pytest.raises(EngineFailed, match="first weights"):
        ask(engine)
    assert len(server.requests) == asked  # it is not even asked
    server.replies = [httpx.Response(200, json={}), httpx.Response(200, json=GOOD)]
    engine.follow(tiny_model(), 2)
    assert ask(engine).weight_version == 2


def models(*served: tuple[str, str | None]) -> httpx.Response:
    return httpx.Response(200, json={"data": [{"id": name, "parent": parent} for name, parent in served]})


def test_weights_that_somebody_else_sent_are_told_in_generations_and_share_no_cached_prefix(open_engine: Open) -> None:
    server = Scripted(models(("policy", None)), httpx.Response(200, json=GOOD))
    engine = open_engine(server.transport)
    versions = []
    for version in (1, 2):
        engine.weights_came(version)
        versions.append(ask(engine).weight_version)
    assert versions == [1, 2]
    asked = [json.loads(request.content)["cache_salt"] for request in server.requests if request.method == "POST"]
    assert len(set(asked)) == 2
    assert [request.url.path for request in server.requests] == ["/v1/models"] + ["/v1/completions"] * 2


def test_a_server_that_was_sent_the_weights_as_an_adapter_is_refused(open_engine: Open) -> None:
    server = Scripted(models(("policy", None), ("trl-policy-v1", "policy")))
    with pytest.raises(RunMisconfigured, match=r"trl-policy-v1, but rollouts ask for policy.*without --enable-lora"):
        open_engine(server.transport).weights_came(1)


@pytest.mark.parametrize("shard_bytes", [1, 2**40])
def test_the_servers_read_the_very_weights_that_would_be_saved(
    open_engine: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> None:
    monkeypatch.setattr(vllm_server_engine, "SHARD_BYTES", shard_bytes)
    model = tiny_model()
    server = FakeVllmServer(model, context=CONTEXT_TOKENS)
    open_engine(server.transport, urls=["http://one", "http://two"]).follow(model, 1)
    model.save_pretrained(tmp_path / "saved")
    saved = set(load_file(tmp_path / "saved" / "model.safetensors"))
    assert server.loaded_names == [saved | {"lm_head.weight"}] * 2
    assert list((tmp_path / "weights").iterdir()) == []


def test_two_engines_never_share_what_a_server_has_cached(open_engine: Open) -> None:
    """Both are at version 0, but a server outlives a run, and the next run's weights are others."""
    server = FakeVllmServer(tiny_model(), context=CONTEXT_TOKENS)
    for _ in range(2):
        ask(open_engine(server.transport))
    assert len({request["cache_salt"] for request in server.requests}) == 2
    server.close()


@pytest.mark.parametrize(
    ("mode", "context", "message"),
    [
        ("processed_logprobs", CONTEXT_TOKENS, "start it with --logprobs-mode raw_logprobs"),
        ("raw_logprobs", CONTEXT_TOKENS - 1, "--max-model-len 511, less than max_model_tokens = 512"),
    ],
)
def test_a_server_whose_settings_do_not_fit_is_found_before_the_first_rollout(
    open_engine: Open, model: Qwen3ForCausalLM, mode: str, context: int, message: str
) -> None:
    server = FakeVllmServer(model, logprobs_mode=mode, context=context)
    with pytest.raises(RunMisconfigured, match=message):
        open_engine(server.transport).follow(model, 1)


def test_a_server_without_its_development_routes_says_how_to_open_them(
    open_engine: Open, model: Qwen3ForCausalLM
) -> None:
    server = Scripted(httpx.Response(404, text="Not Found"))
    with pytest.raises(EngineFailed, match="VLLM_SERVER_DEV_MODE=1"):
        open_engine(server.transport).follow(model, 1)


def test_a_run_without_a_server_is_refused(open_engine: Open) -> None:
    with pytest.raises(RunMisconfigured, match="URL of at least one"):
        open_engine(Scripted(httpx.Response(200)).transport, urls=[])
