"""Rejection sampling: of the rollouts a policy played, keep those worth imitating, as the tokens they were.

A kept rollout is stored with its ids and mask. It is never decoded and encoded again: what SFT then trains is what
was sampled, to the token. Not covered: use with another tokenizer than the one it was sampled with.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cacherl.data.whole_file import write_whole
from cacherl.errors import TrajectoriesUnreadable
from cacherl.rollout.parser import CallStatus
from cacherl.rollout.renderer import Example
from cacherl.rollout.rollout import Rollout, StopReason
from cacherl.train.scoring import ScoredRollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A kept rollout."""

    task_id: str
    reward: float
    """The training reward it was kept for."""
    trust: float
    """Lowest trust among the tool answers it rests on; 1 without any."""
    ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    """1 where the policy sampled, in turns whose calls were all usable."""

    @property
    def example(self) -> Example:
        """What SFT learns of it."""
        return Example(ids=self.ids, loss_mask=self.loss_mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The kept rollouts, best first within each task, and why others were not kept."""

    samples: tuple[Sample, ...]
    left_out: dict[str, int]
    """Rollouts by reason: void, unanswered (cut ones too), low_reward, low_trust, duplicate, enough."""


def keep_best(scored: Iterable[ScoredRollout], *, above: float, min_trust: float, per_task: int) -> Kept:
    """The rollouts that answered with a reward of at least `above` on tool answers of at least `min_trust`.

    At most `per_task` of a task, by reward, then by trust, then the shorter one. Of rollouts that made the same calls
    and gave the same answer only the best is kept.
    """
    left_out: Counter[str] = Counter()
    candidates: dict[str, list[ScoredRollout]] = defaultdict(list)
    for one in scored:
        if why := _fault(one, above, min_trust):
            left_out[why] += 1
        else:
            candidates[one.rollout.task_id].append(one)
    samples: list[Sample] = []
    for each in candidates.values():
        distinct = list({_deeds(one.rollout): one for one in sorted(each, key=_rank, reverse=True)}.values())
        best = sorted(distinct, key=_rank)[:per_task]
        left_out["duplicate"] += len(each) - len(distinct)
        left_out["enough"] += len(distinct) - len(best)
        samples += [_sample(one) for one in best]
    return Kept(samples=tuple(samples), left_out={why: count for why, count in left_out.items() if count})


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """One JSON object a line; the file is there whole or not at all."""
    write_whole(path, b"".join(msgspec.json.encode(sample) + b"\n" for sample in samples))


def read_samples(path: Path) -> list[Sample]:
    """Samples as written. Raises TrajectoriesUnreadable naming the line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TrajectoriesUnreadable(f"{path}: {error.strerror}") from error
    samples: list[Sample] = []
    for number, line in enumerate(lines, start=1):
        try:
            samples.append(msgspec.json.decode(line, type=Sample))
        except msgspec.DecodeError as error:
            raise TrajectoriesUnreadable(f"{path}: line {number} is no kept rollout ({error})") from error
    return samples


def _fault(one: ScoredRollout, above: float, min_trust: float) -> str:
    """Why a rollout is not worth imitating; empty for a good one."""
    if one.reward is None:
        return "void"
    if one.rollout.stop is not StopReason.ANSWERED or not one.rollout.answer:
        return "unanswered"
    if one.reward.total < above:
        return "low_reward"
    return "low_trust" if _trust(one.rollout) < min_trust else ""


def _rank(one: ScoredRollout) -> tuple[float, float, int]:
    """Sorts the best first."""
    assert one.reward is not None
    return (-one.reward.total, -_trust(one.rollout), len(one.rollout.ids))


def _trust(rollout: Rollout) -> float:
    return min((call.trust for call in rollout.answered_calls), default=1.0)


def _deeds(rollout: Rollout) -> str:
    """What a rollout did and said, apart from its thinking."""
    calls = [(call.name, call.arguments) for call in rollout.calls]
    return json.dumps([calls, rollout.answer.split()], sort_keys=True)


def _sample(one: ScoredRollout) -> Sample:
    assert one.reward is not None
    rollout = one.rollout
    return Sample(
        task_id=rollout.task_id,
        reward=one.reward.total,
        trust=_trust(rollout),
        ids=rollout.ids,
        loss_mask=_worth_imitating(rollout),
    )


def _worth_imitating(rollout: Rollout) -> tuple[int, ...]:
    """The rollout's mask without the turns that hold an unusable call: a slip it got over is not to be learned."""
    mask = list(rollout.loss_mask)
    for place in {call.turn for call in rollout.calls if call.status is not CallStatus.OK}:
        turn = rollout.turns[place]
        mask[turn.start : turn.end] = [0] * (turn.end - turn.start)
    return tuple(mask)
