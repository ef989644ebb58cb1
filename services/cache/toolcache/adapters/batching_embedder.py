"""An Embedder around an encoder: few calls for many callers, none for a text the tenant asked before.

One thread runs the encoder. What is asked meanwhile waits, and the next round takes from all callers in turn, so that
one with a thousand texts, or with one endless text, holds nobody up for longer than a round.
All state belongs to the event loop; the thread sees nothing but lists of strings.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from toolcache.core.ports import EmbedderUnavailable, Vector

WINDOW_CHARACTERS = 500
"""The model reads 256 tokens and drops the rest, so texts that differ further on would be equal to it (cosine 1.0).
Longer texts are cut into windows that fit (English has 4 to 5 characters a token), and their rows averaged."""
ROUND_WINDOWS = 64
"""Taken at once from all that waits."""
BATCH_WINDOWS = 16
"""Given to the encoder at once, neighbours in length: each is padded to the longest, and padding costs like text."""
MEMOISED_TEXTS = 50_000
"""Texts whose vectors are kept, 1.9 KB each whatever the text's length: 95 MB at most."""
SLICE_TEXTS = 256
"""Texts of one caller looked at between two chances for others to run on the event loop."""

_Key = tuple[str, bytes]
"""Tenant, and digest of the text: a tenant must not learn from the time it takes what another one asked."""


class Encoder(Protocol):
    """A sentence model. Called by one thread at a time."""

    @property
    def version(self) -> str:
        """Names the model; vectors of two versions are never compared."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[N, D] rows of unit length, of at least one text. Raises EmbedderUnavailable where it cannot run at all."""
        ...


class BatchingEmbedder:
    """An Embedder. To be used from one event loop."""

    def __init__(self, encoder: Encoder, *, memoised_texts: int = MEMOISED_TEXTS) -> None:
        self._encoder = encoder
        self._memoised_texts = memoised_texts
        self._memo: OrderedDict[_Key, Vector] = OrderedDict()
        self._making: dict[_Key, _Text] = {}
        self._calls: deque[Iterator[_Window]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._worker: asyncio.Task[None] | None = None
        self.batches = 0
        """Given to the encoder so far."""
        self.texts = 0
        """Turned into vectors so far."""
        self.memo_hits = 0
        """Texts whose vector was remembered, once a call."""

    @property
    def version(self) -> str:
        return self._encoder.version

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Vector]:
        """A caller that is cancelled leaves its texts to be finished and memoised."""
        vectors: list[Vector] = []
        for start in range(0, len(texts), SLICE_TEXTS):
            if start:
                await asyncio.sleep(0)
            vectors += await self._embed(texts[start : start + SLICE_TEXTS], tenant)
        return vectors

    async def _embed(self, texts: Sequence[str], tenant: str) -> list[Vector]:
        keys = [_key(tenant, text) for text in texts]
        wanted = dict(zip(keys, texts, strict=True))
        known = {key: self._memo[key] for key in wanted if key in self._memo}
        for key in known:
            self._memo.move_to_end(key)
        self.memo_hits += len(known)
        if len(known) < len(wanted):
            known |= await self._made({key: text for key, text in wanted.items() if key not in known})
        return [known[key] for key in keys]

    async def _made(self, texts: dict[_Key, str]) -> dict[_Key, Vector]:
        new = {key: _Text(key, text) for key, text in texts.items() if key not in self._making}
        if new:
            self._making |= new
            self._calls.append(_windows(new.values()))
            if self._worker is None or self._worker.done():
                self._worker = asyncio.create_task(self._work())
        awaited = {key: self._making[key].outcome for key in texts}
        await asyncio.wait(awaited.values())  # not gather: who is cancelled here must not cancel what others wait for
        return {key: _vector_or_raise(outcome.result()) for key, outcome in awaited.items()}

    async def _work(self) -> None:
        """Make what waits, round by round, until nothing does."""
        try:
            while self._calls:
                windows, unfinished = self._round()
                for start in range(0, len(windows), BATCH_WINDOWS):
                    await self._encode(windows[start : start + BATCH_WINDOWS])
                self._calls += unfinished  # behind those that came meanwhile
        finally:  # cut short only where the program ends
            self._calls.clear()
            for text in list(self._making.values()):
                self._finish(text, EmbedderUnavailable("the embedder was stopped; ask again"))

    def _round(self) -> tuple[list[_Window], list[Iterator[_Window]]]:
        """What is made next, shortest first; and the call of which perhaps more is to be made."""
        windows: list[_Window] = []
        unfinished: list[Iterator[_Window]] = []
        while self._calls and len(windows) < ROUND_WINDOWS:
            call = self._calls.popleft()
            room = ROUND_WINDOWS - len(windows)
            taken = list(islice(call, room))
            windows += taken
            if len(taken) == room:
                unfinished.append(call)
        return sorted(windows, key=lambda window: len(window.characters)), unfinished

    async def _encode(self, windows: Sequence[_Window]) -> None:
        """Give each window's text its row. If that fails for all together, each is tried alone."""
        characters = [window.characters for window in windows]
        self.batches += 1
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._encoder.encode, characters)
        except Exception as error:  # noqa: BLE001 - whatever a runtime throws belongs to those who wait for these texts
            if len(windows) == 1 or isinstance(error, EmbedderUnavailable):
                for window in windows:
                    self._finish(window.text, error)
            else:
                for window in windows:
                    await self._encode([window])
            return
        for window, row in zip(windows, rows, strict=True):
            if window.text.add(row):
                self._finish(window.text, window.text.vector())

    def _finish(self, text: _Text, outcome: Vector | Exception) -> None:
        if text.outcome.done():
            return  # another of its windows failed before
        del self._making[text.key]
        text.outcome.set_result(outcome)
        if isinstance(outcome, bytes):
            self.texts += 1
            self._memo[text.key] = outcome
            if len(self._memo) > self._memoised_texts:
                self._memo.popitem(last=False)


@dataclass(slots=True)
class _Text:
    """A text on its way to a vector."""

    key: _Key
    characters: str
    outcome: asyncio.Future[Vector | Exception] = field(default_factory=asyncio.Future)
    """An error is a value here: one that nobody waits for any more is no news."""
    _missing: int = field(init=False)
    _sum: NDArray[np.float32] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._missing = max(1, math.ceil(len(self.characters) / WINDOW_CHARACTERS))

    def add(self, row: NDArray[np.float32]) -> bool:
        """Whether this was the last window's row."""
        self._sum = row if self._sum is None else self._sum + row
        self._missing -= 1
        return self._missing == 0

    def vector(self) -> Vector:
        assert self._sum is not None
        vector: Vector = (self._sum / np.linalg.norm(self._sum)).astype("<f4").tobytes()
        return vector


@dataclass(frozen=True, slots=True)
class _Window:
    text: _Text
    characters: str


def _windows(texts: Iterable[_Text]) -> Iterator[_Window]:
    """Cut as they are asked for: an endless text is not copied at once, nor one gone on with that has failed."""
    for text in texts:
        for start in range(0, max(1, len(text.characters)), WINDOW_CHARACTERS):
            if text.outcome.done():
                break
            # JSON may hold halves of surrogate pairs, which no tokenizer takes.
            cut = text.characters[start : start + WINDOW_CHARACTERS].encode("utf-8", "replace").decode()
            yield _Window(text, cut)


def _key(tenant: str, text: str) -> _Key:
    return tenant, hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _vector_or_raise(outcome: Vector | Exception) -> Vector:
    match outcome:
        case bytes():
            return outcome
        case EmbedderUnavailable():
            raise EmbedderUnavailable(str(outcome)) from outcome
        case _:
            # Its words may quote the text, which belongs in no log.
            raise EmbedderUnavailable(f"a text could not be embedded ({type(outcome).__name__})") from outcome
