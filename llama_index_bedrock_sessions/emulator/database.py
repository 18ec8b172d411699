"""The emulator's database file: who may open it, how its tables grow, and one connection for one task at a time.

A file that is not ours is refused before SQLite touches it. A new file is built aside and linked to its name in one
step, so that no process ever sees half of one, and of two that create it at once one wins.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APPLICATION_ID = 0x42534573  # "BSEs": PRAGMA application_id of our files
_WAIT_SECONDS = 60.0  # for another process that is writing
_ABANDONED: list[object] = []  # inherited through a fork: closing them here could harm the parent's file
_open: weakref.WeakSet[Database] = weakref.WeakSet()
_forking = threading.local()  # the databases that a fork in this thread has prepared

#: Entry n brings a file from version n to n + 1. Never edited once released; only added to.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE service (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        token_key BLOB NOT NULL,
        retention INTEGER NOT NULL,
        clock_offset INTEGER NOT NULL DEFAULT 0,
        clock_stopped INTEGER
    ) STRICT;
    CREATE TABLE sessions (
        arrival INTEGER PRIMARY KEY AUTOINCREMENT,
        region TEXT NOT NULL,
        session_id TEXT NOT NULL UNIQUE,
        created_at INTEGER NOT NULL,
        last_updated_at INTEGER NOT NULL,
        idle_since INTEGER NOT NULL,
        ended INTEGER NOT NULL DEFAULT 0,
        step_count INTEGER NOT NULL DEFAULT 0,
        encryption_key_arn TEXT,
        metadata TEXT,
        lists_to_wait INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX sessions_by_creation ON sessions (created_at);
    CREATE INDEX sessions_by_update ON sessions (last_updated_at);
    CREATE TABLE tags (
        session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (session, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE invocations (
        arrival INTEGER PRIMARY KEY AUTOINCREMENT,
        session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
        invocation_id TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        description TEXT,
        UNIQUE (session, invocation_id)
    ) STRICT;
    CREATE TABLE steps (
        arrival INTEGER PRIMARY KEY AUTOINCREMENT,
        session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
        invocation_id TEXT NOT NULL,
        invocation_step_id TEXT NOT NULL,
        invocation_step_time INTEGER NOT NULL,
        lists_to_wait INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX steps_by_session ON steps (session, invocation_step_id);
    CREATE TABLE payloads (
        step INTEGER PRIMARY KEY REFERENCES steps ON DELETE CASCADE,
        payload TEXT NOT NULL
    ) STRICT;
    """,
    """
    ALTER TABLE sessions DROP COLUMN lists_to_wait;
    ALTER TABLE sessions ADD COLUMN listed_from INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE steps DROP COLUMN lists_to_wait;
    ALTER TABLE steps ADD COLUMN listed_from INTEGER NOT NULL DEFAULT 0;
    """,
)


class EmulatorError(Exception):
    """Base of what the emulator raises in its own name. The service's refusals are botocore's `ClientError`."""


class NotOurFileError(EmulatorError, ValueError):
    """The path holds something else than an emulator's database, or a damaged one. It was left as it is."""


class NewerFileError(NotOurFileError):
    """The file was written by a newer release."""


class UnusablePathError(EmulatorError, OSError):
    """Nothing can be stored at the path: a directory, a missing parent, or no permission."""


class ClosedError(EmulatorError, ValueError):
    """The emulator was closed."""


class Database:
    """One database file, or one in memory (`path=None`), shared by the threads of this process.

    Several processes may have the same file open. Raises `NotOurFileError`, `UnusablePathError`.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        if sqlite3.sqlite_version_info < (3, 37):
            raise EmulatorError(f"the emulator needs SQLite 3.37 for STRICT tables, this is {sqlite3.sqlite_version}")
        self.path = None if path is None else Path(os.path.abspath(path))  # noqa: PTH100 - resolve() follows links
        self._closed = False
        self._idle: list[sqlite3.Connection] = []
        self._renew_locks()
        _open.add(self)
        if self.path is None:
            self._idle.append(self._connect_to(":memory:"))
            self._change_schema(self._idle[0])
        else:
            _check_file(self.path)
            self._open_file(self.path)

    def _renew_locks(self) -> None:
        self._writing = threading.Lock()  # SQLite lets waiting writers sleep; a lock wakes them
        self._only = threading.Lock()  # the one connection of a database in memory

    def _connect_to(self, target: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            target, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")  # a deleted session does not linger in free pages
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_file(self, path: Path) -> None:
        try:
            connection = self._connect_to(str(path))
            try:
                self._change_schema(connection)  # before the log, so that the file itself says whose it is
                _wait_for_wal(connection)
            except BaseException:
                connection.close()
                raise
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise UnusablePathError(f"cannot use {path}: {error}") from error
            raise NotOurFileError(f"{path} is damaged: {error}") from error
        self._idle.append(connection)

    def _change_schema(self, connection: sqlite3.Connection) -> None:
        """Bring the tables to the current version; of several processes the first does it."""
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > len(MIGRATIONS):
            raise NewerFileError(f"{self.path} has format {version}, this release reads up to {len(MIGRATIONS)}")
        if version == len(MIGRATIONS):
            connection.execute("SELECT token_key FROM service").fetchone()
            return
        _migrate(connection)

    def _take(self) -> sqlite3.Connection:
        if self._closed:
            raise ClosedError("the emulator was closed")
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect_to(str(self.path))

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:  # an interrupt came at the wrong moment
            connection.execute("ROLLBACK")
        self._idle.append(connection)
        if self._closed:
            self.close()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        lock = self._only if self.path is None else None
        if lock:
            lock.acquire()
        try:
            connection = self._take()
            try:
                yield connection
            finally:
                self._give_back(connection)
        finally:
            if lock:
                lock.release()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give one consistent view of the database."""
        with self._connection() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give a transaction that is on disk when the block ends, and that never happened if the block raises."""
        with self._writing, self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close all connections; those in use close when they are given back."""
        self._closed = True
        with suppress(IndexError):  # two threads may close at once
            while True:
                self._idle.pop().close()

    def before_fork(self) -> None:
        """Let what is under way in memory finish: the child gets a copy of it."""
        if self.path is None:
            self._only.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self.path is None:
            self._only.release()

    def after_fork_in_child(self) -> None:
        """Leave the parent's connections alone, and make no use of its locks."""
        self._renew_locks()
        if self.path is not None:
            _ABANDONED.append(self._idle)
            self._idle = []


def _migrate(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        for script in MIGRATIONS[version:]:
            for statement in script.split(";"):
                connection.execute(statement)
        if version == 0:
            connection.execute("INSERT INTO service VALUES (1, ?, 1, 0, NULL)", (secrets.token_bytes(32),))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _wait_for_wal(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on. SQLite does not wait for others here, so we do."""
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal":
                return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
        time.sleep(0.01)


def _check_file(path: Path) -> None:
    """Create the file if there is none; refuse it, untouched, unless it is ours or empty."""
    try:
        if path.is_dir():
            raise UnusablePathError(f"{path} is a directory, not a database file")
        if not path.parent.is_dir():
            raise UnusablePathError(f"{path.parent} is not a directory: create it first")
        if not path.exists():
            _create(path)
        _check_not_foreign(path)
    except EmulatorError:
        raise
    except OSError as error:
        raise UnusablePathError(f"cannot use {path}: {error}") from error


def _create(path: Path) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            _migrate(connection)
        finally:
            connection.close()  # and with it the log: all is in the one file now
        _name(draft, path)
    except sqlite3.OperationalError as error:
        raise UnusablePathError(f"cannot create {path}: {error}") from error
    finally:
        for leftover in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm"), Path(f"{draft}-journal")):
            leftover.unlink(missing_ok=True)


def _name(draft: Path, path: Path) -> None:
    """Give the finished file its name, unless another process was faster."""
    link: Callable[[Path, Path], None] = os.link
    try:
        link(draft, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            draft.rename(path)
    with suppress(OSError):  # Windows cannot open directories
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _check_not_foreign(path: Path) -> None:
    """Refuse a file that is not ours. One that another process is filling, because it was empty, becomes ours."""
    until = time.monotonic() + 5
    refused_once = False
    while not _is_ours(path):
        filling = Path(f"{path}-journal").exists()
        if time.monotonic() > until or (refused_once and not filling):
            raise NotOurFileError(
                f"{path} is no database of the Bedrock sessions emulator, or damaged; it was left as is"
            )
        refused_once = not filling
        time.sleep(0.02)


def _is_ours(path: Path) -> bool:
    if path.stat().st_size == 0:
        return True
    # Through SQLite, not by reading the file: closing a file descriptor of one's own drops every lock that this
    # process holds on the file (POSIX), those of other connections included. Immutable: no lock, no side files.
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        ours = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        return ours and connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'service'").fetchone() is not None
    except sqlite3.DatabaseError:
        return False
    finally:
        connection.close()


def _before_fork() -> None:
    _forking.databases = list(_open)
    for database in _forking.databases:
        database.before_fork()


def _after_fork_in_parent() -> None:
    for database in _forking.__dict__.pop("databases"):
        database.after_fork_in_parent()


def _after_fork_in_child() -> None:
    for database in _forking.__dict__.pop("databases"):
        database.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
