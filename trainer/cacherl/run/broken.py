"""Whether what was played says anything about the model, or only that something else broke."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cacherl.errors import RunStopped
from cacherl.rollout.rollout import Rollout, StopReason


def refuse_broken(rollouts: Sequence[Rollout]) -> None:
    """Raises RunStopped, with the commonest reason, where an infrastructure failure ended more than half of them.

    A few such rollouts are left out of every number. Most of them means that engine, cache or tools are down, and
    numbers made of the rest would be kept as if they were the model's.
    """
    broken = [rollout.why for rollout in rollouts if rollout.stop is StopReason.INFRASTRUCTURE]
    if 2 * len(broken) > len(rollouts):
        why, count = Counter(broken).most_common(1)[0]
        raise RunStopped(
            f"{len(broken)} of {len(rollouts)} rollouts broke off, {count} of them with: {why or 'no reason told'}; "
            "nothing was kept of these: mend it, then --resume plays them again"
        )
