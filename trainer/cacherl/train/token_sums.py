"""What the update sees of the trained tokens, summed so that passes and processes add up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSums:
    """Sums over trained tokens; log r = trainer logprob - engine logprob, nats."""

    tokens: int = 0
    entropy: float = 0.0
    """Of the policy at each token, nats."""
    log_ratio: float = 0.0
    """log r."""
    ratio: float = 0.0
    """r."""
    truncated: int = 0
    """Tokens with r above the cap."""
    largest: float = 0.0
    """Largest |log r|: no sum, but it adds up as well."""

    def __add__(self, other: TokenSums) -> TokenSums:
        return TokenSums(
            tokens=self.tokens + other.tokens,
            entropy=self.entropy + other.entropy,
            log_ratio=self.log_ratio + other.log_ratio,
            ratio=self.ratio + other.ratio,
            truncated=self.truncated + other.truncated,
            largest=max(self.largest, other.largest),
        )

    def metrics(self) -> dict[str, float | None]:
        """Means a token, by the names step_metrics.py explains; null without tokens.

        k1 = mean of -log r and k3 = mean of r - 1 - log r estimate the same divergence, KL(engine, trainer), from the
        engine's samples: the second with less noise, and never below 0.

        >>> TokenSums(tokens=2, log_ratio=0.5, ratio=3.0).metrics()["mismatch_k3"]
        0.25
        """
        count = self.tokens
        return {
            "entropy": self.entropy / count if count else None,
            "mismatch_k1": -self.log_ratio / count if count else None,
            "mismatch_k3": (self.ratio - count - self.log_ratio) / count if count else None,
            "mismatch_max": self.largest if count else None,
            "correction_ratio": self.ratio / count if count else None,
            "correction_truncated": self.truncated / count if count else None,
        }
