"""sd_notify: the messages reach the manager; a missing or broken manager is not our problem."""

import socket
from pathlib import Path

import pytest

from vhostvsock.systemd.notify import notify


def test_nothing_is_sent_without_a_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1") is False


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_reaches_the_manager(monkeypatch: pytest.MonkeyPatch, short_dir: Path, abstract: bool) -> None:
    name = f"@{short_dir.name}" if abstract else str(short_dir / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        manager.bind("\0" + name[1:] if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify("READY=1", "STATUS=fine") is True
        assert manager.recv(100) == b"READY=1\nSTATUS=fine"


@pytest.mark.parametrize("name", ["/no/such/socket", "relative", "/" + "x" * 200, "vsock:2:1"])
def test_a_manager_that_cannot_be_reached_is_ignored(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    assert notify("READY=1") is False
