"""The rules of AF_VSOCK's network namespaces, as pure functions: modes, domains, CIDs and ports.

Before: store.py and modes.py bring what is known. After: they store what is returned here, or pass the refusal on.
Rules:  - no file, socket, clock or chance in here: what is needed comes in as an argument.
        - checks come in the order of Linux, because the order decides which errno is given.
        - a refusal is a `Refused` with Linux's errno.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from vhostvsock.ids import CID_ANY, CID_HOST, CID_LOCAL, PORT_ANY, Cid
from vhostvsock.registry.errors import Refused

LOWEST_GUEST_CID = 3
LAST_PRIVILEGED_PORT = 1023
# Linux looks at so many ports for a socket that asks for any (MAX_PORT_RETRIES).
AUTOBIND_TRIES = 24
# A write of as many bytes to child_ns_mode is refused, whatever they are; the longest word needs one less.
CHILD_MODE_WRITE_LIMIT = 8


@dataclass(frozen=True, order=True, slots=True)
class NetnsId:
    """A network namespace, by the cookie that the kernel gave it. No other gets the same one until the next boot."""

    cookie: int

    def __post_init__(self) -> None:
        if not 0 < self.cookie < 1 << 64:
            raise ValueError(f"{self.cookie} is not the cookie of a network namespace")

    def __str__(self) -> str:
        return f"netns:{self.cookie}"


class Mode(StrEnum):
    """Whether a namespace shares its CIDs and ports with all other global ones, or with nobody."""

    GLOBAL = "global"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class NetnsState:
    """A namespace's settings. `mode` never changes; `child_mode` is what namespaces made from within it get."""

    mode: Mode = Mode.GLOBAL
    child_mode: Mode = Mode.GLOBAL
    child_locked: bool = False


# A namespace of which nobody ever said anything; also how the first one of the system starts.
UNDECLARED = NetnsState()


@dataclass(frozen=True, order=True, slots=True)
class Domain:
    """One space of CIDs and ports: that of all global namespaces, or the own one of a local namespace."""

    owner: NetnsId | None

    def __str__(self) -> str:
        return "the global namespaces" if self.owner is None else f"the local namespace {self.owner}"


GLOBAL_DOMAIN = Domain(None)


def domain_of(netns: NetnsId, mode: Mode) -> Domain:
    """The domain that a namespace belongs to."""
    return GLOBAL_DOMAIN if mode is Mode.GLOBAL else Domain(netns)


def may_reach(a: NetnsId, a_mode: Mode, b: NetnsId, b_mode: Mode) -> bool:
    """The one rule of reachability: the same namespace, or both global."""
    return a == b or (a_mode is Mode.GLOBAL and b_mode is Mode.GLOBAL)


# Modes --------------------------------------------------------------------------------------------------------------


def parse_child_mode(data: bytes) -> Mode | None:
    """What a write to child_ns_mode asks for; None for the write of nothing, which changes nothing."""
    if not data:
        return None
    word = data.split(b"\0", 1)[0].split(b"\n", 1)[0]
    if len(data) < CHILD_MODE_WRITE_LIMIT:
        for mode in Mode:
            if word == mode.value.encode():
                return mode
    raise Refused(errno.EINVAL, f"{data[:32]!r} is not a mode", hint="write exactly `global` or `local`")


def write_child_mode(state: NetnsState, data: bytes, *, allowed: bool, label: str = "the namespace") -> NetnsState:
    """The state after a write of `data` to child_ns_mode. `allowed`: whether the writer may open the file at all."""
    if not allowed:
        raise Refused(
            errno.EACCES,
            f"only an administrator of {label} may change its child mode",
            hint="run as root, or with CAP_NET_ADMIN in the user namespace that owns the network namespace",
        )
    wanted = parse_child_mode(data)
    if wanted is None:
        return state
    if state.mode is Mode.LOCAL and wanted is Mode.GLOBAL:
        raise Refused(
            errno.EPERM,
            f"{label} is local, and namespaces made from within a local one are local for ever",
            hint="make the namespace from within a global one",
        )
    if state.child_locked and state.child_mode is not wanted:
        raise Refused(
            errno.EBUSY,
            f"the child mode of {label} was set to {state.child_mode} before, and can be set only once",
            hint="use another namespace as the parent",
        )
    return replace(state, child_mode=wanted, child_locked=True)


def born(mode: Mode) -> NetnsState:
    """The state of a namespace that has just been made with `mode`: its children get the same by default."""
    return NetnsState(mode, mode, False)


def inherit(parent: NetnsState, wanted: Mode | None = None, *, label: str = "this namespace") -> NetnsState:
    """The state of a namespace made from within `parent`, with the mode `wanted` where someone asks for one.

    From within a global namespace a local one can always be had: by way of a namespace in between, made for the
    purpose, whose children are set to be local. The other way round there is no way.
    """
    if wanted is None or wanted is parent.child_mode:
        return born(parent.child_mode)
    if wanted is Mode.LOCAL:
        return born(Mode.LOCAL)
    why = "it is local itself" if parent.mode is Mode.LOCAL else "its child mode is local"
    raise Refused(
        errno.EPERM,
        f"namespaces made from within {label} are local, because {why}",
        hint="run the command within a global namespace whose child mode is global",
    )


def needs_helper(parent: NetnsState, wanted: Mode) -> bool:
    """Whether the namespace in between is needed, where the kernel decides the mode."""
    return wanted is Mode.LOCAL and parent.child_mode is Mode.GLOBAL


# CIDs ---------------------------------------------------------------------------------------------------------------


def check_cid(value: int) -> Cid:
    """A CID that a guest can have, or EINVAL."""
    try:
        return Cid(value)
    except ValueError as error:
        raise Refused(errno.EINVAL, str(error)) from None


def check_claim(cid: Cid, *, host_cid: int | None, holder: str | None) -> None:
    """EADDRINUSE where the CID is the host's own, or some VM of the domain has it; `holder` names that one."""
    if cid.value == host_cid:
        raise Refused(
            errno.EADDRINUSE,
            f"CID {cid} is this host's own: it is a VM itself",
            hint="choose another CID, or `auto`",
        )
    if holder is not None:
        raise Refused(
            errno.EADDRINUSE,
            f"CID {cid} is taken by {holder}",
            hint="choose another CID, or `auto`, or a local namespace, which has CIDs of its own",
        )


def auto_cid(taken: Iterable[int], host_cid: int | None) -> Cid:
    """The lowest CID that nobody in the domain has."""
    used = set(taken)
    if host_cid is not None:
        used.add(host_cid)
    cid = LOWEST_GUEST_CID
    while cid in used:
        cid += 1
    if cid >= CID_ANY:
        raise Refused(errno.EADDRNOTAVAIL, "every CID of the domain is taken")
    return Cid(cid)


# Ports --------------------------------------------------------------------------------------------------------------


def check_bind_cid(cid: int, *, host_cid: int | None, loopback: bool = True, vms: bool = True) -> None:
    """EADDRNOTAVAIL unless the CID is one of the host's: any, the host (VMs can be served), loopback, its own."""
    if cid == CID_ANY or (cid == CID_HOST and vms) or (cid == CID_LOCAL and loopback):
        return
    if host_cid is not None and cid == host_cid:
        return
    raise Refused(errno.EADDRNOTAVAIL, f"CID {cid} is not one of this host's", hint="listen on CID 2, or on any")


def check_bind_port(port: int, *, privileged: bool, holder: str | None) -> None:
    """EACCES, then EADDRINUSE; `holder` names whoever has the port already. Not for the any port."""
    if not 0 <= port < PORT_ANY:
        raise Refused(errno.EINVAL, f"port {port} does not fit in 32 bits")
    if port <= LAST_PRIVILEGED_PORT and not privileged:
        raise Refused(
            errno.EACCES,
            f"port {port} is privileged",
            hint=f"use a port above {LAST_PRIVILEGED_PORT}, or run as root or with CAP_NET_BIND_SERVICE",
        )
    if holder is not None:
        raise Refused(errno.EADDRINUSE, f"port {port} is taken by {holder}", hint="choose another port")


def autobind(cursor: int | None, start: int, taken: Callable[[int], bool]) -> tuple[int, int]:
    """A free port for a socket that does not care, and the namespace's cursor afterwards.

    `cursor` is None in a namespace that was never asked; then `start`, drawn by the caller at random, is the first to
    be tried. Raises EADDRNOTAVAIL when none of 24 in a row is free; the cursor has moved on even then, and is found
    in the exception's `cursor`.
    """
    at = start if cursor is None else cursor
    for _ in range(AUTOBIND_TRIES):
        if at >= PORT_ANY or at <= LAST_PRIVILEGED_PORT:
            at = LAST_PRIVILEGED_PORT + 1
        port, at = at, at + 1
        if not taken(port):
            return port, at
    raise NoFreePort(at)


class NoFreePort(Refused):
    """None of the ports tried was free."""

    def __init__(self, cursor: int) -> None:
        super().__init__(
            errno.EADDRNOTAVAIL, f"none of {AUTOBIND_TRIES} ports was free", hint="try again, or name the port"
        )
        self.cursor = cursor
