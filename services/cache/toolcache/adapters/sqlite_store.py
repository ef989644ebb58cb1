"""Entries in one SQLite file: the embedded default, durable, shared by the processes of one machine.

Writes go through one thread that commits whole groups: a caller is answered after the commit that holds its entries,
and a hundred callers share one disk sync (one sync a row: 225 rows/s; grouped: limited by the CPU). Reads take
microseconds and run where they are asked. WAL lets readers go on while the writer commits.

The table keeps SQLite's rowid: WITHOUT ROWID was measured 2.7 times slower and 3.4 times larger at 1 KB a row.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from toolcache.core.entries import Entry, Outcome, Result
from toolcache.core.ports import StoredVector, StoreUnavailable, Vector
from toolcache.core.profile import Profile
from toolcache.core.tools import Namespace

_T = TypeVar("_T")

BUSY_S = 30.0
"""Seconds to wait for another process that writes to the same file, such as an import."""
MOST_IN_GROUP = 512
"""Writes that share a commit at most, so that the first of them does not wait for ever."""
PAGE = 1000
"""Rows read at once when all entries are walked."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS revision (n INTEGER NOT NULL);
INSERT INTO revision SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM revision);
CREATE TABLE IF NOT EXISTS namespaces (name TEXT PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS profiles (
    namespace TEXT NOT NULL, tool TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (namespace, tool));
CREATE TABLE IF NOT EXISTS entries (
    n INTEGER PRIMARY KEY, namespace TEXT NOT NULL, key TEXT NOT NULL, scope TEXT NOT NULL, environment TEXT NOT NULL,
    tool TEXT NOT NULL, arguments TEXT NOT NULL, content TEXT NOT NULL, is_error INTEGER NOT NULL,
    took_s REAL NOT NULL, result_digest TEXT NOT NULL, guard TEXT NOT NULL, call_digest TEXT NOT NULL,
    recorded_at_s REAL NOT NULL, seen INTEGER NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS entries_key ON entries (namespace, key, result_digest);
CREATE INDEX IF NOT EXISTS entries_guard ON entries (namespace, guard) WHERE guard <> '';
CREATE INDEX IF NOT EXISTS entries_call ON entries (namespace, call_digest);
CREATE INDEX IF NOT EXISTS entries_tool ON entries (namespace, tool);
CREATE TABLE IF NOT EXISTS vectors (
    n INTEGER PRIMARY KEY, entry INTEGER NOT NULL UNIQUE, namespace TEXT NOT NULL, tool TEXT NOT NULL,
    vector BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS vectors_tool ON vectors (namespace, tool, n);
"""

_COLUMNS = (
    "key, scope, environment, tool, arguments, content, is_error, took_s, result_digest, guard, call_digest,"
    " recorded_at_s, seen, n"
)

_PUT = """
INSERT INTO entries (namespace, key, scope, environment, tool, arguments, content, is_error, took_s, result_digest,
    guard, call_digest, recorded_at_s, seen) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (namespace, key, result_digest) DO UPDATE SET seen = seen + excluded.seen
"""


class SqliteStore:
    """A Store in one file. Create it with `open`; close it, or the last group may be cut off unanswered."""

    def __init__(self, path: Path, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        self._path = path
        self._reader = reader
        self._reading = threading.Lock()
        self._writer = _Writer(path, writer)

    @classmethod
    def open(cls, path: Path) -> SqliteStore:
        """Open the file, creating it and its folder where missing. Raises StoreUnavailable."""
        with _translated(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreUnavailable(f"store {path}: its folder cannot be made ({error})") from error
            writer = _connect(path)
            writer.execute("PRAGMA journal_mode = WAL")
            # FULL: a committed group survives a power cut, and the group shares the price of the sync.
            writer.execute("PRAGMA synchronous = FULL")
            writer.executescript(_SCHEMA)
            return cls(path, _connect(path), writer)

    async def revision(self) -> int:
        return int(self._rows("SELECT n FROM revision")[0][0])

    async def namespaces(self) -> dict[str, Namespace]:
        rows = self._rows("SELECT name, document FROM namespaces")
        return {name: msgspec.json.decode(document, type=Namespace) for name, document in rows}

    async def put_namespace(self, namespace: Namespace) -> None:
        document = msgspec.json.encode(namespace).decode()
        await self._write(lambda db: _put_documents(db, "namespaces (name, document)", [(namespace.name, document)]))

    async def profiles(self, namespace: str) -> dict[str, Profile]:
        rows = self._rows("SELECT tool, document FROM profiles WHERE namespace = ?", namespace)
        return {tool: msgspec.json.decode(document, type=Profile) for tool, document in rows}

    async def put_profiles(self, namespace: str, profiles: Mapping[str, Profile]) -> None:
        rows = [(namespace, tool, msgspec.json.encode(profile).decode()) for tool, profile in profiles.items()]
        await self._write(lambda db: _put_documents(db, "profiles (namespace, tool, document)", rows))

    async def get(self, namespace: str, keys: Sequence[str]) -> list[tuple[Entry, ...]]:
        query = f"SELECT {_COLUMNS} FROM entries WHERE namespace = ? AND key = ? ORDER BY n"
        return [tuple(map(_entry, self._rows(query, namespace, key))) for key in keys]

    async def put(self, namespace: str, entries: Sequence[Entry]) -> list[Outcome]:
        return await self._write(lambda db: [_put(db, namespace, entry) for entry in entries])

    async def with_guard(self, namespace: str, guard: str) -> tuple[Entry, ...]:
        query = f"SELECT {_COLUMNS} FROM entries WHERE namespace = ? AND guard = ? AND guard <> '' ORDER BY n"
        return tuple(map(_entry, self._rows(query, namespace, guard)))

    async def with_call(self, namespace: str, call_digest: str) -> tuple[Entry, ...]:
        query = f"SELECT {_COLUMNS} FROM entries WHERE namespace = ? AND call_digest = ? ORDER BY n"
        return tuple(map(_entry, self._rows(query, namespace, call_digest)))

    async def by_order(self, namespace: str, orders: Sequence[int]) -> dict[int, Entry]:
        query = f"SELECT {_COLUMNS} FROM entries WHERE namespace = ? AND n = ?"
        found = (self._rows(query, namespace, order) for order in orders)
        return {order: _entry(rows[0]) for order, rows in zip(orders, found, strict=True) if rows}

    async def entries(self, namespace: str, tool: str | None = None) -> AsyncIterator[Entry]:
        last = 0
        where = "namespace = ? AND n > ?" + ("" if tool is None else " AND tool = ?")
        query = f"SELECT {_COLUMNS} FROM entries WHERE {where} ORDER BY n LIMIT {PAGE}"
        while rows := self._rows(query, namespace, last, *(() if tool is None else (tool,))):
            for row in rows:
                yield _entry(row)
            last = rows[-1][-1]
            await asyncio.sleep(0)  # let lookups in between pages

    async def set_guards(self, namespace: str, guards: Mapping[int, str]) -> None:
        rows = [(guard, namespace, order) for order, guard in guards.items()]
        await self._write(
            lambda db: db.executemany("UPDATE entries SET guard = ? WHERE namespace = ? AND n = ?", rows).rowcount
        )

    async def put_vectors(self, namespace: str, tool: str, vectors: Mapping[int, Vector]) -> None:
        rows = [(order, namespace, tool, vector) for order, vector in vectors.items()]
        query = "INSERT OR IGNORE INTO vectors (entry, namespace, tool, vector) VALUES (?, ?, ?, ?)"
        await self._write(lambda db: db.executemany(query, rows).rowcount)

    async def vectors(self, namespace: str, tool: str, *, after: int) -> list[StoredVector]:
        query = "SELECT n, entry, vector FROM vectors WHERE namespace = ? AND tool = ? AND n > ? ORDER BY n"
        rows = self._rows(query, namespace, tool, after)
        return [StoredVector(order=n, entry_order=entry, vector=vector) for n, entry, vector in rows]

    async def counts(self, namespace: str) -> dict[str, tuple[int, int]]:
        query = """
            SELECT tool, SUM(results), SUM(results > 1) FROM
                (SELECT tool, COUNT(*) AS results FROM entries WHERE namespace = ? GROUP BY tool, key)
            GROUP BY tool
        """
        return {tool: (entries, conflicts) for tool, entries, conflicts in self._rows(query, namespace)}

    async def environments(self, namespace: str) -> int:
        return int(self._rows("SELECT COUNT(DISTINCT environment) FROM entries WHERE namespace = ?", namespace)[0][0])

    async def close(self) -> None:
        await asyncio.to_thread(self._writer.close)
        self._reader.close()

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with _translated(self._path), self._reading:
            return self._reader.execute(query, values).fetchall()

    async def _write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        return await asyncio.wrap_future(self._writer.submit(work))


class _Writer:
    """One thread, one connection: commits what has gathered, then answers all of it."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._path = path
        self._db = db
        self._queue: queue.SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[sqlite3.Connection], _T]) -> Future[_T]:
        """Resolves after the commit that holds the work. Raises StoreUnavailable after `close`."""
        if not self._thread.is_alive():
            raise StoreUnavailable(f"store {self._path}: it is closed")
        future: Future[_T] = Future()
        self._queue.put((work, future))
        return future

    def close(self) -> None:
        """Commit what is waiting, then end the thread."""
        self._queue.put(None)
        self._thread.join()
        self._db.close()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group, ends = [first], False
            while len(group) < MOST_IN_GROUP and not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    ends = True
                    break
                group.append(following)
            # From here on nobody can cancel: a caller that gave up before is left out, one that does later is too late.
            self._commit([each for each in group if each[1].set_running_or_notify_cancel()])
            if ends:
                return

    def _commit(self, group: Sequence[tuple[Callable[[sqlite3.Connection], Any], Future[Any]]]) -> None:
        """All of the group or none: a caller is answered only by what the disk has."""
        results: list[Any] = []
        try:
            with _translated(self._path):
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    results = [work(self._db) for work, _ in group]
                    self._db.execute("COMMIT")
                finally:
                    if self._db.in_transaction:  # SQLite rolls back by itself when the disk is full
                        self._db.execute("ROLLBACK")
        except BaseException as error:  # noqa: BLE001 - whatever it was belongs to the callers, the thread must live
            if len(group) > 1 and not isinstance(error.__cause__, sqlite3.OperationalError):
                # One caller's bad rows are no reason to refuse the others'. A lock or a full disk is: it would only be
                # waited for again, once a caller.
                for each in group:
                    self._commit([each])
                return
            for _, future in group:
                future.set_exception(error)
            return
        for (_, future), result in zip(group, results, strict=True):
            future.set_result(result)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailable(f"store {path}: {error}; is the disk full, or the file in use or damaged?") from error


def _put_documents(db: sqlite3.Connection, table: str, rows: Sequence[Sequence[str]]) -> None:
    marks = ", ".join("?" * len(rows[0])) if rows else ""
    if rows:
        db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)
    db.execute("UPDATE revision SET n = n + 1")


def _put(db: sqlite3.Connection, namespace: str, entry: Entry) -> Outcome:
    seen = db.execute(
        "SELECT result_digest FROM entries WHERE namespace = ? AND key = ?", (namespace, entry.key)
    ).fetchall()
    db.execute(_PUT, (namespace, *_row(entry)))
    if not seen:
        return Outcome.STORED
    return Outcome.KNOWN if (entry.result_digest,) in seen else Outcome.CONFLICT


def _row(entry: Entry) -> tuple[Any, ...]:
    result = entry.result
    return (
        entry.key,
        entry.scope,
        entry.environment,
        entry.tool,
        entry.canonical,
        result.content,
        result.is_error,
        result.took_s,
        entry.result_digest,
        entry.guard,
        entry.call_digest,
        entry.recorded_at_s,
        entry.seen,
    )


def _entry(row: Sequence[Any]) -> Entry:
    key, scope, environment, tool, arguments, content, is_error, took_s, result_digest, guard, call_digest = row[:11]
    recorded_at_s, seen, order = row[11:]
    return Entry(
        key=key,
        scope=scope,
        environment=environment,
        tool=tool,
        arguments=json.loads(arguments),
        canonical=arguments,
        result=Result(content=content, is_error=bool(is_error), took_s=took_s),
        result_digest=result_digest,
        guard=guard,
        call_digest=call_digest,
        recorded_at_s=recorded_at_s,
        seen=seen,
        order=order,
    )
