"""all-MiniLM-L6-v2 by the fastest runtime that is there: OpenVINO, or sentence-transformers, which runs anywhere.

No model hub is asked: the weights come in a package. Vectors have 384 dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolcache.adapters import minilm_files as files
from toolcache.adapters.batching_embedder import Encoder
from toolcache.adapters.openvino_embedder import OpenVinoEncoder, convert
from toolcache.core.ports import EmbedderUnavailable
from toolcache.telemetry import log


def best_encoder(folder: Path | None = None) -> Encoder:
    """The model as an Encoder, from a folder of converted models (None: the user's cache folder).

    Nothing is loaded before the first text: a service whose tools have no free text never pays for it. What is missing
    is told then, by EmbedderUnavailable.
    """
    return _AtFirstText(folder)


class _AtFirstText:
    version = files.VERSION

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._encoder: Encoder | None = None

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self._encoder is None:
            self._encoder = _loaded(self._folder or files.default_folder())
            log("embedder_loaded", runtime=type(self._encoder).__name__, model=files.VERSION)
        return self._encoder.encode(texts)


def _loaded(folder: Path) -> Encoder:
    """OpenVINO from the folder; else converted into it; else sentence-transformers. Raises EmbedderUnavailable."""
    if _are_installed("openvino", "tokenizers"):
        if not files.is_converted(folder) and _are_installed("torch", "transformers", files.PACKAGE):
            try:
                convert(folder)
            except EmbedderUnavailable as error:
                log("embedder_not_converted", why=str(error))
        if files.is_converted(folder):
            return OpenVinoEncoder(folder)
    if _are_installed("sentence_transformers", files.PACKAGE):
        return SentenceTransformersEncoder()
    raise EmbedderUnavailable(
        f"nothing here can run all-MiniLM-L6-v2: `pip install toolcache[openvino,torch]`; or, with toolcache[openvino]"
        f" alone, put into {folder} what `toolcache embedder convert --out DIR` writes elsewhere"
    )


def _are_installed(*modules: str) -> bool:
    return all(util.find_spec(each) is not None for each in modules)


class SentenceTransformersEncoder:
    """An Encoder: the model as its authors publish it. Raises EmbedderUnavailable."""

    version = files.VERSION

    def __init__(self) -> None:
        folder = files.published()
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging as transformers_logging

            transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
            self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        except (ImportError, OSError) as error:
            raise EmbedderUnavailable(
                f"all-MiniLM-L6-v2 could not be loaded ({error}); `pip install toolcache[torch]`"
            ) from error

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._model.encode(list(texts), show_progress_bar=False, batch_size=len(texts))
        return rows
