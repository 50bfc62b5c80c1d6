"""The conversation of scripts/demo: daemon, guest, a connection in each direction, and the end.

Before: scripts/demo has set everything up. After: tests/harness boots the guest, exactly as the VM tests do.
Rules:  - Each step says what happens and the command with which it is done by hand.
        - What was sent and received is shown as it was sent and received: nothing here is a canned answer.
        - A failure is one line that says what is wrong, and one with a hint.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from harness.build import host_probe
from harness.daemon import CID, start_daemon
from harness.image import initramfs
from harness.machine import Kind, Machine
from harness.waiting import Process, WaitError

from scripts.lib import fetch
from scripts.lib.fetch_apt import FetchError, cache_dir

SHELL_PORT = 1234
HOST_PORT = 5000
_STEPS = 6
# What the guest runs for each connection; its stdin and stdout are the connection.
_GREET = """\
read line
echo "$line" > /tmp/heard
echo "I am Linux $(uname -r), $(probe cid - | cut -d ' ' -f 2), up for $(cut -d ' ' -f 1 /proc/uptime) seconds."
"""
_BULK = 64 << 20
_COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if _COLOUR else text


def tell(text: str = "") -> None:
    print(f"      {text}" if text else "", flush=True)


def command(text: str) -> None:
    tell(_paint("36", f"$ {text}"))


def said(who: str, what: str, text: str) -> None:
    tell(f"{who:<5} {what:<8} {_paint('1', text)}")


class Steps:
    """Numbered headings, and what went wrong in which of them."""

    def __init__(self) -> None:
        self._number = 0
        self.name = "the start"

    def begin(self, name: str) -> None:
        self._number += 1
        self.name = name
        print(_paint("1;32", f"\n[{self._number}/{_STEPS}] {name}"), flush=True)


def _connect(cwd: Path, port: int, text: str) -> str:
    """What `vhostvsock connect` gets back for a line of text."""
    words = [sys.executable, "-m", "vhostvsock", "connect", "--uds", "v.sock", str(port)]
    done = subprocess.run(words, cwd=cwd, input=text, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise WaitError(done.stderr.strip() or f"vhostvsock connect ended with {done.returncode}")
    return done.stdout.strip()


def _host_to_guest(machine: Machine) -> None:
    machine.guest.write("/tmp/greet", _GREET)
    server = machine.inside("exec", f"vsock-listen:{SHELL_PORT}", "'. /tmp/greet'").listening()
    command(f"echo 'Hello, guest! Who are you?' | vhostvsock connect --uds v.sock {SHELL_PORT}")
    said("host", "sent", "Hello, guest! Who are you?")
    back = _connect(machine.cwd, SHELL_PORT, "Hello, guest! Who are you?\n")
    said("guest", "received", machine.guest.run("cat /tmp/heard"))
    said("host", "received", back)
    server.close()


def _guest_to_host(machine: Machine) -> None:
    path = machine.cwd / f"v.sock_{HOST_PORT}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.settimeout(60)
        listener.bind(str(path))
        listener.listen()
        tell(f"An application of the host listens on the UNIX socket v.sock_{HOST_PORT}.")
        heard: list[str] = []

        def answer() -> None:
            with listener.accept()[0] as connection, connection.makefile("rw") as stream:
                heard.append(stream.readline().strip())
                stream.write(f"Welcome! {len(heard[0])} letters of yours arrived.\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        inside = f"echo 'Hello, host! Anybody home?' | probe cat vsock:2:{HOST_PORT}"
        command(f"{inside}     (in the guest)")
        back = machine.guest.run(inside)
        thread.join(60)
        said("guest", "sent", "Hello, host! Anybody home?")
        said("host", "received", heard[0] if heard else "(nothing)")
        said("guest", "received", back)
    path.unlink(missing_ok=True)


def _bulk(machine: Machine) -> None:
    words = ("shutdown", "eof")
    host = machine.host(
        "talk", f"unix-listen:v.sock_{HOST_PORT}", f"recv=1:{_BULK}", f"send=2:{_BULK}", *words
    ).listening()
    guest = machine.inside("talk", f"vsock:2:{HOST_PORT}", f"send=1:{_BULK}", f"recv=2:{_BULK}", *words)
    seconds = int(host.right(120)["ms"]) / 1000
    guest.right()
    machine.remove_files()
    mib = _BULK >> 20
    tell(f"{mib} MiB each way on one connection, every byte checked: {seconds:.2f} s, {2 * mib / seconds:.0f} MiB/s")


def _keep(machine: Machine) -> None:
    machine.inside("exec", f"vsock-listen:{SHELL_PORT}", "'exec sh -i 2>&1'").listening()
    connect = Path(sys.executable).parent / "vhostvsock"
    uds = machine.cwd / "v.sock"
    print(_paint("1;33", "\nThe guest keeps running until you press Ctrl-C. In another terminal:"), flush=True)
    tell()
    tell("a shell in the guest:")
    command(f"{connect} connect --uds {uds} {SHELL_PORT}")
    tell()
    tell(f"a listener on the host, and in the guest's shell a connection to it (port {HOST_PORT}):")
    command(f"socat - UNIX-LISTEN:{uds}_{HOST_PORT}")
    command(f"echo hello | probe cat vsock:2:{HOST_PORT}     (in the guest)")
    tell()
    tell(f"the guest's console: {machine.cwd}/console.log")
    while machine.daemon.alive() and machine.qemu.process.alive():
        time.sleep(0.2)
    raise WaitError("the guest or the daemon ended by itself: " + machine.describe())


def _afterword() -> None:
    print(_paint("1;32", "\nAll of it worked, and all of it is gone again. To go on:"))
    tell("scripts/demo --keep          the same, and then a guest of your own to play with")
    tell("vhostvsock run --help        serve VMs of yours (the command is in .venv/bin)")
    tell("qemu-configs/                what QEMU needs to be told, with comments")
    tell("scripts/test                 every test, those with real guests among them")


@contextlib.contextmanager
def _working_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vhostvsock-demo-", dir="/tmp") as name:
        yield Path(name)


def converse(arguments: argparse.Namespace, steps: Steps) -> None:
    """All steps, one after the other."""
    print(_paint("1", "A Linux guest and this host talk over vsock, through vhostvsock."), flush=True)
    with contextlib.ExitStack() as stack:
        steps.begin("A guest: kernel, QEMU, and a small file system")
        start = time.monotonic()
        kernel = fetch.kernel(arguments.kernel)
        qemu = fetch.qemu("installed")
        initramfs(kernel)
        host_probe()
        tell(f"Linux {kernel.version} on QEMU {qemu.version} ({time.monotonic() - start:.1f} s; kept in {cache_dir()})")

        cwd = stack.enter_context(_working_directory())
        steps.begin(f"The daemon, in {cwd}")
        command(f"vhostvsock run --guest-cid {CID} --socket vh.sock --uds-path v.sock")
        daemon: Process = stack.enter_context(start_daemon(cwd))
        tell(daemon.lines.wait_line("vhostvsock: ready:"))

        steps.begin("The guest boots (emulated: no KVM is needed)")
        words = ["qemu-system-x86_64", "-readconfig", "qemu-configs/q35.cfg", "-accel", "tcg"]
        command(shlex.join(words) + " -kernel vmlinuz -initrd guest.cpio ...")
        start = time.monotonic()
        machine = Machine(Kind(arguments.kernel, "installed"), cwd, daemon)
        stack.callback(machine.close)
        machine.boot()
        cid = machine.inside("cid", "-").right()["cid"]
        tell(f"up after {time.monotonic() - start:.1f} s; asked for its CID, it says {cid}")

        steps.begin(f"From the host into the guest, where port {SHELL_PORT} listens")
        _host_to_guest(machine)

        steps.begin(f"From the guest to the host: CID 2, port {HOST_PORT}")
        _guest_to_host(machine)

        steps.begin("And fast")
        _bulk(machine)
        if arguments.keep:
            _keep(machine)

        steps.name = "the end"
        machine.close()
        code = daemon.stop(signal.SIGTERM)
        left = [path.name for path in cwd.iterdir() if path.name.startswith(("vh.sock", "v.sock"))]
        if code != 0 or left:
            raise WaitError(f"the daemon ended with {code} and left {left}")
    _afterword()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo")
    parser.add_argument("--keep", action="store_true", help="leave the guest running until Ctrl-C")
    parser.add_argument("--kernel", choices=("6.1", "new"), default="6.1")
    arguments = parser.parse_args()
    steps = Steps()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        converse(arguments, steps)
    except KeyboardInterrupt:
        print("\nStopped; guest and daemon are gone.", flush=True)
        return 0 if arguments.keep and steps.name == "And fast" else 130
    except (WaitError, AssertionError, FetchError, OSError, subprocess.SubprocessError) as error:
        hint = getattr(error, "hint", "run it again; if it fails again, scripts/test -m 'not vm' tells what works")
        print(f"demo: error: {steps.name}: {error}", file=sys.stderr)
        print(f"demo: hint: {hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
