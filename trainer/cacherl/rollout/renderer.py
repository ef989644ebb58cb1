"""One renderer for SFT, GRPO and evaluation: messages in, token ids and loss mask out.

Every piece is tokenised on its own (prompt, completion, tool delta), exactly as it happens while a rollout is played,
so that a recorded trajectory gives the ids a sampled one would have given. Text that a model produced while playing
never passes through here again: its ids are kept.

Tokenising the whole conversation at once gives the same ids wherever pieces meet at a mark, which is one token. They
meet elsewhere only between the opening of a turn and the model's first token, and there only whitespace can differ:
after `<think>\\n` an empty thought begins with a newline of its own, which a tokenizer that knows "\\n\\n" would have
drawn together. A model that continues the prompt cannot say that token, so the pieces are right.

The text of each format, and where it differs from the published templates on purpose, is chat_format.py's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cacherl.errors import RendererMisfit
from cacherl.rollout.chat_format import (
    CALL_CLOSE,
    CALL_OPEN,
    END_OF_TURN,
    MARKS,
    THINK_CLOSE,
    ChatFormat,
    Message,
    completion_text,
    delta_text,
    turn_texts,
)

__all__ = [
    "CALL_CLOSE",
    "CALL_OPEN",
    "END_OF_TURN",
    "MARKS",
    "THINK_CLOSE",
    "ChatFormat",
    "Example",
    "Message",
    "Renderer",
    "Tokenizer",
    "completion_text",
]


class Tokenizer(Protocol):
    """What the renderer needs of a tokenizer; `encode` adds nothing at either end, and both may run in threads."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A trajectory ready for SFT: ids and, of equal length, the mask (1 = the model is to say this token)."""

    ids: tuple[int, ...]
    loss_mask: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.loss_mask):
            raise ValueError(f"{len(self.ids)} ids but {len(self.loss_mask)} mask values")


class Renderer:
    """Messages to token ids, in one chat format. Keeps no state, so that threads may share it.

    `tools` (OpenAI tool objects) puts Qwen3's `# Tools` block into the system message; without it the schemas are
    taken as known to the model. Raises RendererMisfit where a mark of the format is not a single token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat: ChatFormat = ChatFormat.QWEN3_THINKING,
    ) -> None:
        self.tokenizer = tokenizer
        self.tools = tuple(tools or ())
        self.chat = chat
        self.mark_ids = {mark: _single_id(tokenizer, mark) for mark in MARKS}
        self.end_of_turn_id = self.mark_ids[END_OF_TURN]
        self.close_thinking_ids = tuple(tokenizer.encode(f"\n{THINK_CLOSE}\n\n{END_OF_TURN}"))
        """What ends a turn whose thinking was not closed, in place of the sampled `<|im_end|>`. All mask 0."""

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The text before the model's next token. Earlier turns keep their thinking."""
        return "".join(turn_texts(messages, tools=self.tools, chat=self.chat))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of `prompt_text`, each turn tokenised on its own as it would have been played."""
        texts = turn_texts(messages, tools=self.tools, chat=self.chat)
        return [token for text in texts for token in self.tokenizer.encode(text)]

    def tool_delta_ids(self, results: Sequence[str]) -> list[int]:
        """Ids to append after `<|im_end|>` when the calls of a turn were answered, in request order. All mask 0."""
        return self.delta_ids([{"role": "tool", "content": result} for result in results])

    def delta_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids between one `<|im_end|>` of the model and its next token: tool results or a user's next message."""
        return self.tokenizer.encode(delta_text(messages, self.chat))

    def completion_ids(self, message: Message) -> list[int]:
        """Ids the model should have sampled to say this recorded assistant message, `<|im_end|>` included."""
        return self.tokenizer.encode(completion_text(message, self.chat) + END_OF_TURN)

    def example(self, messages: Sequence[Message]) -> Example:
        """A recorded trajectory as ids and loss mask; what follows the last assistant message is left out.

        Raises ValueError when there is no assistant message.
        """
        *texts, _ = turn_texts(messages, tools=self.tools, chat=self.chat)
        if not texts:
            raise ValueError("a trajectory without an assistant message trains nothing")
        ids: list[int] = []
        mask: list[int] = []
        for place, text in enumerate(texts):
            piece = self.tokenizer.encode(text)
            ids += piece
            mask += [place % 2] * len(piece)  # heard and said take turns
        return Example(ids=tuple(ids), loss_mask=tuple(mask))


def _single_id(tokenizer: Tokenizer, mark: str) -> int:
    ids = tokenizer.encode(mark)
    if len(ids) != 1:
        raise RendererMisfit(f"{mark} is {len(ids)} tokens, not one: add it to the tokenizer's special tokens")
    if tokenizer.decode(ids) != mark:  # one token for all that is unknown
        raise RendererMisfit(f"{mark} is not in the tokenizer's vocabulary: add it to its special tokens")
    return ids[0]
