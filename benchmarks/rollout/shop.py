"""A shop whose rollouts are known beforehand: what each says in each turn, how many tokens that takes, what its tools
answer and which of the answers the cache has.

A rollout has six turns: two pages (exact), a search in words of its own beside a page (similar, exact), a feed that
nobody recorded (executed once a group under a lease, slowly), a form and a page after it (a write, and a read in the
state it leads to, both exact), three more pages in that state, and the answer.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from benchmarks.search.corpus import documents
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.adapters.tiny_qwen3 import make_tokenizer
from cacherl.rollout.loop import opening, turn_seed
from cacherl.rollout.renderer import Message
from toolcache_client import CacheClient
from toolcache_client.messages import LookupItem, NamespaceSpec, RecordItem, ToolResult, ToolSpec

PAGES = 5
Call = tuple[str, str]
"""Tool and its one argument."""
TOOLS: tuple[tuple[str, str, str], ...] = (
    ("read_page", "page", "read"),
    ("search", "question", "read"),
    ("read_feed", "feed", "read"),
    ("send_form", "form", "write"),
)
"""Name, argument, effect."""
ARGUMENT = {name: argument for name, argument, _ in TOOLS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is played."""

    groups: int = 32
    group_size: int = 8
    tokens_per_s: float = 50.0
    """What the engine decodes for one rollout, however many others there are."""
    median_tokens: float = 180.0
    sigma: float = 0.6
    """Of the logarithm of a turn's tokens: one turn in a hundred is four times as long as the median."""
    live_s: float = 1.0
    """Seconds of one live execution."""

    @property
    def rollouts(self) -> int:
        return self.groups * self.group_size


@dataclass(frozen=True)
class Shop:
    """The rollouts of one namespace. Equal sizes and seeds give equal rollouts."""

    sizes: Sizes
    tokenizer: HFTokenizer
    seed: int = 0
    namespace: str = "shop"

    @property
    def places(self) -> list[tuple[int, int]]:
        """(group, member) of each rollout; groups stand together."""
        return [(group, member) for group in range(self.sizes.groups) for member in range(self.sizes.group_size)]

    def environment(self, group: int) -> str:
        return f"shop@1/{group}"

    def messages(self, group: int) -> Sequence[Message]:
        return opening("You keep a shop.", f"Please see to customer {group}.")

    def rollout_seed(self, group: int, member: int) -> int:
        return (self.seed * self.sizes.groups + group) * self.sizes.group_size + member

    @cached_property
    def lines(self) -> Mapping[int, tuple[int, ...]]:
        """Ids of every turn of every rollout, by the seed with which the loop asks for it."""
        return {
            turn_seed(self.rollout_seed(group, member), turn): ids
            for group, member in self.places
            for turn, ids in enumerate(self._turns(group, member))
        }

    def _turns(self, group: int, member: int) -> list[tuple[int, ...]]:
        chance = random.Random(f"{self.seed}/{group}/{member}")
        said = [*(_calls_text(calls) for calls in turns(group, member)), "All done."]
        return [self._padded(f"\n</think>\n\n{text}<|im_end|>", chance) for text in said]

    def _padded(self, text: str, chance: random.Random) -> tuple[int, ...]:
        """Ids of some thinking and the text, as many as a turn of this rollout has."""
        spoken = self.tokenizer.encode(text)
        count = round(chance.lognormvariate(math.log(self.sizes.median_tokens), self.sizes.sigma))
        begin = chance.randrange(len(self._thoughts) // 2)
        return (*self._thoughts[begin : begin + max(1, count - len(spoken))], *spoken)

    @cached_property
    def _thoughts(self) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(" ".join(texts()[:1000])))

    def fill(self, url: str) -> None:
        """Record everything but the feeds, and the searches in other words than the rollouts'."""
        with CacheClient(url, timeout_s=120.0) as client:
            client.put_namespace(self.namespace, _spec())
            for group in range(self.sizes.groups):
                known = [_page(group, n) for n in range(PAGES)]
                known += [("search", _question(group, wording=-1 - n)) for n in range(3)]
                *_, sent = client.record(self.namespace, self._records(group, [*known, _form(group)], ""))
                client.record(self.namespace, self._records(group, known[:PAGES], sent.state_after or ""))
            client.calibrate(self.namespace)
            client.lookup(self.namespace, [self._warm_up()])  # the encoder and the index are loaded by then

    def _records(self, group: int, calls: Sequence[Call], state: str) -> list[RecordItem]:
        return [
            RecordItem(
                tool=tool,
                arguments={ARGUMENT[tool]: value},
                environment=self.environment(group),
                state=state,
                result=Session(live_s=0.0).execute(tool, {ARGUMENT[tool]: value}),
            )
            for tool, value in calls
        ]

    def _warm_up(self) -> LookupItem:
        question = {"question": _question(0, wording=-9)}
        return LookupItem(tool="search", arguments=question, environment=self.environment(0))


def make_shop(sizes: Sizes, *, seed: int = 0, namespace: str = "shop") -> Shop:
    """A shop with a BPE tokenizer of 8,000 entries, trained on the documentation that comes with Python."""
    return Shop(sizes, HFTokenizer(make_tokenizer(texts(), vocabulary_size=8000)), seed=seed, namespace=namespace)


@cache
def texts() -> list[str]:
    """The documentation that comes with Python, half a million characters."""
    return [each.text for each in documents()]


def turns(group: int, member: int) -> list[list[Call]]:
    """The calls of each turn but the last."""
    return [
        [_page(group, 0), _page(group, 1)],
        [("search", _question(group, wording=member)), _page(group, 2)],
        [("read_feed", f"feed {group}")],
        [_form(group), _page(group, 3)],
        [_page(group, n) for n in (0, 1, 4)],
    ]


class Session:
    """Live tools: about a kilobyte an answer, the same for the same call."""

    def __init__(self, *, live_s: float) -> None:
        self._live_s = live_s

    def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        time.sleep(self._live_s)
        text = f"{tool} {arguments[ARGUMENT[tool]]}"
        content = json.dumps({"asked": text, "lines": [random.Random(text).choice(WORDS) * 8 for _ in range(25)]})
        return ToolResult(content=content, took_s=self._live_s)


def tool_objects() -> list[dict[str, Any]]:
    """The tools as the parser wants them."""
    return [
        {
            "type": "function",
            "effect": effect,
            "function": {"name": name, "description": name, "parameters": _parameters(argument)},
        }
        for name, argument, effect in TOOLS
    ]


def _parameters(argument: str) -> dict[str, Any]:
    return {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}


def _spec() -> NamespaceSpec:
    specs = (
        ToolSpec(
            name=name,
            effect="write" if effect == "write" else "read",
            parameters=_parameters(argument),
            arguments={"question": "free_text"} if name == "search" else {},
            similar_floor=0.0,  # no proof is asked for: this is about speed
        )
        for name, argument, effect in TOOLS
    )
    return NamespaceSpec(tools=tuple(specs), similar_threshold=0.0)


def _calls_text(calls: Sequence[Call]) -> str:
    bodies = (json.dumps({"name": tool, "arguments": {ARGUMENT[tool]: value}}) for tool, value in calls)
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


def _page(group: int, n: int) -> Call:
    return "read_page", f"page {group}-{n}"


def _form(group: int) -> Call:
    return "send_form", f"form {group}"


def _question(group: int, *, wording: int) -> str:
    """Twenty words, another twenty for another wording."""
    return " ".join(random.Random(f"{group}/{wording}").choices(WORDS, k=20))


WORDS = (
    "return broken lamp order parcel late refund colour size delivery address change cancel warranty repair shop "
    "window garden kitchen table chair wooden small cheap heavy bright please kindly quickly about because whether"
).split()
