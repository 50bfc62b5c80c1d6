"""Commands in a guest, over its second serial port.

Before: qemu.py has the port as control.sock. After: guest/agent.c runs the commands (its head describes the lines).
Rules:  - The guest is up when the agent says READY; each boot has a number of its own, so a reboot is seen.
        - A guest that goes down ends all of its commands: who waits for one gets an error, not a hang.
"""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from pathlib import Path
from urllib.parse import unquote

from harness.waiting import LIMIT, Lines, WaitError, wait_for

# A boot under emulation takes a few seconds, and several times that on a machine with other work.
BOOT_LIMIT = 120.0


def _quoted(text: str) -> str:
    return "".join(
        f"%{byte:02X}" if byte <= 0x20 or byte >= 0x7F or byte == 0x25 else chr(byte) for byte in text.encode()
    )


class Job:
    """A shell command that runs in the guest."""

    def __init__(self, guest: Guest, number: int, command: str) -> None:
        self._guest = guest
        self._number = number
        self._code: int | None = None
        self._rest = ""
        self.lines = Lines(f"guest: {command}")

    # Called by the reader thread.
    def output(self, text: str) -> None:
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self.lines.add(line)

    def end(self, code: int | None) -> None:
        self._code = code
        if self._rest:
            self.lines.add(self._rest)
        self.lines.end()

    def alive(self) -> bool:
        return not self.lines.ended

    def wait(self, limit: float = LIMIT) -> int:
        """The exit code."""
        self.lines.wait_end(limit)
        if self._code is None:
            raise WaitError(f"{self.lines.whose}: the guest went down; it said: {self.lines.seen[-10:]}")
        return self._code

    def kill(self, number: int = signal.SIGKILL) -> None:
        self._guest.send(f"KILL {self._number} {int(number)}")

    def close(self) -> None:
        if self.alive():
            self.kill()
            self.lines.wait_end()


class Guest:
    """The agent of one guest."""

    def __init__(self, control: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(control))
        self._jobs: dict[int, Job] = {}
        self._numbers = 0
        self._lock = threading.Lock()
        self._boots = Lines("the guest's agent")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        rest = b""
        try:
            while data := self._socket.recv(65536):
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    self._handle(line.decode("ascii", "replace").split(" "))
        except OSError:
            pass  # closed by us, or QEMU is gone
        self._lose_jobs()
        self._boots.end()

    def _handle(self, words: list[str]) -> None:
        if words[0] == "READY" and len(words) == 3:
            line = " ".join(words)
            # The same number again is the answer to HELLO.
            if self._boots.count() == 0 or self._boots.seen[-1] != line:
                self._lose_jobs()
                self._boots.add(line)
        elif words[0] in ("OUT", "END") and len(words) == 3 and words[1].isdigit():
            with self._lock:
                job = self._jobs.get(int(words[1]))
            if job is None:
                return
            if words[0] == "OUT":
                job.output(unquote(words[2], errors="replace"))
            else:
                with self._lock:
                    del self._jobs[int(words[1])]
                job.end(int(words[2]))

    def _lose_jobs(self) -> None:
        with self._lock:
            lost, self._jobs = list(self._jobs.values()), {}
        for job in lost:
            job.end(None)

    def send(self, line: str) -> None:
        self._socket.sendall(line.encode() + b"\n")

    @property
    def boots(self) -> int:
        """How many times the guest came up so far."""
        return self._boots.count()

    def wait_boot(self, before: int = 0, limit: float = BOOT_LIMIT) -> str:
        """Wait until it has come up more than `before` times; the kernel's release."""
        deadline = time.monotonic() + limit
        while self._boots.count() <= before:
            if self._boots.ended:
                raise WaitError("QEMU ended before the guest was up")
            if time.monotonic() > deadline:
                raise WaitError(f"the guest did not come up within {limit:.0f} s")
            time.sleep(0.02)
        return self._boots.seen[-1].split(" ")[1]

    def start(self, command: str) -> Job:
        """Run a shell command, and do not wait for it."""
        with self._lock:
            self._numbers += 1
            job = Job(self, self._numbers, command)
            self._jobs[self._numbers] = job
            number = self._numbers
        self.send(f"RUN {number} {_quoted(command)}")
        return job

    def run(self, command: str, limit: float = LIMIT) -> str:
        """Run a shell command that must succeed; its output."""
        job = self.start(command)
        code = job.wait(limit)
        text = "\n".join(job.lines.seen)
        assert code == 0, f"in the guest, {command!r} ended with {code}: {text}"
        return text

    def write(self, path: str, text: str) -> None:
        """Make a file in the guest, in pieces that fit the serial port's buffer."""
        self.run(f": > {path}")
        for piece in re.findall(r"(?s).{1,800}", text):
            literal = "".join(f"\\{byte:03o}" for byte in piece.encode())
            self.run(f"printf '{literal}' >> {path}")

    def settle(self) -> None:
        """Wait until no command runs any more."""
        wait_for(lambda: not self._jobs, "the guest's commands end")

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # QEMU is gone already
        self._reader.join(LIMIT)
        self._socket.close()
