"""Which tasks a step plays, and which ones may stand in for those that teach nothing: by seed and step alone.

So a resumed run, and one with another number of processes, plays what the uninterrupted one would have played.
"""

import math
import random
from collections.abc import Sequence

_OTHER_STREAM = 7919
"""Parts the stand-ins' random stream from others that count steps from the same seed."""


def task_order(tasks: int, *, steps: int, prompts_per_step: int, seed: int) -> list[int]:
    """Task indices of all steps, one after another: `prompts_per_step` different ones each.

    Pass after pass over all tasks, each in an order of its own; what is too few for a step at a pass's end is left
    out of it. Raises ValueError where the tasks are fewer than a step needs.
    """
    import torch  # late: what merely imports this file (a run's settings, a report) needs no framework

    if tasks < prompts_per_step:
        raise ValueError(f"{tasks} tasks are fewer than prompts_per_step = {prompts_per_step}")
    chance = torch.Generator().manual_seed(seed)
    wanted = steps * prompts_per_step
    order: list[int] = []
    while len(order) < wanted:
        order += torch.randperm(tasks, generator=chance).tolist()[: tasks - tasks % prompts_per_step]
    return order[:wanted]


def stand_ins(tasks: int, step_tasks: Sequence[int], *, share: float, step: int, seed: int) -> list[tuple[int, ...]]:
    """For each place of a step, the tasks that may replace its own, in the order in which they are tried.

    No task stands twice, none is one of the step's own; the last places go without where there are too few tasks.
    The number of tries of all places together is `share` * places, rounded up at most.

    >>> [len(tries) for tries in stand_ins(100, [3, 1, 4, 15], share=0.5, step=0, seed=0)]
    [0, 1, 0, 1]
    """
    places = len(step_tasks)
    own = set(step_tasks)
    counts = [_tries(place, step, share) for place in range(places)]
    chance = random.Random((seed * 1_000_003 + step) * _OTHER_STREAM)
    drawn = chance.sample(range(tasks), min(tasks, sum(counts) + places))
    free = iter([task for task in drawn if task not in own])
    tries: list[list[int]] = [[] for _ in range(places)]
    for attempt in range(max(counts, default=0)):
        for place in range(places):
            if attempt < counts[place] and (task := next(free, None)) is not None:
                tries[place].append(task)
    return [tuple(each) for each in tries]


def _tries(place: int, step: int, share: float) -> int:
    """Evenly spread over the places; moved on by one each step, so that no place is always left out."""
    at = place + step
    return math.floor((at + 1) * share) - math.floor(at * share)
