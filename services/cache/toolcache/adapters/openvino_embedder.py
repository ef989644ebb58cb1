"""all-MiniLM-L6-v2 by OpenVINO in bfloat16: 0.4 to 0.45 of torch's work, with neither torch nor transformers loaded.

It runs what `convert` wrote once from the published weights; only that needs torch.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolcache.adapters import minilm_files as files
from toolcache.core.ports import EmbedderUnavailable

_CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
THREADS = max(1, min(_CORES - 1, 4))
"""One core is left to the event loop. On two idle cores two threads take 0.55 to 0.7 of the time of one, and 1.05 to
1.4 of its work; on busy ones they wait for each other."""


class OpenVinoEncoder:
    """An Encoder: [N, 384] float32 rows. Raises EmbedderUnavailable where the folder holds no sound model."""

    version = files.VERSION

    def __init__(self, folder: Path, *, threads: int = THREADS) -> None:
        place = files.converted(folder)
        files.check_converted(place)
        openvino = _openvino()
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(place / files.TOKENIZER))
        self._tokenizer.enable_truncation(files.MAX_TOKENS)
        self._tokenizer.enable_padding()  # to the longest: the file says 128, always
        core = openvino.Core()
        hints = _hints(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"), threads)
        try:
            self._request = core.compile_model(place / files.GRAPH, "CPU", hints).create_infer_request()
        except RuntimeError as error:
            raise EmbedderUnavailable(
                f"{place}: OpenVINO {openvino.__version__} cannot run it; {files.convert_again(place)}"
            ) from error

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        encoded = self._tokenizer.encode_batch(list(texts))
        tokens = np.array([each.ids for each in encoded], dtype=np.int64)  # [N, T]
        mask = np.array([each.attention_mask for each in encoded], dtype=np.int64)  # [N, T] 1 where a token is
        rows = self._request.infer({"input_ids": tokens, "attention_mask": mask})[0]
        unit_rows: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit_rows


def _hints(capabilities: Collection[str], threads: int) -> dict[str, Any]:
    """bfloat16 where the CPU computes in it; others would refuse it or emulate it."""
    precision = "bf16" if "BF16" in capabilities else "f32"
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
    }


def _openvino() -> Any:
    """The library; it is typed by nobody. Raises EmbedderUnavailable where it is not installed."""
    # Importing it reports that to a statistics server on the internet, unless this part of it cannot be found.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise EmbedderUnavailable(f"OpenVINO cannot be loaded ({error}); `pip install toolcache[openvino]`") from error
    return openvino


def convert(folder: Path) -> Path:
    """Write the converted model to its place in the folder, unless it is there; that place.

    Several processes may do so at once: the first to finish wins. Raises EmbedderUnavailable: the weights or what reads
    them are missing, the weights are not those we mean, the folder cannot be written.
    """
    place = files.converted(folder)
    if files.is_converted(folder):
        return place
    weights = files.published()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".converting-") as made:
            _write(_model(weights), weights, Path(made))
            _move(Path(made), place)
    except OSError as error:
        raise EmbedderUnavailable(
            f"{folder}: the converted model cannot be written ({error.strerror}); name another folder"
        ) from error
    return place


def _write(model: Any, weights: Path, place: Path) -> None:
    openvino = _openvino()
    # Weights in half precision, half the size: bfloat16 would round them further anyway.
    openvino.save_model(model, place / files.GRAPH, compress_to_fp16=True)
    shutil.copyfile(weights / files.TOKENIZER, place / files.TOKENIZER)
    files.write_manifest(place, f"openvino {openvino.__version__}")
    place.chmod(0o755)  # temporary folders are their owner's alone, a service may run as somebody else


def _move(made: Path, place: Path) -> None:
    try:
        made.rename(place)
    except OSError:
        if not files.is_converted(place.parent):  # else another process was first
            raise


def _model(weights: Path) -> Any:
    """From token ids and mask, [N, T] each, to mean-pooled rows [N, 384]."""
    openvino = _openvino()
    try:
        import torch
        from transformers import BertModel
    except ImportError as error:
        raise EmbedderUnavailable(
            f"to convert all-MiniLM-L6-v2 takes torch and transformers ({error}); `pip install toolcache[torch]`"
        ) from error

    class MeanPooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel.from_pretrained(weights, local_files_only=True).eval()  # type: ignore[no-untyped-call]

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            rows = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # [N, T, 384]
            mask: torch.Tensor = attention_mask.unsqueeze(-1).to(rows.dtype)
            means: torch.Tensor = (rows * mask).sum(dim=1) / mask.sum(dim=1)
            return means

    # Traced with two texts of eight tokens; other shapes are tested.
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    with torch.no_grad(), _quietly():
        return openvino.convert_model(MeanPooled(), example_input=example)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the remarks of the loader and the tracer on the published model."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.set_verbosity(before)
