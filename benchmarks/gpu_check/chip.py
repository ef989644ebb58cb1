"""What the device can do at most: measured here, since names of chips say little about clocks and power limits.

Not covered: several GPUs; the rate of fp8 and of sparse products.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One device and its limits."""

    name: str
    memory_bytes: int | None
    """None: the CPU, which takes what the machine has."""
    matmul_flops: float
    """Multiplications and additions a second of a large bfloat16 matrix product."""
    copy_bytes: float
    """Bytes read and written a second by a copy within the device's memory."""

    def utilisation(self, *, flops_per_token: float, tokens: int, seconds: float) -> float:
        """Share of the matrix rate that the model's own arithmetic took.

        >>> chip = Chip(name="", memory_bytes=None, matmul_flops=100e12, copy_bytes=1e12)
        >>> chip.utilisation(flops_per_token=6 * 4e9, tokens=10_000, seconds=6.0)
        0.4
        """
        return flops_per_token * tokens / seconds / self.matmul_flops

    def decode_bound(self, *, weight_bytes: int, rows: int) -> float:
        """Tokens a second of `rows` decoded together if reading the weights once a token were all there is to do.

        >>> chip = Chip(name="", memory_bytes=None, matmul_flops=1e12, copy_bytes=2e12)
        >>> chip.decode_bound(weight_bytes=10**9, rows=8)
        16000.0
        """
        return rows * self.copy_bytes / weight_bytes


def measured(device: torch.device, *, side: int, copied_bytes: int) -> Chip:
    """The chip, by products of `side` x `side` matrices and copies of so many bytes."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.ones(copied_bytes, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    on_gpu = device.type == "cuda"
    return Chip(
        name=torch.cuda.get_device_name(device) if on_gpu else "cpu",
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        matmul_flops=2 * side**3 / _seconds(device, lambda: torch.mm(left, right)),
        copy_bytes=2 * copied_bytes / _seconds(device, lambda: target.copy_(source)),
    )


def _seconds(device: torch.device, work: Callable[[], object], repeats: int = 10) -> float:
    """Mean of `repeats`, after three to warm up."""
    for _ in range(3):
        work()
    _settle(device)
    began_s = time.perf_counter()
    for _ in range(repeats):
        work()
    _settle(device)
    return (time.perf_counter() - began_s) / repeats


def _settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
