from pathlib import Path
from typing import Any

import pytest
import trl
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import _compile_jinja_template

from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.errors import RendererMisfit
from cacherl.rollout.renderer import Renderer, completion_text

TEMPLATE = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


TRAJECTORY: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the lamp? é\u2028"},
    {
        "role": "assistant",
        "reasoning_content": "I look twice.",
        "content": "Looking.",
        "tool_calls": [call("look", '{"place":  "attic"}'), call("look", '{"place": "cellar"}')],
    },
    {"role": "tool", "content": "dust"},
    {"role": "tool", "content": "lamp <b>&"},
    {
        "role": "assistant",
        "reasoning_content": "Found.",
        "content": "",
        "tool_calls": [call("put", '{"item": "lamp", "count": 1}')],
    },
    {"role": "tool", "content": "done"},
    {"role": "assistant", "reasoning_content": "So:", "content": "In the cellar."},
]


def template_text(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
    compiled = _compile_jinja_template(TEMPLATE)
    assert isinstance(compiled.environment, ImmutableSandboxedEnvironment)
    plain = [{"type": t["type"], "function": t["function"]} for t in tools] if tools else None
    return str(compiled.render(messages=messages, tools=plain, add_generation_prompt=False))


@pytest.mark.parametrize("with_tools", [False, True])
def test_a_trajectory_is_byte_equal_to_qwen3s_own_template(
    tokenizer: HFTokenizer, tools: list[dict[str, Any]], with_tools: bool
) -> None:
    given = tools if with_tools else None
    example = Renderer(tokenizer, tools=given).example(TRAJECTORY)
    # The template closes the last message with a newline, which nobody samples.
    assert tokenizer.decode(example.ids) + "\n" == template_text(TRAJECTORY, given)


def test_only_what_the_model_says_is_trained_and_the_newline_after_its_turn_is_not(
    tokenizer: HFTokenizer, renderer: Renderer
) -> None:
    example = renderer.example(TRAJECTORY)
    trained = tokenizer.decode([i for i, m in zip(example.ids, example.loss_mask, strict=True) if m])
    assert trained == "".join(completion_text(m) + "<|im_end|>" for m in TRAJECTORY if m["role"] == "assistant")
    after_turn = [
        mask
        for before, mask in zip(example.ids, example.loss_mask[1:], strict=False)
        if before == renderer.end_of_turn_id
    ]
    assert not any(after_turn)


def test_a_recorded_trajectory_has_the_ids_that_playing_it_would_give(renderer: Renderer) -> None:
    played = renderer.prompt_ids(TRAJECTORY[:2])
    played += renderer.completion_ids(TRAJECTORY[2]) + renderer.tool_delta_ids(["dust", "lamp <b>&"])
    played += renderer.completion_ids(TRAJECTORY[5]) + renderer.tool_delta_ids(["done"])
    played += renderer.completion_ids(TRAJECTORY[7])
    assert renderer.example(TRAJECTORY).ids == tuple(played)


def test_the_tool_delta_is_the_thinking_templates(tokenizer: HFTokenizer, renderer: Renderer) -> None:
    delta = "\n<|im_start|>user\n<tool_response>\nR\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert tokenizer.decode(renderer.tool_delta_ids(["R"])) == delta


def test_thinking_inside_the_content_is_the_same_as_thinking_beside_it() -> None:
    inside = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}
    beside = {"role": "assistant", "reasoning_content": "Hm.", "content": "Yes."}
    assert completion_text(inside) == completion_text(beside) == "Hm.\n</think>\n\nYes."


def test_the_effect_of_a_tool_is_not_told_to_the_model(tokenizer: HFTokenizer, tools: list[dict[str, Any]]) -> None:
    assert "effect" not in Renderer(tokenizer, tools=tools).prompt_text(TRAJECTORY[:2])


def test_what_follows_the_last_assistant_message_is_left_out(renderer: Renderer) -> None:
    assert renderer.example(TRAJECTORY[:5]).ids == renderer.example(TRAJECTORY[:3]).ids


def test_a_tokenizer_without_the_marks_is_refused() -> None:
    class Plain:
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

        def decode(self, ids: Any) -> str:
            return bytes(ids).decode()

    with pytest.raises(RendererMisfit, match=r"<\|endoftext\|> is 13 tokens"):
        Renderer(Plain())
