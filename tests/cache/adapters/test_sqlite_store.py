"""SQLite's own promises: durable through a crash, shared between processes, clear when the disk says no."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from toolcache.adapters.sqlite_store import SqliteStore
from toolcache.core.calls import Call, call_digest, entry_key
from toolcache.core.entries import Entry, Outcome, Result
from toolcache.core.ports import StoreUnavailable
from toolcache.core.tools import Namespace


def entry(n: int, content: str = "x") -> Entry:
    call = Call.of("find", {"n": n})
    result = Result(content=content)
    return Entry(
        key=entry_key("s", call),
        scope="s",
        environment="e",
        tool="find",
        arguments=call.arguments,
        canonical=call.canonical,
        result=result,
        result_digest=result.digest(),
        call_digest=call_digest("e", call),
    )


async def numbers(store: SqliteStore) -> list[int]:
    return [each.arguments["n"] async for each in store.entries("shop")]


async def test_entries_outlive_the_store_that_took_them(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on" / "the way" / "cache.sqlite3"
    first = SqliteStore.open(path)
    await first.put_namespace(Namespace(name="shop", tools={}))
    await first.put("shop", [entry(1), entry(2)])
    await first.close()
    again = SqliteStore.open(path)
    assert await numbers(again) == [1, 2]
    assert list(await again.namespaces()) == ["shop"]
    assert await again.put("shop", [entry(1)]) == [Outcome.KNOWN]
    await again.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from toolcache.adapters.sqlite_store import SqliteStore
from toolcache.core.calls import Call, call_digest, entry_key
from toolcache.core.entries import Entry, Result

async def main():
    store = SqliteStore.open(Path(sys.argv[1]))
    async def put(n):
        call, result = Call.of("find", {"n": n}), Result(content="x" * 1000)
        one = Entry(key=entry_key("s", call), scope="s", environment="e", tool="find", arguments=call.arguments,
                    canonical=call.canonical, result=result, result_digest=result.digest())
        await store.put("shop", [one])
        sys.stdout.write(f"{n}\\n")
        sys.stdout.flush()
    for start in range(0, 10**6, 16):
        await asyncio.gather(*(put(n) for n in range(start, start + 16)))

asyncio.run(main())
"""


def test_what_a_killed_process_acknowledged_is_there(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite3"
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(100)]
    child.send_signal(signal.SIGKILL)
    rest, _ = child.communicate(timeout=30)
    acknowledged += [int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    assert child.returncode == -signal.SIGKILL

    async def reopened() -> None:
        store = SqliteStore.open(path)
        assert set(acknowledged) <= set(await numbers(store))
        assert await store.put("shop", [entry(-1)]) == [Outcome.STORED]
        await store.close()

    asyncio.run(reopened())


async def test_two_stores_on_one_file_see_each_others_writes(tmp_path: Path) -> None:
    one, two = SqliteStore.open(tmp_path / "c.sqlite3"), SqliteStore.open(tmp_path / "c.sqlite3")
    before = await two.revision()
    await one.put_namespace(Namespace(name="shop", tools={}))
    assert await two.revision() > before
    assert await one.put("shop", [entry(1)]) == [Outcome.STORED]
    assert await two.put("shop", [entry(1)]) == [Outcome.KNOWN]
    done = await asyncio.gather(*(store.put("shop", [entry(n)]) for n in range(2, 40) for store in (one, two)))
    assert sorted(outcome for (outcome,) in done) == [Outcome.KNOWN] * 38 + [Outcome.STORED] * 38
    assert await numbers(one) == await numbers(two)
    assert sorted(await numbers(two)) == list(range(1, 40))
    await one.close()
    await two.close()


def test_processes_that_open_a_new_file_at_once_all_can(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from toolcache.adapters.sqlite_store import SqliteStore;"
        "s = SqliteStore.open(Path(sys.argv[1])); print(asyncio.run(s.revision()))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c.sqlite3")], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [child.communicate(timeout=60)[0] for child in children] == ["0\n"] * 4


async def test_a_write_waits_for_another_process_to_finish_its_own(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    other = sqlite3.connect(tmp_path / "c.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.ensure_future(store.put("shop", [entry(1)]))
    await asyncio.sleep(0)
    assert await numbers(store) == []
    other.execute("COMMIT")
    assert await waiting == [Outcome.STORED]
    other.close()
    await store.close()


async def test_a_locked_file_refuses_a_whole_group_at_once_with_a_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolcache.adapters.sqlite_store.BUSY_S", 0.0)
    path = tmp_path / "c.sqlite3"
    store = SqliteStore.open(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    refused = await asyncio.gather(*(store.put("shop", [entry(n)]) for n in range(50)), return_exceptions=True)
    assert {type(each) for each in refused} == {StoreUnavailable}
    assert str(path) in str(refused[0])
    assert "locked" in str(refused[0])
    other.execute("ROLLBACK")
    assert await store.put("shop", [entry(1)]) == [Outcome.STORED]
    other.close()
    await store.close()


async def test_a_full_disk_is_told_and_what_was_acknowledged_stays(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.put("shop", [entry(1)])
    # SQLite's own limit on the file's pages answers as a full disk does.
    (pages,) = await store._write(lambda db: db.execute("PRAGMA page_count").fetchone())
    await store._write(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 4}").fetchone())
    refused = await asyncio.gather(
        *(store.put("shop", [entry(n, "x" * 100_000)]) for n in range(2, 6)), return_exceptions=True
    )
    assert {type(each) for each in refused} == {StoreUnavailable}
    assert "full" in str(refused[0])
    assert "c.sqlite3" in str(refused[0])
    assert await numbers(store) == [1]
    assert await store.put("shop", [entry(7)]) == [Outcome.STORED]
    await store.close()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="file permissions of POSIX")
@pytest.mark.parametrize("kind", ["folder", "below a file", "not a database"])
def test_a_path_that_cannot_be_a_store_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("this is certainly not a database, but a longer text" * 50)
    path = {"folder": tmp_path, "below a file": tmp_path / "file" / "c.sqlite3", "not a database": tmp_path / "file"}
    with pytest.raises(StoreUnavailable, match=str(path[kind])):
        SqliteStore.open(path[kind])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreUnavailable, match=str(tmp_path)):
        SqliteStore.open(tmp_path / "c.sqlite3")


async def test_a_file_that_became_read_only_refuses_writes_and_goes_on_reading(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.put("shop", [entry(1)])
    await store._write(lambda db: db.execute("PRAGMA query_only = ON").fetchone())
    with pytest.raises(StoreUnavailable, match="readonly"):
        await store.put("shop", [entry(2)])
    assert await numbers(store) == [1]
    await store.close()


async def test_a_closed_store_says_so_instead_of_hanging(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.close()
    async with asyncio.timeout(10):
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.put("shop", [entry(1)])
        with pytest.raises(StoreUnavailable):
            await store.revision()


async def test_closing_commits_what_is_waiting(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    waiting = [asyncio.ensure_future(store.put("shop", [entry(n)])) for n in range(20)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*waiting) == [[Outcome.STORED]] * 20


async def test_a_duration_that_no_store_can_hold_harms_only_its_writer(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    poison = replace(entry(1), result=Result(content="x", took_s=float("nan")))
    done = await asyncio.gather(
        store.put("shop", [entry(0)]),
        store.put("shop", [poison]),
        store.put("shop", [entry(2)]),
        return_exceptions=True,
    )
    assert (done[0], type(done[1]), done[2]) == ([Outcome.STORED], StoreUnavailable, [Outcome.STORED])
    await store.close()
