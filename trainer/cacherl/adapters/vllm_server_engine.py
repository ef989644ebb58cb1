"""vLLM servers as the engine: token ids over HTTP, new weights through a folder that both sides reach.

The servers (vLLM; run with 0.31.0, the others from 0.24 to 0.33 only read) are started by hand or by the cluster, one
or several of the same model:

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --served-model-name policy --max-model-len 16384

and, for a run at another temperature than 1, with `--logprobs-mode processed_logprobs` (vllm_sampling.py says why).
On a CPU add `--no-enable-chunked-prefill --max-num-batched-tokens N`, N not less than the context (vllm_engine.py).
The dev mode opens the route by which they are told to load weights, to whoever reaches the port: keep it closed to
others. Each turn of a rollout goes to the same server, which has its earlier turns in its prefix cache. Cached
prefixes are salted with the version of the weights, and with a name of this engine's own: no other weights, also not
those of an earlier run, ever answer for them.

Covered: lost connections and servers that are busy or starting (asked again, with the same seed); a server that was
restarted and would answer with its first weights (its rollouts are void until it has loaded the current ones; any
connection that fails or breaks off counts as a restart). Not covered: a restart that no request falls into, weights
sent from GPU to GPU, API keys, loading weights while rollouts are under way.
"""

import asyncio
import logging
import shutil
import threading
import zlib
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar
from uuid import uuid4

import httpx
import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from cacherl.adapters.vllm_sampling import logprobs_mode, request_fields
from cacherl.adapters.vllm_weights import vllm_weights
from cacherl.errors import EngineFailed, RunMisconfigured
from cacherl.rollout.engine import Generation, Sampling
from cacherl.train.engine_settings import VllmServerSettings

PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0)
"""Before the second, third, ... attempt at one request."""
SHARD_BYTES: Final = 4 * 2**30
"""Weights are written in files of about this size, so that no process holds all of them twice."""

NO_LOGPROB: Final = -9999.0
"""What a server writes in the place of minus infinity, which JSON has no word for."""

_T = TypeVar("_T")


class VllmServerEngine:
    """Generates on one server or several, whose weights `follow` brings up to the trained model's.

    `weights_dir` is where each version is written for the servers to read, under the same path on their machine; it
    is empty again afterwards. `temperature` is the one, besides 0, that rollouts are sampled at. Close it, or use it
    as a context manager: it owns a thread with an event loop of its own, so that it serves whichever loop asks.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        model: str,
        weights_dir: Path,
        settings: VllmServerSettings | None = None,
        temperature: float = 1.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.weight_version = 0
        """Of the weights that sample now; generations carry it."""
        self._urls = tuple(url.rstrip("/") for url in ([urls] if isinstance(urls, str) else urls))
        if not self._urls:
            raise RunMisconfigured("no vLLM server: give the URL of at least one")
        self._model = model
        self._weights_dir = weights_dir
        self._settings = settings or VllmServerSettings()
        self._temperature = temperature
        self._name = uuid4().hex
        self._has_followed = False
        self._restarted: set[str] = set()
        """Servers that were away since they were last given weights."""
        self._http = httpx.AsyncClient(
            transport=transport,
            # As many as there are rollouts. Idle ones go before the server drops them, after 5 s.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=3.0),
        )
        self._closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-server-engine", daemon=True)
        self._thread.start()

    @property
    def is_the_model(self) -> bool:
        return False

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """Continue one prompt, cut where the context is full. Raises EngineFailed.

        Raises RunMisconfigured for a temperature or a constraint at which log-probabilities would be wrong.
        """
        fields = request_fields(
            prompt_ids,
            sampling,
            temperature=self._temperature,
            max_model_tokens=self._settings.max_model_tokens,
        )
        version = self.weight_version
        request = {
            **fields,
            "model": self._model,
            "prompt": list(prompt_ids),
            "return_token_ids": True,
            "cache_salt": f"{self._name}.{version}",
        }
        answer = await asyncio.wrap_future(self._start(self._complete(self._url_of(sampling), request)))
        return Generation(
            ids=tuple(answer.token_ids),
            logprobs=tuple(answer.logprobs.token_logprobs),
            finish_reason=answer.finish_reason,
            weight_version=version,
        )

    def follow(self, model: PreTrainedModel, version: int) -> None:
        """Write the model's weights and have every server load them. Raises EngineFailed.

        Every process must call it; the main one writes and speaks to the servers, the others wait for it. Raises
        RunMisconfigured for a server that was started with settings that do not fit the run's.
        """
        folder = (self._weights_dir / f"version-{version}").resolve()
        self._write(vllm_weights(model), folder)
        if _is_main():
            try:
                self._start(self._load_everywhere(folder)).result()
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        _wait_for_all()
        self._restarted.clear()
        self._has_followed = True
        self.weight_version = version

    def weights_came(self, version: int) -> None:
        """Somebody else has given every server the weights of this version: none that came before answers for it.

        Raises RunMisconfigured for a server that was given them as an adapter, which this engine would not ask.
        """
        if not self._has_followed:
            self._start(self._refuse_adapters()).result()
        self._restarted.clear()
        self._has_followed = True
        self.weight_version = version

    def close(self) -> None:
        """Close the connections and stop the thread; whatever is under way fails with EngineFailed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        with self._lock:  # nothing may be started after the loop's end: nobody would answer it
            if self._closed:
                work.close()
                raise EngineFailed("the engine is closed")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()

    def _url_of(self, sampling: Sampling) -> str:
        name = sampling.rollout or str(sampling.seed)
        return self._urls[zlib.crc32(name.encode()) % len(self._urls)]

    async def _complete(self, url: str, request: dict[str, Any]) -> "_Choice":
        try:
            self._refuse_restarted(url)
            content = await self._ask(url, "/v1/completions", request, timeout_s=self._settings.answer_timeout_s)
            self._refuse_restarted(url)  # it may have gone and come back while it was asked
        except asyncio.CancelledError:
            if self._closed:
                raise EngineFailed("the engine was closed") from None
            raise
        return _choice(url, content)

    def _refuse_restarted(self, url: str) -> None:
        if self._has_followed and url in self._restarted:
            raise EngineFailed(f"vLLM server {url} was away and may answer with its first weights until the next step")

    async def _load_everywhere(self, folder: Path) -> None:
        await asyncio.gather(*(self._load(url, folder) for url in self._urls))

    async def _load(self, url: str, folder: Path) -> None:
        timeout_s = self._settings.reload_timeout_s
        if not self._has_followed:
            info = await self._ask(url, "/server_info?config_format=json", None, timeout_s=timeout_s)
            self._check(url, info)
        order = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        await self._ask(url, "/collective_rpc", order, timeout_s=timeout_s)

    async def _refuse_adapters(self) -> None:
        for url in self._urls:
            content = await self._ask(url, "/v1/models", None, timeout_s=self._settings.answer_timeout_s)
            try:
                served = msgspec.json.decode(content, type=_Models).data
            except msgspec.MsgspecError as error:
                raise EngineFailed(f"vLLM server {url} tells its models in another form: {error}") from error
            adapters = [each.id for each in served if each.parent is not None]
            if adapters:
                raise RunMisconfigured(
                    f"vLLM server {url} has the adapters {', '.join(adapters)}, but rollouts ask for {self._model}, "
                    "which is the model without them: start it without --enable-lora, then it is sent merged weights"
                )

    def _check(self, url: str, content: bytes) -> None:
        """Raise RunMisconfigured for a server that was started with settings under which the run would go wrong."""
        try:
            config = msgspec.json.decode(content, type=_Info).vllm_config.model_config
        except msgspec.MsgspecError as error:
            raise EngineFailed(f"vLLM server {url} tells its settings in another form: {error}") from error
        wanted = logprobs_mode(self._temperature)
        if config.logprobs_mode != wanted:
            raise RunMisconfigured(
                f"vLLM server {url} tells {config.logprobs_mode}, but temperature {self._temperature} needs {wanted}: "
                f"start it with --logprobs-mode {wanted}"
            )
        if config.max_model_len < self._settings.max_model_tokens:
            raise RunMisconfigured(
                f"vLLM server {url} was started with --max-model-len {config.max_model_len}, less than "
                f"max_model_tokens = {self._settings.max_model_tokens}: start it with more, or ask for less"
            )

    async def _ask(self, url: str, route: str, body: dict[str, Any] | None, *, timeout_s: float) -> bytes:
        """What the server answers to a POST, or to a GET without a body; asked again while it is not to be reached."""
        trouble = ""
        for pause_s in (0.0, *PAUSES_S):
            await asyncio.sleep(pause_s)
            try:
                response = await self._http.request(
                    "GET" if body is None else "POST",
                    url + route,
                    json=body,
                    timeout=httpx.Timeout(timeout_s, connect=10.0),
                )
            except httpx.TransportError as error:
                # Whatever cut the line: a machine that went off, and is back before anybody asks, looks no different.
                trouble = f"{type(error).__name__} {error}"
                self._note_away(url, trouble)
                if isinstance(error, httpx.ReadTimeout):
                    raise EngineFailed(f"vLLM server {url}{route}: no answer in {timeout_s} s") from error
            else:
                if response.is_success:
                    return response.content
                trouble = f"status {response.status_code}: {response.text[:500]}"
                if response.status_code == 404:
                    raise EngineFailed(
                        f"vLLM server {url}{route}: {trouble}; is the model served under this name, and was the server "
                        "started with VLLM_SERVER_DEV_MODE=1?"
                    )
                if response.status_code < 500 and response.status_code != 429:
                    raise EngineFailed(f"vLLM server {url}{route} refused: {trouble}")
                if response.status_code in (502, 503, 504):
                    self._note_away(url, trouble)
        raise EngineFailed(f"vLLM server {url}{route}: {len(PAUSES_S) + 1} attempts, the last one {trouble}; is it up?")

    def _note_away(self, url: str, trouble: str) -> None:
        if url not in self._restarted:
            self._restarted.add(url)
            logging.getLogger(__name__).warning("vLLM server %s is away: %s", url, trouble)

    def _write(self, weights: Iterator[tuple[str, Tensor]], folder: Path) -> None:
        """Write the weights as safetensors in files of about SHARD_BYTES; only the main process does, all go along."""
        is_main, dtype = _is_main(), getattr(torch, self._settings.dtype)
        if is_main:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        shard: dict[str, Tensor] = {}
        places = count(1)
        for name, value in weights:
            if not is_main:
                continue
            shard[name] = value.to("cpu", dtype, copy=True).contiguous()  # tied ones may not share memory in a file
            if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
                save_file(shard, folder / f"model-{next(places):05}.safetensors")
                shard = {}
        if shard:
            save_file(shard, folder / f"model-{next(places):05}.safetensors")


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float]


class _Choice(msgspec.Struct):
    token_ids: list[int]
    logprobs: _Logprobs
    finish_reason: Literal["stop", "length"]


class _Answer(msgspec.Struct):
    choices: list[_Choice]


class _Served(msgspec.Struct):
    id: str
    parent: str | None = None
    """The model that an adapter belongs to."""


class _Models(msgspec.Struct):
    data: list[_Served]


class _ModelConfig(msgspec.Struct):
    logprobs_mode: str
    max_model_len: int


class _Config(msgspec.Struct):
    model_config: _ModelConfig


class _Info(msgspec.Struct):
    vllm_config: _Config


def _choice(url: str, content: bytes) -> _Choice:
    """The one generation that was asked for, with as many log-probabilities as ids."""
    try:
        [choice] = msgspec.json.decode(content, type=_Answer).choices
        if len(choice.token_ids) != len(choice.logprobs.token_logprobs):
            raise ValueError(f"{len(choice.token_ids)} ids, {len(choice.logprobs.token_logprobs)} log-probabilities")
        if min(choice.logprobs.token_logprobs, default=0.0) <= NO_LOGPROB:
            raise ValueError("a sampled token's log-probability is not finite")
    except (msgspec.MsgspecError, ValueError) as error:
        raise EngineFailed(f"vLLM server {url}: an answer that makes no sense ({error})") from error
    return choice


def _is_main() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _wait_for_all() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
