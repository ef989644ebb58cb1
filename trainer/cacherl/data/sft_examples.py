"""From recorded trajectories to SFT examples, through the renderer that RL and evaluation use.

Calls and results stay byte for byte. Not covered: adding a teacher's reasoning to recordings that have none.
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
) -> SftSet:
    """Render every wanted trajectory of at most `max_tokens` tokens. Longer ones are left out, never cut."""
    examples: list[Example] = []
    unwanted = too_long = without_assistant = 0
    for trajectory in trajectories:
        if not is_wanted(trajectory):
            unwanted += 1
        elif not any(message["role"] == "assistant" for message in trajectory.messages):
            without_assistant += 1
        elif len((example := renderer.example(trajectory.messages)).ids) > max_tokens:
            too_long += 1
        else:
            examples.append(example)
    return SftSet(examples=tuple(examples), unwanted=unwanted, too_long=too_long, without_assistant=without_assistant)
