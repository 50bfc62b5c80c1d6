"""`./vm NAME` of the example in docs/namespaces.md: a guest on NAME/vh.sock that answers on port 1234.

Before: test_example.py puts a script of that name into the example's directory. After: harness/.
Rules:  - it says when the guest answers, and ends, guest and all, with SIGTERM.
        - what QEMU says is passed on where it does not start.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from pathlib import Path

from harness.guest import Guest
from harness.image import initramfs
from harness.qemu import CONFIGS, command_line
from harness.waiting import Process, WaitError, wait_for

from scripts.lib import fetch
from vhostvsock.client import list_vms


def main(name: str) -> int:
    qemu, kernel = fetch.qemu("10.0"), fetch.kernel("new")
    command = command_line(qemu, kernel, initramfs(kernel), CONFIGS / "q35.cfg")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with Process(command, Path(name), name="qemu", env=qemu.env) as process:
        os.chdir(name)
        try:
            wait_for(lambda: not process.alive() or os.path.exists("control.sock"), "QEMU starts")
            if not process.alive():
                raise WaitError("QEMU ended")
            guest = Guest(Path("control.sock"))
            guest.wait_boot()
        except WaitError:
            process.wait()
            # Its last word; those before it depend on who is quicker, QEMU or the daemon.
            print(re.sub(r"^\S+", "qemu-system-x86_64:", process.lines.seen[-1]))
            return 1
        answer = f'read line; echo "$line to you, too, says $(hostname) of {name}"'
        guest.start(f"exec probe exec vsock-listen:1234 {_quoted(answer)}").lines.wait_line("listening")
        print(f"the guest of {name} is up", flush=True)
        signal.sigwait({signal.SIGTERM})
        guest.close()
    with contextlib.suppress(OSError):  # the daemon may be gone as well
        wait_for(lambda: all(vm["name"] != name for vm in list_vms()), "its CID is free")
    print(f"the guest of {name} is gone", flush=True)
    return 0


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
