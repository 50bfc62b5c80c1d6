"""One VM with all that belongs to it: the daemon, QEMU, and its guest.

Before: a test (tests/vm/conftest.py) or the demo wants a guest of some kernel on some QEMU. After: daemon.py, qemu.py,
guest.py, probe.py.
Rules:  - Whatever a test breaks on purpose it may break: `ready` gives the next test a machine that works.
        - Everything is in one short-named directory, which goes with the machine.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import probe
from harness.daemon import start_daemon
from harness.guest import BOOT_LIMIT, Guest
from harness.image import initramfs
from harness.qemu import CONFIGS, Qemu, command_line
from harness.waiting import Process, WaitError
from scripts.lib import fetch


@dataclass(frozen=True)
class Kind:
    """Which guest on which QEMU."""

    kernel: str
    qemu: str
    config: str = "q35.cfg"
    tools: bool = False

    def __str__(self) -> str:
        tail = "" if self.config == "q35.cfg" else "-" + self.config.removesuffix(".cfg")
        return f"linux{self.kernel}-qemu{self.qemu}{tail}{'-tools' if self.tools else ''}"


class Machine:
    """Made, it has a daemon; `boot` starts QEMU and waits for the guest."""

    def __init__(
        self,
        kind: Kind,
        directory: Path | None = None,
        daemon: Process | None = None,
        within: Sequence[str] = (),
    ) -> None:
        """`within`: the words that start QEMU in some other place, such as a network namespace."""
        self.kind = kind
        self._within = within
        self._owns_daemon = daemon is None
        self._owns_directory = directory is None
        self.cwd = directory or Path(tempfile.mkdtemp(prefix="vv-", dir="/tmp"))
        self._qemu: Qemu | None = None
        self._guest: Guest | None = None
        self._probes: list[probe.Probe] = []
        try:
            self.daemon = daemon or start_daemon(self.cwd)
        except BaseException:
            self.close()
            raise

    @property
    def qemu(self) -> Qemu:
        assert self._qemu is not None, "no QEMU runs"
        return self._qemu

    @property
    def guest(self) -> Guest:
        assert self._guest is not None, "no guest runs"
        return self._guest

    def boot(
        self, *extra: str, config: Path | None = None, image: Path | None = None, limit: float = BOOT_LIMIT
    ) -> Machine:
        """Start QEMU on the sockets and wait until the guest is up."""
        qemu = fetch.qemu(self.kind.qemu)
        kernel = fetch.kernel(self.kind.kernel)
        image = image or initramfs(kernel, tools=self.kind.tools)
        command = command_line(qemu, kernel, image, config or CONFIGS / self.kind.config, extra=extra)
        self._qemu = Qemu([*self._within, *command], qemu.env, self.cwd)
        self._guest = Guest(self.cwd / "control.sock")
        try:
            self._guest.wait_boot(limit=limit)
        except WaitError as error:
            said = self._qemu.process.lines.seen[-10:]
            raise WaitError(f"{error}; console: {self._qemu.console()[-2000:]}; QEMU: {said}") from None
        return self

    def kill_qemu(self) -> None:
        """SIGKILL, as a crash of QEMU would look."""
        self.qemu.process.popen.kill()
        self._end_qemu()

    def _end_qemu(self) -> None:
        if self._guest is not None:
            self._guest.close()
        if self._qemu is not None:
            self._qemu.close()
        self._guest = self._qemu = None

    def reset(self) -> None:
        """Reset the VM, and wait until the guest is up again."""
        before = self.guest.boots
        self.qemu.qmp.command("system_reset")
        self.guest.wait_boot(before)

    # Probes are ended with the test that started them.

    def host(self, command: str, *words: str) -> probe.Probe:
        self._probes.append(probe.on_host(self.cwd, command, *words))
        return self._probes[-1]

    def inside(self, command: str, *words: str) -> probe.Probe:
        self._probes.append(probe.in_guest(self.guest, command, *words))
        return self._probes[-1]

    def end_probes(self) -> None:
        probes, self._probes = self._probes, []
        for each in probes:
            with contextlib.suppress(OSError, WaitError):
                each.close()

    def remove_files(self) -> None:
        """Listeners and gates of a test, so that the next one finds none of them."""
        for pattern in ("v.sock_*", "gate*"):
            for path in self.cwd.glob(pattern):
                path.unlink()

    def works(self) -> bool:
        """Whether a byte can go to the guest and back, soon."""
        if self._qemu is None or not self._qemu.process.alive() or not self.daemon.alive():
            return False
        try:
            server = self.inside("echo", "vsock-listen:65000").listening(10)
            return self.host("ping", "hybrid:v.sock:65000", "1").running.wait(10) == 0 and server.running.alive()
        except (WaitError, OSError):
            return False
        finally:
            self.end_probes()

    def ready(self) -> Machine:
        """A machine that works: this one as it is, or with a new daemon and a new boot where a test left it broken."""
        self.end_probes()
        self.remove_files()
        if self.works():
            return self
        self._end_qemu()
        if self._owns_daemon:
            self.daemon.close()
            self.daemon = start_daemon(self.cwd)
        return self.boot()

    def describe(self) -> str:
        """For the report of a test that failed: what the guest's kernel, QEMU and the daemon said last."""
        parts = [f"daemon: {line}" for line in self.daemon.lines.seen[-15:]]
        if self._qemu is not None:
            parts += [f"qemu: {line}" for line in self._qemu.process.lines.seen[-10:]]
            parts += [f"console: {line}" for line in self._qemu.console().splitlines()[-10:]]
        return "\n".join(parts)

    def close(self) -> None:
        self.end_probes()
        self._end_qemu()
        if self._owns_daemon and hasattr(self, "daemon"):
            self.daemon.close()
        if self._owns_directory:
            shutil.rmtree(self.cwd, ignore_errors=True)


__all__ = ["BOOT_LIMIT", "Kind", "Machine"]
