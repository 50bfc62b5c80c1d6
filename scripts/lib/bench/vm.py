"""Through a real guest: bulk both ways and a round trip, under QEMU.

Before: __main__.py with --vm. After: tests/harness boots guests, and runs its probe on both sides.
Rules:  - The guest's processor is emulated (TCG): what is measured is mostly the guest. The table says so.
        - The peer is measured with the kernel with which it works: writes of 64 KiB by Linux 6.17 or newer hang it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from harness.daemon import start_daemon, start_peer
from harness.machine import Kind, Machine
from harness.waiting import Process, WaitError

from scripts.lib import fetch
from scripts.lib.bench.daemons import BenchError
from scripts.lib.bench.measure import say
from scripts.lib.bench.results import Cell
from scripts.lib.bench.tables import table

_BULK = 64 << 20
_TRIPS = 2000
_PORT = 5000
_LIMIT = 120.0
# An application that hangs keeps nobody longer than this.
_PATIENCE = 60.0

NOTE = (
    "The guest's processor is emulated here (TCG), and makes and checks every byte: the guest is the limit, and the "
    "figures tell that both daemons keep up with it, not how fast they are."
)


def _guest_to_host(machine: Machine) -> float:
    host = machine.host("talk", f"unix-listen:v.sock_{_PORT}", f"recv=1:{_BULK}", "eof").listening()
    guest = machine.inside("talk", f"vsock:2:{_PORT}", f"send=1:{_BULK}", "shutdown")
    took = int(host.right(_LIMIT)["ms"])
    guest.right()
    return _BULK / took / 1000


def _host_to_guest(machine: Machine) -> float:
    guest = machine.inside("talk", f"vsock-listen:{_PORT}", f"recv=2:{_BULK}", "eof").listening()
    host = machine.host("talk", f"hybrid:v.sock:{_PORT}", f"send=2:{_BULK}", "shutdown")
    took = int(guest.right(_LIMIT)["ms"])
    host.right()
    return _BULK / took / 1000


def _round_trip(machine: Machine) -> float:
    machine.inside("echo", f"vsock-listen:{_PORT}").listening()
    done = machine.host("ping", f"hybrid:v.sock:{_PORT}", str(_TRIPS)).right(_PATIENCE)
    return float(done["mean_us"])


ROWS: dict[str, Callable[[Machine], float]] = {
    "guest to host, MB/s": _guest_to_host,
    "host to guest, MB/s": _host_to_guest,
    "round trip of 1 byte, mean, us": _round_trip,
}
# Kernel and daemon, as columns of the table.
_COLUMNS: tuple[tuple[str, str, Callable[[Path], Process]], ...] = (
    ("vhostvsock", "6.1", start_daemon),
    ("vhost-device-vsock", "6.1", start_peer),
    ("vhostvsock", "new", start_daemon),
)


def _boot(stack: ExitStack, kernel: str, start: Callable[[Path], Process]) -> Machine:
    cwd = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vhv-bench-", dir="/tmp")))
    machine = Machine(Kind(kernel, "installed"), cwd, stack.enter_context(start(cwd)))
    stack.callback(machine.close)
    return machine.boot()


def _one_value(machine: Machine, ask: Callable[[Machine], float]) -> dict[str, float | str]:
    try:
        return {"value": ask(machine)}
    except (WaitError, AssertionError) as error:
        return {"failed": str(error).splitlines()[0]}
    finally:
        machine.end_probes()
        machine.remove_files()


def measure(runs: int, with_peer: bool) -> str:
    """A table of all rows and guests. The guests are up all the time, and take turns."""
    columns = [column for column in _COLUMNS if with_peer or column[2] is not start_peer]
    head = [f"{title}, Linux {fetch.kernel(kernel).version}" for title, kernel, _ in columns]
    cells: dict[str, list[Cell]] = {row: [Cell() for _ in columns] for row in ROWS}
    with ExitStack() as stack:
        machines = []
        for title, (_, kernel, start) in zip(head, columns, strict=True):
            say(f"a guest boots: {title}")
            try:
                machines.append(_boot(stack, kernel, start))
            except WaitError as error:
                raise BenchError(f"{title}: {error}") from None
        for number in range(1, runs + 1):
            for row, ask in ROWS.items():
                for machine, cell in zip(machines, cells[row], strict=True):
                    if cell.stopped() is None:
                        cell.results.append(_one_value(machine, ask))
            say(f"guests: run {number} of {runs} done")
    lines = [[row, *(cell.text() for cell in cells[row])] for row in ROWS]
    qemu = fetch.qemu("installed").version
    return f"QEMU {qemu}, TCG; medians of {runs} runs (lowest–highest). {NOTE}\n\n{table(['', *head], lines)}"
