from collections.abc import Callable

import pytest

from cacherl.reward.tier_aware import TierAwareReward, TierWeights
from cacherl.rollout.rollout import CallRecord

MakeCall = Callable[..., CallRecord]


def test_the_papers_formula_pays_a_wrong_guess_more_than_an_honest_failure(make_call: MakeCall) -> None:
    paper = TierAwareReward(freed_weight="process")
    # Wrong answers in perfect form: R_answer 0, R_process 1.
    wrong_guess = paper(0.0, 1.0, [make_call(tier="approximate")])
    honest_failure = paper(0.0, 1.0, [make_call(tier="exact")])
    assert wrong_guess.total == pytest.approx(0.10 * 0 + 0.90 * 1)
    assert honest_failure.total == pytest.approx(0.60 * 0 + 0.40 * 1)


def test_freed_weight_none_pays_neither_more_and_still_spares_the_guess(make_call: MakeCall) -> None:
    ours = TierAwareReward(freed_weight="none")
    guess, exact = [make_call(tier="approximate")], [make_call(tier="exact")]
    assert ours(0.0, 1.0, guess).total == pytest.approx(0.40)
    assert ours(0.0, 1.0, exact).total == pytest.approx(0.40)
    # What is at stake on the answer is 0.1 after a guess and 0.6 after exact results.
    assert ours(1.0, 1.0, guess).total == pytest.approx(0.50)
    assert ours(1.0, 1.0, exact).total == pytest.approx(1.00)


@pytest.mark.parametrize(
    ("tiers", "worst", "mean"),
    [
        (["exact", "live"], 0.60, 0.60),
        (["exact", "similar"], 0.30, 0.45),
        (["exact", "similar", "approximate"], 0.10, 1.0 / 3),
        (["exact", "miss"], 0.0, 0.30),
        ([], 0.60, 0.60),
    ],
)
def test_a_comes_from_the_worst_tier_or_the_mean(
    make_call: MakeCall, tiers: list[str], worst: float, mean: float
) -> None:
    calls = [make_call(tier=tier) for tier in tiers]
    assert TierAwareReward(over="worst").answer_weight(calls) == pytest.approx(worst)
    assert TierAwareReward(over="mean").answer_weight(calls) == pytest.approx(mean)


def test_trust_weighs_continuously(make_call: MakeCall) -> None:
    calls = [make_call(tier="similar", trust=0.9), make_call(tier="approximate", trust=0.2)]
    assert TierAwareReward(by="trust").answer_weight(calls) == pytest.approx(0.6 * 0.2)
    assert TierAwareReward(by="trust", over="mean").answer_weight(calls) == pytest.approx(0.6 * 0.55)


def test_calls_nobody_answered_do_not_lower_the_weight(make_call: MakeCall) -> None:
    assert TierAwareReward().answer_weight([make_call(), make_call(tier=None, trust=0.0)]) == 0.60


def test_a_mixed_reward_worked_out_by_hand(make_call: MakeCall) -> None:
    reward = TierAwareReward(freed_weight="process", over="mean", weights=TierWeights(similar=0.4))
    got = reward(0.5, 0.8, [make_call(tier="exact"), make_call(tier="similar")])
    # a = (0.6 + 0.4) / 2 = 0.5; 0.5 * 0.5 + 0.5 * 0.8 = 0.65
    assert (got.answer_weight, got.process_weight) == (0.5, 0.5)
    assert got.total == pytest.approx(0.65)
