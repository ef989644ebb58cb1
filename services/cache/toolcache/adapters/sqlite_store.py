"""Entries in one SQLite file: the embedded default, durable, shared by the processes of one machine.

Who works where:
 * `get` and other reads of a few rows run where they are asked: they take microseconds, and WAL lets them go on while
   others write.
 * Whatever reads more runs on threads with connections of their own, row by row, so that nobody waits for it.
 * All writes go through one thread that commits whole groups: a caller is answered after the commit that holds its
   entries, and a hundred callers share one disk sync. What writes more than a few rows comes in slices, between which
   the others have their turn.

How a row lies in the file. Everything `get` answers with stands in one column, packed, and SQLite strings the samples
of all keys asked together: one row comes back, however many keys. Each row would cost a release of the interpreter's
lock, which a busy writer takes (100 keys under writes: 99th percentile 1.7 ms instead of 8.4). Digests are indexed by
their first 60 bits, because integers make small indexes; the row holds the whole digest, and it decides. The table
keeps SQLite's rowid: WITHOUT ROWID was measured 2.7 times slower and 3.4 times larger at 1 KB a row. The rowid is the
namespace's number and the order together, so that each namespace counts its own orders and no index is needed for them.

Not covered: network file systems, on which WAL does not work, and a file that another program cuts short while it is
open here, since its pages are mapped into memory.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import queue
import sqlite3
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import msgspec

from toolcache.core.access import ApiKey
from toolcache.core.entries import CLOCK_SKEW_S, MOST_RESULTS, Entry, Outcome, Place, Result, Sample
from toolcache.core.ports import (
    Changes,
    Filter,
    Found,
    IndexedVector,
    Known,
    Once,
    Size,
    StoreUnavailable,
    Vector,
)
from toolcache.core.profile import Profile
from toolcache.core.tools import Namespace
from toolcache.core.trust import Evidence

_T = TypeVar("_T")
_P = ParamSpec("_P")

BUSY_S = 30.0
"""Seconds to wait for another process that writes to the same file, such as an import."""
GROUP_S = 0.02
"""Seconds for which a commit gathers writes at most, so that the first of them does not wait for ever."""
KEYS_AT_ONCE = 128
"""Keys that `get` asks for before it lets others have a turn: a quarter of a millisecond."""
PAGE = 256
"""Entries read at once when all of them are walked."""
SLICE = 256
"""Entries that a large removal or move takes at once: some milliseconds, for which an acknowledgement may wait."""
TURN_S = 0.001
PAUSE_S = 0.0001
"""Seconds a thread works, and then pauses, so that the event loop gets at the interpreter: left alone it would get it
after 5 ms (sys.getswitchinterval)."""
READERS = 2
"""Threads for long reads: one may be slow without holding up all others."""
LOG_KEPT = 1 << 15
"""Changes of vectors that are remembered. Who follows reads some a second; who is further behind reads all anew."""
MOST_DONORS = 8
"""Entries that `with_equal` and `with_call` return."""

ORDERS = 1 << 40
"""Entries that a namespace can be given: a trillion. 2**63 / ORDERS, 8 million, namespaces can be made in a file."""

SCHEMA_VERSION = 3
_SCHEMA = """
CREATE TABLE state (revision INTEGER NOT NULL);
INSERT INTO state VALUES (0);
CREATE TABLE namespaces (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, document TEXT, revision INTEGER NOT NULL DEFAULT 0,
    size_bytes INTEGER NOT NULL DEFAULT 0, orders INTEGER NOT NULL DEFAULT 0);
CREATE TABLE profiles (
    namespace INTEGER NOT NULL, tool TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (namespace, tool));
CREATE TABLE shadows (
    namespace INTEGER NOT NULL, tool TEXT NOT NULL, kind TEXT NOT NULL, "right" INTEGER NOT NULL,
    served INTEGER NOT NULL, PRIMARY KEY (namespace, tool, kind));
CREATE TABLE entries (
    id INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, key INTEGER NOT NULL, equal INTEGER, call INTEGER,
    tool TEXT NOT NULL, environment TEXT NOT NULL, sample BLOB NOT NULL, details BLOB NOT NULL);
CREATE INDEX entries_namespace ON entries (namespace);
CREATE INDEX entries_key ON entries (namespace, key);
CREATE INDEX entries_equal ON entries (namespace, equal) WHERE equal IS NOT NULL;
CREATE INDEX entries_call ON entries (namespace, call) WHERE call IS NOT NULL;
CREATE INDEX entries_tool ON entries (namespace, tool);
CREATE INDEX entries_environment ON entries (namespace, environment);
CREATE TABLE marks (
    entry INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, size_bytes INTEGER NOT NULL, used_s REAL NOT NULL,
    recorded_at_s REAL NOT NULL, expires_at_s REAL NOT NULL);
CREATE INDEX marks_used ON marks (namespace, used_s);
CREATE INDEX marks_expiry ON marks (expires_at_s) WHERE expires_at_s > 0;
CREATE TABLE tags (
    entry INTEGER NOT NULL, tag TEXT NOT NULL, namespace INTEGER NOT NULL, PRIMARY KEY (entry, tag)) WITHOUT ROWID;
CREATE INDEX tags_tag ON tags (namespace, tag);
CREATE TABLE vectors (
    entry INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, tool TEXT NOT NULL, version TEXT NOT NULL,
    guard TEXT NOT NULL, vector BLOB NOT NULL);
CREATE INDEX vectors_tool ON vectors (namespace, tool);
CREATE TABLE log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, namespace INTEGER NOT NULL, tool TEXT NOT NULL, entry INTEGER NOT NULL);
CREATE INDEX log_namespace ON log (namespace);
CREATE TABLE onces (
    namespace INTEGER NOT NULL, name TEXT NOT NULL, keep_s REAL NOT NULL, until_s REAL, PRIMARY KEY (namespace, name));
CREATE INDEX onces_until ON onces (until_s);
CREATE TABLE api_keys (id TEXT PRIMARY KEY, document TEXT NOT NULL);
"""
"""Beside the entries (whose ids `_id` makes, never used twice): `marks` is what changes or is searched by ranges, in
narrow rows; `log` names vectors that came, changed or went, and what became of one is read from `vectors`; a namespace
without a name is being deleted, one without a document was written to but never put."""

_OWN = "(SELECT id FROM namespaces WHERE name = ?)"
_LISTED = "(SELECT value FROM json_each(?))"
_ENTRY = "id, tool, environment, sample, details"
_GET = """
SELECT n.revision, COUNT(e.id), CAST(group_concat(e.sample, '') AS BLOB)
FROM namespaces AS n LEFT JOIN entries AS e ON e.namespace = n.id AND e.key IN ({marks}) WHERE n.name = ?
"""
_GET_EACH = f"SELECT sample FROM entries WHERE namespace = {_OWN} AND key IN {_LISTED}"
_GETS = {1 << n: _GET.format(marks=", ".join("?" * (1 << n))) for n in range(KEYS_AT_ONCE.bit_length())}
"""By number of keys. Powers of two only: SQLite then prepares each statement once, and the rest is filled up."""


class _Kept(Sample, array_like=True, frozen=True, gc=False):
    """A sample as it lies in the file: an array, that comes back as what `get` returns without a further copy."""

    key: str


class _Details(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What only whole entries need."""

    scope: str
    canonical: str
    arguments: str | None
    """None where the canonical text says the same."""
    guard: str
    equal: str
    call: str
    tags: tuple[str, ...]


_encode = msgspec.msgpack.Encoder().encode
_kept = msgspec.msgpack.Decoder(_Kept).decode
_kept_list = msgspec.msgpack.Decoder(list[_Kept]).decode
_details = msgspec.msgpack.Decoder(_Details).decode


class SqliteStore:
    """A Store in one file. Create it with `open`; close it, or the last group may be cut off unanswered."""

    def __init__(self, path: Path, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        self._path = path
        self._reader = reader
        self._cursor = reader.cursor()
        self._readers = _Readers(path)
        self._writer = _Writer(path, writer)

    @classmethod
    def open(cls, path: Path) -> SqliteStore:
        """Open the file, creating it and its folder where missing; one of version 0.1 is brought up to date.

        Raises StoreUnavailable.
        """
        with _translated(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreUnavailable(f"store {path}: its folder cannot be made ({error})") from error
            writer = _connect(path)
            _make_ready(path, writer)
            reader = _connect(path)
            # Each commit of others empties a connection's cache; pages that are mapped need none.
            reader.execute(f"PRAGMA mmap_size = {1 << 40}")
            return cls(path, reader, writer)

    # -- namespaces ----------------------------------------------------------------------------------------------------

    async def namespaces(self) -> list[str]:
        query = "SELECT name FROM namespaces WHERE document IS NOT NULL ORDER BY name"
        return [name for (name,) in await self._readers.rows(query)]

    async def known(self, namespace: str) -> Known | None:
        return await self._readers.run(_known, namespace)

    async def put_namespace(self, namespace: Namespace) -> None:
        document = msgspec.json.encode(namespace).decode()

        def work(db: sqlite3.Connection) -> None:
            own = _namespace_id(db, namespace.name)
            db.execute("UPDATE namespaces SET document = ? WHERE id = ?", (document, own))
            _revise(db, own)

        await self._write(work)

    async def delete_namespace(self, namespace: str) -> int | None:
        def hide(db: sqlite3.Connection) -> tuple[int, int] | None:
            row = db.execute("SELECT id, document IS NOT NULL FROM namespaces WHERE name = ?", (namespace,)).fetchone()
            db.execute("UPDATE namespaces SET name = NULL, document = NULL WHERE name = ?", (namespace,))
            return row  # type: ignore[no-any-return]

        hidden = await self._write(hide)
        if hidden is None:
            return None
        own, was_put = hidden
        removed = await self._purge(own)
        return removed if was_put or removed else None

    async def _purge(self, own: int) -> int:
        """Remove what a nameless namespace holds, and itself."""
        removed = 0
        while gone := await self._write(_purge_some, own):
            removed += gone
        return removed

    async def put_profiles(self, namespace: str, profiles: Mapping[str, Profile]) -> None:
        documents = {tool: msgspec.json.encode(profile).decode() for tool, profile in profiles.items()}

        def work(db: sqlite3.Connection) -> None:
            own = _namespace_id(db, namespace)
            rows = [(own, tool, document) for tool, document in documents.items()]
            db.executemany("INSERT OR REPLACE INTO profiles VALUES (?, ?, ?)", rows)
            _revise(db, own)

        await self._write(work)

    async def add_evidence(
        self, namespace: str, tool: str, evidence: Mapping[str, Evidence], *, once: Once | None = None
    ) -> None:
        query = """
            INSERT INTO shadows VALUES (?, ?, ?, ?, ?) ON CONFLICT (namespace, tool, kind)
            DO UPDATE SET "right" = "right" + excluded."right", served = served + excluded.served
        """

        def work(db: sqlite3.Connection) -> None:
            own = _namespace_id(db, namespace)
            if once is not None and not _is_first(db, own, f"evidence:{json.dumps([once.name, tool])}", once.keep_s):
                return
            db.executemany(query, [(own, tool, str(kind), each.right, each.served) for kind, each in evidence.items()])
            _revise(db, own)

        await self._write(work)

    async def clear_evidence(self, namespace: str, tool: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            own = _find(db, namespace)
            db.execute("DELETE FROM shadows WHERE namespace = ? AND tool = ?", (own, tool))
            _revise(db, own)

        await self._write(work)

    # -- entries -------------------------------------------------------------------------------------------------------

    async def get(self, namespace: str, keys: Sequence[str]) -> Found:
        found = self._get(namespace, keys[:KEYS_AT_ONCE])
        if len(keys) <= KEYS_AT_ONCE:
            return found
        samples = [*found.samples]
        for start in range(KEYS_AT_ONCE, len(keys), KEYS_AT_ONCE):
            await asyncio.sleep(0)
            found = self._get(namespace, keys[start : start + KEYS_AT_ONCE])
            samples += found.samples
        return Found(revision=found.revision, samples=samples)

    def _get(self, namespace: str, keys: Sequence[str]) -> Found:
        try:
            slots = [int(key[:15], 16) for key in keys] or [0]  # _slot(key), less the call
        except ValueError:
            slots = [_slot(key) for key in keys]
        width = 1 << (len(slots) - 1).bit_length()
        slots += slots[-1:] * (width - len(slots))
        try:
            revision, count, packed = self._cursor.execute(_GETS[width], (*slots, namespace)).fetchone()
            samples = _kept_list(b"\xdd" + count.to_bytes(4, "big") + packed) if count else []
        except sqlite3.DataError:  # together they are longer than SQLite's longest value, a gigabyte
            samples = [_kept(sample) for (sample,) in self._rows(_GET_EACH, namespace, json.dumps(slots))]
            revision = self._rows("SELECT revision FROM namespaces WHERE name = ?", namespace)[0][0]
        except _BROKEN as error:
            raise _unavailable(self._path, error) from error
        by_key: dict[str, list[_Kept]] = {sample.key: [sample] for sample in samples}
        if len(by_key) < len(samples):
            by_key = _grouped(samples)
        return Found(revision=revision or 0, samples=[by_key.get(key, ()) for key in keys])

    async def put(self, namespace: str, entries: Sequence[Entry], *, once: Once | None = None) -> list[Outcome]:
        return await self._write(_put, namespace, entries, once)

    async def with_equal(self, namespace: str, equal: str) -> list[Entry]:
        query = f"SELECT {_ENTRY} FROM entries WHERE namespace = {_OWN} AND equal = ? ORDER BY id LIMIT {MOST_DONORS}"
        found = self._entries(query, namespace, _slot(equal)) if equal else []
        return [entry for entry in found if entry.place.equal == equal]

    async def with_call(self, namespace: str, call: str) -> list[Entry]:
        query = (
            f"SELECT {_ENTRY} FROM entries WHERE namespace = {_OWN} AND call = ? ORDER BY id DESC LIMIT {MOST_DONORS}"
        )
        found = self._entries(query, namespace, _slot(call)) if call else []
        return [entry for entry in found if entry.place.call == call]

    async def by_order(self, namespace: str, orders: Sequence[int]) -> dict[int, Entry]:
        ids = f"(SELECT {_OWN} * {ORDERS} + value FROM json_each(?))"
        query = f"SELECT {_ENTRY} FROM entries WHERE namespace = {_OWN} AND id IN {ids}"
        found = self._entries(query, namespace, namespace, json.dumps(list(orders)))
        return {entry.order: entry for entry in found}

    async def entries(self, namespace: str, tool: str | None = None, *, after: int = 0) -> AsyncIterator[Entry]:
        where, values = ("", ()) if tool is None else (" AND tool = ?", (tool,))
        query = f"SELECT {_ENTRY} FROM entries WHERE namespace = ?{where} AND id > ? ORDER BY id LIMIT {PAGE}"

        def page(db: sqlite3.Connection) -> list[Entry]:
            own = _find(db, namespace)
            return [_entry(row) for row in _in_turns(db.execute(query, (own, *values, _id(own, after))))]

        while entries := await self._readers.run(page):
            for entry in entries:
                yield entry
            after = entries[-1].order

    async def remove(self, namespace: str, orders: Collection[int]) -> int:
        return await self._remove(namespace, orders)

    async def remove_where(self, namespace: str, which: Filter) -> int:
        orders = await self._readers.run(_selected, namespace, which)
        return await self._remove(namespace, orders, recorded_before_s=which.recorded_before_s)

    async def _remove(self, namespace: str, orders: Collection[int], *, recorded_before_s: float | None = None) -> int:
        removed = 0
        for some in _slices(orders):
            removed += await self._write(_remove, namespace, some, recorded_before_s)
        return removed

    async def remove_expired(self, now_s: float) -> int:
        """Names of requests are forgotten here, too, and namespaces whose deletion was interrupted."""
        await self._write(_forget_names, now_s)
        for (own,) in await self._readers.rows("SELECT id FROM namespaces WHERE name IS NULL"):
            await self._purge(own)
        removed = 0
        while gone := await self._write(_forget_expired, now_s):
            removed += gone
        return removed

    async def rekey(self, namespace: str, places: Mapping[int, tuple[str, str, Place]]) -> None:
        pending = set(places)
        for some in _slices(sorted(places)):
            await self._write(_rekey, namespace, {order: places[order] for order in some}, pending)
            pending.difference_update(some)

    async def touch(self, namespace: str, keys: Collection[str], at_s: float) -> None:
        for some in _slices(keys):
            await self._write(_touch, namespace, some, at_s)

    async def evict(self, namespace: str, max_bytes: int, *, spare: Collection[str]) -> int:
        spared = {_slot(key) for key in spare}
        removed = 0
        after: tuple[float, int] | None = (float("-inf"), 0)
        while after is not None:
            gone, after = await self._write(_evict_some, namespace, max_bytes, spared, after)
            removed += gone
        return removed

    async def size(self, namespace: str) -> Size:
        return await self._readers.run(_size, namespace)

    async def size_bytes(self, namespace: str) -> int:
        rows = self._rows("SELECT size_bytes FROM namespaces WHERE name = ?", namespace)
        return int(rows[0][0]) if rows else 0

    # -- vectors -------------------------------------------------------------------------------------------------------

    async def put_vectors(self, namespace: str, tool: str, vectors: Mapping[int, Vector], *, version: str) -> None:
        for some in _slices(vectors):
            await self._write(_put_vectors, namespace, tool, {order: vectors[order] for order in some}, version)

    async def vectors(self, namespace: str, tool: str, *, version: str) -> list[IndexedVector]:
        return await self._readers.run(_vectors, namespace, tool, version)

    async def changes(self, namespace: str, *, after: str, version: str) -> Changes:
        # Most often nothing has happened, and then one look is enough.
        head = self._rows(_HEAD, namespace)[0]
        if after == _cursor(*head):
            return Changes(cursor=after, is_complete=True)
        return await self._readers.run(_changes, namespace, after, version)

    # -- access --------------------------------------------------------------------------------------------------------

    async def api_keys(self) -> list[ApiKey]:
        return await self._readers.run(_api_keys)

    async def put_api_key(self, key: ApiKey) -> None:
        row = (key.id, msgspec.json.encode(key).decode())
        await self._write(lambda db: db.execute("INSERT OR REPLACE INTO api_keys VALUES (?, ?)", row).rowcount)

    async def delete_api_key(self, key_id: str) -> bool:
        query = "DELETE FROM api_keys WHERE id = ?"
        return await self._write(lambda db: db.execute(query, (key_id,)).rowcount) > 0

    async def close(self) -> None:
        await asyncio.to_thread(self._writer.close)
        await asyncio.to_thread(self._readers.close)
        self._reader.close()

    def _rows(self, query: str, *values: Any) -> list[Any]:
        """A few rows, read at once."""
        try:
            return self._reader.execute(query, values).fetchall()
        except _BROKEN as error:
            raise _unavailable(self._path, error) from error

    def _entries(self, query: str, *values: Any) -> list[Entry]:
        """A few entries, read at once."""
        with _translated(self._path):
            return [_entry(row) for row in self._reader.execute(query, values)]

    async def _write(
        self, work: Callable[Concatenate[sqlite3.Connection, _P], _T], *values: _P.args, **named: _P.kwargs
    ) -> _T:
        return await self._writer.submit(lambda db: work(db, *values, **named))


@dataclass(frozen=True, slots=True)
class _Job(Generic[_T]):
    work: Callable[[sqlite3.Connection], _T]
    future: asyncio.Future[_T]
    loop: asyncio.AbstractEventLoop


class _Writer:
    """One thread, one connection: commits what has gathered, then answers all of it."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._path = path
        self._db = db
        self._queue: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._is_closed = False
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[sqlite3.Connection], _T]) -> asyncio.Future[_T]:
        """Done after the commit that holds the work, which may be run twice. Raises StoreUnavailable after `close`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        with self._closing:
            if self._is_closed:
                raise StoreUnavailable(f"store {self._path}: it is closed")
            self._queue.put(_Job(work, future, loop))
        return future

    def close(self) -> None:
        """Commit what is waiting, then end the thread."""
        with self._closing:
            self._is_closed = True
            self._queue.put(None)
        self._thread.join()
        self._db.close()

    def _run(self) -> None:
        job = self._queue.get()
        while job is not None:
            self._commit(self._group(job))
            job = None if self._ends else self._queue.get()

    def _group(self, job: _Job[Any] | None) -> Iterator[_Job[Any]]:
        """This one, and what comes while it may gather; less what was cancelled before its turn."""
        until_s = time.monotonic() + GROUP_S
        while job is not None:
            if not job.future.cancelled():
                yield job
            if self._queue.empty() or time.monotonic() > until_s:
                return
            job = self._queue.get()
        self._ends = True  # it came from `close`, and nothing comes after it

    def _commit(self, jobs: Iterable[_Job[Any]]) -> None:
        """All of the group or none: a caller is answered only by what the disk has."""
        taken: list[_Job[Any]] = []
        results: list[Any] = []
        try:
            with _translated(self._path):
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    for job in _in_turns(jobs):
                        taken.append(job)
                        results.append(job.work(self._db))
                    self._db.execute("COMMIT")
                finally:
                    if self._db.in_transaction:  # SQLite rolls back by itself when the disk is full
                        self._db.execute("ROLLBACK")
        except BaseException as error:  # noqa: BLE001 - whatever it was belongs to the callers, the thread must live
            self._fail(taken, jobs, error)
            return
        _answer(taken, [(result, None) for result in results])

    def _fail(self, taken: list[_Job[Any]], jobs: Iterable[_Job[Any]], error: BaseException) -> None:
        if len(taken) > 1 and not isinstance(error.__cause__, sqlite3.OperationalError):
            # One caller's bad rows are no reason to refuse the others'. A full disk is: it would only be met again.
            for job in taken:
                self._commit([job])
            return
        if not taken:  # the file is locked, and whoever waits by now has waited long enough
            taken.extend(jobs)
        _answer(taken, [(None, error)] * len(taken))


def _answer(jobs: Sequence[_Job[Any]], answers: Sequence[tuple[Any, BaseException | None]]) -> None:
    """Wake each event loop once, however many of its callers are answered."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any, BaseException | None]]]
    by_loop = defaultdict(list)
    for job, (result, error) in zip(jobs, answers, strict=True):
        by_loop[job.loop].append((job.future, result, error))
    for loop, answered in by_loop.items():
        with suppress(RuntimeError):  # the loop was closed: nobody is waiting there
            loop.call_soon_threadsafe(_answer_here, answered)


def _answer_here(answered: Sequence[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
    for future, result, error in answered:
        if future.done():  # its caller gave up
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class _Readers:
    """Threads for long reads, each with a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="sqlite-reader")
        self._own = threading.local()
        self._connections: list[sqlite3.Connection] = []

    async def run(
        self, work: Callable[Concatenate[sqlite3.Connection, _P], _T], *values: _P.args, **named: _P.kwargs
    ) -> _T:
        """The work sees the file as of one moment. Raises StoreUnavailable."""
        try:
            future = asyncio.get_running_loop().run_in_executor(
                self._threads, self._run, lambda db: work(db, *values, **named)
            )
        except RuntimeError as error:
            raise StoreUnavailable(f"store {self._path}: it is closed") from error
        return await future

    async def rows(self, query: str, *values: Any) -> list[Any]:
        return await self.run(lambda db: db.execute(query, values).fetchall())

    def close(self) -> None:
        self._threads.shutdown()
        for connection in self._connections:
            connection.close()

    def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        with _translated(self._path):
            if not hasattr(self._own, "db"):
                self._own.db = _connect(self._path)
                self._connections.append(self._own.db)
            db: sqlite3.Connection = self._own.db
            db.execute("BEGIN")
            try:
                return work(db)
            finally:
                db.execute("ROLLBACK")


# -- the file ----------------------------------------------------------------------------------------------------------


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA page_size = 8192")  # of a new file
    return db


_ADVICE = {
    "SQLITE_FULL": "the disk is full: free some space and send the request again",
    "SQLITE_BUSY": f"another process has kept it locked for {BUSY_S:g} s: let it finish, or end it",
    "SQLITE_READONLY": "it can only be read: let this process write to the file and its folder",
    "SQLITE_CANTOPEN": "it cannot be opened: is it a file, and may this process write in its folder?",
    "SQLITE_IOERR": "the disk does not answer as it should: is it full, or gone?",
    "SQLITE_CORRUPT": "the file is damaged: put a backup in its place, or save what `sqlite3 FILE .recover` finds",
    "SQLITE_NOTADB": "the file is no store, or damaged: name another one, or put a backup in its place",
}
"""What to do, by the beginning of the error's name."""


_BROKEN = (sqlite3.Error, msgspec.MsgspecError, UnicodeDecodeError, json.JSONDecodeError)
"""What SQLite says, and what is said of rows that are not as they were written."""


def _unavailable(path: Path, error: Exception) -> StoreUnavailable:
    name = "SQLITE_CORRUPT" if isinstance(error, ValueError) else getattr(error, "sqlite_errorname", "")
    advice = next((each for known, each in _ADVICE.items() if name.startswith(known)), "")
    return StoreUnavailable(f"store {path}: {error}" + (f"; {advice}" if advice else ""))


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise _unavailable(path, error) from error


def _make_ready(path: Path, db: sqlite3.Connection) -> None:
    """Set up the writer's connection. Create the tables, or convert those of version 0.1, in one transaction."""
    version = _version(path, db)
    db.execute("PRAGMA journal_mode = WAL")
    # FULL: a committed group survives a power cut, and the group shares the price of the sync.
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = FAST")  # ON, as some builds have it, writes every freed page once more
    db.execute("PRAGMA cache_size = -65536")
    db.execute("PRAGMA wal_autocheckpoint = 4000")
    db.execute("PRAGMA journal_size_limit = 67108864")
    if version == SCHEMA_VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        match _version(path, db):  # another process may have been faster
            case 0:
                _create(db)
            case 1:
                _convert_v1(db)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _version(path: Path, db: sqlite3.Connection) -> int:
    """0: an empty file; 1: of version 0.1, which noted none. Raises StoreUnavailable for what cannot be used."""
    (noted,) = db.execute("PRAGMA user_version").fetchone()
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    match noted:
        case 0 if not tables:
            return 0
        case 0 if tables >= _V1_TABLES:
            return 1
        case 0:
            raise StoreUnavailable(f"store {path}: it is the database of another program; name another file")
        case _ if noted == SCHEMA_VERSION:
            return SCHEMA_VERSION
        case _:
            raise StoreUnavailable(
                f"store {path}: its tables are of version {noted}, this program knows {SCHEMA_VERSION};"
                " use the program that wrote it, or name another file"
            )


def _create(db: sqlite3.Connection) -> None:
    for statement in _SCHEMA.split(";"):
        db.execute(statement)


_V1_TABLES = frozenset(("revision", "namespaces", "profiles", "entries", "vectors"))
_V1_EMBEDDER = "all-MiniLM-L6-v2/1"
"""Version 0.1 had no other model, and did not name it."""


def _convert_v1(db: sqlite3.Connection) -> None:
    """Version 0.1's entries, vectors and namespaces; profiles are learned again."""
    for index in ("entries_key", "entries_guard", "entries_call", "entries_tool", "vectors_tool"):
        db.execute(f"DROP INDEX IF EXISTS {index}")
    for table in _V1_TABLES:
        db.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    _create(db)
    db.execute("UPDATE state SET revision = (SELECT n FROM old_revision)")
    names = "SELECT name FROM old_namespaces UNION SELECT namespace FROM old_entries"
    own = {name: _namespace_id(db, name) for (name,) in db.execute(names).fetchall()}
    for name, document in db.execute("SELECT name, document FROM old_namespaces").fetchall():
        db.execute("UPDATE namespaces SET document = ? WHERE id = ?", (document, own[name]))
        _revise(db, own[name])
    query = """
        SELECT namespace, key, scope, environment, tool, arguments, content, is_error, took_s, result_digest, guard,
            call_digest, recorded_at_s, seen, n FROM old_entries ORDER BY n
    """
    for name, *row in db.execute(query):
        entry = _entry_v1(row)
        _insert(db, own[name], entry)
        _grow(db, own[name], entry.size_bytes)
    newest = f"SELECT MAX(id) % {ORDERS} FROM entries WHERE namespace = namespaces.id"
    db.execute(f"UPDATE namespaces SET orders = COALESCE(({newest}), 0)")
    query = """
        SELECT v.entry, v.namespace, v.tool, e.guard, v.vector
        FROM old_vectors AS v JOIN old_entries AS e ON e.n = v.entry
    """
    for order, name, tool, guard, vector in db.execute(query):
        row = (_id(own[name], order), own[name], tool, _V1_EMBEDDER, guard, vector)
        db.execute("INSERT INTO vectors VALUES (?, ?, ?, ?, ?, ?)", row)
    for table in _V1_TABLES:
        db.execute(f"DROP TABLE old_{table}")


def _entry_v1(row: Sequence[Any]) -> Entry:
    key, scope, environment, tool, canonical, content, is_error, took_s, result_digest, guard, call = row[:11]
    recorded_at_s, seen, order = row[11:]
    return Entry(
        key=key,
        scope=scope,
        environment=environment,
        tool=tool,
        arguments=json.loads(canonical),
        canonical=canonical,
        result=Result(content=content, is_error=bool(is_error), took_s=took_s),
        result_digest=result_digest,
        place=Place(guard=guard, call=call),
        recorded_at_s=recorded_at_s,
        seen=seen,
        order=order,
    )


# -- rows --------------------------------------------------------------------------------------------------------------


def _slot(digest: str) -> int:
    """Where a digest stands in an index: its first 60 bits. Texts that are no digests have a place too."""
    try:
        return int(digest[:15], 16)
    except ValueError:
        return zlib.crc32(digest.encode("utf-8", "surrogatepass"))


def _id(own: int, order: int) -> int:
    """Where an entry lies in the file: those of one namespace side by side."""
    return own * ORDERS + order


def _grouped(samples: Iterable[_Kept]) -> dict[str, list[_Kept]]:
    by_key: dict[str, list[_Kept]] = defaultdict(list)
    for sample in sorted(samples, key=lambda each: each.order):
        by_key[sample.key].append(sample)
    return by_key


def _in_turns(values: Iterable[_T]) -> Iterator[_T]:
    """The same values, with a pause now and then."""
    since_s = time.monotonic()
    for value in values:
        yield value
        if time.monotonic() - since_s > TURN_S:
            time.sleep(PAUSE_S)
            since_s = time.monotonic()


def _slices(values: Iterable[_T]) -> Iterator[list[_T]]:
    listed = list(values)
    for start in range(0, len(listed), SLICE):
        yield listed[start : start + SLICE]


def _entry(row: Sequence[Any]) -> Entry:
    _, tool, environment, packed_sample, packed_details = row
    sample, details = _kept(packed_sample), _details(packed_details)
    return Entry(
        key=sample.key,
        scope=details.scope,
        environment=environment,
        tool=tool,
        arguments=json.loads(details.canonical if details.arguments is None else details.arguments),
        canonical=details.canonical,
        result=sample.result,
        result_digest=sample.result_digest,
        place=Place(guard=details.guard, equal=details.equal, call=details.call),
        recorded_at_s=sample.recorded_at_s,
        expires_at_s=sample.expires_at_s,
        tags=details.tags,
        seen=sample.seen,
        order=sample.order,
    )


def _sample_of(entry: Entry) -> _Kept:
    return _Kept(
        key=entry.key,
        result_digest=entry.result_digest,
        content=entry.result.content,
        is_error=entry.result.is_error,
        took_s=entry.result.took_s,
        seen=entry.seen,
        order=entry.order,
        recorded_at_s=entry.recorded_at_s,
        expires_at_s=entry.expires_at_s,
    )


def _details_of(entry: Entry) -> _Details:
    # Of the standard library: it writes integers of any length, as canonical texts have them.
    arguments = json.dumps(entry.arguments, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return _Details(
        scope=entry.scope,
        canonical=entry.canonical,
        arguments=None if arguments == entry.canonical else arguments,
        guard=entry.place.guard,
        equal=entry.place.equal,
        call=entry.place.call,
        tags=entry.tags,
    )


# -- work of the writer's thread ---------------------------------------------------------------------------------------


def _namespace_id(db: sqlite3.Connection, name: str) -> int:
    """The namespace's number; a new one is given one."""
    return _find(db, name) or int(db.execute("INSERT INTO namespaces (name) VALUES (?)", (name,)).lastrowid or 0)


def _find(db: sqlite3.Connection, name: str) -> int:
    """The namespace's number, or 0, which is nobody's."""
    row = db.execute("SELECT id FROM namespaces WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def _revise(db: sqlite3.Connection, own: int) -> None:
    """One count for all namespaces: one that was deleted and put again is newer still."""
    db.execute("UPDATE state SET revision = revision + 1")
    query = "UPDATE namespaces SET revision = (SELECT revision FROM state) WHERE id = ? AND document IS NOT NULL"
    db.execute(query, (own,))


def _grow(db: sqlite3.Connection, own: int, by_bytes: int) -> None:
    db.execute("UPDATE namespaces SET size_bytes = size_bytes + ? WHERE id = ?", (by_bytes, own))


def _put(db: sqlite3.Connection, namespace: str, entries: Sequence[Entry], once: Once | None) -> list[Outcome]:
    own = _namespace_id(db, namespace)
    is_again = once is not None and not _is_first(db, own, f"entries:{once.name}", once.keep_s)
    (order,) = db.execute("SELECT orders FROM namespaces WHERE id = ?", (own,)).fetchone()
    db.execute("UPDATE namespaces SET orders = orders + ? WHERE id = ?", (len(entries), own))
    outcomes = [_put_one(db, own, entry, order + i, is_again=is_again) for i, entry in enumerate(_in_turns(entries), 1)]
    new = (entry for entry, outcome in zip(entries, outcomes, strict=True) if outcome is not Outcome.KNOWN)
    _grow(db, own, sum(entry.size_bytes for entry in new))
    return outcomes


def _is_first(db: sqlite3.Connection, own: int, name: str, keep_s: float) -> bool:
    query = "INSERT OR IGNORE INTO onces (namespace, name, keep_s) VALUES (?, ?, ?)"
    return db.execute(query, (own, name, keep_s)).rowcount > 0


def _put_one(db: sqlite3.Connection, own: int, entry: Entry, order: int, *, is_again: bool) -> Outcome:
    had = _samples(db, own, entry.key)
    had = _forget_samples(db, own, had, [each for each in had if 0 < each.expires_at_s <= entry.recorded_at_s])
    same = [each for each in had if each.result_digest == entry.result_digest]
    if same and is_again:
        return Outcome.KNOWN
    if same:
        _add_up(db, own, same[0], entry, skew_s=CLOCK_SKEW_S)
    else:
        least_first = sorted(had, key=lambda each: (each.seen, each.order))
        had = _forget_samples(db, own, had, least_first[: max(0, len(had) - MOST_RESULTS + 1)])
        _insert(db, own, replace(entry, order=order))
    _use_alike(db, own, [each.order for each in had] + [order] * (not same))
    return Outcome.KNOWN if same else Outcome.CONFLICT if had else Outcome.STORED


def _samples(db: sqlite3.Connection, own: int, key: str) -> list[_Kept]:
    rows = db.execute("SELECT sample FROM entries WHERE namespace = ? AND key = ?", (own, _slot(key)))
    return [sample for (packed,) in rows.fetchall() if (sample := _kept(packed)).key == key]


def _forget_samples(db: sqlite3.Connection, own: int, had: list[_Kept], going: Sequence[_Kept]) -> list[_Kept]:
    """Those that stay."""
    if not going:
        return had
    orders = {each.order for each in going}
    _forget(db, own, [_id(own, order) for order in orders])
    return [each for each in had if each.order not in orders]


def _insert(db: sqlite3.Connection, own: int, entry: Entry) -> None:
    equal, call = (_slot(digest) if digest else None for digest in (entry.place.equal, entry.place.call))
    packed = (_encode(_sample_of(entry)), _encode(_details_of(entry)))
    entry_id = _id(own, entry.order)
    row = (entry_id, own, _slot(entry.key), equal, call, entry.tool, entry.environment, *packed)
    db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    times = (entry.recorded_at_s, entry.recorded_at_s, entry.expires_at_s)
    db.execute("INSERT INTO marks VALUES (?, ?, ?, ?, ?, ?)", (entry_id, own, entry.size_bytes, *times))
    _tag(db, own, entry_id, entry.tags)


def _tag(db: sqlite3.Connection, own: int, entry_id: int, tags: Iterable[str]) -> None:
    rows = [(entry_id, tag, own) for tag in tags]
    if rows:
        db.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?, ?)", rows)


def _add_up(db: sqlite3.Connection, own: int, kept: _Kept, again: Entry, *, skew_s: float = math.inf) -> None:
    """The same result of the same key once more: it counts, it is as new as the later one, its tags are united.

    What is kept and later by more than `skew_s` has its time from a wrong clock.
    """
    entry_id = _id(own, kept.order)
    newer = kept if 0 < kept.recorded_at_s - again.recorded_at_s <= skew_s else again
    sample = msgspec.structs.replace(
        kept,
        seen=kept.seen + again.seen,
        recorded_at_s=newer.recorded_at_s,
        expires_at_s=newer.expires_at_s,
    )
    db.execute("UPDATE entries SET sample = ? WHERE id = ?", (_encode(sample), entry_id))
    query = "UPDATE marks SET used_s = MAX(used_s, ?), recorded_at_s = ?, expires_at_s = ? WHERE entry = ?"
    db.execute(query, (again.recorded_at_s, sample.recorded_at_s, sample.expires_at_s, entry_id))
    if again.tags:
        (packed,) = db.execute("SELECT details FROM entries WHERE id = ?", (entry_id,)).fetchone()
        details = _details(packed)
        tags = tuple(sorted({*details.tags, *again.tags}))
        packed = _encode(msgspec.structs.replace(details, tags=tags))
        db.execute("UPDATE entries SET details = ? WHERE id = ?", (packed, entry_id))
        _tag(db, own, entry_id, tags)


def _use_alike(db: sqlite3.Connection, own: int, orders: Sequence[int]) -> None:
    """Samples of one key are used together."""
    if len(orders) > 1:
        listed = json.dumps([_id(own, order) for order in orders])
        newest = f"(SELECT MAX(used_s) FROM marks WHERE entry IN {_LISTED})"
        db.execute(f"UPDATE marks SET used_s = {newest} WHERE entry IN {_LISTED}", (listed, listed))


def _remove(db: sqlite3.Connection, namespace: str, orders: Sequence[int], recorded_before_s: float | None) -> int:
    """What was recorded again since it was selected may be too new by now."""
    own = _find(db, namespace)
    ids = [_id(own, order) for order in orders]
    if recorded_before_s is not None:
        query = f"SELECT entry FROM marks WHERE entry IN {_LISTED} AND recorded_at_s < ?"
        ids = [entry_id for (entry_id,) in db.execute(query, (json.dumps(ids), recorded_before_s))]
    return _forget(db, own, ids)


def _forget(db: sqlite3.Connection, own: int, ids: Iterable[int]) -> int:
    """Remove those of the entries that are there; how many were."""
    # The plus keeps SQLite from its index of namespaces, through which it would look at all of this one's entries.
    query = f"SELECT entry, size_bytes FROM marks WHERE +namespace = ? AND entry IN {_LISTED}"
    rows = db.execute(query, (own, json.dumps(list(ids)))).fetchall()
    if not rows:
        return 0
    listed = json.dumps([entry_id for entry_id, _ in rows])
    _log(db, f"SELECT namespace, tool, entry FROM vectors WHERE entry IN {_LISTED}", listed)
    for table, column in (("vectors", "entry"), ("tags", "entry"), ("marks", "entry"), ("entries", "id")):
        db.execute(f"DELETE FROM {table} WHERE {column} IN {_LISTED}", (listed,))
    _grow(db, own, -sum(size for _, size in rows))
    return len(rows)


def _log(db: sqlite3.Connection, query: str, *values: Any) -> None:
    """Note that these vectors (namespace, tool, entry) came, changed or went."""
    if db.execute(f"INSERT INTO log (namespace, tool, entry) {query}", values).rowcount:
        db.execute(f"DELETE FROM log WHERE seq <= (SELECT MAX(seq) FROM log) - {LOG_KEPT}")


def _forget_names(db: sqlite3.Connection, now_s: float) -> None:
    """Names of requests live for `keep_s` after they are first seen here: whoever put them told no time of his own."""
    db.execute("DELETE FROM onces WHERE until_s <= ?", (now_s,))
    db.execute("UPDATE onces SET until_s = ? + keep_s WHERE until_s IS NULL", (now_s,))


def _forget_expired(db: sqlite3.Connection, now_s: float) -> int:
    """At most a slice of them."""
    query = f"SELECT namespace, entry FROM marks WHERE expires_at_s > 0 AND expires_at_s <= ? LIMIT {SLICE}"
    expired: dict[int, list[int]] = defaultdict(list)
    for own, entry_id in db.execute(query, (now_s,)):
        expired[own].append(entry_id)
    return sum(_forget(db, own, ids) for own, ids in expired.items())


def _purge_some(db: sqlite3.Connection, own: int) -> int:
    """A slice of a nameless namespace's entries; with the last of them, all else that it held."""
    query = f"SELECT id FROM entries WHERE namespace = ? LIMIT {SLICE}"
    gone = _forget(db, own, [entry_id for (entry_id,) in db.execute(query, (own,))])
    if not gone:
        for table in ("profiles", "shadows", "onces", "log"):
            db.execute(f"DELETE FROM {table} WHERE namespace = ?", (own,))
        db.execute("DELETE FROM namespaces WHERE id = ? AND name IS NULL", (own,))
    return gone


def _rekey(
    db: sqlite3.Connection, namespace: str, places: Mapping[int, tuple[str, str, Place]], pending: Collection[int]
) -> None:
    """Move a slice of entries. Those still `pending` will leave the keys they have: nothing is merged with them."""
    own = _find(db, namespace)
    left = set(pending)
    for order, (key, canonical, place) in _in_turns(places.items()):
        left.discard(order)
        _move(db, own, order, key, canonical, place, left)


def _move(
    db: sqlite3.Connection, own: int, order: int, key: str, canonical: str, place: Place, pending: Collection[int]
) -> None:
    query = f"SELECT {_ENTRY} FROM entries WHERE namespace = ? AND id = ?"
    row = db.execute(query, (own, _id(own, order))).fetchone()
    if row is None:
        return
    before = _entry(row)
    entry = replace(before, key=key, canonical=canonical, place=place)
    there = [each for each in _samples(db, own, key) if each.order != order and each.order not in pending]
    twin = next((each for each in there if each.result_digest == entry.result_digest), None)
    if twin is not None and twin.order < order:
        _add_up(db, own, twin, before)
        _use_alike(db, own, [twin.order, order])
        _forget(db, own, [_id(own, order)])
        return
    _rewrite(db, own, entry, entry.size_bytes - before.size_bytes)
    if twin is not None:
        (row,) = db.execute(query, (own, _id(own, twin.order))).fetchall()
        _add_up(db, own, _sample_of(entry), _entry(row))
    _use_alike(db, own, [order, *(each.order for each in there)])
    if twin is not None:
        _forget(db, own, [_id(own, twin.order)])


def _rewrite(db: sqlite3.Connection, own: int, entry: Entry, grown_bytes: int) -> None:
    equal, call = (_slot(digest) if digest else None for digest in (entry.place.equal, entry.place.call))
    packed = (_encode(_sample_of(entry)), _encode(_details_of(entry)))
    entry_id = _id(own, entry.order)
    query = "UPDATE entries SET key = ?, equal = ?, call = ?, sample = ?, details = ? WHERE id = ?"
    db.execute(query, (_slot(entry.key), equal, call, *packed, entry_id))
    if grown_bytes:
        db.execute("UPDATE marks SET size_bytes = ? WHERE entry = ?", (entry.size_bytes, entry_id))
        _grow(db, own, grown_bytes)
    if db.execute("UPDATE vectors SET guard = ? WHERE entry = ?", (entry.place.guard, entry_id)).rowcount:
        _log(db, "VALUES (?, ?, ?)", own, entry.tool, entry_id)


def _touch(db: sqlite3.Connection, namespace: str, keys: Sequence[str], at_s: float) -> None:
    own = _find(db, namespace)
    query = """
        UPDATE marks SET used_s = ? WHERE used_s < ? AND entry IN
            (SELECT id FROM entries WHERE namespace = ? AND key = ?)
    """
    db.executemany(query, [(at_s, at_s, own, _slot(key)) for key in keys])


def _evict_some(
    db: sqlite3.Connection, namespace: str, max_bytes: int, spared: Collection[int], after: tuple[float, int]
) -> tuple[int, tuple[float, int] | None]:
    """Remove keys among the next slice of entries; how many entries went, and where to go on, if anywhere."""
    row = db.execute("SELECT id, size_bytes FROM namespaces WHERE name = ?", (namespace,)).fetchone()
    own, size_bytes = row or (0, 0)
    query = f"""
        SELECT used_s, entry, key FROM marks JOIN entries ON id = entry
        WHERE marks.namespace = ? AND (used_s, entry) > (?, ?) ORDER BY used_s, entry LIMIT {SLICE}
    """
    rows = db.execute(query, (own, *after)).fetchall() if size_bytes > max_bytes else []
    alike = "SELECT entry, size_bytes FROM marks JOIN entries ON id = entry WHERE entries.namespace = ? AND key = ?"
    going: set[int] = set()
    for _, entry_id, slot in rows:
        if size_bytes > max_bytes and slot not in spared and entry_id not in going:
            for sample, sample_bytes in db.execute(alike, (own, slot)).fetchall():
                going.add(sample)
                size_bytes -= sample_bytes
    gone = _forget(db, own, going)
    return gone, rows[-1][:2] if len(rows) == SLICE and size_bytes > max_bytes else None


def _put_vectors(
    db: sqlite3.Connection, namespace: str, tool: str, vectors: Mapping[int, Vector], version: str
) -> None:
    own = _find(db, namespace)
    query = """
        INSERT INTO vectors VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (entry)
        DO UPDATE SET version = excluded.version, vector = excluded.vector WHERE version <> excluded.version
    """
    there = f"SELECT id, details FROM entries WHERE namespace = ? AND tool = ? AND id IN {_LISTED}"
    rows = db.execute(there, (own, tool, json.dumps([_id(own, order) for order in vectors]))).fetchall()
    for entry_id, packed in _in_turns(rows):
        row = (entry_id, own, tool, version, _details(packed).guard, vectors[entry_id % ORDERS])
        if db.execute(query, row).rowcount:
            _log(db, "VALUES (?, ?, ?)", own, tool, entry_id)


# -- work of the readers' threads --------------------------------------------------------------------------------------


def _known(db: sqlite3.Connection, namespace: str) -> Known | None:
    query = "SELECT id, document, revision FROM namespaces WHERE name = ? AND document IS NOT NULL"
    row = db.execute(query, (namespace,)).fetchone()
    if row is None:
        return None
    own, document, revision = row
    profiles = db.execute("SELECT tool, document FROM profiles WHERE namespace = ?", (own,))
    shadows: dict[str, dict[str, Evidence]] = defaultdict(dict)
    query = 'SELECT tool, kind, "right", served FROM shadows WHERE namespace = ?'
    for tool, kind, right, served in db.execute(query, (own,)):
        shadows[tool][kind] = Evidence(right=right, served=served)
    return Known(
        namespace=msgspec.json.decode(document, type=Namespace),
        revision=revision,
        profiles={tool: msgspec.json.decode(each, type=Profile) for tool, each in profiles},
        shadows=dict(shadows),
    )


def _api_keys(db: sqlite3.Connection) -> list[ApiKey]:
    rows = db.execute("SELECT document FROM api_keys ORDER BY id")
    return [msgspec.json.decode(document, type=ApiKey) for (document,) in rows]


def _selected(db: sqlite3.Connection, namespace: str, which: Filter) -> list[int]:
    """Orders of the entries of a filter."""
    own = _find(db, namespace)
    conditions = {
        "tool = ?": (which.tool,),
        "environment = ?": (which.environment,),
        "id IN (SELECT entry FROM tags WHERE namespace = ? AND tag = ?)": (own, which.tag),
        "(SELECT recorded_at_s FROM marks WHERE entry = id) < ?": (which.recorded_before_s,),
    }
    given = {condition: values for condition, values in conditions.items() if values[-1] is not None}
    query = " AND ".join(["SELECT id FROM entries WHERE namespace = ?", *given])
    return [entry_id % ORDERS for (entry_id,) in _in_turns(db.execute(query, (own, *itertools.chain(*given.values()))))]


def _size(db: sqlite3.Connection, namespace: str) -> Size:
    row = db.execute("SELECT id, size_bytes FROM namespaces WHERE name = ?", (namespace,)).fetchone()
    own, size_bytes = row or (0, 0)
    entries = dict(db.execute("SELECT tool, COUNT(*) FROM entries WHERE namespace = ? GROUP BY tool", (own,)))
    query = "SELECT MIN(id) AS first FROM entries WHERE namespace = ? GROUP BY key HAVING COUNT(*) > 1"
    conflicts = dict(
        db.execute(f"SELECT tool, COUNT(*) FROM entries JOIN ({query}) ON id = first GROUP BY tool", (own,))
    )
    (environments,) = db.execute(
        "SELECT COUNT(DISTINCT environment) FROM entries WHERE namespace = ?", (own,)
    ).fetchone()
    return Size(
        entries=sum(entries.values()),
        size_bytes=size_bytes,
        environments=environments,
        tools={tool: (count, conflicts.get(tool, 0)) for tool, count in entries.items()},
    )


def _vectors(db: sqlite3.Connection, namespace: str, tool: str, version: str) -> list[IndexedVector]:
    query = f"""
        SELECT entry % {ORDERS}, guard, vector FROM vectors
        WHERE namespace = {_OWN} AND tool = ? AND version = ? ORDER BY entry
    """
    rows = _in_turns(db.execute(query, (namespace, tool, version)))
    return [IndexedVector(order=order, guard=guard, vector=vector) for order, guard, vector in rows]


_HEAD = f"SELECT COALESCE({_OWN}, 0), COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'log'), 0)"


def _cursor(own: int, seq: int) -> str:
    """The namespace's number stands in it: a cursor into one that was deleted leads nowhere in its successor."""
    return f"{own}-{seq}"


def _changes(db: sqlite3.Connection, namespace: str, after: str, version: str) -> Changes:
    own, head = db.execute(_HEAD, (namespace,)).fetchone()
    cursor = _cursor(own, head)
    begun, _, last = after.partition("-")
    if begun != str(own) or not last.isdecimal() or not head - LOG_KEPT <= int(last) <= head:
        return Changes(cursor=cursor, is_complete=False)
    query = f"""
        SELECT DISTINCT log.tool, log.entry % {ORDERS}, guard, vector FROM log
        LEFT JOIN vectors ON vectors.entry = log.entry AND version = ? WHERE log.namespace = ? AND seq > ?
    """
    added: list[tuple[str, IndexedVector]] = []
    removed: list[tuple[str, int]] = []
    for tool, order, guard, vector in _in_turns(db.execute(query, (version, own, int(last)))):
        if vector is None:
            removed.append((tool, order))
        else:
            added.append((tool, IndexedVector(order=order, guard=guard, vector=vector)))
    return Changes(cursor=cursor, is_complete=True, added=added, removed=removed)
