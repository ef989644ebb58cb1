"""Supervised fine-tuning on rendered trajectories: a plain torch loop.

The loss is the mean cross-entropy over the tokens the model is to say (mask 1), over the whole batch: a long
trajectory weighs by its tokens. Nothing is re-rendered here; examples come from data/sft_examples.py.

Not covered: several devices, gradient accumulation, resuming in the middle, a full-length packing.

B examples, T tokens, N tokens with mask 1.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cacherl.errors import RunMisconfigured
from cacherl.rollout.renderer import Example
from cacherl.train.metrics_log import MetricsLog
from cacherl.train.sft_settings import SftSettings

BUCKET_BATCHES = 16
"""Batches that are shuffled together, then cut by length, so that little of a batch is padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SftReport:
    """What came of it."""

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
    metrics_path: Path | None = None,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
) -> SftReport:
    """Train the model in place and leave it in eval mode. Raises RunMisconfigured without examples."""
    if not examples:
        raise RunMisconfigured("SFT needs at least one example")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    batches = _endless_batches(examples, settings.batch_size, random.Random(settings.seed))
    losses: list[float] = []
    tokens = 0
    began = time.perf_counter()
    model.train()
    with MetricsLog(metrics_path) as log:
        for step in range(settings.steps):
            batch = next(batches)
            rate = learning_rate(step, settings)
            step_began = time.perf_counter()
            loss, norm = _update(model, optimizer, batch, rate, settings.max_grad_norm)
            count = sum(sum(example.loss_mask) for example in batch)
            tokens += count
            losses.append(loss)
            metrics = {
                "step": step + 1,
                "steps": settings.steps,
                "loss": loss,
                "learning_rate": rate,
                "grad_norm": norm,
                "trained_tokens": count,
                "seconds": time.perf_counter() - step_began,
            }
            log.write(metrics)
            if progress is not None:
                progress(metrics)
    model.train(False)
    seconds = time.perf_counter() - began
    return SftReport(steps=settings.steps, losses=tuple(losses), trained_tokens=tokens, seconds=seconds)


def token_mean_loss(model: PreTrainedModel, examples: Sequence[Example]) -> Tensor:
    """Mean cross-entropy in nats over all tokens of the batch whose mask is 1; scalar."""
    ids, wanted = _right_padded(examples, model.device)
    # No attention mask: padding stands on the right, where a causal model never looks.
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # [B, T, H]
    # Only the wanted positions go through the vocabulary, which is most of the memory of a big one.
    head: torch.nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    logits = head(hidden[:, :-1][wanted[:, 1:]])  # [N, V]
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][wanted[:, 1:]])


def learning_rate(step: int, settings: SftSettings) -> float:
    """Linear warm-up, then a half cosine down to `final_share` of the peak at the last step. Steps from 0."""
    warmup = round(settings.warmup_share * settings.steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - 1 - warmup)
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


def _endless_batches(examples: Sequence[Example], batch_size: int, rng: random.Random) -> Iterator[list[Example]]:
    while True:
        yield from batches_by_length(examples, batch_size, rng)


def _update(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[Example],
    rate: float,
    max_grad_norm: float,
) -> tuple[float, float]:
    """One optimizer step. Returns the loss before it and the gradient's norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = token_mean_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item(), norm.item()


def _right_padded(examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and wanted positions, [B, T] both."""
    width = max(len(example.ids) for example in examples)
    ids = [list(example.ids) + [0] * (width - len(example.ids)) for example in examples]
    wanted = [list(example.loss_mask) + [0] * (width - len(example.ids)) for example in examples]
    return torch.tensor(ids, device=device), torch.tensor(wanted, device=device).bool()
