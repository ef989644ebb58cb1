"""How sure a measured number is: 95 % intervals for a share and for a mean."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval and the count it rests on."""

    value: float
    low: float
    high: float
    count: int

    @property
    def ci95(self) -> tuple[float, float]:
        return self.low, self.high


def wilson(successes: int, count: int) -> Estimate:
    """A share with Wilson's score interval (Wilson 1927), which stays in 0..1 and is honest near its ends.

    Without any trial the interval is all of 0..1 and the value NaN.

    >>> e = wilson(8, 10)
    >>> (round(e.low, 4), round(e.high, 4))
    (0.4902, 0.9433)
    """
    if count == 0:
        return Estimate(value=math.nan, low=0.0, high=1.0, count=0)
    share, z2 = successes / count, Z95 * Z95
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == count else centre + half
    return Estimate(value=share, low=low, high=high, count=count)


def bootstrap_mean(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """A mean with its percentile-bootstrap interval (Efron 1979): no normality is assumed of values in 0..1.

    One value, or equal ones, give an interval of width zero: the bootstrap cannot see beyond its sample.

    >>> bootstrap_mean([0.5, 0.5, 0.5]).ci95
    (0.5, 0.5)
    """
    if not values:
        return Estimate(value=math.nan, low=math.nan, high=math.nan, count=0)
    rng = random.Random(seed)
    means = sorted(fmean(rng.choices(values, k=len(values))) for _ in range(resamples))
    low, high = means[int(0.025 * resamples)], means[min(resamples - 1, int(0.975 * resamples))]
    return Estimate(value=fmean(values), low=low, high=high, count=len(values))


def interval(number: Mapping[str, Any]) -> str:
    """A share or mean in 0..1 as it is written down, {"value": ..., "ci95": [...]}, for people.

    >>> interval({"value": 0.5, "ci95": [0.25, 0.75]})
    '50.0% (25.0% to 75.0%)'
    """
    if number["value"] is None:
        return "-"
    low, high = number["ci95"]
    return f"{number['value']:.1%} ({low:.1%} to {high:.1%})"
