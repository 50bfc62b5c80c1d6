#!/usr/bin/env python3
"""What the demo and the VM tests run that is not installed: guest kernels, a second QEMU, programs for the guest, and
the peer vhost-device-vsock. Kept in the cache directory, so that a second call finds it at once.

Before: scripts/demo and tests/harness ask for a thing by name. After: fetch_apt.py gets the packages.
Rules:  - No version is written here: suites move, so each name is resolved when it is fetched.
        - A directory appears under its final name when it is complete, and not before.
        - A thing that is there is used without a look at the network. To have newer ones: remove the directory.

As a program: `fetch.py NAME...` fetches, and prints where each thing is; `fetch.py all` fetches everything.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Run as a program, the directory with fetch_apt.py is on the path; imported by the tests, the repository is.
if __package__:
    from scripts.lib.fetch_apt import FetchError, Suites, cache_dir, say
else:
    from fetch_apt import FetchError, Suites, cache_dir, say

# A kernel that knows network namespaces of vsock in full, and where one may be found; the first that has it is taken.
NEW_KERNEL = (7, 2)
_NEW_SUITES = ("trixie-backports", "forky", "sid")
# Of a kernel's modules only these directories are kept; the rest is a hundred megabytes.
_MODULE_DIRECTORIES = ("kernel/drivers/virtio", "kernel/net/vmw_vsock")
# Enough to run a program with its own libraries; the rest of a closure is maintainer scripts' business.
_LIBRARIES = re.compile(r"(lib|zlib1g|seabios|ipxe-qemu|qemu-system|openssh|socat|systemd$)")
LOADER = "lib64/ld-linux-x86-64.so.2"


@dataclass(frozen=True)
class Kernel:
    """A kernel image, and below `modules` the module files that we keep."""

    version: str
    image: Path
    modules: Path


@dataclass(frozen=True)
class Qemu:
    """How to call a QEMU: the words before its options, and what its environment needs."""

    version: str
    command: tuple[str, ...]
    env: dict[str, str]


@contextmanager
def _fresh(target: Path) -> Iterator[Path]:
    """A directory that becomes `target` when the block ends well."""
    work = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _kept(name: str, make: Callable[[Path], None]) -> Path:
    """The directory `name` of the cache, made by `make` when it is not there; one process makes it, others wait."""
    target = cache_dir() / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(f"cannot make {target.parent}: {error.strerror}", "set VHOSTVSOCK_CACHE") from error
    with open(target.with_name(f".{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with _fresh(target) as work:
                make(work)
    return target


def _kernel_packages(suites: Suites) -> list[str]:
    """The packages with the image and modules behind `linux-image-cloud-amd64`: one, or several in newer suites."""
    found: list[str] = []
    ask = ["linux-image-cloud-amd64"]
    while ask:
        for name in suites.depends(ask.pop()):
            if re.match(r"linux-(image|binary|modules)-\d", name) and name not in found:
                found.append(name)
                ask.append(name)
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _make_kernel(work: Path, suites: Suites) -> None:
    packages = _kernel_packages(suites)
    if not packages:
        raise FetchError("linux-image-cloud-amd64 leads to no kernel", "is the mirror complete?")
    raw = work / "raw"
    suites.unpack(packages, raw, packages[0].replace("linux-image-", "kernel "))
    # /lib and /usr/lib, as the suite has it; the image is in /boot or beside the modules.
    [tree] = [path for path in (*raw.glob("lib/modules/*"), *raw.glob("usr/lib/modules/*")) if path.is_dir()]
    [image, *_] = [*raw.glob("boot/vmlinuz-*"), *tree.glob("vmlinuz")]
    shutil.copyfile(image, work / "vmlinuz")
    for directory in _MODULE_DIRECTORIES:
        shutil.copytree(tree / directory, work / "modules" / directory)
    (work / "version").write_text(tree.name + "\n")
    shutil.rmtree(raw)


def _make_old_kernel(work: Path) -> None:
    _make_kernel(work, Suites("bookworm").open())


def _make_new_kernel(work: Path) -> None:
    seen = []
    for name in _NEW_SUITES:
        try:
            suites = Suites(name).open()
        except FetchError as error:
            seen.append(f"{name}: {error}")
            continue
        version = suites.version("linux-image-cloud-amd64")
        if version is not None and _numbers(version) >= NEW_KERNEL:
            return _make_kernel(work, suites)
        seen.append(f"{name} has {version}")
    wanted = ".".join(map(str, NEW_KERNEL))
    raise FetchError(f"no kernel >= {wanted} was found ({'; '.join(seen)})", "check the network and the mirror")


def kernel(name: str) -> Kernel:
    """`6.1`: Debian 12's kernel. `new`: one that has network namespaces for vsock."""
    make = {"6.1": _make_old_kernel, "new": _make_new_kernel}[name]
    root = _kept(f"kernel-{name}", make)
    return Kernel((root / "version").read_text().strip(), root / "vmlinuz", root / "modules")


def _unpack_with_libraries(work: Path, suites: Suites, what: str, *packages: str) -> None:
    wanted = [f"{name}={version}" for name, version in suites.closure(*packages).items() if _LIBRARIES.match(name)]
    suites.unpack(wanted, work, what)


def library_path(root: Path) -> str:
    """Where the libraries of an unpacked tree are, for its loader's --library-path."""
    found = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/systemd")
    return ":".join(str(root / directory) for directory in found if (root / directory).is_dir())


def loader(root: Path) -> Path:
    """The dynamic loader of an unpacked tree: programs that are newer or older than the machine run with it."""
    for place in (LOADER, "usr/" + LOADER, "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"):
        path = root / place
        # Where it is a link, it is an absolute one, into the machine itself.
        if path.is_file() and not path.is_symlink():
            return path
    [found, *_] = sorted(root.glob("**/ld-linux-x86-64.so.2"), key=lambda path: path.is_symlink())
    return found


def _qemu_version(command: list[str], env: dict[str, str]) -> str | None:
    try:
        done = subprocess.run(
            [*command, "--version"], env={**os.environ, **env}, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    found = re.search(r"version (\d+\.\d+\.\d+)", done.stdout)
    return found[1] if found else None


def installed_qemu() -> Qemu | None:
    """The QEMU of the machine itself."""
    installed = shutil.which("qemu-system-x86_64")
    version = _qemu_version([installed], {}) if installed else None
    return Qemu(version, (installed,), {}) if installed and version else None


def qemu(name: str) -> Qemu:
    """`7.2` or `10.0`: the installed one where it is of that line, else one that is unpacked into the cache.
    `installed`: whichever is there."""
    found = installed_qemu()
    if name == "installed":
        if found is None:
            raise FetchError("qemu-system-x86_64 is not installed", "apt install qemu-system-x86")
        return found
    if found is not None and found.version.split(".")[0] == name.split(".")[0]:
        return found
    suites = {"7.2": ("bookworm",), "10.0": ("bookworm", "bookworm-backports")}[name]

    def make(work: Path) -> None:
        _unpack_with_libraries(work, Suites(*suites).open(), f"QEMU {name} and its libraries", "qemu-system-x86")

    root = _kept(f"qemu-{name}", make)
    command = [
        str(loader(root)),
        "--library-path",
        library_path(root),
        str(root / "usr/bin/qemu-system-x86_64"),
    ]
    env = {"QEMU_MODULE_DIR": str(root / "usr/lib/x86_64-linux-gnu/qemu")}
    version = _qemu_version(command, env)
    if version is None:
        raise FetchError(f"the QEMU in {root} does not run", f"remove {root} and try again")
    firmware = [str(root / "usr/share" / directory) for directory in ("qemu", "seabios")]
    return Qemu(version, (*command, *(word for path in firmware for word in ("-L", path))), env)


def guest_tools() -> Path:
    """Programs with libraries that go into the guest of the tests: sshd, socat, nbdcopy."""

    def make(work: Path) -> None:
        suites = Suites("bookworm").open()
        _unpack_with_libraries(
            work, suites, "sshd, socat and nbdcopy for the guest", "openssh-server", "socat", "libnbd-bin"
        )

    return _kept("guest-tools", make)


def ssh_proxy() -> tuple[str, ...]:
    """systemd-ssh-proxy, which ssh uses to reach a guest; Debian 12's systemd has none yet."""
    installed = Path("/usr/lib/systemd/systemd-ssh-proxy")
    if installed.exists():
        return (str(installed),)

    def make(work: Path) -> None:
        _unpack_with_libraries(work, Suites("trixie").open(), "systemd-ssh-proxy and its libraries", "systemd")

    root = _kept("ssh-proxy", make)
    return (str(loader(root)), "--library-path", library_path(root), str(root) + str(installed))


def peer() -> Path:
    """The program vhost-device-vsock, for comparison."""

    def make(work: Path) -> None:
        for name in _NEW_SUITES[1:]:
            suites = Suites(name).open()
            if suites.version("vhost-device-vsock") is not None:
                return suites.unpack(["vhost-device-vsock"], work, "vhost-device-vsock")
        raise FetchError("no suite has vhost-device-vsock", "check the mirror")

    return _kept("peer", make) / "usr/bin/vhost-device-vsock"


THINGS: dict[str, Callable[[], object]] = {
    "kernel-6.1": lambda: kernel("6.1").image,
    "kernel-new": lambda: kernel("new").image,
    "qemu-7.2": lambda: " ".join(qemu("7.2").command),
    "qemu-10.0": lambda: " ".join(qemu("10.0").command),
    "guest-tools": guest_tools,
    "ssh-proxy": lambda: " ".join(ssh_proxy()),
    "peer": peer,
}


def main(names: list[str]) -> int:
    if not names or set(names) - {*THINGS, "all"}:
        print(f"usage: fetch.py all | {' | '.join(THINGS)} ...", file=sys.stderr)
        return 2
    try:
        for name in THINGS if "all" in names else names:
            print(f"{name}: {THINGS[name]()}")
    except FetchError as error:
        say(f"error: {error}")
        say(f"hint: {error.hint}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
