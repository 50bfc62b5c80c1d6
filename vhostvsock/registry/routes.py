"""Where a connect() of a host application goes, or the errno that it gets: Linux's choice of transport, pure.

Before: the bridge, with the address and what the socket's namespace can see. After: it goes where `Route` says.
Rules:  - a VM in a namespace that cannot be reached looks exactly as if it did not exist: the caller passes `vm=None`.
        - no socket and no storage in here.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum, auto

from vhostvsock.ids import CID_ANY, CID_HOST, CID_LOCAL
from vhostvsock.registry.errors import Refused
from vhostvsock.registry.rules import Mode

# A guest, or a host application, that answers with RST, as for a port on which nobody listens.
RESET_ERRNO = errno.ECONNRESET


class Kind(Enum):
    """The types of vsock sockets that connect."""

    STREAM = auto()
    SEQPACKET = auto()


@dataclass(frozen=True, slots=True)
class Parent:
    """This host is a VM itself: the way to the hypervisor above it. Without a device its CID is the any CID."""

    own_cid: int = CID_ANY
    seqpacket: bool = True


@dataclass(frozen=True, slots=True)
class VisibleVm:
    """The VM that has the CID, in the domain of the socket."""

    running: bool = True
    seqpacket: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """What there is for a socket of one namespace."""

    mode: Mode = Mode.GLOBAL
    loopback: bool = True
    loopback_listener: bool = True
    vms: bool = True
    vm: VisibleVm | None = None
    parent: Parent | None = None
    g2h_fallback: bool = True


class Way(Enum):
    """What leads to the peer."""

    LOOPBACK = auto()
    VM = auto()
    PARENT = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """The answer: the way, and whether it is taken or ends with an errno. `way` is None where there is none at all."""

    way: Way | None
    errno: int = 0
    why: str = ""

    @property
    def open(self) -> bool:
        return self.errno == 0

    def check(self) -> Way:
        """The way, or the refusal as an exception."""
        if self.errno:
            raise Refused(self.errno, self.why)
        assert self.way is not None
        return self.way


def connect_route(cid: int, view: View, kind: Kind = Kind.STREAM, *, to_host: bool = False) -> Route:
    """The route to `cid`. What the peer itself says (RST, silence) comes later, and is not known here.

    `to_host`: the address has VMADDR_FLAG_TO_HOST, by which a nested guest is reached through the parent.
    """
    way = choose_way(cid, view, to_host=to_host)
    if way is None:
        return Route(None, errno.ENODEV, f"there is no CID {cid}")
    if kind is Kind.SEQPACKET and not _takes_seqpacket(way, view):
        return Route(way, errno.ESOCKTNOSUPPORT, f"CID {cid} cannot be reached with SOCK_SEQPACKET")
    if way is Way.PARENT and view.mode is Mode.LOCAL:
        return Route(way, errno.ENETUNREACH, f"CID {cid} is beyond this host, where local namespaces do not reach")
    if way is Way.VM and view.vm is None:
        return Route(way, errno.ENODEV, f"there is no VM with CID {cid}")
    if way is Way.VM and view.vm is not None and not view.vm.running:
        return Route(way, errno.EHOSTUNREACH, f"the guest with CID {cid} runs no vsock driver")
    if way is Way.LOOPBACK and not view.loopback_listener:
        return Route(way, RESET_ERRNO, "nobody listens on that port of this host")
    return Route(way)


def choose_way(cid: int, view: View, *, to_host: bool = False) -> Way | None:
    """The transport that Linux would choose, before it asks whether it takes the socket."""
    parent = view.parent
    if view.loopback and (cid == CID_LOCAL or cid == (CID_HOST if parent is None else parent.own_cid)):
        return Way.LOOPBACK
    up = Way.PARENT if parent is not None else None
    if cid <= CID_HOST or to_host:
        return up
    if view.vms and view.vm is not None:
        return Way.VM
    if up is not None and view.g2h_fallback:
        return up
    return Way.VM if view.vms else None


def _takes_seqpacket(way: Way, view: View) -> bool:
    if way is Way.VM:
        return view.vm is not None and view.vm.seqpacket
    # Also loopback refuses it within a local namespace, as Linux does (7.0 to at least 7.3).
    if view.mode is Mode.LOCAL:
        return False
    return way is Way.LOOPBACK or (view.parent is not None and view.parent.seqpacket)
