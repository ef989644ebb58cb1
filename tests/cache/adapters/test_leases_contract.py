"""One contract, every lease desk: of all that miss a call one executes it, and the others learn when it is done.

Times to live are tens of milliseconds, because a server's clock cannot be moved by hand. Nothing is asserted about how
soon anything happens; that it happens at all is what the time limits are for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from toolcache.adapters.memory_leases import GRACE_S, MemoryLeases
from toolcache.core.ports import Lease, Leases

OpenLeases = Callable[[], Awaitable[Leases]]
Elapse = Callable[[float], Awaitable[None]]

SHORT_S = 0.03
AFTERWARDS_S = 0.06
"""Long enough for what lives SHORT_S to be over."""
BREATH_S = 0.5
"""Time to do something before it is over, even on a busy machine."""
LONG_S = 600.0
PATIENCE_S = 60.0
"""Only a wait that never ends is ended by it."""


async def taken(leases: Leases, key: str = "k", *, ttl_s: float = LONG_S) -> Lease:
    (lease,) = await leases.acquire("shop", [key], ttl_s=ttl_s)
    assert lease is not None
    return lease


async def is_free(leases: Leases, key: str = "k") -> bool:
    return await leases.acquire("shop", [key], ttl_s=LONG_S) != [None]


async def begun(leases: Leases, *keys: str, timeout_s: float = LONG_S) -> asyncio.Task[None]:
    """A wait that has begun, and may be over."""
    task = asyncio.ensure_future(leases.wait("shop", keys, timeout_s))
    await asyncio.wait({task}, timeout=0.02)
    return task


async def waiting(leases: Leases, *keys: str) -> asyncio.Task[None]:
    """A wait that has begun, for leases that last."""
    task = await begun(leases, *keys)
    assert not task.done()
    return task


async def ends(task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await task


# -- acquiring ---------------------------------------------------------------------------------------------------------


async def test_a_key_has_one_holder(leases: Leases) -> None:
    first = await leases.acquire("shop", ["a", "b"], ttl_s=LONG_S)
    second = await leases.acquire("shop", ["b", "c", "a"], ttl_s=LONG_S)
    assert [each is not None for each in first] == [True, True]
    assert [each is not None for each in second] == [False, True, False]
    assert [each.key for each in first if each] == ["a", "b"]
    assert await leases.acquire("shop", [], ttl_s=LONG_S) == []


async def test_of_a_key_asked_twice_the_first_gets_the_lease(leases: Leases) -> None:
    found = await leases.acquire("shop", ["a", "a", "b", "a"], ttl_s=LONG_S)
    assert [each is not None for each in found] == [True, False, True, False]


async def test_of_64_that_ask_at_once_one_gets_the_lease(open_leases: OpenLeases) -> None:
    desks = [await open_leases(), await open_leases()]
    found = await asyncio.gather(*(desks[n % 2].acquire("shop", ["k"], ttl_s=LONG_S) for n in range(64)))
    assert sum(lease is not None for (lease,) in found) == 1


async def test_namespaces_have_leases_of_their_own(leases: Leases) -> None:
    lease = await taken(leases)
    (other,) = await leases.acquire("other", ["k"], ttl_s=LONG_S)
    assert other is not None
    await leases.settle("other", [lease.id])
    assert not await leases.release("other", lease.id)
    assert not await leases.extend("other", lease.id, LONG_S)
    assert await leases.holding("third") == frozenset()
    assert not await is_free(leases)


async def test_a_lease_is_named_by_its_key_and_a_secret(leases: Leases) -> None:
    for key in ("k", "a.b", "f0#7", "ü"):
        one = await taken(leases, key)
        assert one.id.startswith(f"{key}.")
        await leases.release("shop", one.id)
        two = await taken(leases, key)
        assert len(two.id) >= len(key) + 1 + 16
        assert one.id != two.id
        assert await leases.release("shop", two.id)


@pytest.mark.parametrize("forged", ["k", "k.", "k.guess", ".", "", "other.x"])
async def test_a_lease_cannot_be_ended_by_who_does_not_know_its_secret(leases: Leases, forged: str) -> None:
    await taken(leases)
    assert not await leases.release("shop", forged)
    assert not await leases.extend("shop", forged, LONG_S)
    await leases.settle("shop", [forged])
    assert not await is_free(leases)


# -- ending ------------------------------------------------------------------------------------------------------------


async def test_a_released_lease_passes_on(leases: Leases) -> None:
    lease = await taken(leases)
    assert await leases.release("shop", lease.id)
    assert await leases.held("shop", ["k"]) == frozenset()
    await taken(leases)
    assert not await leases.release("shop", lease.id)
    assert not await is_free(leases)


async def test_an_expired_lease_passes_on(leases: Leases, elapse: Elapse) -> None:
    lost = await taken(leases, ttl_s=SHORT_S)
    await elapse(AFTERWARDS_S)
    assert await leases.held("shop", ["k"]) == frozenset()
    await taken(leases)
    assert not await leases.extend("shop", lost.id, LONG_S)
    assert not await leases.release("shop", lost.id)
    assert not await is_free(leases)


async def test_settling_a_lost_lease_does_nothing(leases: Leases, elapse: Elapse) -> None:
    lost = await taken(leases, ttl_s=SHORT_S)
    await elapse(AFTERWARDS_S)
    await leases.settle("shop", [lost.id])
    assert await leases.held("shop", ["k"]) == frozenset()
    await taken(leases)
    await leases.settle("shop", [lost.id, "unknown.x"])
    assert not await is_free(leases)


async def test_an_extended_lease_lives_on(leases: Leases, elapse: Elapse) -> None:
    lease = await taken(leases, ttl_s=BREATH_S)
    assert await leases.extend("shop", lease.id, LONG_S)
    await elapse(BREATH_S + SHORT_S)
    assert not await is_free(leases)
    assert await leases.extend("shop", lease.id, SHORT_S)
    await elapse(AFTERWARDS_S)
    assert await is_free(leases)


async def test_settled_keys_count_as_held_but_can_be_acquired_anew(leases: Leases) -> None:
    one, two = await taken(leases, "a"), await taken(leases, "b")
    await leases.settle("shop", [one.id, two.id])
    await leases.settle("shop", [])
    assert await leases.held("shop", ["a", "b", "c"]) == {"a", "b"}
    assert not await leases.release("shop", one.id)
    again = await taken(leases, "a")
    assert await leases.held("shop", ["a"]) == {"a"}
    assert await leases.release("shop", again.id)
    assert await is_free(leases, "b")


async def test_all_keys_that_are_held_can_be_listed(leases: Leases, elapse: Elapse) -> None:
    assert await leases.holding("shop") == frozenset()
    released, settled = await taken(leases, "released"), await taken(leases, "settled")
    await taken(leases, "expired", ttl_s=SHORT_S)
    await taken(leases, "held")
    await leases.release("shop", released.id)
    await leases.settle("shop", [settled.id])
    await elapse(AFTERWARDS_S)
    assert await leases.holding("shop") == {"held", "settled"}
    assert await leases.held("shop", ["held", "settled", "expired", "released"]) == {"held", "settled"}


# -- waiting -----------------------------------------------------------------------------------------------------------


async def test_who_waits_wakes_when_the_lease_is_settled(leases: Leases) -> None:
    lease = await taken(leases)
    task = await waiting(leases, "k")
    await leases.settle("shop", [lease.id])
    await ends(task)


async def test_who_waits_wakes_when_the_lease_is_released(leases: Leases) -> None:
    lease = await taken(leases)
    task = await waiting(leases, "k")
    await leases.release("shop", lease.id)
    await ends(task)


async def test_who_waits_wakes_when_the_lease_expires_though_nobody_asks(leases: Leases, elapse: Elapse) -> None:
    await taken(leases, ttl_s=0.1)
    task = await begun(leases, "k")
    await elapse(0.1)
    await ends(task)
    assert await is_free(leases)


async def test_who_waits_for_an_extended_lease_waits_longer(leases: Leases, elapse: Elapse) -> None:
    lease = await taken(leases, ttl_s=BREATH_S)
    task = await waiting(leases, "k")
    assert await leases.extend("shop", lease.id, LONG_S)
    await elapse(BREATH_S + SHORT_S)
    done, _ = await asyncio.wait({task}, timeout=BREATH_S)
    assert not done
    await leases.release("shop", lease.id)
    await ends(task)


async def test_who_waits_for_several_keys_wakes_for_the_first_of_them(leases: Leases) -> None:
    held = [await taken(leases, key) for key in "abc"]
    task = await waiting(leases, "a", "b", "c")
    await leases.settle("shop", [held[1].id])
    await ends(task)


async def test_all_who_wait_wake(leases: Leases) -> None:
    lease = await taken(leases)
    tasks = [await waiting(leases, "k") for _ in range(5)]
    await leases.settle("shop", [lease.id])
    for task in tasks:
        await ends(task)


async def test_what_is_under_no_lease_is_not_waited_for(leases: Leases) -> None:
    settled = await taken(leases, "settled")
    await leases.settle("shop", [settled.id])
    await taken(leases)
    async with asyncio.timeout(PATIENCE_S):
        await leases.wait("shop", ["k", "free"], LONG_S)
        await leases.wait("shop", ["k", "settled"], LONG_S)


async def test_a_wait_ends_with_its_time(leases: Leases, elapse: Elapse) -> None:
    await taken(leases)
    task = await begun(leases, "k", timeout_s=0.1)
    await elapse(0.1)
    await ends(task)
    assert not await is_free(leases)


async def test_who_gives_up_waiting_disturbs_nobody(leases: Leases) -> None:
    lease = await taken(leases)
    given_up, other = await waiting(leases, "k"), await waiting(leases, "k")
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    await leases.settle("shop", [lease.id])
    await ends(other)


async def test_of_all_who_wait_one_gets_the_lease_that_expired(leases: Leases, elapse: Elapse) -> None:
    async def one() -> Lease | None:
        await leases.wait("shop", ["k"], LONG_S)
        return (await leases.acquire("shop", ["k"], ttl_s=LONG_S))[0]

    await taken(leases, ttl_s=0.1)
    tasks = [asyncio.ensure_future(one()) for _ in range(8)]
    await asyncio.wait(tasks, timeout=0.02)
    await elapse(0.1)
    async with asyncio.timeout(PATIENCE_S):
        assert sum(lease is not None for lease in await asyncio.gather(*tasks)) == 1


# -- several desks -----------------------------------------------------------------------------------------------------


async def test_desks_over_one_place_see_each_others_leases(open_leases: OpenLeases) -> None:
    one, two = await open_leases(), await open_leases()
    lease = await taken(one)
    assert not await is_free(two)
    assert await two.held("shop", ["k"]) == {"k"}
    assert await two.holding("shop") == {"k"}
    assert await two.extend("shop", lease.id, LONG_S)
    assert await two.release("shop", lease.id)
    assert await is_free(one)


@pytest.mark.parametrize("how", ["settle", "release"])
async def test_who_waits_at_one_desk_wakes_when_the_lease_ends_at_another(open_leases: OpenLeases, how: str) -> None:
    one, two = await open_leases(), await open_leases()
    lease = await taken(one)
    task = await waiting(two, "k")
    if how == "settle":
        await one.settle("shop", [lease.id])
    else:
        await one.release("shop", lease.id)
    await ends(task)
    assert await two.held("shop", ["k"]) == ({"k"} if how == "settle" else frozenset())


# -- draws -------------------------------------------------------------------------------------------------------------


async def test_draws_count_from_nought_for_each_key_and_group(leases: Leases) -> None:
    async def draw(key: str, group: str, namespace: str = "shop", *, have: int = 3) -> tuple[int, int]:
        return await leases.draw(namespace, key, group, have=have, keep_s=LONG_S)

    assert [await draw("k", "g", have=have) for have in (3, 4, 9)] == [(0, 3), (1, 3), (2, 3)]
    assert await draw("k", "h", have=5) == (0, 5)
    assert await draw("l", "g") == (0, 3)
    assert await draw("k", "g", "other") == (0, 3)
    assert await draw("k g", "") != await draw("k", " g", have=7)
    assert await draw("k", "g") == (3, 3)


async def test_no_two_of_a_group_draw_the_same(open_leases: OpenLeases) -> None:
    desks = [await open_leases(), await open_leases()]
    drawn = await asyncio.gather(*(desks[n % 2].draw("shop", "k", "g", have=2, keep_s=LONG_S) for n in range(32)))
    assert sorted(drawn) == [(n, 2) for n in range(32)]


async def test_draws_are_forgotten_after_their_time(leases: Leases, elapse: Elapse) -> None:
    assert await leases.draw("shop", "k", "g", have=1, keep_s=LONG_S) == (0, 1)
    assert await leases.draw("shop", "k", "g", have=2, keep_s=SHORT_S) == (1, 1)
    await elapse(AFTERWARDS_S)
    assert await leases.draw("shop", "k", "g", have=3, keep_s=SHORT_S) == (0, 3)


# -- in memory only: what takes a clock that is moved by hand ----------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_a_lease_ends_at_the_very_second_and_passes_on_at_once() -> None:
    clock = Clock()
    leases = MemoryLeases(clock)
    await taken(leases, ttl_s=60.0)
    clock.now_s = 59.999
    assert not await is_free(leases)
    task = await waiting(leases, "k")
    clock.now_s = 60.0
    await leases.held("shop", [])  # whoever comes by finds it expired, and wakes who waits
    await ends(task)
    assert await is_free(leases)


async def test_a_settled_key_counts_as_held_for_the_grace_and_no_longer() -> None:
    clock = Clock()
    leases = MemoryLeases(clock)
    lease = await taken(leases)
    await leases.settle("shop", [lease.id])
    clock.now_s = GRACE_S - 0.001
    assert await leases.held("shop", ["k"]) == {"k"}
    clock.now_s = GRACE_S
    assert await leases.held("shop", ["k"]) == frozenset()


async def test_what_is_over_takes_no_room() -> None:
    clock = Clock()
    leases = MemoryLeases(clock)
    for n in range(1000):
        clock.now_s += 1.0
        lease = await taken(leases, f"k{n}", ttl_s=5.0)
        for _ in range(30):
            await leases.extend("shop", lease.id, 5.0 + n % 7)
        if n % 2:
            await leases.settle("shop", [lease.id])
        await leases.draw("shop", f"k{n}", "g", have=1, keep_s=5.0)
    for lasting in (leases._held, leases._settled, leases._draws):
        assert len(lasting._values) <= 12
        assert len(lasting._times) <= 100


async def test_closing_lets_go_who_still_waits() -> None:
    leases = MemoryLeases()
    await taken(leases)
    task = await waiting(leases, "k")
    await leases.close()
    await ends(task)
