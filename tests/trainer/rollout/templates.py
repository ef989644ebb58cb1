"""Qwen3's published chat templates, put to work by a tokenizer's own apply_chat_template."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.rollout.chat_format import MARKS, ChatFormat

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


def shipped(name: str) -> str:
    """A template as trl ships it."""
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / name).read_text(encoding="utf-8")


def edited(template: str, **edits: tuple[str, str]) -> str:
    for old, new in edits.values():
        assert template.count(old) == 1, old
        template = template.replace(old, new)
    return template


HYBRID = shipped("qwen3.jinja")
INSTRUCT = shipped("qwen3_instruct_2507.jinja")
THINKING = edited(
    HYBRID,
    opening=(
        r"""    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
""",
        r"""    {{- '<|im_start|>assistant\n<think>\n' }}
""",
    ),
)
"""Thinking-2507 differs from the hybrid template in what it opens a turn with, and in nothing else."""
assert len(THINKING) == 4049, "as the template of Qwen3-30B-A3B-Thinking-2507 is reported to be"

TEMPLATES = {
    ChatFormat.QWEN3_THINKING: THINKING,
    ChatFormat.QWEN3_INSTRUCT: INSTRUCT,
    ChatFormat.QWEN3_HYBRID: HYBRID,
    ChatFormat.QWEN3_HYBRID_QUIET: HYBRID,
}
FOLDERS = {
    ChatFormat.QWEN3_THINKING: "CACHERL_QWEN3_THINKING",
    ChatFormat.QWEN3_INSTRUCT: "CACHERL_QWEN3_INSTRUCT",
    ChatFormat.QWEN3_HYBRID: "CACHERL_QWEN3_HYBRID",
    ChatFormat.QWEN3_HYBRID_QUIET: "CACHERL_QWEN3_HYBRID",
}
"""Environment variables that may name the folder of a real tokenizer, to be tested too."""


def thinking_kept(template: str) -> str:
    """The template without its two reasons to leave a turn's thinking block out; Instruct's has none and stays."""
    if "<think>" not in template:
        return template
    return edited(
        template,
        history=("{%- if loop.index0 > ns.last_query_index %}", "{%- if true %}"),
        empty=("{%- if loop.last or (not loop.last and reasoning_content) %}", "{%- if true %}"),
    )


class Published:
    """A published template on some tokenizer."""

    def __init__(self, chat: ChatFormat, tokenizer: PreTrainedTokenizerFast) -> None:
        self.chat = chat
        self.tokenizer = tokenizer
        self.template = str(tokenizer.chat_template)

    def ids(
        self, messages: Messages, tools: Tools | None, *, is_prompt: bool = False, keep_thinking: bool = False
    ) -> list[int]:
        template = thinking_kept(self.template) if keep_thinking else self.template
        options = {"enable_thinking": False} if self.chat is ChatFormat.QWEN3_HYBRID_QUIET else {}
        return list(
            self.tokenizer.apply_chat_template(  # type: ignore[arg-type]
                list(messages),
                tools=list(tools) if tools else None,
                chat_template=template,
                add_generation_prompt=is_prompt,
                tokenize=True,
                return_dict=False,
                **options,
            )
        )


def published(chat: ChatFormat, kind: str) -> Published:
    """`kind` is "bytes", "newlines" or "real"; the last skips the test where no folder is named."""
    if kind == "real":
        folder = os.environ.get(FOLDERS[chat])
        if not folder:
            pytest.skip(f"{FOLDERS[chat]} names no tokenizer folder")
        return Published(chat, AutoTokenizer.from_pretrained(folder))
    tokenizer = make_byte_tokenizer() if kind == "bytes" else newline_tokenizer()
    tokenizer.chat_template = TEMPLATES[chat]
    return Published(chat, tokenizer)


def newline_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, marks, and the merges that make pieces differ from the whole: newlines with newlines and spaces."""
    newline, space = "\u010a", "\u0120"  # as byte-level vocabularies write them
    merges = [(newline, newline), (newline * 2, newline * 2), (space, newline), (".", newline)]
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    inner = Tokenizer(models.BPE(vocab={symbol: place for place, symbol in enumerate(symbols)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken(mark, special=mark.startswith("<|"), normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
