"""One QEMU with one guest.

Before: machine.py says which QEMU, kernel and configuration. After: guest.py talks to the agent over control.sock, and
qmp.py to the monitor.
Rules:  - qemu-configs/ is used as it stands; only what a configuration file cannot say is on the command line.
        - Emulation (TCG), never KVM: it works everywhere, and equally.
        - The working directory has the sockets, so their names are those of the configuration file.
"""

from __future__ import annotations

import functools
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from harness.build import host_probe
from harness.qmp import Qmp
from harness.waiting import LIMIT, Process, WaitError
from scripts.lib import fetch

CONFIGS = Path(__file__).resolve().parents[2] / "qemu-configs"
# The console is on the first serial port. A panic resets the guest, which the agent's next READY shows.
_APPEND = (
    "console=ttyS0 quiet panic=1 mitigations=off random.trust_cpu=on no_timer_check tsc=reliable "
    "memhp_default_state=online"
)


@functools.cache
def _clock() -> str:
    """For a microvm, which has no timer of known speed that Linux could measure its TSC with: where the measurement
    fails, as it does on a busy machine, the guest has no clock at all and hangs. TSC of an emulated processor is that
    of this machine."""
    done = subprocess.run([host_probe(), "tsc", "-"], capture_output=True, text=True, check=True)
    return "tsc_early_khz=" + done.stdout.strip().partition("khz=")[2]


def command_line(
    qemu: fetch.Qemu, kernel: fetch.Kernel, image: Path, config: Path, *, extra: Sequence[str] = ()
) -> list[str]:
    """The words that start a guest of a configuration file."""
    microvm = "microvm" in config.name
    second_port = ["-device", "isa-serial,chardev=control,index=1"] if microvm else ["-serial", "chardev:control"]
    append = f"{_APPEND} {_clock()}" if microvm else _APPEND
    return [
        *qemu.command,
        *("-readconfig", str(config)),
        *("-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", str(kernel.image), "-initrd", str(image), "-append", append),
        *("-chardev", "file,id=console,path=console.log", "-serial", "chardev:console"),
        *("-chardev", "socket,id=control,path=control.sock,server=on,wait=off"),
        *second_port,
        *("-qmp", "unix:qmp.sock,server=on,wait=off"),
        *extra,
    ]


class Qemu:
    """A running QEMU with its monitor connected."""

    def __init__(self, command: Sequence[str], env: dict[str, str], cwd: Path) -> None:
        self.cwd = cwd
        for name in ("qmp.sock", "control.sock"):
            (cwd / name).unlink(missing_ok=True)
        self.process = Process(command, cwd, name="qemu", env=env)
        try:
            self._wait_for_sockets()
            self.qmp = Qmp(cwd / "qmp.sock", self.process.alive)
        except BaseException as error:
            self.process.close()
            if isinstance(error, Exception):
                raise WaitError(f"QEMU did not start: {self.process.lines.seen[-10:]}") from error
            raise

    def _wait_for_sockets(self) -> None:
        deadline = time.monotonic() + LIMIT
        while not all((self.cwd / name).exists() for name in ("qmp.sock", "control.sock")):
            if not self.process.alive() or time.monotonic() > deadline:
                raise WaitError("no monitor")
            time.sleep(0.01)

    def console(self) -> str:
        """What the guest's kernel said."""
        try:
            return (self.cwd / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def kill(self) -> None:
        """End QEMU without a chance to take leave, as a crash would."""
        self.process.popen.kill()
        self.close()

    def close(self) -> None:
        self.qmp.close()
        self.process.close()
