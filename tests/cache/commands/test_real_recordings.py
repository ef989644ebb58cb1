"""The audit on recordings of real models, each call of which was executed again: what is served must be true."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from toolcache.commands.audit import audit_file
from toolcache.core.audit import Audit
from toolcache.core.tools import Tier

DATA = Path(__file__).parents[3].parent / "shared" / "data"
RECORDINGS, TOOLS = DATA / "tau_bench.jsonl.gz", DATA / "tau_tools.json"

pytestmark = pytest.mark.skipif(not RECORDINGS.is_file(), reason="the shared recordings are not beside the clone")


def replayed(domain: str, *models: str) -> Audit:
    return asyncio.run(audit_file(RECORDINGS, TOOLS, domain, models, [Tier.EXACT, Tier.SIMILAR]))


def test_retail_is_answered_for_three_calls_in_five_and_never_wrongly() -> None:
    found = replayed("retail", "gpt-4.1/l0", "grok-3", "Llama-3.1-8B")
    exact, similar = found.tiers[Tier.EXACT], found.tiers[Tier.SIMILAR]
    assert found.calls == 1782
    assert exact.served / found.calls >= 0.61
    assert (exact.right, similar.right, found.contaminated_rollouts) == (exact.served, similar.served, 0)
    assert similar.served >= 90


def test_airline_is_answered_for_one_call_in_eight_and_never_wrongly() -> None:
    found = replayed("airline", "gpt-4o", "Llama-3.1-8B_IL_checkpoint-30")
    exact, similar = found.tiers[Tier.EXACT], found.tiers[Tier.SIMILAR]
    assert found.calls == 2002
    assert exact.served / found.calls >= 0.12
    assert (exact.right, similar.right, found.contaminated_rollouts) == (exact.served, similar.served, 0)
    assert similar.served >= 160
