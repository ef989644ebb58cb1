"""How far an answer can be trusted: counted, not declared.

Evidence for a kind of answer of one tool is how often serving it would have been right, over pairs of recorded
entries: each entry in turn is asked for as if it were missing, and what would have been served is compared with what
was recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

SIMILAR_FLOOR = 0.9
"""Least trust with which a similar answer is served. With the prior below it takes 8 right pairs out of 8."""


class Reason(StrEnum):
    """Why an answer is what it is. A closed list: the API documents each one."""

    RECORDED = "recorded"
    """exact: this call was recorded in this state."""
    CONFLICT = "conflict"
    """exact, but this call was recorded with different results: the most frequent one is served."""
    FREE_TEXT = "free_text"
    """similar: only the wording of free text differs."""
    IRRELEVANT = "irrelevant"
    """similar: only arguments differ that were never seen to matter."""
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
    """miss: a similar answer exists, but the tool's measured trust is too low or too little was measured."""
    NO_VECTORS = "no_vectors"
    """miss: the embedder is away, or was when the candidates were recorded; so only exact answers are given."""
    UNKNOWN_TOOL = "unknown_tool"
    """miss: the namespace has no such tool."""
    INVALID_ARGUMENTS = "invalid_arguments"
    """miss: not recorded, and against the tool's schema."""
    NOT_CANONICAL = "not_canonical"
    """miss: the arguments have no canonical form (NaN, a lone surrogate, too deep)."""
    STATE_UNKNOWN = "state_unknown"
    """miss: the item follows one whose effect is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """How many answers of one kind would have been served, and how many of those were right."""

    right: int = 0
    served: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.served:
            raise ValueError(f"{self.right} right of {self.served} served")

    def plus(self, *, right: bool) -> Evidence:
        return Evidence(right=self.right + right, served=self.served + 1)


def trust(reason: Reason, evidence: Evidence) -> float:
    """Probability that an answer given for `reason` is right.

    * recorded: 1 by construction, as long as no repetition of a call contradicted the first; then as for similar,
      over the repetitions.
    * similar: mean of the Beta posterior from a uniform prior, (right + 1) / (served + 2) (Laplace).
    * approximate: the same from the prior Beta(1, 4), whose mean 0.2 is what guesses reach on recorded benchmarks.

    >>> trust(Reason.FREE_TEXT, Evidence(right=8, served=8)), trust(Reason.NEAREST, Evidence())
    (0.9, 0.2)
    """
    match reason:
        case Reason.RECORDED | Reason.CONFLICT:
            return (evidence.right + 1) / (evidence.served + 2) if evidence.served else 1.0
        case Reason.FREE_TEXT | Reason.IRRELEVANT:
            return (evidence.right + 1) / (evidence.served + 2)
        case Reason.OTHER_STATE | Reason.NEAREST:
            return (evidence.right + 1) / (evidence.served + 5)
        case (
            Reason.NOT_RECORDED
            | Reason.WRITE
            | Reason.BELOW_THRESHOLD
            | Reason.BELOW_FLOOR
            | Reason.NO_VECTORS
            | Reason.UNKNOWN_TOOL
            | Reason.INVALID_ARGUMENTS
            | Reason.NOT_CANONICAL
            | Reason.STATE_UNKNOWN
        ):
            return 0.0
        case _:
            assert_never(reason)
