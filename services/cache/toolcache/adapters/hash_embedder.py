"""Vectors from hashed character trigrams: a small honest embedder for tests, with no model and no heavy import.

Texts that share most of their trigrams are near; meaning is not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from toolcache.core.ports import Vector

DIMENSIONS = 256


class HashEmbedder:
    """An Embedder of 256 dimensions. It remembers nothing, so tenants learn nothing from each other."""

    version = "character-trigrams/1"

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Vector]:
        return [_vector(text) for text in texts]


def _vector(text: str) -> Vector:
    counts = np.zeros(DIMENSIONS, dtype="<f4")
    padded = f"  {text.lower()} "
    for start in range(len(padded) - 2):
        trigram = hashlib.blake2b(padded[start : start + 3].encode("utf-8", "surrogatepass"), digest_size=4).digest()
        counts[int.from_bytes(trigram, "big") % DIMENSIONS] += 1.0
    unit: Vector = (counts / np.linalg.norm(counts)).astype("<f4").tobytes()
    return unit
