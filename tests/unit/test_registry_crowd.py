"""Twenty processes at once, some of which are killed in the middle of what they do."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vhostvsock.registry import runtime
from vhostvsock.registry.kernel import KernelModes
from vhostvsock.registry.rules import GLOBAL_DOMAIN, NetnsId
from vhostvsock.registry.store import Registry

PROCESSES = 20
ROUNDS = 50

# Claims 50 times, keeps every fifth claim, gives the others back; tells each step, so that the test knows when to kill.
WORKER = f"""
import sys
from vhostvsock.registry.errors import Refused
from vhostvsock.registry.kernel import KernelModes
from vhostvsock.registry.rules import NetnsId
from vhostvsock.registry.store import Registry

registry = Registry(sys.argv[1], kernel=KernelModes("/nonexistent"), own_cid=lambda: None)
registry.register_daemon("bridge")
for number in range({ROUNDS}):
    claim = registry.claim(NetnsId(1 + number % 3), None, f"vm{{number}}")
    found = registry.find_vm(claim.netns, claim.cid.value)
    assert found == claim, (found, claim)
    try:
        registry.claim(claim.netns, claim.cid.value, "twice")
        raise AssertionError("the same CID twice")
    except Refused as error:
        assert error.name == "EADDRINUSE", error
    if number % 5:
        registry.release(claim)
    print("kept" if number % 5 == 0 else "gone", claim.cid, flush=True)
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.timeout(120)
def test_a_thousand_claims_from_twenty_processes_of_which_some_are_killed_leave_it_right(tmp_path: Path) -> None:
    directory = str(tmp_path / "run")
    chance = random.Random(20)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    doomed = {worker: chance.randrange(1, ROUNDS) for worker in workers[::3]}

    def follow(worker: subprocess.Popen[str]) -> list[int]:
        """Read what a worker tells, and kill it when its time has come; returns the CIDs that it keeps."""
        kept: list[int] = []
        assert worker.stdout is not None
        assert worker.stderr is not None
        for number, line in enumerate(worker.stdout):
            if doomed.get(worker) == number:
                worker.send_signal(signal.SIGKILL)  # at whatever it is doing now
                worker.wait()
                return []
            if line.startswith("kept"):
                kept.append(int(line.split()[1]))
            if line == "done\n":
                return kept
        raise AssertionError(worker.stderr.read())

    try:
        with ThreadPoolExecutor(PROCESSES) as pool:
            kept = [cid for cids in pool.map(follow, workers) for cid in cids]
        assert all(worker.returncode == -signal.SIGKILL for worker in doomed)
        with Registry(directory, kernel=KernelModes("/nonexistent"), own_cid=lambda: None) as registry:
            vms = registry.vms()
            assert len(registry.daemons()) == PROCESSES - len(doomed)
            assert sorted(vm.cid.value for vm in vms) == sorted(kept)
            assert len({vm.cid for vm in vms}) == len(vms)
            assert {vm.domain for vm in vms} == {GLOBAL_DOMAIN}
            for worker in workers:
                worker.kill()
                worker.wait()
            assert registry.vms() == []
            registry.register_daemon("last")
            assert registry.claim(NetnsId(1), None, "first again").cid.value == 3
            assert len(runtime.lock_names(directory)) == 1
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
