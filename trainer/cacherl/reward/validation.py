"""The ruler of validation: one fixed formula, whatever reward training uses.

A training reward that changes with the tiers cannot tell whether the policy got better or the ruler longer
(most of the gain reported for the tier-aware reward was there at step 0). This one has no setting.
"""

ANSWER_WEIGHT = 0.60
"""Weight of R_answer: the weight of an exact answer in the training formula."""


def validation_reward(answer: float, process: float) -> float:
    """0.6 * R_answer + 0.4 * R_process, both 0..1.

    >>> validation_reward(1.0, 0.5)
    0.8
    """
    return ANSWER_WEIGHT * answer + (1.0 - ANSWER_WEIGHT) * process
