"""SQLite's own promises: durable through a crash, shared between processes, clear when the disk says no."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from toolcache.adapters import sqlite_store
from toolcache.adapters.sqlite_store import SqliteStore
from toolcache.core.calls import Call, call_digest, entry_key
from toolcache.core.entries import Entry, Outcome, Place, Result
from toolcache.core.ports import Filter, IndexedVector, Once, StoreUnavailable
from toolcache.core.profile import Profile
from toolcache.core.tools import Effect, Namespace, Tool
from toolcache.core.trust import Evidence


def entry(n: int, content: str = "x", *, at_s: float = 1000.0) -> Entry:
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
        place=Place(guard=f"g{n}", equal=f"e{n}", call=call_digest("e", call)),
        recorded_at_s=at_s,
    )


async def numbers(store: SqliteStore) -> list[int]:
    return [each.arguments["n"] async for each in store.entries("shop")]


async def is_sound(store: SqliteStore, path: Path) -> None:
    """SQLite finds no fault in the file, and its tables agree with one another."""
    entries = [each async for each in store.entries("shop")]
    assert await store.size_bytes("shop") == sum(each.size_bytes for each in entries)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ids = [order for (order,) in db.execute("SELECT id FROM entries ORDER BY id")]
        assert ids == [order for (order,) in db.execute("SELECT entry FROM marks ORDER BY entry")]
        for table in ("tags", "vectors"):
            assert {order for (order,) in db.execute(f"SELECT entry FROM {table}")} <= set(ids)
    db.close()


# -- durable -----------------------------------------------------------------------------------------------------------


async def test_entries_outlive_the_store_that_took_them(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on" / "the way" / "cache.sqlite3"
    first = SqliteStore.open(path)
    await first.put_namespace(Namespace(name="shop", tools={}))
    await first.put("shop", [entry(1), entry(2)])
    await first.close()
    again = SqliteStore.open(path)
    assert await numbers(again) == [1, 2]
    assert await again.namespaces() == ["shop"]
    assert await again.put("shop", [entry(1)]) == [Outcome.KNOWN]
    await again.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from toolcache.adapters.sqlite_store import SqliteStore
from toolcache.core.calls import Call, entry_key
from toolcache.core.entries import Entry, Result
from toolcache.core.ports import Filter

async def main():
    store = SqliteStore.open(Path(sys.argv[1]))
    async def put(n, tags=()):
        call, result = Call.of("find", {"n": n}), Result(content="x" * 1000)
        one = Entry(key=entry_key("s", call), scope="s", environment="e", tool="find", arguments=call.arguments,
                    canonical=call.canonical, result=result, result_digest=result.digest(), tags=tags)
        await store.put("shop", [one])
        sys.stdout.write(f"{n}\\n")
        sys.stdout.flush()
    async def others(n):
        await put(-n, ("t",))
        await store.put_vectors("shop", "find", {n: b"1234", n + 1: b"1234"}, version="v")
        await store.remove_where("shop", Filter(tag="t"))
        await store.evict("other", 0, spare=())
    for start in range(1, 10**6, 16):
        await asyncio.gather(*(put(n) for n in range(start, start + 16)), others(start))

asyncio.run(main())
"""


def test_what_a_killed_process_acknowledged_is_there(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite3"
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(300)]
    child.send_signal(signal.SIGKILL)
    rest, _ = child.communicate(timeout=30)
    acknowledged += [int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    assert child.returncode == -signal.SIGKILL

    async def reopened() -> None:
        store = SqliteStore.open(path)
        assert {n for n in acknowledged if n > 0} <= set(await numbers(store))
        await is_sound(store, path)
        assert await store.put("shop", [entry(0)]) == [Outcome.STORED]
        await store.close()

    asyncio.run(reopened())


async def test_closing_commits_what_is_waiting(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    waiting = [asyncio.ensure_future(store.put("shop", [entry(n)])) for n in range(20)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*waiting) == [[Outcome.STORED]] * 20


async def test_a_closed_store_says_so_instead_of_hanging(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.close()
    async with asyncio.timeout(60):
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.put("shop", [entry(1)])
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.get("shop", ["k"])
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.namespaces()


async def test_every_commit_is_synced_to_the_disk(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    assert await store._write(lambda db: db.execute("PRAGMA synchronous").fetchone()) == (2,)
    assert await store._write(lambda db: db.execute("PRAGMA journal_mode").fetchone()) == ("wal",)
    await store.close()


async def test_who_gives_up_before_its_turn_leaves_nothing(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    other = sqlite3.connect(tmp_path / "c.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = [asyncio.ensure_future(store.put("shop", [entry(n)])) for n in range(4)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[2].cancel()
    await asyncio.sleep(0)
    other.execute("COMMIT")
    other.close()
    assert [await waiting[1], await waiting[3]] == [[Outcome.STORED]] * 2
    assert await numbers(store) == [1, 3]
    await store.close()


async def test_who_gives_up_too_late_keeps_no_answer_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "GROUP_S", 60.0)
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    has_begun, may_end = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> None:
        has_begun.set()
        may_end.wait(60.0)

    given_up = asyncio.ensure_future(store._write(slow))
    await asyncio.to_thread(has_begun.wait, 60.0)
    other = asyncio.ensure_future(store.put("shop", [entry(1)]))
    await asyncio.sleep(0)
    given_up.cancel()
    may_end.set()
    async with asyncio.timeout(60):
        assert await other == [Outcome.STORED]
    await store.close()


async def test_a_deleted_namespace_leaves_no_row_in_the_file(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.put_namespace(Namespace(name="shop", tools={}))
    await store.put_profiles("shop", {"find": Profile()})
    await store.add_evidence("shop", "find", {"nearest": Evidence(served=1)})
    await store.put("shop", [replace(entry(1), tags=("t",))], once=Once(name="r"))
    orders = [each.order async for each in store.entries("shop")]
    await store.put_vectors("shop", "find", dict.fromkeys(orders, b"1234"), version="v")
    rows = store._reader.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    tables = {name for (name,) in rows} - {"state", "sqlite_sequence", "api_keys"}
    assert await store.delete_namespace("shop") == 1
    for table in tables:
        assert store._reader.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,), table
    await store.close()


async def test_a_namespace_whose_deletion_was_cut_off_is_hidden_at_once_and_gone_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "SLICE", 2)
    path = tmp_path / "c.sqlite3"
    store = SqliteStore.open(path)
    await store.put_namespace(Namespace(name="shop", tools={}))
    await store.put("shop", [entry(n) for n in range(100)])
    deleting = asyncio.ensure_future(store.delete_namespace("shop"))
    await asyncio.sleep(0)
    await store.touch("shop", ["k"], 0.0)  # writes are done in turn: by now it has begun
    deleting.cancel()
    await asyncio.wait({deleting})
    assert await store.namespaces() == []
    assert await numbers(store) == []
    assert (await store.get("shop", [entry(50).key])).revision == 0
    await store.put("shop", [entry(1)])
    await store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT COUNT(*) FROM entries").fetchone()[0] > 1
    db.close()

    again = SqliteStore.open(path)
    await again.remove_expired(0.0)
    assert await numbers(again) == [1]
    await again.close()
    with sqlite3.connect(path) as db:
        for table in ("entries", "marks", "namespaces"):
            assert db.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (1,)
    db.close()


# -- fast --------------------------------------------------------------------------------------------------------------


async def test_a_hundred_keys_and_the_revision_take_one_statement(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.put("shop", [entry(n) for n in range(100)])
    statements: list[str] = []
    store._reader.set_trace_callback(statements.append)
    found = await store.get("shop", [entry(n).key for n in range(100)])
    assert [len(each) for each in found.samples] == [1] * 100
    assert len(statements) == 1
    await store.close()


async def test_names_of_requests_are_forgotten_without_a_look_at_all_of_them(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.put("shop", [entry(1)], once=Once(name="r"))
    statements: list[str] = []
    store._writer._db.set_trace_callback(statements.append)
    await store.remove_expired(1000.0)
    await store.remove_expired(5000.0)
    forgetting = [each for each in statements if " onces " in each]
    assert len(forgetting) == 4
    for statement in forgetting:
        plan = store._reader.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
        assert [row[3].split()[0] for row in plan] == ["SEARCH"], plan
    assert store._reader.execute("SELECT COUNT(*) FROM onces").fetchone() == (0,)
    await store.close()


async def test_a_thousand_keys_are_asked_for_with_pauses_for_others(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    turns: list[int] = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    await store.get("shop", [entry(n).key for n in range(1000)])
    assert turns
    await store.close()


async def test_results_that_are_longer_together_than_sqlites_longest_value_are_read_one_by_one(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.put_namespace(Namespace(name="shop", tools={}))
    await store.put("shop", [entry(n, str(n) * 3000) for n in range(9)] + [entry(1, "other")])
    keys = [entry(n).key for n in (8, 1, 99)]
    expected = await store.get("shop", keys)
    store._reader.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 5000)
    with pytest.raises(sqlite3.DataError):
        store._reader.execute("SELECT zeroblob(5001)").fetchone()
    assert await store.get("shop", keys) == expected
    assert [[each.content[:5] for each in one] for one in expected.samples] == [["88888"], ["11111", "other"], []]
    assert (await store.get("none", keys)).revision == 0
    await store.close()


async def test_an_acknowledgement_does_not_wait_for_a_large_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "SLICE", 4)
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.put("shop", [entry(n) for n in range(600)])
    removals = [
        asyncio.ensure_future(store.evict("shop", 270_000, spare=())),
        asyncio.ensure_future(store.remove_where("shop", Filter(tool="find", recorded_before_s=2000.0))),
    ]
    assert await store.put("shop", [entry(-1, at_s=3000.0)]) == [Outcome.STORED]
    assert not any(each.done() for each in removals)
    assert sum(await asyncio.gather(*removals)) == 600
    assert await numbers(store) == [-1]
    await is_sound(store, tmp_path / "c.sqlite3")
    await store.close()


async def test_who_follows_too_late_reads_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "LOG_KEPT", 10)
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.put("shop", [entry(n) for n in range(30)])
    orders = [each.order async for each in store.entries("shop")]
    before = (await store.changes("shop", after="", version="v")).cursor
    await store.put_vectors("shop", "find", dict.fromkeys(orders[:10], b"1234"), version="v")
    in_time = await store.changes("shop", after=before, version="v")
    assert (in_time.is_complete, len(in_time.added)) == (True, 10)
    await store.put_vectors("shop", "find", {orders[10]: b"1234"}, version="v")
    assert not (await store.changes("shop", after=before, version="v")).is_complete
    after = await store.changes("shop", after=in_time.cursor, version="v")
    assert (after.is_complete, len(after.added)) == (True, 1)
    (rows,) = store._reader.execute("SELECT COUNT(*) FROM log").fetchone()
    assert rows == 10
    await store.close()


# -- shared ------------------------------------------------------------------------------------------------------------


async def test_two_stores_on_one_file_see_each_others_writes(tmp_path: Path) -> None:
    one, two = SqliteStore.open(tmp_path / "c.sqlite3"), SqliteStore.open(tmp_path / "c.sqlite3")
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
        "s = SqliteStore.open(Path(sys.argv[1])); print(asyncio.run(s.namespaces()))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c.sqlite3")], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [child.communicate(timeout=60)[0] for child in children] == ["[]\n"] * 4


async def test_a_write_waits_for_another_process_and_reads_do_not(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.put("shop", [entry(0)])
    other = sqlite3.connect(tmp_path / "c.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.ensure_future(store.put("shop", [entry(1)]))
    await asyncio.sleep(0)
    assert await numbers(store) == [0]
    assert len((await store.get("shop", [entry(0).key])).samples[0]) == 1
    assert not waiting.done()
    other.execute("COMMIT")
    assert await waiting == [Outcome.STORED]
    other.close()
    await store.close()


async def test_a_locked_file_refuses_all_that_wait_at_once_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "BUSY_S", 0.5)
    path = tmp_path / "c.sqlite3"
    store = SqliteStore.open(path)
    statements: list[str] = []
    await store._write(lambda db: db.set_trace_callback(statements.append))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    refused = await asyncio.gather(*(store.put("shop", [entry(n)]) for n in range(50)), return_exceptions=True)
    assert {type(each) for each in refused} == {StoreUnavailable}
    assert statements.count("BEGIN IMMEDIATE") == 1  # each try waits for BUSY_S
    assert str(path) in str(refused[0])
    assert "another process" in str(refused[0])
    other.execute("ROLLBACK")
    assert await store.put("shop", [entry(1)]) == [Outcome.STORED]
    other.close()
    await store.close()


# -- a disk that says no -----------------------------------------------------------------------------------------------


async def test_a_file_that_may_not_grow_is_told_and_what_was_acknowledged_stays(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.put("shop", [entry(1)])
    # SQLite's own limit on the file's pages answers as a full disk does.
    (pages,) = await store._write(lambda db: db.execute("PRAGMA page_count").fetchone())
    await store._write(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 4}").fetchone())
    refused = await asyncio.gather(
        *(store.put("shop", [entry(n, "x" * 100_000)]) for n in range(2, 6)), return_exceptions=True
    )
    assert {type(each) for each in refused} == {StoreUnavailable}
    assert "free some space" in str(refused[0])
    assert "c.sqlite3" in str(refused[0])
    assert await numbers(store) == [1]
    assert await store.put("shop", [entry(7)]) == [Outcome.STORED]
    await is_sound(store, tmp_path / "c.sqlite3")
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or _mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", folder) != 0:
        pytest.skip("this user may not mount a disk to fill")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def _mount(*words: str | Path) -> int:
    return subprocess.run(["mount", *words], capture_output=True).returncode


async def test_a_full_disk_is_told_and_what_was_acknowledged_stays(small_disk: Path) -> None:
    path = small_disk / "c.sqlite3"
    store = SqliteStore.open(path)
    await store.put("shop", [entry(0)])
    (small_disk / "other").write_bytes(b"x" * 2_000_000)
    acknowledged = [0]
    with pytest.raises(StoreUnavailable, match=r"c\.sqlite3.*full"):
        for n in range(1, 10_000):
            assert await store.put("shop", [entry(n, "x" * 3000)]) == [Outcome.STORED]
            acknowledged.append(n)
    assert len(acknowledged) > 10
    assert await numbers(store) == acknowledged
    (small_disk / "other").unlink()
    assert await store.put("shop", [entry(10_001, "x" * 3000)]) == [Outcome.STORED]
    await is_sound(store, path)
    await store.close()
    again = SqliteStore.open(path)
    assert await numbers(again) == [*acknowledged, 10_001]
    await again.close()


async def test_a_store_on_a_read_only_disk_is_refused_with_advice(small_disk: Path) -> None:
    path = small_disk / "c.sqlite3"
    store = SqliteStore.open(path)
    await store.put("shop", [entry(1)])
    await store.close()
    assert _mount("-o", "remount,ro", small_disk) == 0
    with pytest.raises(StoreUnavailable, match=r"c\.sqlite3.*may this process write"):
        SqliteStore.open(path)
    with pytest.raises(StoreUnavailable, match="new"):
        SqliteStore.open(small_disk / "new" / "c.sqlite3")
    assert _mount("-o", "remount,rw", small_disk) == 0
    again = SqliteStore.open(path)
    assert await numbers(again) == [1]
    await again.close()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreUnavailable, match=str(tmp_path)):
        SqliteStore.open(tmp_path / "c.sqlite3")


async def test_a_file_that_became_read_only_refuses_writes_and_goes_on_reading(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.put("shop", [entry(1)])
    await store._write(lambda db: db.execute("PRAGMA query_only = ON").fetchone())
    with pytest.raises(StoreUnavailable, match="let this process write"):
        await store.put("shop", [entry(2)])
    assert await numbers(store) == [1]
    assert len((await store.get("shop", [entry(1).key])).samples[0]) == 1
    await store.close()


# -- files that are no stores, or not of this version ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "below a file", "not a database"])
def test_a_path_that_cannot_be_a_store_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("this is certainly not a database, but a longer text" * 50)
    path = {"folder": tmp_path, "below a file": tmp_path / "file" / "c.sqlite3", "not a database": tmp_path / "file"}
    with pytest.raises(StoreUnavailable, match=str(path[kind])):
        SqliteStore.open(path[kind])


async def test_a_damaged_file_is_told_and_its_sound_part_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite3"
    store = SqliteStore.open(path)
    await store.put("shop", [entry(n, str(n) * 2000) for n in range(10, 60)])
    await store.close()
    content = bytearray(path.read_bytes())
    page = content.index(b"55" * 2000) // 8192 * 8192
    content[page : page + 8192] = b"\xff" * 8192
    path.write_bytes(content)
    damaged = SqliteStore.open(path)
    with pytest.raises(StoreUnavailable, match=r"c\.sqlite3.*damaged.*backup"):
        await damaged.get("shop", [entry(55).key])
    with pytest.raises(StoreUnavailable, match="damaged"):
        await numbers(damaged)
    assert [each.content for each in (await damaged.get("shop", [entry(10).key])).samples[0]] == ["10" * 2000]
    await damaged.close()


async def test_a_row_that_is_not_as_it_was_written_is_told_as_damage(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "c.sqlite3")
    await store.put_namespace(Namespace(name="shop", tools={}))
    await store.put("shop", [entry(1), entry(2)])
    await store._write(
        lambda db: db.execute("UPDATE entries SET sample = x'93' WHERE id = (SELECT MIN(id) FROM entries)").rowcount
    )
    await store._write(lambda db: db.execute("UPDATE namespaces SET document = '{\"name\": 1}'").rowcount)
    with pytest.raises(StoreUnavailable, match="damaged"):
        await store.get("shop", [entry(1).key])
    with pytest.raises(StoreUnavailable, match="damaged"):
        await store.put("shop", [entry(1)])
    with pytest.raises(StoreUnavailable, match="damaged"):
        await numbers(store)
    with pytest.raises(StoreUnavailable, match="damaged"):
        await store.known("shop")
    assert len((await store.get("shop", [entry(2).key])).samples[0]) == 1
    await store.close()


@pytest.mark.parametrize("version", [2, sqlite_store.SCHEMA_VERSION + 1])
def test_a_file_of_another_version_is_refused_and_left_as_it_is(tmp_path: Path, version: int) -> None:
    path = tmp_path / "c.sqlite3"
    asyncio.run(SqliteStore.open(path).close())
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable, match=rf"c\.sqlite3.*version {version}.*program that wrote it"):
        SqliteStore.open(path)
    assert path.read_bytes() == before


def test_the_database_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite3"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE bookmarks (url TEXT)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable, match="another program"):
        SqliteStore.open(path)
    assert path.read_bytes() == before


# -- version 0.1 -------------------------------------------------------------------------------------------------------

VERSION_0_1 = """
CREATE TABLE revision (n INTEGER NOT NULL);
INSERT INTO revision VALUES (41);
CREATE TABLE namespaces (name TEXT PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE profiles (
    namespace TEXT NOT NULL, tool TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (namespace, tool));
CREATE TABLE entries (
    n INTEGER PRIMARY KEY, namespace TEXT NOT NULL, key TEXT NOT NULL, scope TEXT NOT NULL, environment TEXT NOT NULL,
    tool TEXT NOT NULL, arguments TEXT NOT NULL, content TEXT NOT NULL, is_error INTEGER NOT NULL,
    took_s REAL NOT NULL, result_digest TEXT NOT NULL, guard TEXT NOT NULL, call_digest TEXT NOT NULL,
    recorded_at_s REAL NOT NULL, seen INTEGER NOT NULL);
CREATE UNIQUE INDEX entries_key ON entries (namespace, key, result_digest);
CREATE INDEX entries_guard ON entries (namespace, guard) WHERE guard <> '';
CREATE INDEX entries_call ON entries (namespace, call_digest);
CREATE INDEX entries_tool ON entries (namespace, tool);
CREATE TABLE vectors (
    n INTEGER PRIMARY KEY, entry INTEGER NOT NULL UNIQUE, namespace TEXT NOT NULL, tool TEXT NOT NULL,
    vector BLOB NOT NULL);
CREATE INDEX vectors_tool ON vectors (namespace, tool, n);
INSERT INTO profiles VALUES ('shop', 'find', '{"roles":{},"evidence":{},"entries":3,"similar_threshold":0.7}');
"""
TOOLS_0_1 = (
    '{"find":{"name":"find","description":"d","parameters":{"type":"object"},"effect":"read","roles":{},'
    '"errors_change_state":true}}'
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store as version 0.1 left it: entries 3, 5 and 9, of which 9 lies in a namespace without a document."""
    path = tmp_path / "c.sqlite3"
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(VERSION_0_1)
    document = f'{{"name":"shop","tools":{TOOLS_0_1},"tiers":["exact"],"similar_threshold":0.7}}'
    db.execute("INSERT INTO namespaces VALUES ('shop', ?)", (document,))
    rows = [
        (3, "shop", "k" * 64, "s", "e", "find", '{"n":1}', "one \0", 0, 0.5, "d1", "g1", "c1", 100.0, 2),
        (5, "shop", "k" * 64, "s", "e", "find", '{"n":1}', "é", 1, 0.25, "d2", "", "c1", 200.0, 1),
        (9, "other", "k" * 64, "s", "e", "find", '{"n":1}', "one", 0, 0.5, "d1", "g1", "c1", 100.0, 1),
    ]
    db.executemany(f"INSERT INTO entries VALUES ({', '.join('?' * 15)})", rows)
    vectors = [(1, 5, "shop", "find", b"five"), (2, 3, "shop", "find", b"three")]
    db.executemany("INSERT INTO vectors VALUES (?, ?, ?, ?, ?)", vectors)
    db.commit()
    db.close()
    return path


async def test_a_store_of_version_0_1_is_brought_up_to_date(old: Path) -> None:
    one = Entry(
        key="k" * 64,
        scope="s",
        environment="e",
        tool="find",
        arguments={"n": 1},
        canonical='{"n":1}',
        result=Result(content="one \0", took_s=0.5),
        result_digest="d1",
        place=Place(guard="g1", call="c1"),
        recorded_at_s=100.0,
        seen=2,
        order=3,
    )
    two = replace(
        one,
        result=Result(content="é", is_error=True, took_s=0.25),
        result_digest="d2",
        place=Place(call="c1"),
        recorded_at_s=200.0,
        seen=1,
        order=5,
    )
    for _ in range(2):  # the second time there is nothing to do
        store = SqliteStore.open(old)
        assert [each async for each in store.entries("shop")] == [one, two]
        assert [each.order async for each in store.entries("other")] == [9]
        await is_sound(store, old)
        assert await store.vectors("shop", "find", version="all-MiniLM-L6-v2/1") == [
            IndexedVector(order=3, guard="g1", vector=b"three"),
            IndexedVector(order=5, guard="", vector=b"five"),
        ]
        assert await store.namespaces() == ["shop"]
        known = await store.known("shop")
        assert known is not None
        tool = Tool(
            name="find",
            description="d",
            parameters={"type": "object"},
            effect=Effect.READ,
            errors_change_state=True,
        )
        assert known.namespace.tools == {"find": tool}
        assert (known.profiles, known.shadows) == ({}, {})
        assert known.revision == (await store.get("shop", [])).revision > 41
        assert await store.with_call("shop", "c1") == [two, one]
        await store.close()

    store = SqliteStore.open(old)
    assert await store.put("shop", [replace(one, recorded_at_s=300.0)]) == [Outcome.KNOWN]
    assert await store.put("shop", [entry(7)]) == [Outcome.STORED]
    assert [each.order async for each in store.entries("shop")][-1] > 5
    assert await store.evict("shop", 0, spare=()) == 3
    await store.close()
    with sqlite3.connect(old) as db:
        assert not db.execute("SELECT name FROM sqlite_master WHERE name LIKE 'old_%'").fetchall()
    db.close()


async def test_a_conversion_that_was_cut_off_can_be_made_again(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(sqlite_store, "_revise", None)
        with pytest.raises(TypeError):
            SqliteStore.open(old)
    with sqlite3.connect(old) as db:
        assert db.execute("SELECT n FROM entries ORDER BY n").fetchall() == [(3,), (5,), (9,)]
        assert db.execute("PRAGMA user_version").fetchone() == (0,)
    db.close()
    store = SqliteStore.open(old)
    assert [each.order async for each in store.entries("shop")] == [3, 5]
    await store.close()


# -- the bytes in the file ---------------------------------------------------------------------------------------------


async def test_an_entry_takes_about_the_room_its_size_says(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite3"
    store = SqliteStore.open(path)
    many = [
        replace(
            entry(n, f"{n:04}" * 250),
            environment="shop@1.4.2/task-17",
            place=Place(guard=entry(n).key, equal=entry(n).key[::-1], call=entry(-n).key),
            scope=entry(n + 10**6).key,
        )
        for n in range(5000)
    ]
    for start in range(0, 5000, 500):
        await store.put("shop", many[start : start + 500])
    counted = await store.size_bytes("shop")
    await store.close()
    assert counted * 0.7 < path.stat().st_size < counted * 1.3
