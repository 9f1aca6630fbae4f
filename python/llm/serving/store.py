"""Stored responses: bounded by number and bytes, in memory or in an SQLite file; the least recently used goes first."""

import abc
import asyncio
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from llm.errors import ServerError

T = TypeVar("T")

# What a record needs beside its texts: its ids, and its place in the table.
_OVERHEAD_BYTES = 512

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, previous_id TEXT, response BLOB NOT NULL, input BLOB NOT NULL,
    is_running INTEGER NOT NULL, num_bytes INTEGER NOT NULL, used INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS responses_used ON responses (used, num_bytes);
"""
_COLUMNS = "id, owner, previous_id, response, input, is_running"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A stored response.

    Attributes:
        id: The response's id.
        owner: Name of the API key that created it; only that key can read it.
        previous_id: Id of the response before it in the conversation.
        response: The response as JSON.
        input: The items of its request as a JSON list.
        is_running: Whether its answer is still being generated.
    """

    id: str
    owner: str
    previous_id: str | None
    response: bytes
    input: bytes
    is_running: bool = False

    @property
    def num_bytes(self) -> int:
        """Returns how much of the store's bound the record takes."""
        return len(self.response) + len(self.input) + _OVERHEAD_BYTES


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a store holds."""

    max_count: int
    max_bytes: int


class ResponseStore(abc.ABC):
    """Keeps records by id within bounds; a record that exceeds them alone is not kept."""

    @abc.abstractmethod
    async def put(self, record: Record) -> None:
        """Keeps a record, in place of one with its id, and drops the least recently used ones."""

    @abc.abstractmethod
    async def get(self, response_id: str, owner: str) -> Record | None:
        """Returns a record, or None if there is none with this id and owner; it becomes the most recently used."""

    @abc.abstractmethod
    async def delete(self, response_id: str, owner: str) -> bool:
        """Drops a record; returns False if there is none with this id and owner."""

    @abc.abstractmethod
    async def size(self) -> tuple[int, int]:
        """Returns the number of records and their bytes."""

    @abc.abstractmethod
    async def running(self) -> Sequence[Record]:
        """Returns the records whose answers are still being generated, or were when a server ended."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Closes the store; in-memory records are lost."""

    async def conversation(self, response_id: str, owner: str) -> list[Record] | str:
        """Returns a response and those before it, the first one first, or the id of one that is missing."""
        found: list[Record] = []
        wanted: str | None = response_id
        while wanted is not None:
            record = await self.get(wanted, owner)
            if record is None:
                return wanted
            found.append(record)
            wanted = record.previous_id
        return found[::-1]


class MemoryStore(ResponseStore):
    """Keeps records until the server stops."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._num_bytes = 0

    async def put(self, record: Record) -> None:
        """Keeps a record."""
        self._drop(record.id)
        self._records[record.id] = record
        self._num_bytes += record.num_bytes
        while len(self._records) > self._bounds.max_count or self._num_bytes > self._bounds.max_bytes:
            self._drop(next(iter(self._records)))

    async def get(self, response_id: str, owner: str) -> Record | None:
        """Returns a record."""
        record = self._records.get(response_id)
        if record is None or record.owner != owner:
            return None
        self._records.move_to_end(response_id)
        return record

    async def delete(self, response_id: str, owner: str) -> bool:
        """Drops a record."""
        record = self._records.get(response_id)
        if record is None or record.owner != owner:
            return False
        self._drop(response_id)
        return True

    async def size(self) -> tuple[int, int]:
        """Returns the number of records and their bytes."""
        return len(self._records), self._num_bytes

    async def running(self) -> Sequence[Record]:
        """Returns the records whose answers are still being generated."""
        return [record for record in self._records.values() if record.is_running]

    async def close(self) -> None:
        """Does nothing."""

    def _drop(self, response_id: str) -> None:
        record = self._records.pop(response_id, None)
        self._num_bytes -= record.num_bytes if record is not None else 0


class SqliteStore(ResponseStore):
    """Keeps records in a file, which a crash leaves whole; one thread works on it, so that requests never wait for it.

    Args:
        path: The file; it is created if it is missing.
        bounds: The most to keep; what an older file holds beyond it goes.

    Raises:
        ServerError: The file can't be opened, or is no store.
    """

    def __init__(self, path: str, bounds: Bounds) -> None:
        self._bounds = bounds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llm-response-store")
        try:
            self._connection = self._thread.submit(_opened, path).result()
            self._thread.submit(self._trim).result()
        except sqlite3.Error as error:
            self._thread.shutdown()
            raise ServerError(f"the response store {path!r} can't be opened: {error}") from error

    async def put(self, record: Record) -> None:
        """Keeps a record."""
        await self._run(lambda: self._put(record))

    async def get(self, response_id: str, owner: str) -> Record | None:
        """Returns a record."""
        return await self._run(lambda: self._get(response_id, owner))

    async def delete(self, response_id: str, owner: str) -> bool:
        """Drops a record."""
        return await self._run(lambda: self._delete(response_id, owner))

    async def size(self) -> tuple[int, int]:
        """Returns the number of records and their bytes."""
        return await self._run(self._size)

    async def running(self) -> Sequence[Record]:
        """Returns the records whose answers are still being generated, or were when a server ended."""
        return await self._run(self._running)

    async def close(self) -> None:
        """Writes what is left and closes the file."""
        await self._run(self._connection.close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _put(self, record: Record) -> None:
        row = (*msgspec.structs.astuple(record), record.num_bytes)
        with self._connection:
            self._connection.execute(
                f"INSERT OR REPLACE INTO responses ({_COLUMNS}, num_bytes, used) "  # noqa: S608 - a constant
                "VALUES (?, ?, ?, ?, ?, ?, ?, (SELECT coalesce(max(used), 0) + 1 FROM responses))",
                row,
            )
            self._drop_oldest()

    def _get(self, response_id: str, owner: str) -> Record | None:
        query = f"SELECT {_COLUMNS} FROM responses WHERE id = ? AND owner = ?"  # noqa: S608 - a constant
        row = self._connection.execute(query, (response_id, owner)).fetchone()
        if row is None:
            return None
        with self._connection:
            use = "UPDATE responses SET used = (SELECT max(used) + 1 FROM responses) WHERE id = ?"
            self._connection.execute(use, (response_id,))
        return _record(row)

    def _delete(self, response_id: str, owner: str) -> bool:
        with self._connection:
            query = "DELETE FROM responses WHERE id = ? AND owner = ?"
            return self._connection.execute(query, (response_id, owner)).rowcount > 0

    def _size(self) -> tuple[int, int]:
        count, num_bytes = self._connection.execute(
            "SELECT count(*), coalesce(sum(num_bytes), 0) FROM responses"
        ).fetchone()
        return count, num_bytes

    def _running(self) -> list[Record]:
        query = f"SELECT {_COLUMNS} FROM responses WHERE is_running"  # noqa: S608 - a constant
        return [_record(row) for row in self._connection.execute(query)]

    def _trim(self) -> None:
        with self._connection:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        count, num_bytes = self._size()
        while count > self._bounds.max_count or num_bytes > self._bounds.max_bytes:
            oldest, size = self._connection.execute(
                "SELECT id, num_bytes FROM responses ORDER BY used LIMIT 1"
            ).fetchone()
            self._connection.execute("DELETE FROM responses WHERE id = ?", (oldest,))
            count, num_bytes = count - 1, num_bytes - size


def open_store(path: str | None, bounds: Bounds) -> ResponseStore:
    """Returns a store in a file, or in memory if `path` is None.

    Raises:
        ServerError: The file can't be opened.
    """
    return MemoryStore(bounds) if path is None else SqliteStore(path, bounds)


def _opened(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10.0)
    # The log of changes keeps the file whole through a crash of the process, and needs no sync for each change.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.executescript(_SCHEMA)
    return connection


def _record(row: Sequence[object]) -> Record:
    names = Record.__struct_fields__
    return msgspec.convert(dict(zip(names, row, strict=True)), Record, strict=False)
