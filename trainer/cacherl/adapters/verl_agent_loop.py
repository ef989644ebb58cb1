"""CacheAgentLoop as an agent loop of verl: rollouts on verl's servers and cached answers, on as many nodes as Ray has.

The only file that imports verl (0.9). verl trains, moves weights and spreads prompts over its workers; what is here
plays and scores a rollout, by the same loop, renderer, parser and reward as everywhere else. A configuration stands in
trainer/runs/verl/.

verl knows the loop by the entry in agent_loop.yaml alone. Its `@register` is not used on purpose: run at the import
that the first rollout causes, it would overwrite that entry, and later rollouts would be made without `run`.

Traps it is built around:
* verl has no reward "none". A void rollout raises: verl then has one rollout less, in the group's baseline and in the
  batch. Returned with reward 0 and an all-zero mask, it would still pull the baseline down.
* verl says "completed" of a turn that stopped and of one that was cut: the last token tells which.
* Time runs out for a slow server as well: in training such a rollout is void. Not in validation, where a slow model
  would otherwise be measured on what it is quick at.
* verl does not tell an agent loop whether it validates; the dataset's row does (data/verl_rows.py).
* verl's training metrics hold times and turns of an agent loop, nothing else. So each process writes a line a rollout
  into `rollouts/` of verl's checkpoint folder.

Read from the run file: world, cache, reward, judge, process and, of grpo, temperature, budgets, overlong, void_turns
and tools_in_prompt. All else is verl's to decide: model, group size, batch, learning rate, clipping, steps.

Covered: verl's V1 trainers, with vLLM. Not covered: the legacy trainer, where a rollout that raises ends the run;
SGLang and TensorRT-LLM; credit by trust, since verl lays one advantage on a whole rollout; seeds of rollouts, so that
no run repeats another token for token. Of a group with a single rollout left, verl takes the reward for the advantage.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
from verl.utils.import_utils import resolve_config_path

from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.config import read_run
from cacherl.data.verl_rows import task_of
from cacherl.errors import EngineFailed, RunMisconfigured, ToolUnavailable
from cacherl.reward.tier_aware import Reward
from cacherl.rollout.engine import Generation, Sampling
from cacherl.rollout.lookups import LookupBatcher
from cacherl.rollout.loop import CacheAgentLoop, Episode
from cacherl.rollout.parser import Parser
from cacherl.rollout.renderer import Renderer
from cacherl.rollout.rollout import Rollout, StopReason
from cacherl.rollout.tools import CacheLookup, CacheSetup, CacheTools, LiveTools, OutageLog, ToolAnswerer, writing_tools
from cacherl.run.build import chat_format, make_judge, make_world, tool_source
from cacherl.run.cache import cache_url
from cacherl.run.settings import Run
from cacherl.train.collector import FromCache, ToolSource
from cacherl.train.metrics_log import MetricsLog
from cacherl.train.rollout_numbers import rollout_numbers
from cacherl.train.scoring import ScoredRollout, Scorer, training_row
from cacherl.worlds.world import Task

JUDGE_S = 300.0
"""Longest wait for a judge. Then the rollout is void."""


class VerlCacheAgentLoop(AgentLoopBase):  # type: ignore[misc]  # verl is not installed where types are checked
    """Plays and scores one rollout. verl makes one for each rollout; what they share is made once a process."""

    def __init__(self, *args: Any, run: str, cache_url: str = "", **kwargs: Any) -> None:
        """`run` is a run file that every node can read; `cache_url` empty takes TOOLCACHE_URL.

        Raises RunMisconfigured where run file and verl's configuration contradict each other.
        """
        super().__init__(*args, **kwargs)
        self._worker = _worker_of(self, resolve_config_path(run), cache_url)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """The rollout of a dataset row as verl trains on it. Raises ToolUnavailable for a void one."""
        wanted = _Wanted.of_row(row, temperature=float(sampling_params["temperature"]))
        scored, served, score_seconds = await self._worker.play(wanted)
        if scored.reward is None:
            stop, why = scored.rollout.stop, scored.rollout.why
            raise ToolUnavailable(f"rollout {wanted.rollout} of {wanted.task.id} is void ({stop}): {why}")
        return _output(scored.rollout, scored.reward, wanted, served, score_seconds, self._worker)


class VerlEngine:
    """verl's servers as an Engine. Sampling.rollout is verl's sticky key: turns go where their prefix is cached."""

    def __init__(self, servers: Any) -> None:
        """`servers` is verl's LLMServerClient."""
        self._servers = servers
        self._served: dict[str, Served] = {}

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """Continue one prompt. `sampling.seed` is not used: seeds a request would slow vLLM's sampler."""
        try:
            output = await self._servers.generate(
                request_id=sampling.rollout, prompt_ids=list(prompt_ids), sampling_params=_vllm_sampling(sampling)
            )
        except Exception as error:  # Ray hands on whatever the server raised, under its own name
            raise EngineFailed(f"verl's server failed for rollout {sampling.rollout}: {error!r}") from error
        return self._checked(output, sampling)

    def take(self, rollout: str) -> Served:
        """What was served to a rollout, which is then forgotten."""
        return self._served.pop(rollout, Served())

    def _checked(self, output: Any, sampling: Sampling) -> Generation:
        ids, logprobs = tuple(output.token_ids), tuple(output.log_probs or ())
        if output.stop_reason in ("aborted", "abort") or not ids:
            raise EngineFailed(f"verl's server gave up rollout {sampling.rollout} ({output.stop_reason})")
        if len(logprobs) != len(ids):
            raise EngineFailed(f"verl's server gave {len(logprobs)} log-probabilities for {len(ids)} tokens")
        served = self._served.setdefault(sampling.rollout, Served())
        served.add(output.num_preempted, output.extra_fields)
        return Generation(
            ids=ids,
            logprobs=logprobs,
            finish_reason="stop" if ids[-1] == sampling.stop_id else "length",
            weight_version=served.newest_weights or 0,
        )


@dataclass(slots=True)
class Served:
    """What verl's servers tell of one rollout beside its tokens."""

    preempted: int | None = None
    """Times the server put the rollout aside for others; None where it does not say."""
    oldest_weights: int | None = None
    newest_weights: int | None = None
    """Training steps after which the sampling weights were taken, the first and the last of them."""

    def add(self, preempted: int | None, extra_fields: Mapping[str, Any]) -> None:
        """Count one turn."""
        if preempted is not None:
            self.preempted = (self.preempted or 0) + preempted
        if self.oldest_weights is None:
            self.oldest_weights = extra_fields.get("min_global_steps")
        self.newest_weights = extra_fields.get("max_global_steps", self.newest_weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The rollout that verl asks for."""

    task: Task
    messages: list[dict[str, Any]]
    is_validation: bool
    temperature: float
    group: str
    rollout: str
    step: int

    @classmethod
    def of_row(cls, row: Mapping[str, Any], *, temperature: float) -> _Wanted:
        uid = str(row["uid"])
        return cls(
            task=task_of(row["extra_info"]),
            messages=[dict(message) for message in row["raw_prompt"]],
            is_validation=bool(row["extra_info"].get("validate", False)),
            temperature=temperature,
            group=uid,
            rollout=f"{uid}/{int(row['session_id'])}",
            step=int(row["global_steps"]),
        )


class _Worker:
    """What the rollouts of one process share. Its connections to the cache stay open until the process ends."""

    def __init__(self, agent: AgentLoopBase, run: Run, url: str) -> None:
        _check(agent.config, run)
        self.run = run
        self._world = make_world(run)
        chat = chat_format(run, agent.tokenizer)
        tools = self._world.tools if run.grpo.tools_in_prompt else None
        self.renderer = Renderer(HFTokenizer(agent.tokenizer), tools=tools, chat=chat)
        self._parser = Parser(self._world.tools, chat=chat)
        self._engine = VerlEngine(agent.server_manager)
        self._scorer = Scorer(make_judge(run, self._world), run.reward, run.process)
        self._source: ToolSource = tool_source(run, self._world, cache_url(url) if run.cache.is_used else "")
        self._cache: AbstractAsyncContextManager[CacheLookup] | None = None
        self._setup: CacheSetup | None = None
        self._opening = asyncio.Lock()
        self._loops: dict[float, CacheAgentLoop] = {}
        self._log = MetricsLog(_log_path(agent.config))

    async def play(self, wanted: _Wanted) -> tuple[ScoredRollout, Served, float]:
        """The scored rollout, what the servers told of it, and the seconds that scoring took."""
        await self._open()
        try:
            rollout = await self._loop(wanted.temperature).play(self._episode(wanted))
        finally:
            served = self._engine.take(wanted.rollout)
        began = time.perf_counter()
        scored = await self._score(rollout, wanted)
        self._log.write(_log_line(wanted, scored))
        return scored, served, time.perf_counter() - began

    async def _score(self, rollout: Rollout, wanted: _Wanted) -> ScoredRollout:
        """Unscored where time ran out in training, and void where it ran out for the judge."""
        if rollout.stop is StopReason.TIME_BUDGET and not wanted.is_validation:
            return ScoredRollout(rollout=rollout, reward=None)
        try:
            async with asyncio.timeout(JUDGE_S) as clock:
                return await asyncio.to_thread(self._scorer.score, rollout, wanted.task)
        except TimeoutError:
            if not clock.expired():  # somebody else's timeout
                raise
            why = f"the judge took longer than {JUDGE_S:g} s"
            return ScoredRollout(rollout=replace(rollout, stop=StopReason.INFRASTRUCTURE, why=why), reward=None)

    async def _open(self) -> None:
        async with self._opening:
            match self._source:
                case FromCache() as source if self._setup is None:
                    self._cache = source.open_cache()
                    self._setup = CacheSetup(
                        cache=LookupBatcher(await self._cache.__aenter__()),
                        namespace=source.namespace,
                        writes=writing_tools(self._world.tools),
                        on_miss=source.on_miss,
                        on_outage=source.on_outage,
                        tiers=source.tiers,
                        outage_patience_s=source.outage_patience_s,
                        outage_log=OutageLog(),
                    )

    def _loop(self, temperature: float) -> CacheAgentLoop:
        """Training and validation sample at temperatures of their own."""
        if temperature not in self._loops:
            self._loops[temperature] = CacheAgentLoop(
                self._engine, self.renderer, self._parser, budgets=self.run.grpo.budgets, temperature=temperature
            )
        return self._loops[temperature]

    def _episode(self, wanted: _Wanted) -> Episode:
        def open_tools() -> ToolAnswerer:
            if self._setup is None:
                return LiveTools(self._world.open(wanted.task))
            return CacheTools(
                self._setup,
                lambda: self._world.open(wanted.task),
                environment=wanted.task.environment,
                rollout=wanted.rollout,
                group=wanted.group,
            )

        return Episode(
            task_id=wanted.task.id,
            messages=wanted.messages,
            open_tools=open_tools,
            group=wanted.group,
            rollout=wanted.rollout,
        )


_workers: WeakKeyDictionary[Any, dict[tuple[str, str], _Worker]] = WeakKeyDictionary()
"""By verl's client of its servers, of which a worker process has one; then by run file and cache."""


def _worker_of(agent: AgentLoopBase, run: str, url: str) -> _Worker:
    known = _workers.setdefault(agent.server_manager, {})
    if (run, url) not in known:
        known[run, url] = _Worker(agent, read_run(Path(run), Run), url)
    return known[run, url]


def _check(config: Any, run: Run) -> None:
    """Raise RunMisconfigured where verl would do something else than the run file says, or than rollouts can bear."""
    rollout, grpo = config.actor_rollout_ref.rollout, run.grpo
    context = rollout.max_model_len or rollout.prompt_length + rollout.response_length
    budgets = grpo.budgets
    is_raw = rollout.logprobs_mode == "raw_logprobs"
    for is_wrong, what in (
        (not config.trainer.use_v1, "trainer.use_v1 is False: the legacy trainer has no place for a void rollout"),
        (
            rollout.name != "vllm",
            f"actor_rollout_ref.rollout.name is {rollout.name}: only vllm is known to take these sampling parameters",
        ),
        (
            rollout.top_p != 1 or rollout.top_k != -1,
            "actor_rollout_ref.rollout.top_p and top_k must be 1 and -1: they would bias the log-probabilities",
        ),
        (
            grpo.temperature != rollout.temperature,
            f"grpo.temperature is {grpo.temperature}, actor_rollout_ref.rollout.temperature {rollout.temperature}",
        ),
        (
            is_raw and rollout.temperature != 1,
            "actor_rollout_ref.rollout.logprobs_mode is raw_logprobs, which is right at temperature 1 only",
        ),
        (
            not is_raw and budgets.first_turn_min_tokens > 0,
            "grpo.budgets.first_turn_min_tokens needs actor_rollout_ref.rollout.logprobs_mode raw_logprobs: in others "
            "the least length would be part of the log-probabilities",
        ),
        (
            budgets.context_tokens > context,
            f"grpo.budgets.context_tokens is {budgets.context_tokens}, the servers hold {context}: raise "
            "data.max_prompt_length or data.max_response_length, or lower the budget",
        ),
        (grpo.credit != "uniform", "grpo.credit is trust: verl lays one advantage on a whole rollout"),
    ):
        if is_wrong:
            raise RunMisconfigured(what)


def _vllm_sampling(sampling: Sampling) -> dict[str, Any]:
    return {
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "repetition_penalty": 1.0,
        "logprobs": True,
        "max_tokens": sampling.max_tokens,
        "min_tokens": min(sampling.min_tokens, sampling.max_tokens),
        "stop_token_ids": [sampling.stop_id],
        "ignore_eos": True,  # the model's other end tokens would end a turn that our stop token does not
    }


def _output(
    rollout: Rollout, reward: Reward, wanted: _Wanted, served: Served, score_seconds: float, worker: _Worker
) -> AgentLoopOutput:
    row = training_row(ScoredRollout(rollout=rollout, reward=reward), worker.run.grpo, worker.renderer.end_of_turn_id)
    numbers = rollout_numbers(rollout, reward)
    before = max(0, wanted.step - 1)  # the weights of a step are those after the step before
    return AgentLoopOutput(
        prompt_ids=list(row.prompt_ids),
        response_ids=list(row.completion_ids),
        response_mask=row.mask,
        response_logprobs=list(row.logprobs),
        reward_score=numbers["validation_reward"] if wanted.is_validation else reward.total,
        num_turns=max(1, 2 * len(rollout.turns)),  # messages: the request, each turn, what the tools said in between
        metrics=AgentLoopMetrics(
            generate_sequences=rollout.generate_seconds,
            tool_calls=rollout.tool_seconds,
            compute_score=score_seconds,
            num_preempted=-1 if served.preempted is None else served.preempted,
        ),
        extra_fields={
            "reward_extra_info": numbers,
            "min_global_steps": before if served.oldest_weights is None else served.oldest_weights,
            "max_global_steps": before if served.newest_weights is None else served.newest_weights,
        },
    )


def _log_path(config: Any) -> Path:
    """One file a process and a start: two must not write into one, and nodes may not share a disk."""
    began = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")  # a container's processes have the same ids each time
    name = f"{socket.gethostname()}-{os.getpid()}-{began}.jsonl"
    return Path(config.trainer.default_local_dir) / "rollouts" / name


def _log_line(wanted: _Wanted, scored: ScoredRollout) -> dict[str, Any]:
    reward = scored.reward
    return {
        "step": wanted.step,
        "is_validation": wanted.is_validation,
        "task": wanted.task.id,
        "group": wanted.group,
        "reward": None if reward is None else reward.total,
        **rollout_numbers(scored.rollout, reward),
    }
