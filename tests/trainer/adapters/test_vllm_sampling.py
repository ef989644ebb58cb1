import pytest

from cacherl.adapters.vllm_sampling import logprobs_mode, request_fields
from cacherl.errors import EngineFailed, RunMisconfigured
from cacherl.rollout.engine import Sampling


def fields(made_for: float, prompt_tokens: int = 3, **sampling: float) -> dict[str, object]:
    asked = Sampling(**{"max_tokens": 10, "stop_id": 2, **sampling})  # type: ignore[arg-type]
    return request_fields([1] * prompt_tokens, asked, temperature=made_for, max_model_tokens=20)


def test_nothing_but_the_temperature_shapes_the_distribution() -> None:
    assert fields(0.7, temperature=0.7, seed=5) == {
        "max_tokens": 10,
        "min_tokens": 0,
        "stop_token_ids": [2],
        "ignore_eos": True,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": 5,
        "logprobs": 0,
    }


def test_a_generation_is_cut_where_the_context_is_full() -> None:
    assert fields(1.0, prompt_tokens=14, min_tokens=8) | {"max_tokens": 6, "min_tokens": 6} == fields(
        1.0, prompt_tokens=14, min_tokens=8
    )
    assert fields(1.0, prompt_tokens=10)["max_tokens"] == 10
    assert fields(1.0, prompt_tokens=19)["max_tokens"] == 1
    with pytest.raises(EngineFailed, match=r"20 tokens leaves no room in max_model_tokens = 20"):
        fields(1.0, prompt_tokens=20)


@pytest.mark.parametrize(
    ("made_for", "asked", "is_exact"),
    [
        (1.0, {"temperature": 1.0, "min_tokens": 5}, True),
        (1.0, {"temperature": 0.0, "min_tokens": 5}, True),
        (0.7, {"temperature": 0.7}, True),
        (0.7, {"temperature": 0.0}, True),
        (1.0, {"temperature": 0.7}, False),
        (0.7, {"temperature": 1.0}, False),
        (0.7, {"temperature": 0.7, "min_tokens": 5}, False),
        (0.7, {"temperature": 0.0, "min_tokens": 5}, False),
    ],
)
def test_what_log_probabilities_would_be_wrong_for_is_refused(
    made_for: float, asked: dict[str, float], is_exact: bool
) -> None:
    if is_exact:
        assert fields(made_for, **asked)
    else:
        with pytest.raises(RunMisconfigured, match="logprobs are"):
            fields(made_for, **asked)


def test_raw_log_probabilities_are_those_at_temperature_1() -> None:
    assert [logprobs_mode(t) for t in (1.0, 0.7)] == ["raw_logprobs", "processed_logprobs"]
