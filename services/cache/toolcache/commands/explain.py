"""`toolcache explain`: ask for one call, and print what decided its answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from toolcache.commands.reach import cache
from toolcache.settings import Settings
from toolcache_client.messages import Answer, Candidate, Explanation, LookupItem


async def explain(settings: Settings, namespace: str, asked: LookupItem, *, as_json: bool) -> None:
    """Print the answer and its explanation. Raises CacheError, StoreUnavailable."""
    async with cache(settings) as client:
        (answer,) = await client.lookup(namespace, [asked], explain=True)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(answer)).decode())  # noqa: T201 - the command's output
        return
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for name, text in _lines(answer):
        console.print(f"{name:<10} {text}")
    if answer.explanation is None:
        return
    for number, step in enumerate(answer.explanation.steps, start=1):
        console.print(f"{'steps' if number == 1 else '':<10} {number}. {step}")
    if answer.explanation.candidates:
        Console(markup=False, highlight=False).print(_candidates(answer.explanation.candidates))


def _lines(answer: Answer) -> Iterator[tuple[str, str]]:
    yield "answer", f"{answer.tier}, trust {answer.trust:.3f}, because {answer.reason}"
    if answer.detail:
        yield "", answer.detail
    if answer.result is not None:
        adapted = ", adapted" if answer.adapted else ""
        yield "result", _short(answer.result.content) + (" (an error)" if answer.result.is_error else "") + adapted
        yield "donor", str(answer.donor)
    if answer.explanation is not None:
        yield from _facts(answer.explanation)
    yield "after", answer.state_after or "unknown"


def _facts(found: Explanation) -> Iterator[tuple[str, str]]:
    yield "key", found.key
    yield "state", found.state
    yield "call", found.canonical
    yield "masked", ", ".join(found.masked) or "nothing"
    yield "roles", ", ".join(f"{name} {role.replace('_', ' ')}" for name, role in found.roles.items()) or "none"
    yield "guard", _json(found.guard)
    yield "threshold", f"similarity {found.threshold:g}, proven precision (floor) {found.floor:g}"
    yield "trust", ", ".join(f"{kind} {trust:.3f}" for kind, trust in found.trust.items()) or "none measured"


def _candidates(candidates: tuple[Candidate, ...]) -> Table:
    table = Table(title="candidates", title_justify="left")
    table.add_column("donor", no_wrap=True)
    table.add_column("verdict")
    table.add_column("score", justify="right")
    table.add_column("age", justify="right")
    table.add_column("differs in")
    table.add_column("arguments")
    for each in candidates:
        score = "-" if each.score is None else f"{each.score:.3f}"
        table.add_row(
            each.donor, each.verdict, score, _age(each.age_s), ", ".join(each.differs) or "-", _json(each.arguments)
        )
    return table


def _json(value: Mapping[str, Any]) -> str:
    return msgspec.json.encode(value).decode()


def _short(text: str, most: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}... ({len(text)} characters)"


def _age(age_s: float) -> str:
    """
    >>> _age(12.3), _age(7200.0), _age(864000.0)
    ('12 s', '2.0 h', '10.0 d')
    """
    if age_s < 120:
        return f"{age_s:.0f} s"
    return f"{age_s / 3600:.1f} h" if age_s < 2 * 86400 else f"{age_s / 86400:.1f} d"
