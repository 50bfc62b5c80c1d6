"""A host with a kernel that keeps the modes itself (7.2 or newer): a guest, in which this project is installed.

It has a vsock device of its own, served by the vhostvsock outside, and serves VMs itself: small guests, and a real one
in a QEMU within. The checks are in inside/checks.py and run in there; each test has the name of one.

Before: harness/system.py makes the guest. After: nothing.
Rule:   the QEMU within runs for one test alone: under two emulations, one in the other, a boot takes a minute and more,
        and whatever runs beside it as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import lacking
from harness.daemon import BACKEND
from harness.machine import Kind, Machine
from harness.qemu import CONFIGS
from harness.system import system_image
from netns.serving import driver_program

from scripts.lib import fetch

KIND = Kind("new", "10.0")
pytestmark = [
    pytest.mark.timeout(500),
    pytest.mark.skipif(BACKEND == "peer", reason="only vhostvsock has namespaces"),
]
MEMORY = "2G"
INNER_DAEMON = "cd /w && exec vhostvsock run --guest-cid 52 --name inner --socket inner.vh --uds-path inner.v -v"
INNER_QEMU = (
    "cd /w && exec qemu-system-x86_64 -L /usr/share/qemu -machine q35,memory-backend=mem -accel tcg -m 160M "
    "-object memory-backend-memfd,id=mem,size=160M,share=on -nodefaults -no-user-config -display none "
    "-kernel /opt/guest/vmlinuz -initrd /opt/guest/initrd "
    "-append 'console=ttyS0 quiet panic=1 mitigations=off random.trust_cpu=on no_timer_check tsc=reliable' "
    "-chardev file,id=console,path=console.log -serial chardev:console "
    "-chardev socket,id=control,path=control.sock,server=on,wait=off -serial chardev:control "
    "-chardev socket,id=vsock,path=inner.vh -device vhost-user-vsock-pci,chardev=vsock"
)


@pytest.fixture(scope="module")
def middle(prerequisites: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The guest that is a host."""
    if fetch.installed_qemu() is None:
        lacking("an installed qemu-system-x86_64, for the VM within")
    directory = tmp_path_factory.mktemp("system")
    image = system_image(
        fetch.kernel(KIND.kernel), directory / "image", {"vsock-guest": Path(driver_program("vsock-guest"))}
    )
    config = directory / "large.cfg"
    text = (CONFIGS / KIND.config).read_text()
    changed = text.replace('size = "512M"', f'size = "{MEMORY}"').replace('maxmem = "2G"', 'maxmem = "4G"')
    assert changed.count(f'size = "{MEMORY}"') == 2
    config.write_text(changed)
    machine = Machine(KIND)
    try:
        machine.boot("-smp", "2", config=config, image=image)
        machine.guest.run("mount -t tmpfs tmpfs /run && mkdir /w")
        yield machine
    finally:
        machine.close()


def check(middle: Machine, name: str, limit: float = 120.0) -> None:
    job = middle.guest.start(f"exec python3 -m inside.checks {name}")
    assert job.wait(limit) == 0, "\n".join(job.lines.seen)


@pytest.mark.parametrize(
    "name",
    [
        "modes_come_from_the_kernel",
        "child_modes_have_the_kernels_errnos",
        "what_others_make_is_asked_of_the_kernel",
        "a_daemon_without_privileges_knows_what_root_noted",
        "the_same_cid_and_who_reaches_whom",
        "the_own_cid_is_taken",
        "the_host_above_is_reached_from_global_namespaces",
    ],
)
def test_on_a_host_whose_kernel_has_the_modes(middle: Machine, name: str) -> None:
    middle.host("echo", "unix-listen:v.sock_5000").listening()
    try:
        check(middle, name)
    finally:
        middle.end_probes()


def test_a_vm_within_and_the_host_above(middle: Machine) -> None:
    daemon = middle.guest.start(INNER_DAEMON)
    try:
        daemon.lines.wait_line("vhostvsock: ready:")
        qemu = middle.guest.start(INNER_QEMU)
        daemon.lines.wait_line("front-end attached")
        middle.host("echo", "unix-listen:v.sock_5000").listening()
        check(middle, "a_vm_within_and_the_host_above", 400)
        qemu.close()
        daemon.lines.wait_line("front-end gone")
    finally:
        middle.end_probes()
        daemon.close()
