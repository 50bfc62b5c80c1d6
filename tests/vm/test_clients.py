"""Programs that people use: `vhostvsock connect`, ssh, socat, and NBD."""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tool
from harness.daemon import BACKEND, CID
from harness.machine import Machine
from harness.waiting import Process, wait_for

from scripts.lib import fetch

from .conftest import on_both_kernels, on_one

ours = pytest.mark.skipif(BACKEND == "peer", reason="a test of vhostvsock's own command")


def _run(command: list[str], cwd: Path, data: bytes = b"", env: dict[str, str] | None = None) -> bytes:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, input=data, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


@ours
@on_both_kernels
def test_the_connect_command_in_a_pipe(vm: Machine) -> None:
    vm.inside("exec", "vsock-listen:7000", "'tr a-z A-Z'").listening()
    command = [sys.executable, "-m", "vhostvsock", "connect", "--uds", "v.sock", "7000"]
    # tr answers when its input has ended, so this needs the half-close.
    assert _run(command, vm.cwd, b"hello from the host\n") == b"HELLO FROM THE HOST\n"


@ours
@on_one
def test_the_connect_command_into_a_shell_of_the_guest(vm: Machine) -> None:
    vm.inside("exec", "vsock-listen:7001", "'exec sh'").listening()
    command = [sys.executable, "-m", "vhostvsock", "connect", "--uds", "v.sock", "7001"]
    assert _run(command, vm.cwd, b"hostname; echo $((6 * 7)); exit 0\n") == b"guest\n42\n"


def _sshd(vm: Machine) -> list[str]:
    """Start sshd in the guest for each connection to port 22; the options with which ssh gets in."""
    key = vm.cwd / "id"
    if not key.exists():
        _run([tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(key)], vm.cwd)
    vm.guest.run(
        "mkdir -p /root/.ssh /run/sshd && chmod 700 /root/.ssh && test -e /etc/ssh/key || "
        "ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/key"
    )
    vm.guest.write("/root/.ssh/authorized_keys", (vm.cwd / "id.pub").read_text())
    vm.inside("exec", "vsock-listen:22", "'exec /usr/sbin/sshd -i -e -h /etc/ssh/key 2>>/tmp/sshd.log'").listening()
    options = {
        "IdentityFile": str(key),
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "UserKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "no",
        "CheckHostIP": "no",
        "LogLevel": "ERROR",
    }
    return [tool("ssh"), "-F", "none", *(f"-o{name}={value}" for name, value in options.items())]


@on_both_kernels
def test_ssh_through_systemd_ssh_proxy(vm: Machine) -> None:
    proxy = shlex.join(fetch.ssh_proxy())
    ssh = _sshd(vm)
    words = [*ssh, f"-oProxyCommand={proxy} %h %p", "-oProxyUseFdpass=yes", "-p", "22"]
    # The form in which systemd's users name a guest behind such a socket.
    host = f"root@vsock-mux{vm.cwd}/v.sock"
    assert _run([*words, host, "hostname; id -un"], vm.cwd) == b"guest\nroot\n"
    data = random.Random(7).randbytes(4 << 20)
    assert _run([*words, host, "cat"], vm.cwd, data) == data


@ours
@on_one
def test_ssh_through_systemd_ssh_proxy_by_cid_as_with_the_kernels_device(vm: Machine) -> None:
    # The proxy connects an AF_VSOCK socket, and passes it on to ssh.
    proxy = shlex.join(fetch.ssh_proxy())
    words = [*_sshd(vm), f"-oProxyCommand={proxy} %h %p", "-oProxyUseFdpass=yes", "-p", "22", f"root@vsock/{CID}"]
    under = [sys.executable, "-m", "vhostvsock", "exec", "--", *words]
    env = {"VHOSTVSOCK_RUNTIME_DIR": str(vm.cwd / "run")}
    assert _run([*under, "hostname; id -un"], vm.cwd, env=env) == b"guest\nroot\n"
    data = random.Random(7).randbytes(4 << 20)
    assert _run([*under, "cat"], vm.cwd, data, env=env) == data


@ours
@on_one
def test_ssh_through_the_connect_command(vm: Machine) -> None:
    connect = f"{shlex.quote(sys.executable)} -m vhostvsock connect --uds v.sock %p"
    command = [*_sshd(vm), f"-oProxyCommand={connect}", "-p", "22", "root@guest", "echo through"]
    assert _run(command, vm.cwd) == b"through\n"


@on_both_kernels
def test_socat_on_both_sides_from_the_guest(vm: Machine) -> None:
    data = random.Random(8).randbytes(300_000)
    (vm.cwd / "gate-in").write_bytes(data)
    # Reads all, and then answers with a sum: needs the guest's half-close.
    with Process([tool("socat"), "UNIX-LISTEN:v.sock_1234", "SYSTEM:sha256sum"], vm.cwd):
        wait_for(lambda: (vm.cwd / "v.sock_1234").exists(), "socat listens")
        vm.guest.run("dd if=/dev/urandom of=/tmp/data bs=1000 count=300 2>/dev/null")
        answer = vm.guest.run("socat -t30 - VSOCK-CONNECT:2:1234 < /tmp/data")
    assert answer.split() == vm.guest.run("sha256sum < /tmp/data").split()


@on_both_kernels
def test_socat_on_both_sides_from_the_host(vm: Machine) -> None:
    data = random.Random(9).randbytes(300_000)
    server = vm.guest.start("exec socat VSOCK-LISTEN:1235,reuseaddr SYSTEM:sha256sum")
    wait_for(lambda: vm.guest.run("cat /proc/net/vsock 2>/dev/null; ps | grep -c '[V]SOCK-LISTEN'"), "socat listens")
    line = b"CONNECT 1235\n"

    def ask() -> bytes:
        done = subprocess.run(
            [tool("socat"), "-t30", "-", "UNIX-CONNECT:v.sock"],
            cwd=vm.cwd,
            input=line + data,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return done.stdout

    answers: list[bytes] = []
    wait_for(lambda: answers.append(ask()) or answers[-1], "socat answers")
    ok, total = answers[-1].split(b"\n")[:2]
    assert ok.startswith(b"OK ")
    assert total.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert server.wait() == 0


def nbd(program: str) -> str:
    """A libnbd program in the guest, for which a quirk of Linux is no failure: where the server has closed before the
    client calls shutdown(SHUT_WR), a vsock socket forgets the orderly end, and recv gives ENOTCONN instead of 0. The
    data were checked by then, or are checked by the test."""
    return f"{{ {program} 2>/tmp/nbd || grep -q 'nbd_shutdown: recv: Transport endpoint' /tmp/nbd; }}"


@on_both_kernels
def test_nbd_over_vsock_from_the_guest(vm: Machine) -> None:
    disk = vm.cwd / "gate-disk"
    size = 64 << 20
    disk.write_bytes(os.urandom(size))
    command = [tool("nbdkit"), "--foreground", "--exit-with-parent", "--unix", "v.sock_10809", "file", str(disk)]
    with Process(command, vm.cwd):
        wait_for(lambda: (vm.cwd / "v.sock_10809").exists(), "nbdkit listens")
        uri = "nbd+vsock://2:10809"
        assert vm.guest.run(nbd(f"nbdinfo --size {uri}")) == str(size)
        total = vm.guest.run(f"set -o pipefail; {nbd(f'nbdcopy {uri} -')} | sha256sum", 120).split()[0]
        assert total == hashlib.sha256(disk.read_bytes()).hexdigest()
        vm.guest.run("dd if=/dev/urandom of=/tmp/disk bs=1M count=32 2>/dev/null")
        vm.guest.run(nbd(f"nbdcopy --flush /tmp/disk {uri}"), 120)
        wrote = vm.guest.run("sha256sum /tmp/disk; rm /tmp/disk").split()[0]
        assert wrote == hashlib.sha256(disk.read_bytes()[: 32 << 20]).hexdigest()
