"""An engine that says what a script tells it: the default engine of the tests."""

from collections.abc import Callable, Sequence

from cacherl.rollout.engine import Generation, Sampling
from cacherl.rollout.renderer import END_OF_TURN, Tokenizer

LOGPROB = -0.5
"""Log-probability given to every scripted token."""


class ScriptedEngine:
    """Answers each prompt (as text) with a scripted completion text, `<|im_end|>` added, cut at the token budget.

    A script says what it says: `min_tokens`, temperature and seed change nothing.
    """

    def __init__(self, tokenizer: Tokenizer, reply: Callable[[str], str]) -> None:
        self.samplings: list[Sampling] = []
        """How it was asked to continue, in order."""
        self._tokenizer = tokenizer
        self._reply = reply

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        self.samplings.append(sampling)
        said = self._reply(self._tokenizer.decode(prompt_ids)) + END_OF_TURN
        ids = self._tokenizer.encode(said)
        kept = tuple(ids[: sampling.max_tokens])
        return Generation(
            ids=kept,
            logprobs=(LOGPROB,) * len(kept),
            finish_reason="stop" if len(kept) == len(ids) else "length",
        )


def by_turn(*completions: str) -> Callable[[str], str]:
    """A script that says its completions in order, one a turn, and the last one ever after."""

    def reply(prompt: str) -> str:
        turn = prompt.count("<|im_start|>assistant") - 1
        return completions[min(turn, len(completions) - 1)]

    return reply
