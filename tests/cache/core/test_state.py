"""States are a hash chain over effective writes."""

from __future__ import annotations

import hashlib

import pytest

from toolcache.core.calls import Call, call_digest, entry_key, scope
from toolcache.core.state import initial_state, state_after
from toolcache.core.tools import Effect, Tool

CANCEL = Call.of("cancel", {"order_id": "#W1", "why": "late"})
WRITE, READ, PURE = (Tool(name="cancel", effect=effect) for effect in (Effect.WRITE, Effect.READ, Effect.PURE))


def by_hand(*parts: str) -> str:
    """SHA-256 over each part's length (8 bytes, big-endian) and bytes."""
    return hashlib.sha256(b"".join(len(p.encode()).to_bytes(8, "big") + p.encode() for p in parts)).hexdigest()


def test_the_initial_state_is_the_digest_of_the_environment() -> None:
    assert initial_state("shop@1") == by_hand("toolcache/environment/1", "shop@1")


def test_a_write_moves_the_state_to_the_digest_of_state_and_call() -> None:
    after = state_after("s", CANCEL, tool=WRITE, is_error=False)
    assert after == by_hand("toolcache/write/1", "s", "cancel", '{"order_id":"#W1","why":"late"}')


@pytest.mark.parametrize("tool", [READ, PURE])
def test_reads_do_not_move_the_state(tool: Tool) -> None:
    assert state_after("s", CANCEL, tool=tool, is_error=False) == "s"


def test_a_failed_write_does_not_move_the_state_unless_the_tool_says_so() -> None:
    halfway = Tool(name="cancel", effect=Effect.WRITE, errors_change_state=True)
    assert state_after("s", CANCEL, tool=WRITE, is_error=True) == "s"
    assert state_after("s", CANCEL, tool=halfway, is_error=True) == state_after("s", CANCEL, tool=WRITE, is_error=False)


def test_a_tool_nobody_annotated_is_a_write() -> None:
    assert Tool(name="cancel").effect is Effect.WRITE
    assert state_after("s", CANCEL, tool=None, is_error=False) == state_after("s", CANCEL, tool=WRITE, is_error=False)
    assert state_after("s", CANCEL, tool=None, is_error=True) == "s"


def test_two_orders_of_the_same_writes_are_two_states() -> None:
    other = Call.of("cancel", {"order_id": "#W2"})
    one = state_after(state_after("s", CANCEL, tool=WRITE, is_error=False), other, tool=WRITE, is_error=False)
    two = state_after(state_after("s", other, tool=WRITE, is_error=False), CANCEL, tool=WRITE, is_error=False)
    assert one != two


def test_a_state_depends_on_the_order_of_writes_not_of_arguments() -> None:
    turned = Call.of("cancel", {"why": "late", "order_id": "#W1"})
    assert state_after("s", turned, tool=WRITE, is_error=False) == state_after("s", CANCEL, tool=WRITE, is_error=False)


def test_a_result_holds_in_one_state_of_one_environment() -> None:
    assert scope(READ, "e", "s") != scope(READ, "e", "t")
    assert scope(READ, "e", "s") != scope(READ, "f", "s")
    assert scope(READ, "e", "s") == scope(WRITE, "e", "s") == by_hand("toolcache/scope/1", "e", "s")


def test_a_pure_result_holds_in_every_state_of_one_environment() -> None:
    assert scope(PURE, "e", "s") == scope(PURE, "e", "t") != scope(PURE, "f", "s")
    assert scope(PURE, "e", "s") != scope(READ, "e", "s")


def test_keys_differ_by_scope_tool_and_arguments() -> None:
    keys = {
        entry_key("s", CANCEL),
        entry_key("t", CANCEL),
        entry_key("s", Call.of("close", CANCEL.arguments)),
        entry_key("s", Call.of("cancel", {"order_id": "#W1"})),
        call_digest("s", CANCEL),
    }
    assert len(keys) == 5
    assert entry_key("s", CANCEL) == by_hand("toolcache/entry/1", "s", "cancel", CANCEL.canonical)
