"""Making examples of many trajectories: seen while it goes on, and small in memory."""

import dataclasses
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.data.sft_examples import sft_examples
from cacherl.data.trajectories import Trajectory, read_trajectories
from cacherl.rollout.renderer import Example, Renderer

LINE = """{"uid": "a", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes."}]}\n"""


@pytest.fixture
def trajectory(tmp_path: Path) -> Trajectory:
    (tmp_path / "r.ndjson").write_text(LINE)
    return read_trajectories(tmp_path / "r.ndjson").trajectories[0]


def test_progress_counts_every_trajectory_whatever_came_of_it(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerFast
) -> None:
    unanswered = dataclasses.replace(trajectory, messages=trajectory.messages[:1])
    seen: list[int] = []
    renderer = Renderer(HFTokenizer(tokenizer))
    found = sft_examples([trajectory, unanswered, trajectory], renderer, max_tokens=500, progress=seen.append)
    assert seen == [1, 2, 3]
    assert (len(found.examples), found.without_assistant) == (2, 1)


class BigIds:
    """A renderer whose ids are new objects each time, as a tokenizer's are."""

    def example(self, _: object) -> Example:
        return Example(ids=tuple(int(text) for text in ("70001", "70002", "70001")), loss_mask=(0, 1, 1))


def test_a_token_lies_in_memory_once_however_often_it_occurs(trajectory: Trajectory) -> None:
    found = sft_examples([trajectory, trajectory], BigIds(), max_tokens=500)  # type: ignore[arg-type]
    ids = [token for example in found.examples for token in example.ids]
    assert ids == [70001, 70002, 70001] * 2
    assert len({id(token) for token in ids}) == 2
