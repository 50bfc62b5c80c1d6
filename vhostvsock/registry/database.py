"""The SQLite file: created, opened, checked, and its errors said in plain words.

Before: store.py. After: sqlite3, and `registry.db` in the runtime directory.
Rules:  - journal_mode DELETE. WAL keeps a memory mapping, and a tmpfs that is full kills whoever touches a mapping
          (SIGBUS); it also needs every reader to write. What is in the file is small, so nothing is lost by it.
        - synchronous OFF. A process that is killed loses nothing by that, and after a crash of the system nothing in
          the file is of worth: it belongs to one boot, and is emptied in the next.
        - writing transactions are BEGIN IMMEDIATE: who has begun will not be told later that somebody else was faster.
        - nothing here may open the file by other means than sqlite3: closing such a descriptor would drop the locks
          that SQLite holds in this process (POSIX locks).
        - who wants to write waits at `registry.turn` first, so that only the next one waits for SQLite's lock. Without
          that, whoever has just written is the first to get the lock again, and others starve.
        - every error of sqlite3 or the system leaves as a RegistryError with a hint.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
import urllib.parse
from collections.abc import Iterator

from vhostvsock.registry import runtime
from vhostvsock.registry.errors import Refused, RegistryError

SCHEMA_VERSION = 1
FILE = "registry.db"
TURN = "registry.turn"
# How long a call waits for other processes' transactions, each of which takes well below a millisecond.
BUSY_SECONDS = 3.0
# How long it sleeps in between, at random. SQLite's own waiting sleeps up to 100 ms at a time, and where many are at it
# some are always asleep when the lock is free.
_PAUSE_SECONDS = (0.0002, 0.002)

_SCHEMA = """
CREATE TABLE boot (id TEXT NOT NULL);
CREATE TABLE daemons (
    id TEXT PRIMARY KEY,
    pid INTEGER NOT NULL,
    bridge TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE cursors (
    cookie INTEGER PRIMARY KEY,
    port INTEGER NOT NULL
);
CREATE TABLE claims (
    id TEXT PRIMARY KEY,
    domain INTEGER NOT NULL,
    cid INTEGER NOT NULL,
    cookie INTEGER NOT NULL,
    name TEXT NOT NULL,
    daemon TEXT NOT NULL REFERENCES daemons (id) ON DELETE CASCADE,
    running INTEGER NOT NULL,
    UNIQUE (domain, cid)
) WITHOUT ROWID;
CREATE TABLE listeners (
    id TEXT PRIMARY KEY,
    domain INTEGER NOT NULL,
    cid INTEGER NOT NULL,
    port INTEGER NOT NULL,
    cookie INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    daemon TEXT NOT NULL REFERENCES daemons (id) ON DELETE CASCADE,
    UNIQUE (domain, port, cid)
) WITHOUT ROWID;
CREATE INDEX claims_by_daemon ON claims (daemon);
CREATE INDEX listeners_by_daemon ON listeners (daemon);
"""
_TABLES = ("listeners", "claims", "daemons", "cursors")


class Database:
    """The open file. Used by one thread at a time; `with` closes it."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.path = os.path.join(directory, FILE)
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._turn = -1
        self.open()

    def open(self) -> None:
        """Open the file, and create it where it is missing."""
        self.close()
        runtime.prepare(self.directory)
        with self.errors():
            self._create(self.path)
            self._open_turn()
            self._connection = sqlite3.connect(
                f"file:{_quoted(self.path)}?mode=rw",
                uri=True,
                timeout=0,  # waiting is done here, see _patiently
                isolation_level=None,
                check_same_thread=False,
            )
            found = os.stat(self.path)
            self._identity = (found.st_dev, found.st_ino)
            try:
                self._set_up(self._connection)
            except BaseException:
                self.close()
                raise

    def _open_turn(self) -> None:
        path = os.path.join(self.directory, TURN)
        try:
            self._create(path)
            self._turn = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            pass  # where nothing can be written nobody waits for writing

    def _create(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return
        # The file is new, so no connection of this process has a lock on it that closing could drop.
        try:
            runtime.follow(self.directory, fd)
        finally:
            os.close(fd)

    def _set_up(self, connection: sqlite3.Connection) -> None:
        # Each of them reads the file, for which it may have to wait.
        for pragma in ("foreign_keys = ON", "synchronous = OFF", "journal_mode = DELETE"):
            self._patiently(connection.cursor(), f"PRAGMA {pragma}")
        with self.write() as cursor:
            version = cursor.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise RegistryError(
                    f"{self.path} was made by a newer vhostvsock (schema {version}; this one knows {SCHEMA_VERSION})",
                    hint="use the newer version, or stop all its daemons and remove the file",
                )
            if version == 0:
                if cursor.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise self.damaged("it is somebody else's database")
                for statement in _SCHEMA.split(";"):
                    cursor.execute(statement)
                cursor.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            boot = runtime.boot_id()
            if cursor.execute("SELECT id FROM boot").fetchall() != [(boot,)]:
                for table in (*_TABLES, "boot"):
                    cursor.execute(f"DELETE FROM {table}")
                cursor.execute("INSERT INTO boot VALUES (?)", (boot,))

    def moved(self) -> bool:
        """Whether the path leads to another file by now, or to none (somebody removed it), or opening it failed."""
        if self._connection is None:
            return True
        try:
            found = os.stat(self.path)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._identity

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Cursor]:
        """A transaction that may write: all of it happens, or nothing."""
        with self._transaction("BEGIN IMMEDIATE") as cursor:
            yield cursor

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Cursor]:
        """A transaction that sees one state of the file."""
        with self._transaction("BEGIN") as cursor:
            yield cursor

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Cursor]:
        with self.errors():
            if self._connection is None:
                raise RegistryError(f"the registry {self.path} is closed")
            connection = self._connection
            cursor = connection.cursor()
            try:
                if begin == "BEGIN":
                    self._patiently(cursor, begin)
                    self._patiently(cursor, "SELECT count(*) FROM boot")  # the lock comes with the first page read
                else:
                    with self._in_turn():
                        self._patiently(cursor, begin)
                yield cursor
                self._patiently(cursor, "COMMIT")
            except BaseException:
                if connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):  # the first error is the one to tell
                        connection.rollback()
                raise
            finally:
                cursor.close()

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """The only one who waits to write, or, after a while, one of several."""
        deadline = time.monotonic() + BUSY_SECONDS
        while self._turn >= 0 and not runtime.try_lock(self._turn) and time.monotonic() < deadline:
            time.sleep(random.uniform(*_PAUSE_SECONDS))
        try:
            yield
        finally:
            if self._turn >= 0:
                runtime.unlock(self._turn)

    @staticmethod
    def _patiently(cursor: sqlite3.Cursor, statement: str) -> None:
        """Execute a statement that others' locks can be in the way of."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                cursor.execute(statement)
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
            time.sleep(random.uniform(*_PAUSE_SECONDS))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns errors of SQLite and of the system into RegistryError."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._explained(error) from error
        except UnicodeDecodeError as error:  # of what SQLite quotes from the file
            raise self.damaged(str(error)) from error
        except OSError as error:
            if isinstance(error, Refused):
                raise  # by a rule: that is an answer
            raise RegistryError(
                f"the registry {self.path} cannot be used: {error.strerror or error}",
                hint=runtime.hint_for(error.errno),
            ) from error

    def _explained(self, error: sqlite3.Error) -> RegistryError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self.damaged(str(error))
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return RegistryError(
                f"the registry {self.path} has been locked by another process for {BUSY_SECONDS:g} s",
                hint="is a vhostvsock stopped (SIGSTOP) or traced? Let it go on, or end it",
            )
        if code == sqlite3.SQLITE_FULL or _is_full(self.directory):
            return RegistryError(f"the registry {self.path} cannot grow: no space left", hint="make room there")
        if code == sqlite3.SQLITE_READONLY:
            return RegistryError(
                f"the registry {self.path} is read-only",
                hint="make the file and its directory writable, or run as a user who may write there",
            )
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
            return RegistryError(
                f"the registry {self.path} cannot be opened",
                hint=f"check the owner and mode of {self.directory} and of what is in it",
            )
        if code == sqlite3.SQLITE_ERROR:
            return self.damaged(str(error))  # a table that is not as it was made
        return RegistryError(f"the registry {self.path} cannot be used: {error}", hint="check that file system")

    def damaged(self, why: str) -> RegistryError:
        """What is told of a file that is not as it was made."""
        return RegistryError(
            f"the registry {self.path} is damaged: {why}",
            hint=f"remove {self.path}; running VMs go on, and their daemons enter them again",
        )

    def close(self) -> None:
        """Close the file. May be called twice."""
        turn, self._turn = self._turn, -1
        if turn >= 0:
            os.close(turn)
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def _is_full(directory: str) -> bool:
    try:
        found = os.statvfs(directory)
    except OSError:
        return False
    return found.f_bavail == 0 or (found.f_files > 0 and found.f_favail == 0)


def _quoted(path: str) -> str:
    return urllib.parse.quote(os.fsencode(path))
