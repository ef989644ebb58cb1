"""What vLLM is told with one request, in its process or over HTTP: the fields bear the same names in both.

vLLM tells log-probabilities of one kind per engine. The raw ones are those at temperature 1, which no constraint has
touched; the processed ones are those that were sampled from: at the sampling temperature, after all constraints. An
engine is therefore made for one temperature, and what neither kind can tell is refused: a log-probability that is a
little off would bias the gradient without a sound.

| sampled at | with min_tokens | kind |
|---|---|---|
| 1 or 0, by an engine for 1 | allowed | raw |
| T or 0, by an engine for T | refused | processed |
"""

from collections.abc import Sequence
from typing import Any, Literal

from cacherl.errors import EngineFailed, RunMisconfigured
from cacherl.rollout.engine import Sampling


def logprobs_mode(temperature: float) -> Literal["raw_logprobs", "processed_logprobs"]:
    """vLLM's setting of that name for an engine whose rollouts are sampled at the temperature."""
    return "raw_logprobs" if temperature == 1.0 else "processed_logprobs"


def request_fields(
    prompt_ids: Sequence[int], sampling: Sampling, *, temperature: float, max_model_tokens: int
) -> dict[str, Any]:
    """The sampling parameters of one request to an engine made for `temperature`.

    What does not fit into the context is not asked for. Raises RunMisconfigured for a temperature or a constraint at
    which log-probabilities would be wrong, EngineFailed for a prompt that leaves no room.
    """
    _check(sampling, temperature)
    room = min(sampling.max_tokens, max_model_tokens - len(prompt_ids))
    if room < 1:
        raise EngineFailed(
            f"a prompt of {len(prompt_ids)} tokens leaves no room in max_model_tokens = {max_model_tokens}: raise it, "
            "or lower the budgets' context_tokens"
        )
    return {
        "max_tokens": room,
        "min_tokens": min(sampling.min_tokens, room),
        "stop_token_ids": [sampling.stop_id],
        # Nothing else ends a generation, and nothing that a model's generation_config.json asks for shapes it.
        "ignore_eos": True,
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": sampling.seed,
        "logprobs": 0,
    }


def _check(sampling: Sampling, temperature: float) -> None:
    if sampling.temperature not in (0.0, temperature):
        raise RunMisconfigured(
            f"asked to sample at temperature {sampling.temperature}, but the engine was made for {temperature} and its "
            "logprobs are of that: make it with the temperature of the run"
        )
    if sampling.min_tokens and temperature != 1.0:
        raise RunMisconfigured(
            f"asked for min_tokens = {sampling.min_tokens} at temperature {temperature}, where vLLM's logprobs are "
            "those after that constraint: set the temperature to 1 or first_turn_min_tokens to 0"
        )
