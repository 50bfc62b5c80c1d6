"""Directories that others must be able to enter, and what is left in them: by whatever umask, owner and mode."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostvsock.bridge import places, privilege
from vhostvsock.errors import SocketError
from vhostvsock.registry import notes, runtime
from vhostvsock.registry.errors import RegistryError
from vhostvsock.registry.notes import Notes
from vhostvsock.registry.rules import NetnsId


@pytest.fixture
def tight() -> Iterator[None]:
    """The umask of the shipped services."""
    old = os.umask(0o077)
    yield
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("tight")
def test_the_umask_does_not_close_the_bridge(short_dir: Path) -> None:
    places.prepare(str(short_dir))
    assert mode(short_dir / "bridge") == 0o755


@pytest.mark.usefixtures("tight")
def test_the_umask_does_not_close_the_directory_of_the_system(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "SYSTEM_DIR", str(short_dir / "system"))
    for name, expected in (("system", 0o755), ("other", 0o700)):
        runtime.prepare(str(short_dir / name))
        assert mode(short_dir / name) == expected
        assert mode(short_dir / name / "netns") == expected
        assert mode(short_dir / name / "daemons") == 0o750 & expected


def test_notes_that_cannot_be_read_are_an_error(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.prepare(str(short_dir / "own"))

    def refuse(*_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied")

    known = Notes(str(short_dir / "own"), system=str(short_dir / "none"))
    assert known.load(NetnsId(7)) is None
    monkeypatch.setattr(notes, "open", refuse, raising=False)
    with pytest.raises(RegistryError, match=r"cannot read .*: Permission denied"):
        known.load(NetnsId(7))


def test_a_socket_that_cannot_be_asked_is_left_alone_and_a_dead_one_removed(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.prepare(str(short_dir))
    for name in ("dead.sock", "foreign.sock"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(short_dir / "bridge" / name))
    asked = places.is_alive

    def is_alive(path: str) -> bool:
        if "foreign" in path:
            raise SocketError(f"cannot find out whether {path} is in use: Permission denied")
        return asked(path)

    monkeypatch.setattr(places, "is_alive", is_alive)
    places.prepare(str(short_dir))
    assert os.listdir(short_dir / "bridge") == ["foreign.sock"]


def test_user_namespaces_are_told_apart_by_their_maps_where_the_link_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: str) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(privilege.os, "readlink", refuse)
    with open("/proc/self/status", encoding="ascii") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    # What there is to say of root was said before.
    monkeypatch.setattr(privilege, "_effective", lambda _: (1000, effective))
    assert privilege.may_bind_low_ports(os.getpid(), 1000) == bool(effective >> 10 & 1)
    monkeypatch.setattr(privilege, "_uid_map", lambda pid: pid)
    assert not privilege.may_bind_low_ports(os.getpid(), 1000)
