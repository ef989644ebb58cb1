"""Few encoder calls for many callers, none for what is remembered, and nobody pays for another's trouble."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toolcache.adapters import batching_embedder
from toolcache.adapters.batching_embedder import BATCH_WINDOWS, ROUND_WINDOWS, WINDOW_CHARACTERS, BatchingEmbedder
from toolcache.core.ports import EmbedderUnavailable, Vector


def row(text: str) -> NDArray[np.float32]:
    """What the fake encoder makes of a text: sixteen times +1/4 or -1/4, of length 1 to the last bit."""
    bits = np.unpackbits(np.frombuffer(hashlib.sha256(text.encode()).digest()[:2], dtype=np.uint8))
    return (bits.astype(np.float32) - 0.5) / 2


def vector(text: str) -> Vector:
    vector: Vector = row(text).tobytes()
    return vector


class FakeEncoder:
    """Notes what it is given, chokes on what begins with "poison", and can be held up."""

    version = "fake/1"

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.error: Exception | None = None
        self.is_entered = threading.Semaphore(0)
        self.may_go = threading.Event()
        self.may_go.set()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.batches.append(list(texts))
        self.is_entered.release()
        assert self.may_go.wait(30)
        if self.error is not None:
            raise self.error
        if any(text.startswith("poison") for text in texts):
            raise RuntimeError("could not tokenise: poison")
        return np.stack([row(text) for text in texts])

    async def is_stuck(self) -> None:
        assert await asyncio.to_thread(self.is_entered.acquire, timeout=30)

    @property
    def encoded(self) -> list[str]:
        return [text for batch in self.batches for text in batch]


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def embedder(encoder: FakeEncoder) -> BatchingEmbedder:
    return BatchingEmbedder(encoder)


async def turns(count: int = 10) -> None:
    """Let every task that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_it_bears_the_version_of_its_encoder(embedder: BatchingEmbedder) -> None:
    assert embedder.version == "fake/1"


async def test_sixty_four_callers_cost_four_encoder_calls(embedder: BatchingEmbedder, encoder: FakeEncoder) -> None:
    texts = [f"text {n}" for n in range(64)]
    answers = await asyncio.gather(*(embedder.embed([text], tenant="t") for text in texts))
    assert len(encoder.batches) == 64 / BATCH_WINDOWS == 4
    assert answers == [[vector(text)] for text in texts]


async def test_what_comes_while_the_encoder_works_goes_together_into_the_next_call(
    embedder: BatchingEmbedder, encoder: FakeEncoder
) -> None:
    encoder.may_go.clear()
    first = asyncio.create_task(embedder.embed(["first"], tenant="t"))
    await encoder.is_stuck()
    others = [asyncio.create_task(embedder.embed([f"other {n}"], tenant=f"t{n}")) for n in range(10)]
    await turns()
    encoder.may_go.set()
    await asyncio.gather(first, *others)
    assert [len(batch) for batch in encoder.batches] == [1, 10]


async def test_batches_hold_neighbours_in_length(embedder: BatchingEmbedder, encoder: FakeEncoder) -> None:
    texts = ["x" * (1 + 7 * n % 61) + str(n) for n in range(48)]
    answers = await embedder.embed(texts, tenant="t")
    assert [len(text) for text in encoder.encoded] == sorted(map(len, texts))
    assert answers == [vector(text) for text in texts]


async def test_a_remembered_text_needs_neither_encoder_nor_thread(
    embedder: BatchingEmbedder, encoder: FakeEncoder
) -> None:
    before = await embedder.embed(["a", "b", "a"], tenant="t")
    assert sorted(encoder.encoded) == ["a", "b"]
    assert before[0] == before[2] != before[1]
    encoder.may_go.clear()
    stuck = asyncio.create_task(embedder.embed(["c"], tenant="t"))
    await encoder.is_stuck()
    assert await embedder.embed(["b", "a"], tenant="t") == [before[1], before[0]]
    assert not stuck.done()
    encoder.may_go.set()
    await stuck
    assert sorted(encoder.encoded) == ["a", "b", "c"]


async def test_a_text_that_is_being_made_is_not_made_twice(embedder: BatchingEmbedder, encoder: FakeEncoder) -> None:
    one, other = await asyncio.gather(embedder.embed(["a", "b"], tenant="t"), embedder.embed(["b", "c"], tenant="t"))
    assert one[1] == other[0]
    assert sorted(encoder.encoded) == ["a", "b", "c"]


async def test_tenants_learn_nothing_from_each_other(embedder: BatchingEmbedder, encoder: FakeEncoder) -> None:
    await asyncio.gather(embedder.embed(["secret"], tenant="one"), embedder.embed(["secret"], tenant="two"))
    await embedder.embed(["secret"], tenant="three")
    assert encoder.encoded == ["secret"] * 3


async def test_it_counts_batches_texts_and_what_was_remembered(
    embedder: BatchingEmbedder, encoder: FakeEncoder
) -> None:
    await embedder.embed(["a" * WINDOW_CHARACTERS * (BATCH_WINDOWS + 1), "b"], tenant="t")
    await embedder.embed(["b", "c", "b"], tenant="t")
    with pytest.raises(EmbedderUnavailable):
        await embedder.embed(["poison"], tenant="t")
    assert (embedder.batches, embedder.texts, embedder.memo_hits) == (4, 3, 1)
    assert embedder.batches == len(encoder.batches)


async def test_of_remembered_texts_the_one_unused_for_longest_is_forgotten(encoder: FakeEncoder) -> None:
    embedder = BatchingEmbedder(encoder, memoised_texts=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        await embedder.embed([text], tenant="t")
    assert encoder.encoded == ["a", "b", "c", "b"]


async def test_more_texts_than_are_remembered_are_answered_all_the_same(encoder: FakeEncoder) -> None:
    embedder = BatchingEmbedder(encoder, memoised_texts=2)
    await embedder.embed(["a", "b"], tenant="t")
    texts = ["a", "x", "y", "z", "b", "a"]
    answers = await embedder.embed(texts, tenant="t")
    assert answers == [vector(text) for text in texts]


async def test_a_text_that_cannot_be_embedded_fails_its_own_call_alone(
    embedder: BatchingEmbedder, encoder: FakeEncoder
) -> None:
    calls = [["a", "b"], ["c", "poison"], ["d"]]
    answers = await asyncio.gather(*(embedder.embed(texts, tenant="t") for texts in calls), return_exceptions=True)
    assert isinstance(answers[1], EmbedderUnavailable)
    assert "RuntimeError" in str(answers[1])
    assert "poison" not in str(answers[1])
    assert answers[0] == [vector("a"), vector("b")]
    assert answers[2] == [vector("d")]
    assert await embedder.embed(["c"], tenant="t") == [vector("c")]


async def test_of_a_text_that_cannot_be_embedded_no_more_is_tried(
    embedder: BatchingEmbedder, encoder: FakeEncoder
) -> None:
    with pytest.raises(EmbedderUnavailable):
        await embedder.embed(["poison" + "x" * WINDOW_CHARACTERS * 1_000], tenant="t")
    assert embedder._worker is not None
    await embedder._worker
    assert len(encoder.encoded) <= 2 * ROUND_WINDOWS


async def test_a_text_that_failed_can_be_asked_again_while_the_rest_of_it_still_fails(
    embedder: BatchingEmbedder,
) -> None:
    text = "poison".ljust(WINDOW_CHARACTERS) * 3
    for _ in range(2):
        with pytest.raises(EmbedderUnavailable, match="RuntimeError"):
            await asyncio.wait_for(embedder.embed([text], tenant="t"), 30)


async def test_without_an_encoder_every_call_is_told_so_at_once_and_later_ones_try_again(
    embedder: BatchingEmbedder, encoder: FakeEncoder
) -> None:
    encoder.error = EmbedderUnavailable("install something")
    calls = [embedder.embed([f"text {n}"], tenant="t") for n in range(BATCH_WINDOWS)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["install something"] * BATCH_WINDOWS
    assert len(encoder.batches) == 1
    encoder.error = None
    assert await embedder.embed(["text 0"], tenant="t") == [vector("text 0")]


async def test_a_caller_that_gives_up_harms_nobody_who_waits_for_the_same(
    embedder: BatchingEmbedder, encoder: FakeEncoder
) -> None:
    encoder.may_go.clear()
    gone = asyncio.create_task(embedder.embed(["a", "b"], tenant="t"))
    await encoder.is_stuck()
    stays = asyncio.create_task(embedder.embed(["b", "c"], tenant="t"))
    await turns()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    encoder.may_go.set()
    assert await stays == [vector("b"), vector("c")]
    assert await embedder.embed(["a"], tenant="t") == [vector("a")]
    assert sorted(encoder.encoded) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "endless", [[f"text {n}" for n in range(1_000)], ["long " * 100 * 1_000]], ids=["texts", "text"]
)
async def test_beside_an_endless_call_one_text_waits_for_the_round_under_way_and_its_own_at_most(
    endless: list[str], embedder: BatchingEmbedder, encoder: FakeEncoder
) -> None:
    encoder.may_go.clear()
    long = asyncio.create_task(embedder.embed(endless, tenant="t"))
    await encoder.is_stuck()
    short = asyncio.create_task(embedder.embed(["hello"], tenant="u"))
    await turns()
    encoder.may_go.set()
    assert await short == [vector("hello")]
    assert encoder.encoded.index("hello") < 2 * ROUND_WINDOWS
    assert not long.done()
    await long
    assert len(encoder.encoded) == 1_001


async def test_a_long_text_is_the_mean_of_its_windows(embedder: BatchingEmbedder, encoder: FakeEncoder) -> None:
    windows = ["a" * WINDOW_CHARACTERS, "b" * WINDOW_CHARACTERS, "c"]
    (answer,) = await embedder.embed(["".join(windows)], tenant="t")
    mean = np.mean([row(window) for window in windows], axis=0)
    assert np.frombuffer(answer, "<f4") == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
    assert sorted(encoder.encoded) == sorted(windows)


async def test_the_empty_text_and_no_text_at_all_are_answered(embedder: BatchingEmbedder, encoder: FakeEncoder) -> None:
    assert await embedder.embed([], tenant="t") == []
    assert encoder.batches == []
    assert await embedder.embed([""], tenant="t") == [vector("")]


async def test_half_a_surrogate_pair_reaches_no_encoder_but_its_text_has_a_vector(
    embedder: BatchingEmbedder, encoder: FakeEncoder
) -> None:
    half, other_half = await embedder.embed(["a \ud83d b", "a \ude00 b"], tenant="t")
    assert encoder.encoded == ["a ? b", "a ? b"]
    assert half == other_half == vector("a ? b")


async def test_many_remembered_texts_let_others_have_their_turn(
    embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching_embedder, "SLICE_TEXTS", 2)
    await embedder.embed(["a", "b", "c"], tenant="t")
    other = asyncio.create_task(asyncio.sleep(0))
    await embedder.embed(["a", "b", "c", "a", "b"], tenant="t")
    assert other.done()


def test_a_program_that_ends_in_the_middle_leaves_an_embedder_that_works(
    embedder: BatchingEmbedder, encoder: FakeEncoder
) -> None:
    async def end_in_the_middle() -> None:
        encoder.may_go.clear()
        call = asyncio.create_task(embedder.embed(["a"], tenant="t"))
        await encoder.is_stuck()
        call.cancel()

    async def again() -> list[Vector]:
        return await asyncio.wait_for(embedder.embed(["a"], tenant="t"), 30)

    asyncio.run(end_in_the_middle())
    encoder.may_go.set()
    assert asyncio.run(again()) == [vector("a")]


CALLS = st.lists(
    st.tuples(st.sampled_from(["t", "u"]), st.lists(st.sampled_from(["a", "b", "c", "d" * 1200, "e" * 501, ""])))
)


@settings(deadline=None, max_examples=60)
@given(calls=CALLS, memoised=st.integers(1, 4))
def test_answers_are_those_of_each_text_alone_however_calls_meet(
    calls: list[tuple[str, list[str]]], memoised: int
) -> None:
    async def play() -> list[list[Vector]]:
        embedder = BatchingEmbedder(FakeEncoder(), memoised_texts=memoised)
        return await asyncio.gather(*(embedder.embed(texts, tenant=tenant) for tenant, texts in calls))

    async def alone(text: str) -> Vector:
        (answer,) = await BatchingEmbedder(FakeEncoder()).embed([text], tenant="t")
        return answer

    for answers, (_, texts) in zip(asyncio.run(play()), calls, strict=True):
        assert answers == [asyncio.run(alone(text)) for text in texts]
