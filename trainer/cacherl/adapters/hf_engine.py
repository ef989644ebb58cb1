"""A Hugging Face model as the engine: continuous batching with a KV cache, in one worker thread.

Requests that are pending together are prefilled together; later ones join the running batch at the next token, and
finished or abandoned rows leave it at once. Sampling is our own, from the raw logits: the log-probability handed out
is exactly the log-softmax (at the sampling temperature) of the sampled token. It runs the model as it is called: once a
trainer has put autocast around its forward, as accelerate does where float32 weights are trained in bf16, it samples
with the very numerics that are trained.

Covered: decoder-only models with full attention whose cache is a DynamicCache, with or without adapters, on one
device. Not covered: sliding windows, a prefix cache across turns (each turn prefills its whole prompt), a model whose
parameters are sharded over processes (they would have to decode in step).

B rows, T cached positions, V vocabulary, P prompt length.
"""

import asyncio
import math
import random
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from cacherl.errors import EngineFailed
from cacherl.rollout.engine import Generation, Sampling

SLACK_TOKENS = 64
"""Cache positions allotted ahead, so that a decoded token is written in place instead of copying the whole cache."""


class HFEngine:
    """Generates with a model that the caller may train between rollouts.

    The model must be in eval mode while anything is generated (a training-mode forward with gradient checkpointing
    has no KV cache); requests fail with EngineFailed otherwise. `max_rows` bounds the running batch and with it the
    memory of the cache. Close it, or use it as a context manager: it owns a thread.
    """

    def __init__(self, model: PreTrainedModel, *, max_rows: int = 64) -> None:
        self._model = model
        self._max_rows = max_rows
        self._vocabulary: int = model.config.vocab_size
        self._pending: list[_Row] = []
        self._wake = threading.Condition()
        self._closed = False
        self.weight_version = 0
        """Of the weights that sample now; generations carry it."""
        self._worker = threading.Thread(target=self._work, name="hf-engine", daemon=True)
        self._worker.start()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """Continue one prompt. Raises EngineFailed."""
        if not prompt_ids or not 0 <= min(prompt_ids) <= max(prompt_ids) < self._vocabulary:
            # On a GPU one such id in a batch ends the process's whole use of the GPU.
            raise EngineFailed(f"a prompt is empty or has ids outside the vocabulary of {self._vocabulary}")
        row = _Row(prompt_ids=list(prompt_ids), sampling=sampling, version=self.weight_version)
        # One turn of the event loop, so that trajectories which were woken together are prefilled together.
        await asyncio.sleep(0)
        with self._wake:
            if self._closed:
                raise EngineFailed("the engine is closed")
            self._pending.append(row)
            self._wake.notify()
        return await asyncio.wrap_future(row.done)

    @property
    def is_the_model(self) -> bool:
        return True

    def follow(self, model: PreTrainedModel, version: int) -> None:
        """Nothing to copy: it samples from the model itself. Raises EngineFailed for another model."""
        if model is not self._model:
            raise EngineFailed(
                "this engine samples from the model it was made with; make another one for another model"
            )
        self.weight_version = version

    def close(self) -> None:
        """Stop the thread; whatever is under way fails with EngineFailed."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.set_device(self._model.device)  # a new thread starts on the first GPU
        batch = _Batch(self._model)
        while True:
            new = self._admit(room=self._max_rows - len(batch.rows), wait=not batch.rows)
            if new is None:
                self._fail(batch.rows + self._pending, EngineFailed("the engine was closed"))
                return
            try:
                batch.step(new)
            except Exception as error:  # noqa: BLE001 - whatever it was, rollouts are waiting and the thread must live
                self._fail(batch.rows + new, EngineFailed(f"generation failed: {error}"))
                batch = _Batch(self._model)

    def _admit(self, room: int, wait: bool) -> "list[_Row] | None":
        """Pending rows that fit, waiting for one if asked to; None once closed."""
        with self._wake:
            while wait and not self._pending and not self._closed:
                self._wake.wait()
            if self._closed:
                return None
            wanted = [row for row in self._pending if not row.done.cancelled()]
            new, self._pending = wanted[:room], wanted[room:]
        return new

    @staticmethod
    def _fail(rows: "Sequence[_Row]", error: EngineFailed) -> None:
        for row in rows:
            row.settle(error)


@dataclass(slots=True, kw_only=True, eq=False)
class _Row:
    """One request, from its prompt to its last token."""

    prompt_ids: list[int]
    sampling: Sampling
    version: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    done: "Future[Generation]" = field(default_factory=Future)
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.sampling.seed)

    def take(self, token: int, logprob: float) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)

    @property
    def stopped(self) -> bool:
        return self.ids[-1] == self.sampling.stop_id

    @property
    def is_over(self) -> bool:
        is_spoilt = not math.isfinite(self.logprobs[-1])
        return self.stopped or len(self.ids) >= self.sampling.max_tokens or is_spoilt or self.done.cancelled()

    @property
    def forbidden(self) -> int | None:
        """The token that must not be drawn next: the stop token, as long as there are too few."""
        return self.sampling.stop_id if len(self.ids) < self.sampling.min_tokens else None

    def finish(self) -> None:
        try:
            generation = Generation(
                ids=tuple(self.ids),
                logprobs=tuple(self.logprobs),
                finish_reason="stop" if self.stopped else "length",
                weight_version=self.version,
            )
        except EngineFailed as error:  # this row's alone: its neighbours go on
            self.settle(error)
        else:
            self.settle(generation)

    def settle(self, outcome: Generation | EngineFailed) -> None:
        """Tell the caller, unless it was told or gave up; it may give up at any moment, from its own thread."""
        if self.done.done() or not self.done.set_running_or_notify_cancel():
            return
        if isinstance(outcome, EngineFailed):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)


class _SlackLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers' __init_subclass__ is untyped
    """A cache layer with room ahead: `keys` and `values` are views of larger buffers, [B, H, capacity, D]."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self._place(keys, values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        before, after = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if after > self._key_buffer.shape[2]:
            self._place(self.keys, self.values)
        self._key_buffer[:, :, before:after] = key_states
        self._value_buffer[:, :, before:after] = value_states
        self._show(after)
        return self.keys, self.values

    def _place(self, keys: Tensor, values: Tensor) -> None:
        """Move to fresh buffers with SLACK_TOKENS free positions."""
        self._key_buffer = torch.nn.functional.pad(keys, (0, 0, 0, SLACK_TOKENS))
        self._value_buffer = torch.nn.functional.pad(values, (0, 0, 0, SLACK_TOKENS))
        self._show(keys.shape[2])

    def _show(self, length: int) -> None:
        self.keys = self._key_buffer[:, :, :length]
        self.values = self._value_buffer[:, :, :length]


class _Batch:
    """The rows under way and their cache, padded on the left to a common length."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.rows: list[_Row] = []
        self._model = model
        self._cache: DynamicCache | None = None
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)  # [B, T], 1 = a real token

    @torch.no_grad()
    def step(self, new: list[_Row]) -> None:
        """Prefill the new rows and sample their first token, or else one more token for every row."""
        if not new and not self.rows:  # all that was admitted had been given up by its caller
            return
        if self._model.training:
            raise EngineFailed("the model is in training mode: call model.eval() before generating")
        if new:
            logits = self._prefill(new)
            self._sample(new, logits)
        else:
            logits = self._decode()
            self._sample(self.rows, logits)
        self._release()

    def _prefill(self, new: list[_Row]) -> Tensor:
        """Run the prompts and merge their caches into the batch. Returns [len(new), V]."""
        ids, mask = _left_padded([row.prompt_ids for row in new], self._model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        out = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._merge(cache, mask)
        self.rows += new
        return _last_logits(out.logits)

    def _merge(self, cache: DynamicCache, mask: Tensor) -> None:
        fresh = _states(cache)
        if self.rows and self._cache is not None:
            length = max(self._mask.shape[1], mask.shape[1])
            running = _states(self._cache)
            fresh = [
                (_stack(keys, new_keys, length), _stack(values, new_values, length))
                for (keys, values), (new_keys, new_values) in zip(running, fresh, strict=True)
            ]
            mask = torch.cat([_pad_mask(self._mask, length), _pad_mask(mask, length)])
        self._set(fresh, mask)

    def _decode(self) -> Tensor:
        """One token further for every row. Returns [B, V]."""
        last = torch.tensor([[row.ids[-1]] for row in self.rows], device=self._model.device)
        positions = self._mask.sum(-1, keepdim=True)
        self._mask = torch.cat([self._mask, torch.ones_like(positions)], dim=-1)
        out = self._model(
            input_ids=last,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return _last_logits(out.logits)

    @staticmethod
    def _sample(rows: list[_Row], logits: Tensor) -> None:
        tokens, logprobs = sample(
            logits,
            temperatures=[row.sampling.temperature for row in rows],
            draws=[row.chance.random() for row in rows],
            forbidden=[row.forbidden for row in rows],
        )
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            row.take(token, logprob)

    def _release(self) -> None:
        """Let finished rows go, keep the others' cache, cut positions nobody uses any more."""
        over = [row for row in self.rows if row.is_over]
        if over:
            keep = [i for i, row in enumerate(self.rows) if not row.is_over]
            self.rows = [self.rows[i] for i in keep]
            self._keep(keep)
        for row in over:
            row.finish()

    def _keep(self, places: list[int]) -> None:
        if not places or self._cache is None:
            self._cache = None
            return
        chosen = torch.tensor(places, device=self._mask.device)
        mask = self._mask[chosen]
        first = int(mask.argmax(-1).min())  # positions before it are padding in every row
        kept = [(keys[chosen, :, first:], values[chosen, :, first:]) for keys, values in _states(self._cache)]
        self._set(kept, mask[:, first:])

    def _set(self, layers: list[tuple[Tensor, Tensor]], mask: Tensor) -> None:
        cache = DynamicCache(config=self._model.config)
        cache.layers = [_SlackLayer(keys, values) for keys, values in layers]
        self._cache, self._mask = cache, mask


def sample(
    logits: Tensor, *, temperatures: Sequence[float], draws: Sequence[float], forbidden: Sequence[int | None]
) -> tuple[list[int], list[float]]:
    """One token a row from logits [B, V], with its log-probability in nats.

    `draws` are uniform numbers in 0..1; the token is the one where the cumulated probability passes the draw, so a
    row's token does not depend on its neighbours. Temperature 0 takes the likeliest token. A forbidden token (None:
    none) is not drawn, yet the log-probabilities are those of the distribution that has it.
    """
    heat = torch.tensor([t if t > 0 else 1.0 for t in temperatures], device=logits.device)
    logprobs = torch.log_softmax(logits.float() / heat[:, None], dim=-1)
    # Doubles: float32 sums over a vocabulary of 150k are off by more than rare tokens weigh.
    weights = logprobs.double().exp()
    barred = [(row, token) for row, token in enumerate(forbidden) if token is not None]
    if barred:  # all at once: on a GPU each assignment is a kernel
        weights[tuple(torch.tensor(barred, device=logits.device).T)] = 0.0
    cumulated = weights.cumsum(-1)
    target = torch.tensor(draws, dtype=torch.double, device=logits.device)[:, None] * cumulated[:, -1:]
    drawn = torch.searchsorted(cumulated, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
    greedy = torch.tensor([t <= 0 for t in temperatures], device=logits.device)
    tokens = torch.where(greedy, weights.argmax(-1), drawn)
    return tokens.tolist(), logprobs.gather(-1, tokens[:, None]).squeeze(-1).tolist()


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, [B, P] both. The padding id is never read: the mask hides it."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _states(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer, [B, H, T, D]. Raises EngineFailed for a layer that keeps something else."""
    layers: list[tuple[Tensor, Tensor]] = []
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or layer.is_sliding or layer.keys is None or layer.values is None:
            raise EngineFailed(f"cache layers of type {type(layer).__name__} are not covered: full attention only")
        layers.append((layer.keys, layer.values))
    return layers


def _stack(running: Tensor, new: Tensor, length: int) -> Tensor:
    """Rows of two caches under one another, padded on the left to a common length."""
    return torch.cat([_pad_left(running, length), _pad_left(new, length)])


def _pad_left(states: Tensor, length: int) -> Tensor:
    """[B, H, t, D] to [B, H, length, D]."""
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))


def _pad_mask(mask: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(mask, (length - mask.shape[1], 0))


def _last_logits(logits: Tensor) -> Tensor:
    return logits[:, -1]
