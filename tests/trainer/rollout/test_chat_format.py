from typing import Any

import pytest

from cacherl.errors import RendererMisfit
from cacherl.rollout.chat_format import ChatFormat, completion_text, delta_text, recognise, turn_texts
from tests.trainer.rollout.templates import HYBRID, INSTRUCT, THINKING, edited, shipped

TURN: dict[str, Any] = {"role": "assistant", "reasoning_content": "Hm.", "content": "Yes."}


@pytest.mark.parametrize(
    ("template", "chat"),
    [
        (THINKING, ChatFormat.QWEN3_THINKING),
        (INSTRUCT, ChatFormat.QWEN3_INSTRUCT),
        (HYBRID, ChatFormat.QWEN3_HYBRID),
        (shipped("qwen3_training.jinja"), ChatFormat.QWEN3_HYBRID),
        (shipped("qwen3_instruct_2507_training.jinja"), ChatFormat.QWEN3_INSTRUCT),
    ],
)
def test_a_template_is_known_by_what_it_writes(template: str, chat: ChatFormat) -> None:
    assert recognise(template) is chat
    assert recognise("    {% set unused = 1 %}\n" + template) is chat  # transformers leaves no trace of such a line


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_5_think", "qwen3_6", "llama3_1", "deepseekv3", "gemma3"])
def test_a_template_of_another_family_is_refused(name: str) -> None:
    with pytest.raises(RendererMisfit, match="the chat template"):
        recognise(shipped(f"{name}.jinja"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"'\n<tool_response>\n'", r"'<tool_response>\n'"),
        (r"'<tool_call>\n{\"name\": \"'", r"'<tool_call>{\"name\": \"'"),
        ("tool | tojson", "tool | tojson(indent=2)"),
        ("tool | tojson", "tool | tojson(ensure_ascii=True)"),
        (r"'\n</think>\n\n'", r"'</think>\n'"),
        ("You may call", "You can call"),
    ],
)
def test_a_template_that_departs_in_one_place_is_refused(old: str, new: str) -> None:
    old, new = old.replace('\\"', '"'), new.replace('\\"', '"')
    with pytest.raises(RendererMisfit, match="it departs from qwen3-thinking"):
        recognise(edited(THINKING, departure=(old, new)))


def test_the_place_of_departure_is_told() -> None:
    other = edited(THINKING, departure=(r"'\n</think>\n\n'", r"'\n</thought>\n\n'"))
    with pytest.raises(RendererMisfit) as refused:
        recognise(other)
    assert r"where that says 'ink>\n\nC" in str(refused.value)
    assert r"and writes 'ought>\n\nC" in str(refused.value)


@pytest.mark.parametrize("template", ["{% if %}", "{{ messages[9].content.x.y }}", "{{ raise_exception('no tools') }}"])
def test_a_template_that_does_not_render_is_refused(template: str) -> None:
    with pytest.raises(RendererMisfit, match="does not render a conversation with tools"):
        recognise(template)


@pytest.mark.parametrize(
    ("chat", "opening", "said"),
    [
        (ChatFormat.QWEN3_THINKING, "<|im_start|>assistant\n<think>\n", "Hm.\n</think>\n\nYes."),
        (ChatFormat.QWEN3_INSTRUCT, "<|im_start|>assistant\n", "Yes."),
        (ChatFormat.QWEN3_HYBRID, "<|im_start|>assistant\n", "<think>\nHm.\n</think>\n\nYes."),
        (ChatFormat.QWEN3_HYBRID_QUIET, "<|im_start|>assistant\n<think>\n\n</think>\n\n", "Yes."),
    ],
)
def test_the_formats_differ_in_who_writes_the_thinking_block(chat: ChatFormat, opening: str, said: str) -> None:
    assert (chat.opening, completion_text(TURN, chat)) == (opening, said)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thinking_is_found_under_each_of_its_names_and_inside_the_content(key: str) -> None:
    beside = {"role": "assistant", key: "\nHm.\n", "content": "Yes."}
    inside = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}
    assert completion_text(beside) == completion_text(inside) == "Hm.\n</think>\n\nYes."


def test_the_thinking_of_earlier_turns_is_kept() -> None:
    again = {"role": "user", "content": "Sure?"}
    heard, said, *_ = turn_texts([again, TURN, again, TURN], tools=(), chat=ChatFormat.QWEN3_HYBRID)
    assert heard == "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    assert said == "<think>\nHm.\n</think>\n\nYes.<|im_end|>"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "tool", "content": {"ok": True}},
        {"role": "developer", "content": "Hi"},
        {"role": "assistant", "content": "Hi"},
    ],
)
def test_what_cannot_be_told_to_the_model_is_refused_and_not_left_out(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{message['role']}"):
        delta_text([message], ChatFormat.QWEN3_THINKING)
