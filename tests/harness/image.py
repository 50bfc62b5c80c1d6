"""The guest: an initramfs with busybox, the vsock modules of its kernel, the agent and the probe.

Before: fetch.py has the kernel, build.py the programs. After: qemu.py boots it; guest.py talks to the agent.
Rules:  - An image is kept in the cache under a sum over all that is in it.
        - It is not compressed: to copy it costs the emulated processor less than to decompress it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from harness.build import guest_agent, guest_probe
from harness.cpio import Archive
from harness.modules import Modules
from scripts.lib.fetch import Kernel, guest_tools, library_path, loader
from scripts.lib.fetch_apt import FetchError, cache_dir

# Of use to single tests, which load them.
_LATER = ("vsock_loopback",)
# The transport last: with it, the device starts.
_MODULES = ("virtio_pci", "virtio_mmio", "vsock", "vsock_diag", "vmw_vsock_virtio_transport")
_TOOLS = ("usr/sbin/sshd", "usr/bin/ssh-keygen", "usr/bin/socat", "usr/bin/nbdcopy", "usr/bin/nbdinfo")
CONTROL_PORT = "/dev/ttyS1"

_INIT = f"""\
#!/bin/busybox sh
# The guest's start: file systems, modules, and then the agent for good.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /root /usr/bin /usr/sbin /sbin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev 2>/dev/null
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mkdir -p /dev/pts /dev/shm && mount -t devpts devpts /dev/pts
for module in /modules/*.ko; do insmod "$module" || echo "init: $module was not loaded"; done
ip link set lo up
hostname guest
exec /bin/agent {CONTROL_PORT}
"""

# sshd insists on an account to drop its privileges to, and on a directory that nobody writes to.
_ETC = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\n",
    "etc/shells": "/bin/sh\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/ssh/sshd_config": "UsePAM no\nPermitRootLogin yes\nStrictModes no\nUseDNS no\nPasswordAuthentication no\n",
}


def _busybox() -> bytes:
    for place in ("/usr/bin/busybox", "/bin/busybox"):
        if os.path.exists(place):
            data = Path(place).read_bytes()
            # A dynamic one has the name of its loader in it.
            if b"ld-linux-x86-64.so.2" not in data[:65536]:
                return data
    raise FetchError("there is no static busybox", "apt install busybox-static")


def _add_tools(archive: Archive) -> None:
    """Programs from the guest-tools tree, with their libraries where their own loader finds them."""
    root = guest_tools()
    start = loader(root)
    libraries: set[Path] = set()
    for tool in _TOOLS:
        done = subprocess.run(
            [str(start), "--library-path", library_path(root), "--list", str(root / tool)],
            capture_output=True,
            text=True,
            check=True,
        )
        libraries |= {Path(found) for found in re.findall(r"=> (/\S+)", done.stdout)}
        archive.file(tool, (root / tool).read_bytes(), 0o755)
    for library in sorted(libraries):
        archive.file(f"lib/x86_64-linux-gnu/{library.name}", library.read_bytes(), 0o755)
    archive.file("lib64/ld-linux-x86-64.so.2", start.read_bytes(), 0o755)


def _archive(kernel: Kernel, tools: bool) -> bytes:
    archive = Archive()
    archive.file("init", _INIT.encode(), 0o755)
    archive.directory("dev")
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3)
    archive.file("bin/busybox", _busybox(), 0o755)
    archive.file("bin/agent", guest_agent().read_bytes(), 0o755)
    archive.file("bin/probe", guest_probe().read_bytes(), 0o755)
    for number, (name, content) in enumerate(Modules(kernel.modules).in_order(*_MODULES)):
        archive.file(f"modules/{number:02}-{name}.ko", content)
    later = [(name, content) for name, content in Modules(kernel.modules).in_order(*_LATER) if name in _LATER]
    for name, content in later:
        archive.file(f"modules/later/{name}.ko", content)
    for name, text in _ETC.items():
        archive.file(name, text.encode(), 0o600 if name.endswith("shadow") else 0o644)
    archive.directory("run/sshd", 0o755)
    archive.directory("root", 0o700)
    if tools:
        _add_tools(archive)
    return archive.finish()


def _inputs(kernel: Kernel, tools: bool) -> str:
    """What decides over the content, without making it."""
    own = Path(__file__).resolve().parent
    total = hashlib.sha256()
    for path in (own / "image.py", own / "cpio.py", own / "modules.py"):
        total.update(path.read_bytes())
    stamps = [guest_agent().name, guest_probe().name, kernel.version, hashlib.sha256(_busybox()).hexdigest()]
    if tools:
        stamps.append(str(guest_tools().stat().st_mtime_ns))
    total.update(repr(stamps).encode())
    return total.hexdigest()[:16]


def initramfs(kernel: Kernel, *, tools: bool = False) -> Path:
    """The image for a kernel; with `tools`, sshd, socat and nbdcopy are in it."""
    directory = cache_dir() / "images"
    stem = f"{kernel.version}{'-tools' if tools else ''}-"
    target = directory / f"{stem}{_inputs(kernel, tools)}.cpio"
    if not target.exists():
        directory.mkdir(parents=True, exist_ok=True)
        work = directory / f".{target.name}.{os.getpid()}"
        work.write_bytes(_archive(kernel, tools))
        for old in directory.glob(f"{stem}{'?' * 16}.cpio"):
            old.unlink(missing_ok=True)
        shutil.move(work, target)
    return target
