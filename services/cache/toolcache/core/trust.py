"""How far an answer can be trusted: counted, not declared.

Evidence for a kind of answer of one tool is how often serving it would have been right: over pairs of recorded
entries (calibration.py), and over shadow executions, where what was served is compared with what a live call returned.
Answers that come with a similarity are counted in bands of it, and a higher band is taken to be no worse than a lower
one (isotonic regression by pooling adjacent violators; Zadrozny and Elkan, KDD 2002).

Trust is the expected share of right answers and is told with every answer. Whether a kind is served at all is decided
by what is proven of it, the lower bound of an interval: eight right answers of eight are trusted with 0.9, and prove no
more than 0.68.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

BAND_EDGES = (-1.0, 0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
"""Lower edges of the bands of cosine similarity; finer where rewordings lie."""
Z_95 = 1.96
"""Standard normal quantile of a two-sided interval of 95 %."""
ENOUGH_TO_REFUTE = 5
"""Answers of a kind that were compared before they can take it away: one wrong answer is no pattern."""


class Reason(StrEnum):
    """Why an answer is what it is. A closed list: the API documents each one."""

    RECORDED = "recorded"
    """exact: this call was recorded in this state."""
    MASKED = "masked"
    """exact: recorded in this state with other values in the masked parts of its arguments."""
    CONFLICT = "conflict"
    """exact, but this call was recorded with different results: the most frequent one is served."""
    SAMPLED = "sampled"
    """exact: a sample of a stochastic tool, one draw of many that are as good."""
    FREE_TEXT = "free_text"
    """similar: only the wording of free text differs."""
    IRRELEVANT = "irrelevant"
    """similar: only arguments differ that were never seen to matter."""
    SIMULATED = "simulated"
    """similar: a write that differs in wording only, answered without being executed, as the tool's policy allows."""
    LINEAGE = "lineage"
    """similar: recorded in this very state, but the state follows a simulated write."""
    OTHER_STATE = "other_state"
    """approximate: the same call, recorded in another state."""
    NEAREST = "nearest"
    """approximate: the nearest other call of the tool."""
    NOT_RECORDED = "not_recorded"
    """miss: nothing that passes the guards is recorded."""
    WRITE = "write"
    """miss: not recorded, and a write is never guessed."""
    BELOW_THRESHOLD = "below_threshold"
    """miss: candidates passed the guards, none is similar enough."""
    BELOW_FLOOR = "below_floor"
    """miss: a similar answer exists, but its kind is not proven: too few were compared, or too many were wrong."""
    NO_VECTORS = "no_vectors"
    """miss: the embedder is away, or was when the candidates were recorded; so only exact answers are given."""
    LEASED = "leased"
    """miss: another caller executes it, and the time to wait for its result is over."""
    SAMPLES_EXHAUSTED = "samples_exhausted"
    """miss: the rollouts of the group have had all recorded samples of this stochastic call, and more are wanted."""
    EXPIRED = "expired"
    """miss: recorded, but its time is over."""
    UNKNOWN_TOOL = "unknown_tool"
    """miss: the namespace has no such tool."""
    INVALID_ARGUMENTS = "invalid_arguments"
    """miss: not recorded, and against the tool's schema."""
    NOT_CANONICAL = "not_canonical"
    """miss: the arguments have no canonical form (NaN, a lone surrogate, too deep)."""
    STATE_UNKNOWN = "state_unknown"
    """miss: the item follows one whose effect is not known."""


BANDED = frozenset((Reason.FREE_TEXT, Reason.SIMULATED, Reason.NEAREST))
"""Reasons whose answers were ranked by similarity, so that their evidence depends on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """How many answers of one kind would have been served, and how many of those were right."""

    right: int = 0
    served: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.served:
            raise ValueError(f"{self.right} right of {self.served} served")

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(right=self.right + other.right, served=self.served + other.served)

    def plus(self, *, right: bool) -> Evidence:
        return Evidence(right=self.right + right, served=self.served + 1)


NONE = Evidence()


def kind(reason: Reason, score: float | None = None) -> str:
    """The name under which evidence for such an answer is kept.

    A conflict is counted as what it is, a recorded call. An answer that was ranked but comes without its similarity
    cannot be put into a band and has a kind of its own.

    >>> kind(Reason.IRRELEVANT), kind(Reason.CONFLICT), kind(Reason.FREE_TEXT, 0.93), kind(Reason.FREE_TEXT)
    ('irrelevant', 'recorded', 'free_text@0.90', 'free_text')
    """
    if reason is Reason.CONFLICT:
        return Reason.RECORDED.value
    if reason not in BANDED or score is None:
        return reason.value
    return f"{reason.value}@{BAND_EDGES[band(score)]:.2f}"


def band(score: float) -> int:
    """The place in BAND_EDGES of the band a similarity lies in; rounding errors beyond -1 belong to the first.

    >>> band(-1.0), band(0.85), band(0.8499), band(1.0)
    (0, 6, 5, 9)
    """
    return max(0, bisect_right(BAND_EDGES, score) - 1)


def trust(reason: Reason, evidence: Evidence) -> float:
    """Probability that an answer given for `reason` is right.

    * exact: 1 by construction, as long as no repetition of a call contradicted another; then as for similar, over the
      repetitions. A sample of a stochastic tool is one draw of its distribution, and as true as any other.
    * similar: mean of the Beta posterior from a uniform prior, (right + 1) / (served + 2) (Laplace).
    * approximate: the same from the prior Beta(1, 4), whose mean 0.2 is what guesses reach on recorded benchmarks.

    >>> trust(Reason.FREE_TEXT, Evidence(right=38, served=38)), trust(Reason.NEAREST, Evidence())
    (0.975, 0.2)
    """
    match reason:
        case Reason.SAMPLED:
            return 1.0
        case Reason.RECORDED | Reason.CONFLICT | Reason.MASKED | Reason.LINEAGE:
            return 1.0 if evidence.right == evidence.served else (evidence.right + 1) / (evidence.served + 2)
        case Reason.FREE_TEXT | Reason.IRRELEVANT | Reason.SIMULATED:
            return (evidence.right + 1) / (evidence.served + 2)
        case Reason.OTHER_STATE | Reason.NEAREST:
            return (evidence.right + 1) / (evidence.served + 5)
        case (
            Reason.NOT_RECORDED
            | Reason.WRITE
            | Reason.BELOW_THRESHOLD
            | Reason.BELOW_FLOOR
            | Reason.NO_VECTORS
            | Reason.LEASED
            | Reason.SAMPLES_EXHAUSTED
            | Reason.EXPIRED
            | Reason.UNKNOWN_TOOL
            | Reason.INVALID_ARGUMENTS
            | Reason.NOT_CANONICAL
            | Reason.STATE_UNKNOWN
        ):
            return 0.0
        case _:
            assert_never(reason)


def wilson_lower(right: int, served: int, z: float = Z_95) -> float:
    """Lower bound of the Wilson score interval of a proportion (E. B. Wilson, JASA 22:209, 1927); 0 of nothing.

    Without a wrong answer it is n / (n + z^2): a floor of 0.9 takes 35 of 35.

    >>> round(wilson_lower(35, 35), 4), round(wilson_lower(34, 34), 4), wilson_lower(0, 0)
    (0.9011, 0.8985, 0.0)
    """
    return _wilson(right, served, -z)


def wilson_upper(right: int, served: int, z: float = Z_95) -> float:
    """Upper bound of the same interval; 1 of nothing."""
    return _wilson(right, served, z)


def _wilson(right: int, served: int, signed_z: float) -> float:
    if not served:
        return 0.0 if signed_z < 0 else 1.0
    share, z2 = right / served, signed_z * signed_z
    spread = math.sqrt(share * (1 - share) / served + z2 / (4 * served * served))
    bound = (share + z2 / (2 * served) + signed_z * spread) / (1 + z2 / served)
    return min(1.0, max(0.0, bound))  # rounding would leave 0..1 by an ulp


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the evidence says about answers of one kind."""

    trust: float
    lower: float
    """What share of right answers is proven: a lower bound of it."""
    upper: float
    """What share nothing has refuted yet."""

    @property
    def proven(self) -> float:
        """The share that is proven, not refuted, and expected: more similar answers that are wrong count against less
        similar ones, through the pooled trust."""
        return min(self.lower, self.upper, self.trust)


def verdicts(reason: Reason, recorded: Sequence[Evidence], shadows: Sequence[Evidence]) -> list[Verdict]:
    """One for each band, of rising similarity, from recorded pairs and shadow executions.

    * trust: the posterior mean of the band, pooled with its neighbours until it rises with the similarity.
    * lower: the best Wilson bound of the band's evidence with that of any run of bands right below it. What is known of
      less similar answers holds for this band too; what is known of more similar ones proves nothing here.
    * upper: that of the band's own evidence, or of its shadow executions if they say less. Recordings tell what was
      asked then, shadow executions what is asked now: however many recorded pairs agreed, they can take a tier away.

    The best of ten bounds is right a little less often than one; shadow executions are there to find out.

    >>> both = verdicts(Reason.FREE_TEXT, [Evidence(right=20, served=20), Evidence(right=30, served=30)], [NONE, NONE])
    >>> [round(each.lower, 3) for each in both]  # 20 of 20; 50 of 50
    [0.839, 0.929]
    """
    all_of_it = [a + b for a, b in zip(recorded, shadows, strict=True)]
    trusts = _pooled_trusts(reason, all_of_it)
    found: list[Verdict] = []
    for i, own in enumerate(all_of_it):
        lower = max(found[-1].lower if found else 0.0, _best_lower(all_of_it[: i + 1]))
        upper = min(_upper(own), _upper(shadows[i]))
        found.append(Verdict(trust=trusts[i], lower=lower, upper=upper))
    return found


def _pooled_trusts(reason: Reason, bands: Sequence[Evidence]) -> list[float]:
    """Pool adjacent violators: the nearest trusts that do not fall from band to band."""
    blocks: list[tuple[int, Evidence]] = []  # bands, their evidence
    for evidence in bands:
        count = 1
        while blocks and trust(reason, blocks[-1][1]) >= trust(reason, evidence):
            more, below = blocks.pop()
            count, evidence = count + more, below + evidence
        blocks.append((count, evidence))
    return [trust(reason, evidence) for count, evidence in blocks for _ in range(count)]


def _best_lower(bands: Sequence[Evidence]) -> float:
    """The best bound over the last band with none, one, two ... of those before it."""
    best, run = 0.0, NONE
    for evidence in reversed(bands):
        run = run + evidence
        best = max(best, wilson_lower(run.right, run.served))
    return best


def _upper(evidence: Evidence) -> float:
    return wilson_upper(evidence.right, evidence.served) if evidence.served >= ENOUGH_TO_REFUTE else 1.0
