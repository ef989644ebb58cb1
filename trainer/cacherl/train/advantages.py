"""Advantages of the rollouts of one group."""

from collections.abc import Sequence
from statistics import fmean


def group_advantages(rewards_G: Sequence[float | None]) -> list[float]:
    """Advantages A_i = r_i - mean(r) of the rollouts of one task, in their order.

    Not divided by the standard deviation, which would weight tasks by their difficulty (Dr. GRPO,
    arXiv:2503.20783) and can turn the update round when a stochastic tool result is shared by the group. Equal
    rewards give zeros. None marks a void rollout: out of the mean, advantage 0.

    >>> group_advantages([1.0, 0.0, 0.0, 1.0])
    [0.5, -0.5, -0.5, 0.5]
    >>> group_advantages([1.0, None, 0.0])
    [0.5, 0.0, -0.5]
    """
    scored = [reward for reward in rewards_G if reward is not None]
    # Not left to the subtraction: the mean of three 0.7 is not 0.7, and "is all zero" decides what is replaced.
    if len(set(scored)) < 2:
        return [0.0] * len(rewards_G)
    baseline = fmean(scored)
    return [0.0 if reward is None else reward - baseline for reward in rewards_G]
