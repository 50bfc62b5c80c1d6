"""Two VMs in one daemon: what befalls one is nothing to the other."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.daemon import BACKEND, start_daemon
from harness.machine import Kind, Machine

from .clients import client, connections_work, read_to_end

CONFIG = """\
[[vm]]
name = "left"
cid = 42
socket = "left/vh.sock"
uds_path = "left/v.sock"

[[vm]]
name = "right"
cid = 43
socket = "right/vh.sock"
uds_path = "right/v.sock"
"""
MIB = 1 << 20


@contextlib.contextmanager
def _two_vms() -> Iterator[tuple[Machine, Machine]]:
    with contextlib.ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vv-", dir="/tmp")))
        for name in ("left", "right"):
            (top / name).mkdir()
        (top / "vhostvsock.toml").write_text(CONFIG)
        daemon = stack.enter_context(start_daemon(top, "--config", "vhostvsock.toml"))
        machines = []
        for name, kind in (("left", Kind("6.1", "7.2")), ("right", Kind("new", "10.0"))):
            machine = Machine(kind, top / name, daemon)
            stack.callback(machine.close)
            machines.append(machine.boot())
        yield machines[0], machines[1]


@pytest.mark.skipif(BACKEND == "peer", reason="the configuration is vhostvsock's")
def test_one_vm_is_killed_and_the_other_is_unaffected(prerequisites: None) -> None:
    with _two_vms() as (left, right):
        assert left.inside("cid", "-").right() == {"cid": "42"}
        assert right.inside("cid", "-").right() == {"cid": "43"}
        size = 256 * MIB
        words = ("shutdown", "eof", f"every={MIB}")
        host = right.host("talk", "unix-listen:v.sock_5000", f"recv=1:{size}", f"send=2:{size}", *words).listening()
        guest = right.inside("talk", "vsock:2:5000", f"send=1:{size}", f"recv=2:{size}", "shutdown", "eof")
        flood = left.host("talk", "unix-listen:v.sock_5000", "recv=3:all", f"every={MIB}").listening()
        left.inside("talk", "vsock:2:5000", f"send=3:{1 << 40}")
        flood.reached(MIB)
        host.reached(8 * MIB)
        left.kill_qemu()
        assert flood.result()["wrong"] == "-1"
        host.right(120)
        guest.right()
        # A listener of one VM is not the other's.
        right.inside("echo", "vsock-listen:5005").listening()
        left.boot()
        with client(left.cwd / "v.sock") as sock:
            sock.sendall(b"CONNECT 5005\n")
            assert read_to_end(sock) == b""
        connections_work(left)
        connections_work(right)
