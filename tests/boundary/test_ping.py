"""Signs of life: a device's thread answers a ping when it gets round to it, and what its end means for that."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from vhostvsock.errors import StaleHandleError
from vhostvsock.ids import Cid
from vhostvsock.native import DeviceConfig, Engine

LIMIT = 20.0
pytestmark = pytest.mark.timeout(60, method="thread")


def test_each_ping_is_answered_once_and_none_is_sent_while_one_is_owed(short_dir: Path) -> None:
    with Engine() as engine, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_dir / "v.sock"))
        listener.listen()
        listener.setblocking(False)
        config = DeviceConfig("test", Cid(42), listener.fileno(), listener.getsockname())
        with engine.new_device(config) as device:
            assert not device.owes_pong()
            assert device.stats()["pongs"] == 0
            for count in range(1, 4):
                device.ping()
                deadline = time.monotonic() + LIMIT
                while device.owes_pong():
                    assert time.monotonic() < deadline, "the thread never answered"
                    time.sleep(0.001)
                assert device.stats()["pongs"] == count
        with pytest.raises(StaleHandleError):
            device.ping()
