"""vLLM in the trainer's process: trajectories join and leave its batch one by one, new weights are copied in memory.

The only file that imports vllm: it ran with 0.31.0; of 0.24 to 0.33 only the source was read, and it has what is used
here. One thread owns the engine: requests, decoding steps and weights all pass through its inbox, so that the event
loop never waits for a step and no weight changes under a request. Whatever goes wrong in the thread ends the
generations under way and all later ones with EngineFailed; the next `follow` raises it too, and so ends the run.

Covered: one engine at a time in a process; with several processes each has its own, on the GPU of its share of the
trainer. Not covered: two at once, which would share vLLM's global state; a model over several GPUs
(vllm_server_engine.py); sleep mode (`gpu_memory_utilization` bounds the memory); the number of CPU threads where vLLM
runs on a CPU: it pins them, also those of torch.
"""

import asyncio
import gc
import os
import queue
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor

from cacherl.adapters.vllm_sampling import logprobs_mode, request_fields
from cacherl.adapters.vllm_weights import vllm_weights
from cacherl.errors import EngineFailed
from cacherl.rollout.engine import Generation, Sampling
from cacherl.train.engine_settings import VllmSettings

CPU_STEP_TOKENS: Final = 2048
"""Prompt tokens of one step where vLLM runs on a CPU; prompts beyond wait for the next."""
LOOK_S: Final = 1.0
"""Between two looks whether the thread that one waits for is still alive."""

Task = Callable[[], object]
Inbox = queue.SimpleQueue[Task | None]
"""What the thread is to do next; None ends it."""
_ENDED: list[Any] = []
"""Closed engines that found torch's process group there: their core ends it, when told to or when it is collected, and
the trainer goes on needing it. Their memory is given back."""


class VllmEngine:
    """Generates with vLLM's own copy of the weights, which `follow` brings up to the trained model's.

    `model_path` is a folder (or a hub's name) that holds the model as it is saved; its tokenizer is not needed.
    `temperature` is the one, besides 0, that rollouts are sampled at (vllm_sampling.py says why it must be known).
    Close it, or use it as a context manager: it owns a thread and a good part of a GPU's memory. Raises EngineFailed
    where vLLM does not start.
    """

    def __init__(self, model_path: Path | str, *, settings: VllmSettings, temperature: float = 1.0) -> None:
        self.weight_version = 0
        """Of the weights that sample now; generations carry it."""
        self._settings = settings
        self._temperature = temperature
        self._names = count()
        self._inbox: Inbox = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        # The current GPU is a thread's own affair, so it is read here, where the trainer's is set, and told the pump.
        several = _joined_the_others()
        self._pump = _Pump(torch.cuda.current_device() if torch.cuda.is_available() else None)
        self._worker = threading.Thread(target=self._pump.work, args=(self._inbox,), name="vllm-engine", daemon=True)
        self._worker.start()
        try:
            self._run(lambda: self._pump.open(_arguments(str(model_path), settings, temperature, several)))
        except Exception as error:
            self.close()
            raise EngineFailed(f"vLLM did not start with {model_path}: {error}") from error

    @property
    def is_the_model(self) -> bool:
        return False

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """Continue one prompt, cut where the context is full. Raises EngineFailed.

        Raises RunMisconfigured for a temperature or a constraint at which log-probabilities would be wrong.
        """
        ids, room = list(prompt_ids), self._settings.max_model_tokens
        params = SamplingParams(
            **request_fields(ids, sampling, temperature=self._temperature, max_model_tokens=room),
            detokenize=False,
            flat_logprobs=True,  # no object a token for the garbage collector to go through
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        asked = _Asked(str(next(self._names)), self.weight_version)
        self._put(lambda: self._pump.begin(asked, ids, params))
        try:
            return await self._answered(asked)
        except asyncio.CancelledError:
            with suppress(EngineFailed):  # closed: nothing is left to abort
                self._put(lambda: self._pump.abort(asked))
            raise

    async def _answered(self, asked: "_Asked") -> Generation:
        answer = asyncio.wrap_future(asked.done)
        try:
            while not (await asyncio.wait([answer], timeout=LOOK_S))[0]:
                self._check_alive(asked.done)
            return answer.result()
        finally:
            answer.cancel()  # nobody waits for it any more

    def follow(self, model: PreTrainedModel, version: int) -> None:
        """Copy the model's weights into vLLM and forget what was computed with the old ones. Raises EngineFailed.

        Every process must call it: a sharded model's weights are gathered one by one.
        """
        try:
            self._run(lambda: self._pump.reload(vllm_weights(model)))
        except Exception as error:
            raise EngineFailed(f"vLLM did not take the weights of version {version}: {error}") from error
        self.weight_version = version

    def close(self) -> None:
        """Stop the thread and give the memory back; whatever is under way fails with EngineFailed."""
        with self._lock:
            if not self._closed:
                self._inbox.put(None)
            self._closed = True
        self._worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, task: Task) -> None:
        with self._lock:  # nothing may come after the None that ends the thread: nobody would answer it
            if self._closed:
                raise EngineFailed("the engine is closed")
            self._inbox.put(task)

    def _run(self, task: Callable[[], None]) -> None:
        """Have the thread do something, and wait for it. Raises what it raised."""
        done: Future[None] = Future()

        def report() -> None:
            try:
                task()
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who waits for it
                done.set_exception(error)
            else:
                done.set_result(None)

        self._put(report)
        while not wait([done], timeout=LOOK_S).done:
            self._check_alive(done)
        done.result()

    def _check_alive(self, asked: Future[Any]) -> None:
        """Raise EngineFailed where nobody is left who would answer."""
        if not self._worker.is_alive() and not asked.done():
            raise EngineFailed("the engine's thread has ended")


class _Asked:
    """One request under way."""

    def __init__(self, name: str, version: int) -> None:
        self.name = name
        self.version = version
        self.done: Future[Generation] = Future()

    def settle(self, outcome: Generation | EngineFailed) -> None:
        """Tell the caller, unless it gave up."""
        if not self.done.set_running_or_notify_cancel():
            return
        if isinstance(outcome, EngineFailed):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)


class _Pump:
    """What lives in the thread: vLLM's engine, and who waits for which request."""

    def __init__(self, device: int | None) -> None:
        self._device = device
        self._engine: Any = None
        self._owns_group = False
        self._waiting: dict[str, _Asked] = {}
        self._broken: BaseException | None = None

    def work(self, inbox: Inbox) -> None:
        """Do what comes in, and one decoding step after the other while any request is under way."""
        if self._device is not None:
            torch.cuda.set_device(self._device)  # a new thread starts on the first GPU
        while (task := self._next(inbox)) is not None:
            try:
                task()
            except BaseException as error:  # noqa: BLE001 - rollouts are waiting, and the thread must live to tell them
                self._break(error)
        self._close()

    def _next(self, inbox: Inbox) -> Task | None:
        try:
            return inbox.get(block=not self._waiting)
        except queue.Empty:
            return self._step

    def open(self, arguments: EngineArgs) -> None:
        # Else vLLM puts its core into a process of its own, where weights would have to be sent.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._owns_group = not torch.distributed.is_initialized()
        with _chance_kept(self._device):
            config = arguments.create_engine_config()
            self._engine = LLMEngine(
                vllm_config=config,
                executor_class=Executor.get_class(config),
                log_stats=False,
                multiprocess_mode=False,
            )

    def begin(self, asked: _Asked, ids: list[int], params: SamplingParams) -> None:
        if asked.done.cancelled():
            return
        if self._broken is not None:
            asked.settle(_broke_down(self._broken))
            return
        vocabulary = self._engine.model_config.get_vocab_size()
        if not ids or not 0 <= min(ids) <= max(ids) < vocabulary:
            # Without a tokenizer vLLM does not look, and one such id would end all that is under way.
            asked.settle(EngineFailed(f"a prompt is empty or has ids outside the vocabulary of {vocabulary}"))
            return
        try:
            self._engine.add_request(asked.name, {"type": "token", "prompt_token_ids": ids}, params)
        except Exception as error:  # noqa: BLE001 - a request that vLLM refuses fails alone
            asked.settle(EngineFailed(f"vLLM refused a prompt of {len(ids)} tokens: {error}"))
        else:
            self._waiting[asked.name] = asked

    def abort(self, asked: _Asked) -> None:
        if self._waiting.pop(asked.name, None) is not None:
            self._engine.abort_request([asked.name])

    def reload(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        if self._broken is not None:
            raise _broke_down(self._broken)
        if self._waiting:
            raise EngineFailed(f"{len(self._waiting)} generations are still under way")
        try:
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            if not self._engine.reset_prefix_cache():
                raise EngineFailed("it kept its prefix cache, which the old weights computed")
        except Exception as error:
            self._broken = error  # some weights are new and some old
            raise

    def _step(self) -> None:
        for output in self._engine.step():
            asked = self._waiting.pop(output.request_id, None)
            if asked is not None:  # else it was aborted
                asked.settle(_generation(output.outputs[0], asked.version))

    def _break(self, error: BaseException) -> None:
        self._broken = error
        self._fail(_broke_down(error))

    def _fail(self, error: EngineFailed) -> None:
        for asked in self._waiting.values():
            asked.settle(error)
        self._waiting.clear()

    def _close(self) -> None:
        self._fail(EngineFailed("the engine was closed"))
        if self._engine is not None and self._owns_group:
            self._engine.engine_core.shutdown()
        elif self._engine is not None:
            self._engine.model_executor.shutdown()
            _ENDED.append(self._engine)
        self._engine = None
        gc.collect()  # vLLM's parts refer to one another in circles
        if self._device is not None:
            torch.cuda.empty_cache()


def _broke_down(error: BaseException) -> EngineFailed:
    failed = EngineFailed(
        f"vLLM broke down: {error!r}; this engine samples nothing more: resume the run from its last checkpoint"
    )
    failed.__cause__ = error
    return failed


def _arguments(model: str, settings: VllmSettings, temperature: float, several: bool) -> EngineArgs:
    on_gpu = torch.cuda.is_available()
    return EngineArgs(
        model=model,
        skip_tokenizer_init=True,
        generation_config="vllm",
        dtype=settings.dtype,
        max_model_len=settings.max_model_tokens,
        max_num_seqs=settings.max_rows,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        enforce_eager=settings.eager,
        enable_prefix_caching=True,
        # A prompt that is read in pieces has vLLM set its random generator back, which a CPU's cannot be.
        enable_chunked_prefill=None if on_gpu else False,
        max_num_batched_tokens=None if on_gpu else max(settings.max_model_tokens, CPU_STEP_TOKENS),
        logprobs_mode=logprobs_mode(temperature),
        distributed_executor_backend="external_launcher" if several else "uni",
        disable_log_stats=True,
    )


def _joined_the_others() -> bool:
    """Whether a launcher started this process beside others: vLLM then joins their group, which must be up before.

    The process's own GPU becomes this thread's current one, whichever thread made the group.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        here = PartialState()
        if torch.cuda.is_available():
            torch.cuda.set_device(here.device)
    return several


def _generation(said: Any, version: int) -> Generation | EngineFailed:
    if said.finish_reason not in ("stop", "length"):
        return EngineFailed(f"vLLM ended a request with finish_reason {said.finish_reason!r}")
    try:
        ids = tuple(said.token_ids)
        logprobs = tuple(at[token].logprob for at, token in zip(said.logprobs, ids, strict=True))
        return Generation(ids=ids, logprobs=logprobs, finish_reason=said.finish_reason, weight_version=version)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the other requests are not
        failed = EngineFailed(f"vLLM gave an answer that cannot be trained on: {error!r}")
        failed.__cause__ = error
        return failed


@contextmanager
def _chance_kept(device: int | None) -> Iterator[None]:
    """vLLM seeds the process's random generators when it starts; the trainer's go on as they were."""
    python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[] if device is None else [device]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)
