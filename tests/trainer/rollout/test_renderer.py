import os
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.errors import RendererMisfit
from cacherl.rollout.chat_format import MARKS, ChatFormat, completion_text, recognise
from cacherl.rollout.renderer import Renderer
from tests.trainer.rollout.templates import FOLDERS, Published, newline_tokenizer, published, shipped

Message = dict[str, Any]
THINKING_FORMATS = (ChatFormat.QWEN3_THINKING, ChatFormat.QWEN3_HYBRID)


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


TRAJECTORY: list[Message] = [
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

ODD: list[Message] = [
    {"role": "user", "content": None},
    {"role": "assistant", "reasoning_content": "r", "content": "\n", "tool_calls": [call("look", "{nope")]},
    {"role": "tool", "content": None},
    {
        "role": "assistant",
        "content": "<think>\na</think>b</think>\n\nc",
        "tool_calls": [call("look", "{}")["function"]],
    },
    {"role": "assistant", "content": "a<think>\n\nb\n</think>\n", "tool_calls": [call("look", "{}"), call("put", "")]},
    {"role": "system", "content": "Be long."},
    {"role": "assistant", "thinking": "t", "reasoning": "r", "content": None},
    {"role": "assistant", "reasoning_content": "", "reasoning": "r", "content": "</think>"},
]
"""What a random conversation seldom holds."""

PIECES = ["", "\n", "\n\n", " ", ".\n", "é\u2028", "日本", "🙂", "e\u0301", "<b>&'\"", "{}", "two words", "\\n", *MARKS]
texts = st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=4)
contents = texts.map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | contents,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(contents, inner, max_size=2),
    max_leaves=4,
)
functions = st.fixed_dictionaries(
    {"name": st.sampled_from(["look", "put", "naïve"]), "arguments": st.dictionaries(contents, values) | contents}
)
calls = st.lists(functions | functions.map(lambda f: {"id": "1", "type": "function", "function": f}), max_size=3)
tool_sets = st.lists(
    st.fixed_dictionaries({"type": st.just("function"), "function": st.dictionaries(contents, values)}), max_size=2
)
thinking_keys = st.sampled_from(["reasoning_content", "thinking", "reasoning"])


@st.composite
def assistants(draw: st.DrawFn, thinking: st.SearchStrategy[str] = contents, always: bool = False) -> Message:
    message: Message = {"role": "assistant", "content": draw(st.none() | contents)}
    if always or draw(st.booleans()):
        message[draw(thinking_keys)] = draw(thinking)
    if draw(st.booleans()):
        message["tool_calls"] = draw(calls)
    return message


def others(*roles: str) -> st.SearchStrategy[Message]:
    content = st.none() | contents
    return st.fixed_dictionaries({"role": st.sampled_from(roles), "content": content})


systems = st.lists(st.fixed_dictionaries({"role": st.just("system"), "content": contents}), max_size=1)
bodies = st.lists(assistants() | others("user", "tool", "tool", "system"), min_size=1, max_size=9)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Any message after any other: parallel results, users who interrupt, late system messages, turn upon turn."""
    body = draw(bodies)
    assume(body[0]["role"] != "system" or body[0]["content"] is not None)  # the templates fail on that
    return draw(systems) + body


@st.composite
def single_queries(draw: st.DrawFn) -> list[Message]:
    """One request, then turns that all think: there the published templates keep everything."""
    messages = [*draw(systems), {"role": "user", "content": "Q" + draw(contents)}]
    for _ in range(draw(st.integers(0, 3))):
        messages.append(draw(assistants(contents.map("hm {}".format), always=True)))
        messages += draw(st.lists(others("tool"), min_size=1, max_size=3))
    return [*messages, draw(assistants())]


def without_thinking(messages: Sequence[Message]) -> list[Message]:
    keys = ("role", "content", "tool_calls")
    kept = [{key: message[key] for key in keys if key in message} for message in messages]
    return [{**message, "content": (message["content"] or "").replace("</think>", "")} for message in kept]


@pytest.fixture(scope="module", params=list(ChatFormat))
def chat(request: pytest.FixtureRequest) -> ChatFormat:
    chat: ChatFormat = request.param
    return chat


@pytest.fixture(scope="module", params=["bytes", "real"])
def template(request: pytest.FixtureRequest, chat: ChatFormat) -> Published:
    return published(chat, request.param)


many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def to_the_last_answer(messages: Sequence[Message]) -> list[Message]:
    last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
    return list(messages[: last + 1])


@many
@given(messages=conversations(), tools=tool_sets)
@example(messages=ODD, tools=[{"type": "function", "function": {"name": "é<b>", "strict": True}}])
def test_ids_are_those_of_the_template_with_thinking_kept(
    template: Published, messages: list[Message], tools: list[Message]
) -> None:
    if template.chat is ChatFormat.QWEN3_HYBRID_QUIET:
        messages = without_thinking(messages)
    renderer = Renderer(HFTokenizer(template.tokenizer), tools=tools, chat=template.chat)
    assert_equal_but_for_whitespace_at_an_opening(
        renderer, renderer.prompt_ids(messages), template.ids(messages, tools, is_prompt=True, keep_thinking=True)
    )
    if any(message["role"] == "assistant" for message in messages):
        whole = template.ids(to_the_last_answer(messages), tools, keep_thinking=True)
        # The templates close the last message with a newline, which nobody samples.
        assert_equal_but_for_whitespace_at_an_opening(renderer, renderer.example(messages).ids, whole[:-1])


def assert_equal_but_for_whitespace_at_an_opening(renderer: Renderer, ids: Sequence[int], whole: Sequence[int]) -> None:
    if list(ids) == list(whole):
        return
    decode = renderer.tokenizer.decode
    assert decode(ids) == decode(whole)
    assert any(f"{renderer.chat.opening}{space}" in decode(ids) for space in "\n\r\t ")


@many
@given(messages=single_queries(), tools=tool_sets)
def test_ids_are_the_published_templates_where_it_keeps_the_thinking(
    template: Published, messages: list[Message], tools: list[Message]
) -> None:
    if template.chat is ChatFormat.QWEN3_HYBRID_QUIET:
        # Of a quiet turn that is not the last it leaves the block out.
        messages = without_thinking([*(m for m in messages if m["role"] in ("system", "user")), messages[-1]])
    renderer = Renderer(HFTokenizer(template.tokenizer), tools=tools, chat=template.chat)
    whole = template.ids(messages, tools)
    assert_equal_but_for_whitespace_at_an_opening(renderer, renderer.example(messages).ids, whole[:-1])


@many
@given(messages=conversations(), tools=tool_sets)
def test_hybrid_ids_are_those_of_trls_template_for_training(messages: list[Message], tools: list[Message]) -> None:
    template = published(ChatFormat.QWEN3_HYBRID, "bytes")
    # That template reads thinking inside a content only where both its marks stand.
    assume(not any("</think>" in (m["content"] or "") for m in messages if m["role"] == "assistant"))
    template.template = shipped("qwen3_training.jinja")
    renderer = Renderer(HFTokenizer(template.tokenizer), tools=tools, chat=template.chat)
    assert renderer.prompt_ids(messages) == template.ids(messages, tools, is_prompt=True)


@pytest.mark.parametrize("chat", list(ChatFormat))
@many
@given(messages=conversations())
def test_pieces_meet_at_marks_so_that_a_tokenizer_which_draws_newlines_together_sees_them_alike(
    chat: ChatFormat, messages: list[Message]
) -> None:
    renderer = Renderer(HFTokenizer(newline_tokenizer()), chat=chat)
    whole = renderer.tokenizer.encode(renderer.prompt_text(messages))
    said = [completion_text(message, chat) for message in messages if message["role"] == "assistant"]
    if not any(text[:1].isspace() for text in said):
        assert renderer.prompt_ids(messages) == whole
    assert chat is not ChatFormat.QWEN3_HYBRID or renderer.prompt_ids(messages) == whole


def test_an_empty_thought_begins_with_a_token_the_model_can_sample() -> None:
    renderer = Renderer(HFTokenizer(newline_tokenizer()))
    encode = renderer.tokenizer.encode
    [newline], [two] = encode("\n"), encode("\n\n")
    assert encode("<think>\n\n</think>")[1] == two
    assert renderer.prompt_ids([{"role": "user", "content": "?"}])[-1] == newline
    assert renderer.completion_ids({"role": "assistant", "content": "Yes."})[0] == newline


@pytest.mark.parametrize("chat", THINKING_FORMATS)
def test_the_published_template_drops_the_thinking_before_a_new_request_and_we_keep_it(chat: ChatFormat) -> None:
    template = published(chat, "bytes")
    renderer = Renderer(HFTokenizer(template.tokenizer), chat=chat)
    messages = [*TRAJECTORY, {"role": "user", "content": "Thanks."}]
    dropped = template.tokenizer.decode(template.ids(messages, None, is_prompt=True))
    assert "I look twice." not in dropped
    assert "I look twice." in renderer.prompt_text(messages)
    # Nothing that was played may change when a message comes after it.
    played = renderer.prompt_ids(TRAJECTORY[:2]) + renderer.completion_ids(TRAJECTORY[2])
    assert renderer.prompt_ids(messages)[: len(played)] == played


def test_a_quiet_prompt_says_that_there_is_no_thinking_and_leaves_recorded_thinking_out() -> None:
    renderer = Renderer(HFTokenizer(make_byte_tokenizer()), chat=ChatFormat.QWEN3_HYBRID_QUIET)
    text = renderer.prompt_text(TRAJECTORY)
    assert "I look twice." not in text
    assert text.count("<|im_start|>assistant\n<think>\n\n</think>\n\n") == text.count("<|im_start|>assistant") == 4


def test_the_keys_of_a_tool_stay_in_their_order() -> None:
    tool = {"function": {"name": "f"}, "effect": "read", "type": "function"}
    text = Renderer(HFTokenizer(make_byte_tokenizer()), tools=[tool]).prompt_text([])
    assert '\n<tools>\n{"function": {"name": "f"}, "type": "function"}\n</tools>' in text


def test_only_what_the_model_says_is_trained_and_the_newline_after_its_turn_is_not(
    tokenizer: HFTokenizer, chat: ChatFormat
) -> None:
    renderer = Renderer(tokenizer, chat=chat)
    example = renderer.example(TRAJECTORY)
    trained = tokenizer.decode([i for i, m in zip(example.ids, example.loss_mask, strict=True) if m])
    assert trained == "".join(completion_text(m, chat) + "<|im_end|>" for m in TRAJECTORY if m["role"] == "assistant")
    after_turn = [
        mask
        for before, mask in zip(example.ids, example.loss_mask[1:], strict=False)
        if before == renderer.end_of_turn_id
    ]
    assert not any(after_turn)


@many
@given(messages=conversations())
@example(messages=[{"role": "user", "content": "?"}, {"role": "assistant", "content": "\nYes."}])
def test_playing_a_conversation_gives_the_ids_of_its_recording(chat: ChatFormat, messages: list[Message]) -> None:
    renderer = Renderer(HFTokenizer(newline_tokenizer()), chat=chat)
    played: list[int] = []
    heard: list[Message] = []
    for message in messages:
        if message["role"] == "assistant":
            played += renderer.delta_ids(heard) if played else renderer.prompt_ids(heard)
            played += renderer.completion_ids(message)
            heard = []
        else:
            heard.append(message)
    assume(played)
    assert renderer.example(messages).ids == tuple(played)
    assert renderer.prompt_ids(messages) == [*played, *renderer.delta_ids(heard)]


def test_the_tool_delta_is_the_thinking_templates(tokenizer: HFTokenizer, renderer: Renderer) -> None:
    delta = "\n<|im_start|>user\n<tool_response>\nR\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert tokenizer.decode(renderer.tool_delta_ids(["R"])) == delta


def test_a_thought_is_closed_as_the_template_closes_one(tokenizer: HFTokenizer, renderer: Renderer) -> None:
    assert tokenizer.decode(renderer.close_thinking_ids) == "\n</think>\n\n<|im_end|>"
    assert renderer.close_thinking_ids[-1] == renderer.end_of_turn_id


def test_the_effect_of_a_tool_is_not_told_to_the_model(tokenizer: HFTokenizer, tools: list[dict[str, Any]]) -> None:
    assert "effect" not in Renderer(tokenizer, tools=tools).prompt_text(TRAJECTORY[:2])


def test_what_follows_the_last_assistant_message_is_left_out(renderer: Renderer) -> None:
    assert renderer.example(TRAJECTORY[:5]).ids == renderer.example(TRAJECTORY[:3]).ids


def test_a_trajectory_in_which_the_model_says_nothing_trains_nothing(renderer: Renderer) -> None:
    with pytest.raises(ValueError, match="without an assistant message"):
        renderer.example(TRAJECTORY[:2])


def test_a_tokenizer_without_the_marks_is_refused() -> None:
    class Plain:
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

        def decode(self, ids: Sequence[int]) -> str:
            return bytes(ids).decode()

    with pytest.raises(RendererMisfit, match=r"<\|endoftext\|> is 13 tokens"):
        Renderer(Plain())


def test_a_tokenizer_that_has_one_token_for_all_it_does_not_know_is_refused() -> None:
    class Deaf:
        def encode(self, text: str) -> list[int]:
            return [0]

        def decode(self, ids: Sequence[int]) -> str:
            return "[UNK]"

    with pytest.raises(RendererMisfit, match=r"<\|endoftext\|> is not in the tokenizer's vocabulary"):
        Renderer(Deaf())


def test_special_tokens_are_text_like_any_other() -> None:
    tokenizer = HFTokenizer(newline_tokenizer())
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>\n")) == "a<|im_end|>\n"


def test_what_others_do_with_a_tokenizer_does_not_cut_what_we_encode() -> None:
    shared = make_byte_tokenizer()
    ours = HFTokenizer(shared)
    shared(["a long text", "b"], padding=True, truncation=True, max_length=2)
    assert shared.backend_tokenizer.truncation is not None
    assert len(ours.encode("a long text")) == len("a long text")


@pytest.mark.parametrize("chat", [chat for chat in ChatFormat if chat is not ChatFormat.QWEN3_HYBRID_QUIET])
def test_a_real_tokenizers_template_is_recognised(chat: ChatFormat) -> None:
    if not os.environ.get(FOLDERS[chat]):
        pytest.skip(f"{FOLDERS[chat]} names no tokenizer folder")
    assert recognise(published(chat, "real").template) is chat
