"""A vLLM server as its client sees it, small: the routes that are used, and the traps that a client can fall into.

Each cache salt answers with the weights it was first used with, as a prefix cache would (of a prompt that is cached
whole); the head is tied to the embedding at the start only; a request that does not fit the context is refused.
"""

import copy
import json
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file
from transformers import Qwen3ForCausalLM

from cacherl.adapters.hf_engine import HFEngine
from cacherl.rollout.engine import Sampling

REFUSED = 400


class FakeVllmServer:
    """Answers through `transport`; `requests` are those to /v1/completions."""

    def __init__(self, model: Qwen3ForCausalLM, *, logprobs_mode: str = "raw_logprobs", context: int = 512) -> None:
        self.transport = httpx.MockTransport(self._answer)
        self.requests: list[dict[str, Any]] = []
        self.loaded_names: list[set[str]] = []
        self._model = copy.deepcopy(model)
        self._model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        self._mode = logprobs_mode
        self._context = context
        self._engines: dict[str, HFEngine] = {}

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        match request.method, request.url.path:
            case "GET", "/server_info":
                config = {"logprobs_mode": self._mode, "max_model_len": self._context}
                return httpx.Response(200, json={"vllm_config": {"model_config": config}})
            case "POST", "/collective_rpc":
                return self._reload(json.loads(request.content))
            case "POST", "/v1/completions":
                return await self._complete(json.loads(request.content))
        return httpx.Response(404, json={"detail": "Not Found"})

    def _reload(self, order: dict[str, Any]) -> httpx.Response:
        assert order["method"] == "reload_weights"
        weights = {}
        for file in sorted(Path(order["kwargs"]["weights_path"]).glob("*.safetensors")):
            weights |= load_file(file)
        self.loaded_names.append(set(weights))
        self._model.load_state_dict(weights, strict=False)
        return httpx.Response(200, json={"results": [None]})

    async def _complete(self, body: dict[str, Any]) -> httpx.Response:
        self.requests.append(body)
        prompt = body["prompt"]
        if body["model"] != "policy":
            return httpx.Response(404, json={"error": {"message": f"The model `{body['model']}` does not exist."}})
        if len(prompt) + body["max_tokens"] > self._context or body["min_tokens"] > body["max_tokens"]:
            return httpx.Response(REFUSED, json={"error": {"message": "does not fit"}})
        engine = self._engines.get(body["cache_salt"])
        if engine is None:
            engine = self._engines[body["cache_salt"]] = HFEngine(copy.deepcopy(self._model))
        [stop_id] = body["stop_token_ids"]
        said = await engine.generate(
            prompt,
            Sampling(
                max_tokens=body["max_tokens"],
                min_tokens=body["min_tokens"],
                stop_id=stop_id,
                temperature=body["temperature"],
                seed=body["seed"],
            ),
        )
        return httpx.Response(200, json=completion(said.ids, said.logprobs, said.finish_reason))


def completion(ids: Any, logprobs: Any, finish_reason: Any) -> dict[str, Any]:
    """The body of an answer, as far as anybody reads it."""
    choice = {"index": 0, "text": "", "token_ids": list(ids), "finish_reason": finish_reason}
    return {"object": "text_completion", "choices": [{**choice, "logprobs": {"token_logprobs": list(logprobs)}}]}
