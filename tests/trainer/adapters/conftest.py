"""Engines that take long to start, shared by the tests that can share them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.trainer.adapters.engines import Kind, Opened, opened


@pytest.fixture(scope="session")
def open_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Opened]]:
    """open_once(kind, temperature=1.0): the engine and its model; who changes its weights sets them back.

    One at a time of a kind, as a process can have only one vLLM; with is_new=True it is nobody else's.
    """
    found: dict[Kind, tuple[float, Opened, ExitStack]] = {}

    def close(kind: Kind) -> None:
        if kind in found:
            found.pop(kind)[2].close()

    def open_engine(kind: Kind, temperature: float = 1.0, *, is_new: bool = False) -> Opened:
        if is_new or kind not in found or found[kind][0] != temperature:
            close(kind)
            stack = ExitStack()
            folder = tmp_path_factory.mktemp(kind)
            one = stack.enter_context(opened(kind, folder, temperature=temperature))
            found[kind] = (temperature, one, stack)
        return found[kind][1]

    yield open_engine
    for kind in tuple(found):
        close(kind)
