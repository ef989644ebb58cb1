"""The converted model gives torch's vectors without torch, and is written once, whole, from the right weights alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from toolcache.adapters import minilm_files as files
from toolcache.adapters import openvino_embedder
from toolcache.adapters.minilm_embedder import SentenceTransformersEncoder
from toolcache.adapters.openvino_embedder import OpenVinoEncoder, _hints, convert
from toolcache.commands import embedder as command
from toolcache.commands.failure import CommandFailed
from toolcache.core.ports import EmbedderUnavailable

TEXTS = [
    "",
    "a lamp",
    "how do I get my money back",
    'get_order_details {"order_id": "#W0034567"}',
    'search_flights {"origin": "BOS", "destination": "MCO", "date": "2024-05-18", "cabin": "economy"}',
    "Grüße aus Köln, 你好, 😀",
    "we would like to know a little more about the things that you sell in your shop. " * 6,
    "? " * 250,
    "!" * 500,  # 500 tokens, of which the model reads 254
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "new"
    convert(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> OpenVinoEncoder:
    return OpenVinoEncoder(folder)


@pytest.fixture(scope="module")
def torch_rows() -> np.ndarray:
    return SentenceTransformersEncoder().encode(TEXTS)


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(folder, tmp_path / "models")
    return tmp_path / "models"


def least_cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum(axis=1).min())


# -- what it computes --------------------------------------------------------------------------------------------------


def test_its_vectors_are_those_of_torch(encoder: OpenVinoEncoder, torch_rows: np.ndarray) -> None:
    rows = encoder.encode(TEXTS)
    assert (rows.shape, rows.dtype) == ((len(TEXTS), 384), np.float32)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert least_cosine(rows, torch_rows) > 0.9998


def test_a_text_alone_has_the_vector_it_has_in_company(encoder: OpenVinoEncoder) -> None:
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert least_cosine(alone, encoder.encode(TEXTS)) > 0.9998


def test_a_cpu_without_bfloat16_computes_in_float32(
    folder: Path, torch_rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _hints(["FP32", "BF16", "INT8"], 1)["INFERENCE_PRECISION_HINT"] == "bf16"
    monkeypatch.setattr(openvino_embedder, "_hints", lambda _, threads: _hints(["FP32", "INT8"], threads))
    encoder = OpenVinoEncoder(folder)
    assert "float" in str(encoder._request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT"))
    assert least_cosine(encoder.encode(TEXTS), torch_rows) > 0.99999


def test_texts_are_padded_to_the_longest_of_them_and_no_further(encoder: OpenVinoEncoder) -> None:
    encoder.encode(["a lamp", "a red lamp"])
    assert list(encoder._request.get_tensor("input_ids").shape) == [2, 5]  # [CLS] a red lamp [SEP]
    encoder.encode(["!" * 500])
    assert list(encoder._request.get_tensor("input_ids").shape) == [1, 256]


def test_it_runs_on_as_many_threads_as_it_is_told(folder: Path) -> None:
    for threads in (1, 2):
        compiled = OpenVinoEncoder(folder, threads=threads)._request.get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == threads


def test_it_needs_neither_torch_nor_transformers_and_reports_to_nobody(folder: Path, tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from toolcache.adapters.minilm_embedder import best_encoder
encoder = best_encoder(Path(sys.argv[1]))
assert encoder.encode(["a lamp"]).shape == (1, 384)
assert "openvino" in sys.modules
unwanted = ("torch", "transformers", "sentence_transformers", "openvino_telemetry")
print({name for name in unwanted if sys.modules.get(name) is not None})
"""
    environ = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False, env=environ
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
    assert list(tmp_path.iterdir()) == []


# -- how it is written -------------------------------------------------------------------------------------------------


def test_the_folder_says_what_it_was_made_from_and_by_what(folder: Path) -> None:
    place = files.converted(folder)
    assert place.name == "all-MiniLM-L6-v2-1"
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["version"] == files.VERSION
    assert manifest["weights_sha256"] == files.PUBLISHED["model.safetensors"]
    assert manifest["runtime"].startswith("openvino 20")
    assert {each.name for each in place.iterdir()} == {"manifest.json", *manifest["files"]}
    assert list(folder.iterdir()) == [place]


def test_another_user_can_read_it(folder: Path) -> None:
    assert files.converted(folder).stat().st_mode & 0o777 == 0o755


def test_what_is_converted_already_is_left_alone(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(openvino_embedder, "_model")
    assert convert(own_folder) == files.converted(own_folder)


def test_other_weights_are_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(files.PUBLISHED, "model.safetensors", "0" * 64)
    with pytest.raises(EmbedderUnavailable, match=r"model\.safetensors: sha256 .* instead of 0{12}"):
        convert(tmp_path / "models")
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_that_convert_at_once_the_first_wins(
    own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, first = files.converted(own_folder), tmp_path / "first"
    place.rename(first)

    def overtaken(model: object, weights: Path, made: Path) -> None:
        (made / "model.xml").write_text("the second")
        first.rename(place)

    monkeypatch.setattr(openvino_embedder, "_model", lambda _: None)
    monkeypatch.setattr(openvino_embedder, "_write", overtaken)
    assert convert(own_folder) == place
    files.check_converted(place)
    assert list(own_folder.iterdir()) == [place]


def test_a_conversion_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: object, weights: Path, made: Path) -> None:
        (made / "model.bin").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openvino_embedder, "_model", lambda _: None)
    monkeypatch.setattr(openvino_embedder, "_write", full)
    with pytest.raises(EmbedderUnavailable, match=r"cannot be written \(No space left on device\); name another"):
        convert(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_torch_the_conversion_says_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EmbedderUnavailable, match=r"pip install toolcache\[torch\]"):
        convert(tmp_path)


# -- how it is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.bin", "model.xml", "tokenizer.json"])
def test_a_damaged_file_is_named_and_the_way_out_told(name: str, own_folder: Path) -> None:
    damaged = files.converted(own_folder) / name
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    with pytest.raises(
        EmbedderUnavailable, match=rf"{name}: sha256 .*remove .* and convert again: `toolcache embedder"
    ):
        OpenVinoEncoder(own_folder)


def test_a_missing_file_is_named_and_the_way_out_told(own_folder: Path) -> None:
    (files.converted(own_folder) / "model.bin").unlink()
    with pytest.raises(EmbedderUnavailable, match=r"model\.bin: cannot be read .* and convert again"):
        OpenVinoEncoder(own_folder)


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"weights_sha256": "1", "files": 2}'])
def test_a_manifest_that_is_none_is_named_and_the_way_out_told(manifest: str, own_folder: Path) -> None:
    (files.converted(own_folder) / "manifest.json").write_text(manifest)
    with pytest.raises(EmbedderUnavailable, match=r"manifest\.json: cannot be read .* and convert again"):
        OpenVinoEncoder(own_folder)


def test_a_model_made_from_other_weights_is_refused(own_folder: Path) -> None:
    path = files.converted(own_folder) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": "0" * 64}))
    with pytest.raises(EmbedderUnavailable, match="made from other weights"):
        OpenVinoEncoder(own_folder)


def test_a_model_that_this_openvino_cannot_run_is_named_and_the_way_out_told(own_folder: Path) -> None:
    place = files.converted(own_folder)
    (place / "model.xml").write_text("<net><of another='age'/></net>")
    files.write_manifest(place, "openvino 2099")
    with pytest.raises(EmbedderUnavailable, match=r"OpenVINO 20.* cannot run it; remove .* and convert again"):
        OpenVinoEncoder(own_folder)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_says_where_the_model_lies_and_how_to_serve_with_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.convert(folder)
    assert capsys.readouterr().out == (
        f"{files.converted(folder)}: 46 MB; serve with TOOLCACHE_EMBEDDER_DIR={folder}\n"
    )


def test_the_command_fails_with_one_line_for_people(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandFailed, match=r"file: the converted model cannot be written .*; name another folder"):
        command.convert(tmp_path / "file")
