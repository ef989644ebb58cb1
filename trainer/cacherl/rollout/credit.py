"""How much each token of a rollout counts in the policy gradient: fully, as far as answers can be trusted, or not.

Not covered: advantages, which compare rollouts (train/advantages.py); whole rollouts that must not be trained on
(`StopReason.is_void`, `StopReason.is_overlong`).
"""

from collections.abc import Iterator
from typing import Literal

from cacherl.rollout.rollout import Rollout

CreditBy = Literal["uniform", "trust"]
"""Every sampled token counts 1, or as much as the answers up to its turn can be trusted."""
VoidTurns = Literal["mask", "score"]
"""Whether turns with neither a usable call nor visible text are left out of the gradient or count like the others."""


def token_credit(rollout: Rollout, *, by: CreditBy, void_turns: VoidTurns) -> tuple[float, ...]:
    """Weight of each id of the rollout, in its order: 0..1, and 0.0 wherever the mask is 0.

    By trust a turn weighs as much as the least trusted answer to its own calls and those of all turns before it. So
    what was said on the ground of a guess counts less, and so does the turn that asked for it, since its reward came
    about through the guess. A call that was answered by nobody (a miss that the model read as an error) has trust 0:
    it and all that follows teach nothing.
    """
    credit = [0.0] * len(rollout.ids)
    trust_by_turn = _trust_by_turn(rollout) if by == "trust" else iter([1.0] * len(rollout.turns))
    for turn, trust in zip(rollout.turns, trust_by_turn, strict=True):
        weight = 0.0 if turn.is_void and void_turns == "mask" else trust
        credit[turn.start : turn.end] = [weight] * (turn.end - turn.start)
    return tuple(credit)


def _trust_by_turn(rollout: Rollout) -> Iterator[float]:
    """For each turn, the lowest trust among the answers up to and with it."""
    lowest = 1.0
    for place in range(len(rollout.turns)):
        answered = (call.trust for call in rollout.calls if call.turn == place and call.tier is not None)
        lowest = min([lowest, *answered])
        yield lowest
