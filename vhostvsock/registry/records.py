"""What the registry notes down, and how it stands in the tables.

Before: database.py has the tables. After: store.py.
Rules:  - SQLite's integers are signed and a cookie is not: every cookie goes through `to_column` and `from_column`.
        - SQLite takes anything in any column, and the file may be damaged: what is read is checked, ValueError if it
          makes no sense.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vhostvsock.ids import CID_ANY, Cid
from vhostvsock.registry.rules import GLOBAL_DOMAIN, Domain, Mode, NetnsId

_WRAP = 1 << 64
# No namespace has the cookie 0, so it stands for the domain of all global ones.
_GLOBAL_COLUMN = 0


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running vhostvsock: its key, its pid, and where its bridge listens."""

    id: str
    pid: int
    bridge: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A VM: its CID in the domain of its namespace. `running`: whether its guest's driver is up."""

    id: str
    name: str
    cid: Cid
    netns: NetnsId
    domain: Domain
    running: bool
    daemon: Daemon

    @property
    def mode(self) -> Mode:
        """The mode of its namespace."""
        return Mode.GLOBAL if self.domain.owner is None else Mode.LOCAL

    def row(self, connections: int | str) -> dict[str, Any]:
        """What `vhostvsock ls` shows of it."""
        return {
            "name": self.name,
            "cid": self.cid.value,
            "netns": self.netns.cookie,
            "mode": self.mode.value,
            "state": "running" if self.running else "attached",
            "connections": connections,
            "pid": self.daemon.pid,
        }

    def __str__(self) -> str:
        return f"VM {self.name!r} (pid {self.daemon.pid}, {self.netns})"


@dataclass(frozen=True, slots=True)
class Listener:
    """A host application that guests, or others of the host, may connect to. `cid` may be the any CID."""

    id: str
    cid: int
    port: int
    netns: NetnsId
    domain: Domain
    uid: int
    daemon: Daemon

    def __str__(self) -> str:
        where = "any CID" if self.cid == CID_ANY else f"CID {self.cid}"
        return f"a listener on {where} (uid {self.uid}, pid {self.daemon.pid}, {self.netns})"


def to_column(netns: NetnsId) -> int:
    cookie = netns.cookie
    return cookie - _WRAP if cookie >= _WRAP // 2 else cookie


def from_column(value: int) -> NetnsId:
    return NetnsId(value % _WRAP)


def domain_column(domain: Domain) -> int:
    return _GLOBAL_COLUMN if domain.owner is None else to_column(domain.owner)


def domain_from(value: int) -> Domain:
    return GLOBAL_DOMAIN if value == _GLOBAL_COLUMN else Domain(from_column(value))


# Claims and listeners are always read together with their daemon.
SELECT_CLAIMS = """
SELECT c.id, c.name, c.cid, c.cookie, c.domain, c.running, d.id, d.pid, d.bridge
FROM claims c JOIN daemons d ON d.id = c.daemon """
SELECT_LISTENERS = """
SELECT l.id, l.cid, l.port, l.cookie, l.domain, l.uid, d.id, d.pid, d.bridge
FROM listeners l JOIN daemons d ON d.id = l.daemon """


def _checked(row: Sequence[Any], *types: type) -> Sequence[Any]:
    for value, wanted in zip(row, types, strict=True):
        if type(value) is not wanted:
            raise ValueError(f"{value!r:.40} is no {wanted.__name__}")
    return row


def daemon_id_from(row: Sequence[Any]) -> str:
    """The id of a daemon, which is also part of a file's name."""
    (key,) = _checked(row, str)
    if not re.fullmatch("[0-9a-f]{16}", key):
        raise ValueError(f"{key!r:.40} is no daemon's id")
    return str(key)


def daemon_from(row: Sequence[Any]) -> Daemon:
    key, pid, bridge = _checked(row, str, int, str)
    return Daemon(daemon_id_from((key,)), pid, bridge)


def claim_from(row: Sequence[Any]) -> Claim:
    key, name, cid, cookie, domain, running = _checked(row[:6], str, str, int, int, int, int)
    return Claim(key, name, Cid(cid), from_column(cookie), domain_from(domain), bool(running), daemon_from(row[6:]))


def listener_from(row: Sequence[Any]) -> Listener:
    key, cid, port, cookie, domain, uid = _checked(row[:6], str, int, int, int, int, int)
    return Listener(key, cid, port, from_column(cookie), domain_from(domain), uid, daemon_from(row[6:]))


def port_from(row: Sequence[Any]) -> int:
    """Where the search for a free port goes on."""
    (port,) = _checked(row, int)
    return int(port)


def insert_daemon(cursor: sqlite3.Cursor, daemon: Daemon) -> None:
    cursor.execute("INSERT INTO daemons VALUES (?, ?, ?)", (daemon.id, daemon.pid, daemon.bridge))


def insert_claim(cursor: sqlite3.Cursor, claim: Claim) -> None:
    cursor.execute(
        "INSERT INTO claims (id, domain, cid, cookie, name, daemon, running) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            claim.id,
            domain_column(claim.domain),
            claim.cid.value,
            to_column(claim.netns),
            claim.name,
            claim.daemon.id,
            claim.running,
        ),
    )


def insert_listener(cursor: sqlite3.Cursor, one: Listener) -> None:
    cursor.execute(
        "INSERT INTO listeners (id, domain, cid, port, cookie, uid, daemon) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (one.id, domain_column(one.domain), one.cid, one.port, to_column(one.netns), one.uid, one.daemon.id),
    )
