"""From recorded trajectories to SFT examples, through the renderer that RL and evaluation use.

Calls and results stay byte for byte. A token takes 16 bytes of memory, and every process of a run holds all examples.
Not covered: adding a teacher's reasoning to recordings that have none; data sets beyond memory.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cacherl.data.trajectories import Trajectory
from cacherl.rollout.renderer import Example, Renderer


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSet:
    """Examples, and how many trajectories gave none."""

    examples: tuple[Example, ...]
    unwanted: int
    """Filtered out by the caller."""
    too_long: int
    without_assistant: int


def sft_examples(
    trajectories: Iterable[Trajectory],
    renderer: Renderer,
    *,
    max_tokens: int,
    is_wanted: Callable[[Trajectory], bool] = lambda trajectory: True,
    progress: Callable[[int], None] | None = None,
) -> SftSet:
    """Render every wanted trajectory of at most `max_tokens` tokens. Longer ones are left out, never cut.

    `progress` is told the number of trajectories that are done, after each of them.
    """
    examples: list[Example] = []
    unwanted = too_long = without_assistant = 0
    known: dict[int, int] = {}
    for done, trajectory in enumerate(trajectories, start=1):
        if not is_wanted(trajectory):
            unwanted += 1
        elif not any(message["role"] == "assistant" for message in trajectory.messages):
            without_assistant += 1
        elif len((example := renderer.example(trajectory.messages)).ids) > max_tokens:
            too_long += 1
        else:
            examples.append(_sharing(example, known))
        if progress is not None:
            progress(done)
    return SftSet(examples=tuple(examples), unwanted=unwanted, too_long=too_long, without_assistant=without_assistant)


def _sharing(example: Example, known: dict[int, int]) -> Example:
    """The same example, its ids drawn from those `known` and added to them: equal numbers lie in memory once."""
    # A tokenizer makes a new int of 28 bytes for every token.
    return Example(ids=tuple(known.setdefault(token, token) for token in example.ids), loss_mask=example.loss_mask)
