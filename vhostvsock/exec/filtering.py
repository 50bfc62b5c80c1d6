"""Which calls of a program are intercepted: the filter that seccomp runs at each of its system calls.

Before: child.py is about to start the program. After: bpf.py makes bytes of it.
Rules:  - a call that carries data is never intercepted, and no other one that the filter can tell to be foreign.
          recvmsg is told only with MSG_ERRQUEUE, which asks for errors: to a UNIX socket, which has none, it is a read.
        - connect, bind, listen, accept, getsockname and getpeername have nothing that a filter could look at but the
          number of a descriptor: they are all intercepted, and the supervisor lets the foreign ones go on.
        - no AF_VSOCK socket of the kernel's comes to be: where we cannot serve one (a program for another architecture
          than ours), the call is refused as by a kernel without AF_VSOCK.
"""

from __future__ import annotations

import errno
import platform
import socket
from dataclasses import dataclass, field

from vhostvsock.errors import ConfigError
from vhostvsock.exec.bpf import Program

# linux/vm_sockets.h: which CID this host has. An ioctl of /dev/vsock.
IOCTL_VM_SOCKETS_GET_LOCAL_CID = 0x7B9

# Options of SOL_SOCKET that an AF_UNIX socket would answer otherwise. asm-generic/socket.h.
SO_ACCEPTCONN = 30
SO_DOMAIN = 39

# linux/seccomp.h.
_ALLOW = 0x7FFF_0000
_NOTIFY = 0x7FC0_0000
_ERRNO = 0x0005_0000

# Offsets in struct seccomp_data; of arguments, the lower half: what is looked at are ints.
_NUMBER = 0
_ARCHITECTURE = 4


def _argument(index: int) -> int:
    return 16 + 8 * index


@dataclass(frozen=True, slots=True)
class Foreign:
    """An architecture for which a kernel also runs programs: its AUDIT_ARCH_*, and how it says socket(2)."""

    audit: int
    socket: int
    socketcall: int | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """Numbers of system calls by name, and AUDIT_ARCH_*. `alias_bit`: where numbers of a second ABI begin (x32)."""

    audit: int
    calls: dict[str, int]
    seccomp: int
    foreign: tuple[Foreign, ...] = ()
    alias_bit: int | None = None
    names: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", {number: name for name, number in self.calls.items()})


ARCHITECTURES = {
    "x86_64": Architecture(
        audit=0xC000_003E,
        calls={
            "open": 2,
            "ioctl": 16,
            "socket": 41,
            "connect": 42,
            "accept": 43,
            "recvmsg": 47,
            "bind": 49,
            "listen": 50,
            "getsockname": 51,
            "getpeername": 52,
            "socketpair": 53,
            "setsockopt": 54,
            "getsockopt": 55,
            "openat": 257,
            "accept4": 288,
            "openat2": 437,
        },
        seccomp=317,
        foreign=(Foreign(audit=0x4000_0003, socket=359, socketcall=102),),  # i386
        alias_bit=0x4000_0000,
    ),
    "aarch64": Architecture(
        audit=0xC000_00B7,
        calls={
            "ioctl": 29,
            "openat": 56,
            "socket": 198,
            "socketpair": 199,
            "bind": 200,
            "listen": 201,
            "accept": 202,
            "connect": 203,
            "getsockname": 204,
            "getpeername": 205,
            "setsockopt": 208,
            "getsockopt": 209,
            "recvmsg": 212,
            "accept4": 242,
            "openat2": 437,
        },
        seccomp=277,
        foreign=(Foreign(audit=0x4000_0028, socket=281),),  # arm
    ),
}

# Calls of which every one is intercepted.
_ALWAYS = ("connect", "accept", "accept4", "bind", "listen", "getsockname", "getpeername")

# Where /dev/vsock is to be served: no filter can look at a path.
OPENS = frozenset({"open", "openat", "openat2"})

# socketcall(2)'s number for socket(2); its arguments are in memory, where no filter looks.
_SOCKETCALL_SOCKET = 1


def here() -> Architecture:
    """This machine's. Raises ConfigError for one that is not in the table."""
    found = ARCHITECTURES.get(platform.machine())
    if found is None:
        raise ConfigError(f"`vhostvsock exec` does not know the system calls of {platform.machine()}")
    return found


def build(architecture: Architecture, *, dev_vsock: bool = False) -> bytes:
    """The filter. `dev_vsock`: every file that is opened is told, too."""
    program = Program()
    foreign = {each.audit: f"foreign {each.audit}" for each in architecture.foreign}
    _look(program, "start", _ARCHITECTURE, {architecture.audit: "native", **foreign})
    for each in architecture.foreign:
        _foreign(program, each)
    _native(program, architecture, {*_ALWAYS, *(OPENS if dev_vsock else ())})
    for label, action in (
        ("notify", _NOTIFY),
        ("no family", _ERRNO | errno.EAFNOSUPPORT),
        ("no pair", _ERRNO | errno.EOPNOTSUPP),
    ):
        program.label(label)
        program.give(action)
    return program.assemble()


def _look(program: Program, label: str, offset: int, cases: dict[int, str]) -> None:
    """At `label`, look at the word at `offset`: each value goes on at its own label, all others are let through."""
    program.label(label)
    program.load(offset)
    _choose(program, cases)


def _choose(program: Program, cases: dict[int, str]) -> None:
    """The same for the word that was looked at last."""
    for value, goal in cases.items():
        program.jump_if_equal(value, goal)
    program.give(_ALLOW)


def _foreign(program: Program, foreign: Foreign) -> None:
    """Programs for this architecture get no AF_VSOCK sockets."""
    calls = {foreign.socket: f"family {foreign.audit}"}
    if foreign.socketcall is not None:
        calls[foreign.socketcall] = f"socketcall {foreign.audit}"
    _look(program, f"foreign {foreign.audit}", _NUMBER, calls)
    _look(program, f"family {foreign.audit}", _argument(0), {socket.AF_VSOCK: "no family"})
    if foreign.socketcall is not None:
        # The family cannot be seen from here. The libraries of today call socket(2) itself.
        _look(program, f"socketcall {foreign.audit}", _argument(0), {_SOCKETCALL_SOCKET: "notify"})


def _native(program: Program, architecture: Architecture, always: set[str]) -> None:
    calls = architecture.calls
    program.label("native")
    program.load(_NUMBER)
    if architecture.alias_bit is not None:
        program.jump_if_at_least(architecture.alias_bit, "alias")
    looked_into = ("socket", "socketpair", "getsockopt", "setsockopt", "ioctl", "recvmsg")
    told = {number: "notify" for name, number in calls.items() if name in always}
    _choose(program, {**told, **{calls[name]: name for name in looked_into}})

    _look(program, "socket", _argument(0), {socket.AF_VSOCK: "notify"})
    _look(program, "socketpair", _argument(0), {socket.AF_VSOCK: "no pair"})
    levels = {socket.AF_VSOCK: "notify", socket.SOL_SOCKET: "getsockopt of SOL_SOCKET"}
    _look(program, "getsockopt", _argument(1), levels)
    options = (socket.SO_ERROR, SO_DOMAIN, SO_ACCEPTCONN)
    _look(program, "getsockopt of SOL_SOCKET", _argument(2), dict.fromkeys(options, "notify"))
    _look(program, "setsockopt", _argument(1), {socket.AF_VSOCK: "notify"})
    _look(program, "ioctl", _argument(1), {IOCTL_VM_SOCKETS_GET_LOCAL_CID: "notify"})
    program.label("recvmsg")
    program.load(_argument(2))
    program.jump_if_any_bit(socket.MSG_ERRQUEUE, "notify")
    program.give(_ALLOW)

    if architecture.alias_bit is not None:
        program.label("alias")
        _choose(program, {architecture.alias_bit | calls["socket"]: "alias socket"})
        _look(program, "alias socket", _argument(0), {socket.AF_VSOCK: "no family"})
