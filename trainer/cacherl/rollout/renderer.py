"""One renderer for SFT, GRPO and evaluation: messages in, token ids and loss mask out.

The chat format is Qwen3's ChatML with thinking. Every piece is tokenised on its own (prompt, completion, tool
delta), exactly as it happens while a rollout is played, so that a recorded trajectory gives the ids a sampled
one would have given. Text that a model produced while playing never passes through here again: its ids are kept.

Not covered: marks such as <|im_end|> inside a user's or a tool's text are encoded as marks, as the original
template does; a multimodal message; templates other than Qwen3's.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from cacherl.errors import RendererMisfit

END_OF_TURN = "<|im_end|>"
THINK_CLOSE = "</think>"
CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"
MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    END_OF_TURN,
    "<think>",
    THINK_CLOSE,
    CALL_OPEN,
    CALL_CLOSE,
    "<tool_response>",
    "</tool_response>",
)
"""Strings that must be one token each."""

Message = Mapping[str, Any]
"""One message of the OpenAI chat format."""


class Tokenizer(Protocol):
    """What the renderer needs of a tokenizer; `encode` adds nothing at either end."""

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
    """Messages to token ids.

    `tools` (OpenAI tool objects) puts Qwen3's `# Tools` block into the system message; without it the schemas are
    taken as known to the model. Raises RendererMisfit where a mark of the format is not a single token.
    """

    def __init__(self, tokenizer: Tokenizer, *, tools: Sequence[Mapping[str, Any]] | None = None) -> None:
        self.tokenizer = tokenizer
        self.tools = tuple(tools or ())
        self.mark_ids = {mark: _single_id(tokenizer, mark) for mark in MARKS}
        self.end_of_turn_id = self.mark_ids[END_OF_TURN]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The text before the model's first token, up to and with `<think>` and its newline."""
        system, rest = _split_system(messages)
        return _system_text(system, self.tools) + "".join(_outside_texts(rest)) + _ASSISTANT_OPENS

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of `prompt_text`."""
        return self.tokenizer.encode(self.prompt_text(messages))

    def tool_delta_ids(self, results: Sequence[str]) -> list[int]:
        """Ids to append after `<|im_end|>` when the calls of a turn were answered, in request order. All mask 0."""
        return self.delta_ids([{"role": "tool", "content": result} for result in results])

    def delta_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids between one `<|im_end|>` of the model and its next token: tool results or a user's next message."""
        return self.tokenizer.encode("\n" + "".join(_outside_texts(messages)) + _ASSISTANT_OPENS)

    def completion_ids(self, message: Message) -> list[int]:
        """Ids the model should have sampled to say this recorded assistant message, `<|im_end|>` included."""
        return [*self.tokenizer.encode(completion_text(message)), self.end_of_turn_id]

    def example(self, messages: Sequence[Message]) -> Example:
        """A recorded trajectory as ids and loss mask; what follows the last assistant message is left out.

        Raises ValueError when there is no assistant message.
        """
        ids: list[int] = []
        mask: list[int] = []
        outside: list[Message] = []
        for message in messages:
            if message["role"] != "assistant":
                outside.append(message)
                continue
            before = self.delta_ids(outside) if ids else self.prompt_ids(outside)
            said = self.completion_ids(message)
            ids += before + said
            mask += [0] * len(before) + [1] * len(said)
            outside = []
        if not ids:
            raise ValueError("a trajectory without an assistant message trains nothing")
        return Example(ids=tuple(ids), loss_mask=tuple(mask))


def completion_text(message: Message) -> str:
    r"""What the model says for this message, after `<think>\n` and before `<|im_end|>`.

    >>> completion_text({"role": "assistant", "content": "Done."})
    '\n</think>\n\nDone.'
    """
    thinking, content = thinking_and_content(message)
    calls = [_call_text(call["function"]) for call in message.get("tool_calls") or ()]
    said = "\n".join(filter(None, [content, *calls]))
    return f"{thinking}\n{THINK_CLOSE}\n\n{said}"


def thinking_and_content(message: Message) -> tuple[str, str]:
    """Thinking (`reasoning_content`, or what stands before `</think>` in the content) and visible content."""
    content = message.get("content") or ""
    reasoning = message.get("reasoning_content")
    if reasoning is None and THINK_CLOSE in content:
        head, _, content = content.rpartition(THINK_CLOSE)
        reasoning = head.partition(THINK_CLOSE)[0].rpartition("<think>")[2]
    return (reasoning or "").strip("\n"), content.lstrip("\n")


_ASSISTANT_OPENS = "<|im_start|>assistant\n<think>\n"


def _outside_texts(messages: Sequence[Message]) -> Iterator[str]:
    """Text of messages the model did not say; tool results that follow one another share one user turn."""
    for role, run in groupby(messages, key=lambda message: message["role"]):
        if role == "tool":
            responses = "".join(f"\n<tool_response>\n{message['content']}\n</tool_response>" for message in run)
            yield f"<|im_start|>user{responses}{END_OF_TURN}\n"
        else:
            for message in run:
                yield f"<|im_start|>{role}\n{message['content']}{END_OF_TURN}\n"


def _split_system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages


def _system_text(system: str | None, tools: Sequence[Mapping[str, Any]]) -> str:
    if not tools:
        return "" if system is None else f"<|im_start|>system\n{system}{END_OF_TURN}\n"
    lead = "" if system is None else f"{system}\n\n"
    # Only `type` and `function` belong to the prompt; `effect` is ours and would give the model a hint it never has.
    schemas = "".join(
        "\n" + json.dumps({"type": tool["type"], "function": tool["function"]}, ensure_ascii=False) for tool in tools
    )
    return (
        f"<|im_start|>system\n{lead}# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>{schemas}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n'
        f"</tool_call>{END_OF_TURN}\n"
    )


def _call_text(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    # Recorded arguments are JSON text and stay byte for byte, broken ones too.
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'{CALL_OPEN}\n{{"name": "{function["name"]}", "arguments": {text}}}\n{CALL_CLOSE}'


def _single_id(tokenizer: Tokenizer, mark: str) -> int:
    ids = tokenizer.encode(mark)
    if len(ids) != 1:
        raise RendererMisfit(f"{mark} is {len(ids)} tokens, not one: add it to the tokenizer's special tokens")
    return ids[0]
