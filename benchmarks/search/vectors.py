"""Vectors made once, and read by search, cache and statistics alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from toolcache.core.ports import Embedder, Vector

BATCH = 64


class PreparedVectors:
    """An Embedder that asks another one for each text once, whoever the tenant is."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._made: dict[str, Vector] = {}

    @property
    def version(self) -> str:
        return self._embedder.version

    async def prepare(self, texts: Iterable[str]) -> None:
        """Embed the texts that are new: the shorter ones first, so that a batch holds texts of one length."""
        new = sorted({text for text in texts if text not in self._made}, key=lambda text: (len(text), text))
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            self._made.update(zip(batch, await self._embedder.embed(batch, tenant="prepared"), strict=True))

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Vector]:
        await self.prepare(texts)
        return [self._made[text] for text in texts]

    def row(self, text: str) -> NDArray[np.float32]:
        """The vector of a prepared text."""
        return np.frombuffer(self._made[text], dtype="<f4")

    def cosine(self, one: str, other: str) -> float:
        """Of two prepared texts."""
        return float(self.row(one) @ self.row(other))
