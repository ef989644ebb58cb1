"""Qwen3's chat format as text: how a conversation reads in each of its variants, and which variant a template writes.

Text only; ids and masks are made in renderer.py. The text is that of the published chat templates, byte for byte, but
for what a rollout cannot do without, as its ids are only ever appended to:

* The thinking of every turn is kept. The thinking and hybrid templates drop it from turns before the last user message.
* Every turn of one conversation opens alike. The templates leave the empty thinking block out of a turn without
  thinking that is not the last; here it stays, since the prompt of that turn held it, or the model had said it.
* QWEN3_HYBRID_QUIET leaves recorded thinking out: its prompt says that there is none.
* Of a tool only `type` and `function` are told to the model, whatever else its object holds.

Not covered: marks such as <|im_end|> inside a user's or a tool's text stay marks, as in the templates; content other
than text; templates other than Qwen3's.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import groupby
from typing import Any, Final

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cacherl.errors import RendererMisfit

END_OF_TURN: Final = "<|im_end|>"
THINK_OPEN: Final = "<think>"
THINK_CLOSE: Final = "</think>"
CALL_OPEN: Final = "<tool_call>"
CALL_CLOSE: Final = "</tool_call>"
MARKS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    END_OF_TURN,
    THINK_OPEN,
    THINK_CLOSE,
    CALL_OPEN,
    CALL_CLOSE,
    "<tool_response>",
    "</tool_response>",
)
"""Strings that must be one token each."""

Message = Mapping[str, Any]
"""One message of the OpenAI chat format."""


class ChatFormat(StrEnum):
    """A variant of Qwen3's chat format; they differ in who writes the thinking block, if there is one."""

    QWEN3_THINKING = "qwen3-thinking"
    """Thinking-2507: the prompt opens `<think>`, so every generation starts inside it."""
    QWEN3_INSTRUCT = "qwen3-instruct"
    """Instruct-2507: no thinking anywhere; what a message calls its thinking is not rendered."""
    QWEN3_HYBRID = "qwen3-hybrid"
    """Qwen3: the model says `<think>` itself."""
    QWEN3_HYBRID_QUIET = "qwen3-hybrid-quiet"
    """Qwen3 with `enable_thinking=False`: the prompt holds an empty thinking block."""

    @property
    def opening(self) -> str:
        """What every prompt ends with: all that stands before the first token of a turn."""
        return "<|im_start|>assistant\n" + _BLOCK_IN_PROMPT[self]


_BLOCK_IN_PROMPT: Final = {
    ChatFormat.QWEN3_THINKING: f"{THINK_OPEN}\n",
    ChatFormat.QWEN3_INSTRUCT: "",
    ChatFormat.QWEN3_HYBRID: "",
    ChatFormat.QWEN3_HYBRID_QUIET: f"{THINK_OPEN}\n\n{THINK_CLOSE}\n\n",
}
_REASONING_KEYS: Final = ("reasoning_content", "thinking", "reasoning")
"""Names under which recordings keep a message's thinking; the first that is there counts."""


def turn_texts(messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]], chat: ChatFormat) -> Iterator[str]:
    """The conversation, cut where the speaker changes: heard, said, heard, ..., said, heard.

    What is said ends with `<|im_end|>`. What is heard ends with the opening of the next turn, the last one too, so
    that all of it together is a prompt. Raises ValueError for a message that has no text or an unknown role.
    """
    system, rest = _split_system(messages)
    outside: list[Message] = []
    before = _system_text(system, tools)
    for message in rest:
        if message["role"] != "assistant":
            outside.append(message)
            continue
        yield before + _outside_text(outside) + chat.opening
        yield completion_text(message, chat) + END_OF_TURN
        outside, before = [], "\n"
    yield before + _outside_text(outside) + chat.opening


def delta_text(messages: Sequence[Message], chat: ChatFormat) -> str:
    """What stands between one `<|im_end|>` of the model and its next token."""
    return "\n" + _outside_text(messages) + chat.opening


def completion_text(message: Message, chat: ChatFormat = ChatFormat.QWEN3_THINKING) -> str:
    r"""What the model says for this assistant message, after `chat.opening` and before `<|im_end|>`.

    >>> completion_text({"role": "assistant", "content": "Done."})
    '\n</think>\n\nDone.'
    >>> completion_text({"role": "assistant", "content": "Done."}, ChatFormat.QWEN3_HYBRID)
    '<think>\n\n</think>\n\nDone.'
    """
    if chat is ChatFormat.QWEN3_INSTRUCT:
        thinking, content = "", _text(message)
        shown = content
    else:
        thinking, content = _thinking_and_content(message)
        shown = content.lstrip("\n")
    # A content of newlines alone shows nothing, and still parts from the calls: so do the templates.
    said = "\n".join([*([shown] if content else []), *map(_call_text, message.get("tool_calls") or ())])
    match chat:
        case ChatFormat.QWEN3_THINKING:
            return f"{thinking}\n{THINK_CLOSE}\n\n{said}"
        case ChatFormat.QWEN3_HYBRID:
            return f"{THINK_OPEN}\n{thinking}\n{THINK_CLOSE}\n\n{said}"
        case ChatFormat.QWEN3_INSTRUCT | ChatFormat.QWEN3_HYBRID_QUIET:
            return said


def recognise(chat_template: str) -> ChatFormat:
    """The format that a tokenizer's chat template writes, told by what it makes of two conversations.

    A hybrid template is QWEN3_HYBRID: whether it shall be quiet is the caller's wish. Raises RendererMisfit where the
    template writes none of them, with the place where it departs from the nearest.
    """
    written = "\n".join(_rendered(chat_template, messages, tools) for messages, tools in _PROBES)
    candidates = (ChatFormat.QWEN3_THINKING, ChatFormat.QWEN3_INSTRUCT, ChatFormat.QWEN3_HYBRID)
    expected = {
        chat: "\n".join("".join(turn_texts(messages, tools=tools, chat=chat)) for messages, tools in _PROBES)
        for chat in candidates
    }
    for chat in candidates:
        if written == expected[chat]:
            return chat
    agreed = {chat: _common_length(written, expected[chat]) for chat in candidates}
    nearest = max(candidates, key=agreed.__getitem__)
    place = agreed[nearest]
    raise RendererMisfit(
        f"the chat template is none of Qwen3's: it departs from {nearest} where that says "
        f"{expected[nearest][place : place + 40]!r}, after {written[max(place - 40, 0) : place]!r}, "
        f"and writes {written[place : place + 40]!r}"
    )


def _outside_text(messages: Sequence[Message]) -> str:
    """Messages the model did not say; tool results that follow one another share one user turn."""
    texts: list[str] = []
    for role, run in groupby(messages, key=lambda message: message["role"]):
        if role == "tool":
            responses = "".join(f"\n<tool_response>\n{_text(message)}\n</tool_response>" for message in run)
            texts.append(f"<|im_start|>user{responses}{END_OF_TURN}\n")
        elif role in ("user", "system"):
            texts += [f"<|im_start|>{role}\n{_text(message)}{END_OF_TURN}\n" for message in run]
        else:
            raise ValueError(f"a message of role {role!r} cannot stand outside the model's turns")
    return "".join(texts)


def _split_system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    if messages and messages[0]["role"] == "system":
        return _text(messages[0]), messages[1:]
    return None, messages


def _system_text(system: str | None, tools: Sequence[Mapping[str, Any]]) -> str:
    if not tools:
        return "" if system is None else f"<|im_start|>system\n{system}{END_OF_TURN}\n"
    lead = "" if system is None else f"{system}\n\n"
    # Whatever else a tool's object holds is ours: `effect` would give the model a hint that it never has.
    told = ({key: tool[key] for key in tool if key in ("type", "function")} for tool in tools)
    schemas = "".join("\n" + _json(tool) for tool in told)
    return (
        f"<|im_start|>system\n{lead}# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>{schemas}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n'
        f"</tool_call>{END_OF_TURN}\n"
    )


def _thinking_and_content(message: Message) -> tuple[str, str]:
    """Thinking, by its own key or from what stands before `</think>` in the content, and the content without it."""
    content = _text(message)
    reasoning = next((message[key] for key in _REASONING_KEYS if message.get(key) is not None), None)
    if not isinstance(reasoning, str):
        reasoning = ""
        if THINK_CLOSE in content:
            reasoning = content.partition(THINK_CLOSE)[0].rpartition(THINK_OPEN)[2]
            content = content.rpartition(THINK_CLOSE)[2].lstrip("\n")
    return reasoning.strip("\n"), content


def _call_text(call: Mapping[str, Any]) -> str:
    function = call.get("function") or call
    arguments = function["arguments"]
    # Recorded arguments are JSON text and stay byte for byte, broken ones too.
    text = arguments if isinstance(arguments, str) else _json(arguments)
    return f'{CALL_OPEN}\n{{"name": "{function["name"]}", "arguments": {text}}}\n{CALL_CLOSE}'


def _text(message: Message) -> str:
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        # The templates write nothing for it, and the model would be asked about something it never read.
        raise ValueError(f"the content of a {message['role']} message is {type(content).__name__}, not text")
    return content or ""


def _json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """JSON as transformers lets templates write it: not ASCII, not escaped for HTML, keys in their order."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _rendered(chat_template: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
    # Templates for training mark what the model says with a tag of transformers' own; it writes nothing.
    plain = re.sub(
        r"(\{%-?\s*)generation\b", r"\1if true", re.sub(r"(\{%-?\s*)endgeneration\b", r"\1endif", chat_template)
    )
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _json
    try:
        template = environment.from_string(plain)
        return template.render(messages=messages, tools=tools or None, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        raise RendererMisfit(f"the chat template does not render a conversation with tools: {error}") from error


def _common_length(one: str, other: str) -> int:
    """Number of characters that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


_PROBE_TOOLS: Final = (
    {"type": "function", "function": {"name": "f", "description": "é <b>", "parameters": {"type": "object"}}},
)
_PROBE_CALLS: Final = [{"type": "function", "function": {"name": "f", "arguments": {"a": word}}} for word in "é&"]
_PROBES: Final[tuple[tuple[Sequence[Message], Sequence[Mapping[str, Any]]], ...]] = (
    (({"role": "user", "content": "Q"},), ()),
    (
        (
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Q"},
            {"role": "assistant", "reasoning_content": "R", "content": "C", "tool_calls": _PROBE_CALLS},
            {"role": "tool", "content": "T"},
            {"role": "tool", "content": "U"},
        ),
        _PROBE_TOOLS,
    ),
)
"""Conversations in which the published templates keep all thinking, with the tools they are told of."""
