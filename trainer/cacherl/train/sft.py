"""Supervised fine-tuning on rendered trajectories: a plain torch loop, full or on adapters, that can be killed.

The loss is the mean cross-entropy over the tokens the model is to say (mask 1), over the whole batch of all processes,
however it is cut into forward passes: a long trajectory weighs by its tokens. Nothing is re-rendered here; examples
come from data/sft_examples.py.

Several processes (`accelerate launch`): each holds all examples and works out the same plan. Covered: data parallel
and FSDP2. Not covered: DeepSpeed, examples that are longer than one device can take, data sets beyond memory.
"""

import dataclasses
import hashlib
import json
import math
import os
import random
import shutil
import time
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from cacherl.errors import RunMisconfigured
from cacherl.rollout.renderer import Example
from cacherl.train.checkpoints import drop_old, last_checkpoint, mark_complete
from cacherl.train.metrics_log import MetricsLog
from cacherl.train.packing import packed, padded, shares
from cacherl.train.sft_settings import SftSettings
from cacherl.train.token_loss import Rows, packed_row, padded_rows, summed_nats, trained_tokens

BUCKET_BATCHES = 16
"""Batches that are shuffled together, then cut by length, so that little of a batch is padding."""
HOW_NOT_WHAT = frozenset(
    {"micro_batch_tokens", "packing", "max_example_tokens", "gradient_checkpointing", "checkpoint_every"}
    | {"keep_checkpoints"}
)
"""Settings that a resumed run may change: the same is learned, in other pieces or at another price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SftReport:
    """What came of it, the part before a resume included; `seconds` are this process's own."""

    steps: int
    losses: tuple[float, ...]
    """Nats per token of each step's batch, before its update."""
    trained_tokens: int
    """Tokens with mask 1 that were seen, repetitions counted."""
    seconds: float


def train_sft(
    model: PreTrainedModel,
    examples: Sequence[Example],
    settings: SftSettings,
    *,
    output_dir: Path | None = None,
    resume: bool = False,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
) -> SftReport:
    """Train the model (what of it requires gradients) in place and leave it in eval mode, sharded if it is sharded.

    Metrics of every step go to `output_dir`/sft.jsonl and, in the main process, to `progress`; checkpoints to
    `output_dir`/checkpoint-N. With `resume` the run goes on from the last of them, or begins where there is none: what
    is learned is what would have been learned without the break. Float32 weights on a GPU are computed with in
    bfloat16. Raises RunMisconfigured.
    """
    _refuse(examples, settings, output_dir, resume)
    began = time.perf_counter()
    steps = settings.steps_for(len(examples))
    with _Training(model, settings) as training:
        identity = _identity(model, examples, settings) if resume or settings.checkpoint_every else {}
        checkpoints = _Checkpoints(training.accelerator, output_dir, identity)
        past = checkpoints.restore() if resume else checkpoints.none_yet()
        batches = islice(_endless_batches(examples, settings), past.steps, steps)
        with MetricsLog(_metrics_path(training, output_dir), after_step=past.steps) as log:
            for step, batch in enumerate(batches, start=past.steps):
                rate = learning_rate(step, steps, settings)
                step_began = time.perf_counter()
                loss, norm = training.update(batch, rate)
                seconds = time.perf_counter() - step_began
                count = sum(sum(example.loss_mask) for example in batch)
                past.losses.append(loss)
                past.trained_tokens += count
                metrics = {
                    "step": step + 1,
                    "steps": steps,
                    "loss": loss,
                    "learning_rate": rate,
                    "grad_norm": norm,
                    "trained_tokens": count,
                    "tokens_per_second": sum(len(example.ids) for example in batch) / seconds,
                    "seconds": seconds,
                }
                log.write(metrics)
                if progress is not None and training.accelerator.is_main_process:
                    progress(metrics)
                if settings.checkpoint_every and (step + 1) % settings.checkpoint_every == 0:
                    checkpoints.save(past, keep=settings.keep_checkpoints)
    return SftReport(
        steps=past.steps,
        losses=tuple(past.losses),
        trained_tokens=past.trained_tokens,
        seconds=time.perf_counter() - began,
    )


def learning_rate(step: int, steps: int, settings: SftSettings) -> float:
    """Linear warm-up, then a half cosine down to `final_share` of the peak at the last of `steps`. Steps from 0."""
    warmup = round(settings.warmup_share * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return settings.learning_rate * (settings.final_share + (1.0 - settings.final_share) * cosine)


def batches_by_length(examples: Sequence[Example], batch_size: int, rng: random.Random) -> list[list[Example]]:
    """One pass over the examples, each once: batches of like lengths, in random order. The last may be smaller."""
    order = rng.sample(range(len(examples)), len(examples))
    chunk = batch_size * BUCKET_BATCHES
    batches: list[list[Example]] = []
    for begin in range(0, len(order), chunk):
        by_length = sorted(order[begin : begin + chunk], key=lambda i: len(examples[i].ids))
        batches += [
            [examples[i] for i in by_length[start : start + batch_size]]
            for start in range(0, len(by_length), batch_size)
        ]
    rng.shuffle(batches)
    return batches


class _Training:
    """Model and optimizer on their devices, and the step that moves them."""

    def __init__(self, model: PreTrainedModel, settings: SftSettings) -> None:
        self.accelerator = accelerator = _accelerator()
        self._settings = settings
        self._plain = model
        self._head: torch.nn.Linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if settings.gradient_checkpointing:
            _recompute_activations(model, True)
        moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
        masters = all(parameter.dtype is torch.float32 for parameter in moved)
        optimizer = torch.optim.AdamW(
            moved,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            # In place: torch's default takes as much again as all weights for what it works out in between.
            fused=model.device.type == "cuda" or None,
        )
        self._model, self._optimizer = accelerator.prepare(model, optimizer)
        self._device = accelerator.device if accelerator.use_distributed else model.device
        self._autocast = masters and self._device.type == "cuda"

    def __enter__(self) -> "_Training":
        self._model.train()
        return self

    def __exit__(self, *_: object) -> None:
        self._model.train(False)
        if self._settings.gradient_checkpointing:
            _recompute_activations(self._plain, False)
        self.accelerator.free_memory()

    def update(self, batch: Sequence[Example], rate: float) -> tuple[float, float]:
        """One optimizer step. Returns the batch's loss before it and the gradient's norm before clipping."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        count = max(1, sum(trained_tokens(example) for example in batch))
        loss = torch.zeros((), device=self._device)
        passes = self._passes(batch)
        for place, rows in enumerate(passes):
            is_last = place == len(passes) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self._model):
                # Without its cache, which would keep every weight a second time until the pass is over.
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast, cache_enabled=False):
                    part = summed_nats(self._model, self._head, rows) / count
                # Gradients of processes are averaged; ours are parts of one mean and must add up.
                self.accelerator.backward(part * self.accelerator.num_processes)
            loss += part.detach()
        norm = self.accelerator.clip_grad_norm_(self._model.parameters(), self._settings.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return self.accelerator.reduce(loss, "sum").item(), norm.item()

    def _passes(self, batch: Sequence[Example]) -> list[Rows]:
        """This process's forward passes over its share of the batch, as many as any other process makes."""
        lengths = [len(example.ids) for example in batch]
        cut, lay = (packed, packed_row) if self._settings.packing else (padded, padded_rows)
        most = self._settings.micro_batch_tokens
        plan = [
            [[share[place] for place in one] for one in cut([lengths[place] for place in share], most)]
            for share in shares(lengths, self.accelerator.num_processes)
        ]
        mine = plan[self.accelerator.process_index]
        passes = [lay([batch[place] for place in one], self._device) for one in mine]
        # A process that ran the model less often would leave the others waiting: one token that teaches nothing.
        filler = padded_rows([Example(ids=batch[0].ids[:1], loss_mask=(0,))], self._device)
        return passes + [filler] * (max(map(len, plan)) - len(mine))


@dataclass(slots=True, kw_only=True)
class _Past:
    """What is behind the run. The place in the data and in the schedule follow from the number of steps."""

    losses: list[float] = field(default_factory=list)
    trained_tokens: int = 0

    @property
    def steps(self) -> int:
        return len(self.losses)


class _Checkpoints:
    """Weights that are trained, optimizer and random states by accelerate; beside them what the run has behind it."""

    def __init__(self, accelerator: Accelerator, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self._accelerator = accelerator
        self._folder = folder
        self._identity = identity
        accelerator.register_save_state_pre_hook(_keep_trained)

    def none_yet(self) -> _Past:
        """A beginning. Raises RunMisconfigured where an earlier run's checkpoints would be mixed with this one's."""
        if self._folder is not None and (found := last_checkpoint(self._folder)):
            raise RunMisconfigured(f"{found} is of an earlier run: resume it, or train into another folder")
        return _Past()

    def restore(self) -> _Past:
        """Go on from the last checkpoint; a beginning without one. Raises RunMisconfigured if it is another run's."""
        assert self._folder is not None
        found = last_checkpoint(self._folder)
        if found is None:
            return _Past()
        try:
            state = json.loads((found / "sft.json").read_text(encoding="utf-8"))
        except OSError as error:
            raise RunMisconfigured(f"{found} is no checkpoint of SFT ({error.strerror}: sft.json)") from error
        other = [key for key, value in self._identity.items() if state["identity"].get(key) != value]
        if other:
            raise RunMisconfigured(
                f"{found} was made with other {', '.join(other)}: resume it with what it was made with, "
                "or train into another folder"
            )
        # Not strict: what is frozen is not in it, and that nothing else is missing, the identity says.
        self._accelerator.load_state(str(found), strict=False)
        return _Past(losses=state["losses"], trained_tokens=state["trained_tokens"])

    def save(self, past: _Past, *, keep: int) -> None:
        """Every process writes its share; the checkpoint counts once all have."""
        assert self._folder is not None
        checkpoint = self._folder / f"checkpoint-{past.steps}"
        if self._accelerator.is_main_process:
            shutil.rmtree(
                checkpoint, ignore_errors=True
            )  # torn by a kill, perhaps of more processes than there are now
        self._accelerator.wait_for_everyone()
        self._accelerator.save_state(str(checkpoint))
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            state = {"identity": self._identity, **dataclasses.asdict(past)}
            (checkpoint / "sft.json").write_text(json.dumps(state), encoding="utf-8")
            mark_complete(checkpoint)
            drop_old(self._folder, keep)
        self._accelerator.wait_for_everyone()


def _keep_trained(models: list[torch.nn.Module], weights: list[dict[str, Any]], _: str) -> None:
    """Leave frozen weights out of a checkpoint. Sharded models come without `weights` and are saved as a whole."""
    for model, state in zip(models, weights, strict=False):
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for name in state.keys() - trained:
            del state[name]


def _accelerator() -> Accelerator:
    """How the processes of this run work together; one alone leaves the model on the device where it is."""
    accelerator = Accelerator(device_placement=False)
    accelerator.device_placement = accelerator.use_distributed
    if (launched := int(os.environ.get("WORLD_SIZE", "1"))) != accelerator.num_processes:
        raise RunMisconfigured(f"{launched} processes that do not see each other: on CPUs, accelerate launch --cpu")
    if accelerator.distributed_type not in (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
        DistributedType.FSDP,
    ) or (accelerator.distributed_type is DistributedType.FSDP and not accelerator.is_fsdp2):
        raise RunMisconfigured(f"SFT does not run under {accelerator.distributed_type.value}: use FSDP2 or MULTI_GPU")
    # A launch file may ask for accumulation; how a batch is cut into passes is decided here.
    accelerator.gradient_accumulation_steps = 1
    return accelerator


def _recompute_activations(model: PreTrainedModel, is_wanted: bool) -> None:
    with warnings.catch_warnings():
        # Its new name is not in every transformers that is allowed.
        warnings.filterwarnings("ignore", message="`gradient_checkpointing_", category=FutureWarning)
        if is_wanted:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
        else:
            model.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]


def _endless_batches(examples: Sequence[Example], settings: SftSettings) -> Iterator[list[Example]]:
    rng = random.Random(settings.seed)
    while True:
        yield from batches_by_length(examples, settings.batch_size, rng)


def _refuse(examples: Sequence[Example], settings: SftSettings, output_dir: Path | None, resume: bool) -> None:
    if not examples:
        raise RunMisconfigured("SFT needs at least one example")
    longest = max(len(example.ids) for example in examples)
    if longest > settings.max_example_tokens:
        raise RunMisconfigured(f"an example has {longest} tokens, max_example_tokens is {settings.max_example_tokens}")
    if output_dir is None and (resume or settings.checkpoint_every):
        raise RunMisconfigured("checkpoints need an output folder")


def _metrics_path(training: _Training, output_dir: Path | None) -> Path | None:
    return output_dir / "sft.jsonl" if output_dir is not None and training.accelerator.is_main_process else None


def _identity(model: torch.nn.Module, examples: Sequence[Example], settings: SftSettings) -> dict[str, Any]:
    """What makes a run this run, for comparison with a checkpoint's: what is learned, from what, by which weights."""
    said = hashlib.sha256()
    for example in examples:
        said.update(array("q", [len(example.ids), *example.ids]).tobytes() + bytes(example.loss_mask))
    shapes = [(name, list(each.shape)) for name, each in model.named_parameters() if each.requires_grad]
    return {
        **{key: value for key, value in dataclasses.asdict(settings).items() if key not in HOW_NOT_WHAT},
        "examples": said.hexdigest(),
        "trained weights": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
    }
