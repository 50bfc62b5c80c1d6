"""The registry: which daemon serves which VM under which CID, and which host applications listen where.

Before: the daemon's bridge and VMs, `vhostvsock netns` and `ls`. After: database.py; rules.py decides.
Rules:  - a row counts while its daemon holds its lock (runtime.py). Readers pass over the rows of the dead; whoever
          writes removes them first, in the same transaction. So no crash leaves a CID or port taken.
        - what this daemon holds is also kept in memory. Should a write fail (a full disk), or the file be removed, the
          next transaction that works puts this daemon's rows right; VMs that run never wait for that.
        - calls are made from an asyncio loop without await: one takes well below 2 ms (some system calls and a page or
          two). The worst is three times BUSY_SECONDS, which needs a process that was stopped in the middle of its own.
        - one Registry per process and thread; it does not survive a fork.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import random
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from vhostvsock.ids import CID_ANY, PORT_ANY, Cid
from vhostvsock.registry import rules, runtime
from vhostvsock.registry.database import Database
from vhostvsock.registry.errors import Refused
from vhostvsock.registry.kernel import KernelModes, host_cid
from vhostvsock.registry.modes import Modes
from vhostvsock.registry.notes import Notes
from vhostvsock.registry.records import (
    SELECT_CLAIMS,
    SELECT_LISTENERS,
    Claim,
    Daemon,
    Listener,
    claim_from,
    daemon_from,
    daemon_id_from,
    domain_column,
    insert_claim,
    insert_daemon,
    insert_listener,
    listener_from,
    port_from,
    to_column,
)
from vhostvsock.registry.rules import Domain, NetnsId

_log = logging.getLogger("vhostvsock.registry")

_Row = TypeVar("_Row", Claim, Listener)
_Record = TypeVar("_Record")


class Registry:
    """One process's way into the registry; `with` closes it, and thereby gives up all that the process holds."""

    def __init__(
        self,
        directory: str | None = None,
        *,
        kernel: KernelModes | None = None,
        own_cid: Callable[[], int | None] = host_cid,
        draw: Callable[[], int] = lambda: random.randrange(rules.LAST_PRIVILEGED_PORT + 1, PORT_ANY),
    ) -> None:
        self.directory = runtime.runtime_dir(directory)
        self._own_cid = own_cid
        self._draw = draw
        self._daemon: Daemon | None = None
        self._lock = -1
        self._closed = False
        self._claims: dict[str, Claim] = {}
        self._listeners: dict[str, Listener] = {}
        self._behind = False  # whether the tables may lack something of ours, or have too much
        self._database = Database(self.directory)
        self.modes = Modes(self, Notes(self.directory), kernel or KernelModes())

    def close(self) -> None:
        """Give up every claim and listener, and close the file. May be called twice."""
        if self._daemon is not None:
            daemon, self._daemon = self._daemon, None
            try:
                with self._database.write() as cursor:
                    cursor.execute("DELETE FROM daemons WHERE id = ?", (daemon.id,))
                runtime.remove_lock(self.directory, daemon.id)
            except Exception as error:
                # The lock goes all the same, and with it everything that the rows say.
                _log.warning("cannot leave the registry in order: %s", error)
            finally:
                os.close(self._lock)
        self._closed = True
        self._claims.clear()
        self._listeners.clear()
        self._database.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Transactions ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Cursor]:
        """A transaction that sees only what belongs to the living, and this daemon's own rows as they should be."""
        self._follow_file()
        with self._database.write() as cursor:
            self._remove_the_dead(cursor)
            if self._behind:
                self._enter_again(cursor)
            yield cursor
        self._behind = False

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Cursor]:
        """A transaction for questions. Rows of dead daemons may be in it."""
        self._follow_file()
        if self._behind:
            with self.writing():
                pass
        with self._database.read() as cursor:
            yield cursor

    def _follow_file(self) -> None:
        if self._closed:
            raise ValueError("this Registry is closed")
        if self._database.moved():
            if not self._behind:
                _log.warning("the registry %s was removed; it is made anew", self._database.path)
            self._behind = True
            self._database.open()

    def _remove_the_dead(self, cursor: sqlite3.Cursor) -> None:
        for daemon in self._read(daemon_id_from, cursor.execute("SELECT id FROM daemons").fetchall()):
            if not self._lives(daemon):
                cursor.execute("DELETE FROM daemons WHERE id = ?", (daemon,))
                runtime.remove_lock(self.directory, daemon)

    def _lives(self, daemon: str) -> bool:
        return (self._daemon is not None and daemon == self._daemon.id) or runtime.is_alive(self.directory, daemon)

    def _enter_again(self, cursor: sqlite3.Cursor) -> None:
        """Make the tables say of this daemon what its memory says."""
        self.modes.note_again()
        if self._daemon is None:
            return
        if not runtime.is_alive(self.directory, self._daemon.id):
            # The file of our lock was removed as well; with ours open, the new one is another file.
            runtime.remove_lock(self.directory, self._daemon.id)
            fd = runtime.take_lock(self.directory, self._daemon.id)
            os.close(self._lock)
            self._lock = fd
        cursor.execute("DELETE FROM daemons WHERE id = ?", (self._daemon.id,))
        insert_daemon(cursor, self._daemon)
        rows: tuple[Claim | Listener, ...] = (*self._claims.values(), *self._listeners.values())
        for row in rows:
            try:
                if isinstance(row, Claim):
                    insert_claim(cursor, row)
                else:
                    insert_listener(cursor, row)
            except sqlite3.IntegrityError:
                _log.error("%s lost its place in the registry to another one", row)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Cursor]:
        """A transaction after which memory is ahead of the tables if it fails."""
        try:
            with self.writing() as cursor:
                yield cursor
        except BaseException:
            self._behind = True
            raise

    # Daemons --------------------------------------------------------------------------------------------------------

    def register_daemon(self, bridge_path: str) -> str:
        """Enter this process as a daemon whose bridge listens on `bridge_path`; returns its id."""
        if self._daemon is not None:
            raise ValueError("this process is registered already")
        daemon = Daemon(secrets.token_hex(8), os.getpid(), bridge_path)
        lock = -1
        try:
            with self.writing() as cursor:
                # Files are made and swept only after BEGIN IMMEDIATE, so nobody sweeps one that is not locked yet.
                known = {row[0] for row in cursor.execute("SELECT id FROM daemons")}
                for other in runtime.lock_names(self.directory):
                    if other not in known and not runtime.is_alive(self.directory, other):
                        runtime.remove_lock(self.directory, other)
                lock = runtime.take_lock(self.directory, daemon.id)
                insert_daemon(cursor, daemon)
        except BaseException:
            if lock >= 0:
                os.close(lock)  # the file is swept by the next daemon
            raise
        self._daemon, self._lock = daemon, lock
        self.modes.note_own()
        return daemon.id

    def _me(self) -> Daemon:
        if self._daemon is None:
            raise ValueError("register_daemon comes first")
        return self._daemon

    def daemons(self) -> list[Daemon]:
        """The daemons that live."""
        with self.reading() as cursor:
            rows = cursor.execute("SELECT id, pid, bridge FROM daemons ORDER BY pid").fetchall()
        found = self._read(daemon_from, rows)
        return [daemon for daemon in found if self._lives(daemon.id)]

    # VMs ------------------------------------------------------------------------------------------------------------

    def claim(self, netns: NetnsId, cid: int | None, name: str) -> Claim:
        """Take a CID for a VM in `netns`: EINVAL, EADDRINUSE with the holder's name; None takes the lowest free one."""
        me = self._me()
        wanted = None if cid is None else rules.check_cid(cid)
        with self.writing() as cursor:
            domain = rules.domain_of(netns, self.modes.mode(netns))
            got = self._free_cid(cursor, domain, None if wanted is None else wanted.value)
            claim = Claim(secrets.token_hex(8), name, got, netns, domain, False, me)
            insert_claim(cursor, claim)
        self._claims[claim.id] = claim
        return claim

    def _free_cid(self, cursor: sqlite3.Cursor, domain: Domain, cid: int | None) -> Cid:
        column = domain_column(domain)
        if cid is None:
            taken = cursor.execute("SELECT cid FROM claims WHERE domain = ?", (column,))
            return rules.auto_cid((row[0] for row in taken), self._own_cid())
        rows = cursor.execute(SELECT_CLAIMS + "WHERE domain = ? AND cid = ?", (column, cid)).fetchall()
        holder = next(map(str, self._read(claim_from, rows)), None)
        wanted = Cid(cid)
        rules.check_claim(wanted, host_cid=self._own_cid(), holder=holder)
        return wanted

    def release(self, claim: Claim) -> None:
        """The VM is gone: its CID is free. May be called twice."""
        if self._claims.pop(claim.id, None) is not None:
            with self._changing() as cursor:
                cursor.execute("DELETE FROM claims WHERE id = ?", (claim.id,))

    def set_running(self, claim: Claim, running: bool) -> Claim:
        """Note whether the VM's guest has its driver up."""
        current = self._claims[claim.id]
        if current.running == running:
            return current
        changed = self._claims[claim.id] = dataclasses.replace(current, running=running)
        with self._changing() as cursor:
            cursor.execute("UPDATE claims SET running = ? WHERE id = ?", (running, claim.id))
        return changed

    def vms(self, viewer: NetnsId | None = None) -> list[Claim]:
        """Every VM that `viewer` may reach, or all of them, by domain and CID."""
        with self.reading() as cursor:
            where, values = self._within_domain(viewer)
            rows = cursor.execute(SELECT_CLAIMS + where + "ORDER BY domain, cid", values).fetchall()
        return self._living(claim_from, rows)

    def find_vm(self, viewer: NetnsId, cid: int) -> Claim | None:
        """The VM that has the CID as seen from `viewer`: one out of its reach is not there."""
        with self.reading() as cursor:
            values = (self._domain_column(viewer), cid)
            rows = cursor.execute(SELECT_CLAIMS + "WHERE domain = ? AND cid = ?", values).fetchall()
        return next(iter(self._living(claim_from, rows)), None)

    # Listeners ------------------------------------------------------------------------------------------------------

    def listen(
        self, netns: NetnsId, cid: int = CID_ANY, port: int = PORT_ANY, *, privileged: bool = False, uid: int = 0
    ) -> Listener:
        """Take a port for a host application: EADDRNOTAVAIL, EACCES, EADDRINUSE; the any port gets a free one."""
        me = self._me()
        rules.check_bind_cid(cid, host_cid=self._own_cid())
        failure: Refused | None = None
        with self.writing() as cursor:
            domain = rules.domain_of(netns, self.modes.mode(netns))

            def holder(number: int) -> str | None:
                query = SELECT_LISTENERS + "WHERE domain = ? AND port = ? AND (l.cid = ? OR l.cid = ? OR ? = ?)"
                values = (domain_column(domain), number, cid, CID_ANY, cid, CID_ANY)
                rows = cursor.execute(query, values).fetchall()
                return next(map(str, self._read(listener_from, rows)), None)

            if port == PORT_ANY:
                try:
                    port = self._autobind(cursor, netns, lambda number: holder(number) is not None)
                except rules.NoFreePort as error:
                    failure = error  # told once the cursor's move is written
            else:
                found = holder(port) if 0 <= port < PORT_ANY else None
                rules.check_bind_port(port, privileged=privileged, holder=found)
            if failure is None:
                listener = Listener(secrets.token_hex(8), cid, port, netns, domain, uid, me)
                insert_listener(cursor, listener)
        if failure is not None:
            raise failure
        self._listeners[listener.id] = listener
        return listener

    def _autobind(self, cursor: sqlite3.Cursor, netns: NetnsId, taken: Callable[[int], bool]) -> int:
        column = to_column(netns)
        rows = cursor.execute("SELECT port FROM cursors WHERE cookie = ?", (column,)).fetchall()
        before = next(iter(self._read(port_from, rows)), None)
        try:
            port, after = rules.autobind(before, self._draw(), taken)
        except rules.NoFreePort as error:
            cursor.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", (column, error.cursor))
            raise
        cursor.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", (column, after))
        return port

    def unlisten(self, listener: Listener) -> None:
        """The host application is gone: its port is free. May be called twice."""
        if self._listeners.pop(listener.id, None) is not None:
            with self._changing() as cursor:
                cursor.execute("DELETE FROM listeners WHERE id = ?", (listener.id,))

    def has_port(self, netns: NetnsId, port: int, uid: int) -> bool:
        """Whether a host application of this user has the port, on any CID, in the domain of `netns`."""
        with self.reading() as cursor:
            values = (self._domain_column(netns), port, uid)
            rows = cursor.execute(SELECT_LISTENERS + "WHERE domain = ? AND port = ? AND l.uid = ?", values).fetchall()
        return bool(self._living(listener_from, rows))

    def find_listener(self, netns: NetnsId, cid: int, port: int) -> Listener | None:
        """Who gets a connection to (cid, port) that comes from a VM, or a host application, of `netns`."""
        with self.reading() as cursor:
            values = (self._domain_column(netns), port, cid, CID_ANY)
            query = SELECT_LISTENERS + "WHERE domain = ? AND port = ? AND l.cid IN (?, ?)"
            rows = cursor.execute(query, values).fetchall()
        return next(iter(self._living(listener_from, rows)), None)

    def listeners(self, viewer: NetnsId | None = None) -> list[Listener]:
        """Every listener in the domain of `viewer`, or all of them."""
        with self.reading() as cursor:
            where, values = self._within_domain(viewer)
            rows = cursor.execute(SELECT_LISTENERS + where + "ORDER BY domain, port, l.cid", values).fetchall()
        return self._living(listener_from, rows)

    # Within a transaction -------------------------------------------------------------------------------------------

    def _domain_column(self, netns: NetnsId) -> int:
        return domain_column(rules.domain_of(netns, self.modes.mode(netns)))

    def _within_domain(self, viewer: NetnsId | None) -> tuple[str, tuple[int, ...]]:
        return ("", ()) if viewer is None else ("WHERE domain = ? ", (self._domain_column(viewer),))

    def _read(self, make: Callable[[Sequence[Any]], _Record], rows: list[Any]) -> list[_Record]:
        """What rows say. One that makes no sense is damage like any other."""
        try:
            return [make(row) for row in rows]
        except ValueError as error:
            raise self._database.damaged(str(error)) from error

    def _living(self, make: Callable[[Sequence[Any]], _Row], found: list[Any]) -> list[_Row]:
        rows = self._read(make, found)
        alive: dict[str, bool] = {}
        for row in rows:
            if row.daemon.id not in alive:
                alive[row.daemon.id] = self._lives(row.daemon.id)
        return [row for row in rows if alive[row.daemon.id]]
