"""A network namespace's identity: of a socket, of this process, of a name, a pid or a path.

Before: an accepted UNIX socket, or what somebody wrote. After: a `NetnsId`, by which store.py keeps everything.
Rules:  - the identity is the kernel's cookie (SO_NETNS_COOKIE, Linux 5.14). An accepted UNIX socket has that of the
          socket that connected, from where that one was created; setns and fd passing do not change it.
        - no descriptor of a namespace is left open by accident: an open one keeps the namespace alive.
        - a namespace that does not exist is an error and is never made; making is making.py's work.
        - setns happens in threads that end right after, so no other code ever runs in a foreign namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from vhostvsock.registry.errors import NetnsError
from vhostvsock.registry.rules import NetnsId

SO_NETNS_COOKIE = 71
CLONE_NEWNET = 0x4000_0000
SIOCGSKNS = 0x894C
NS_GET_NSTYPE = 0xB703
# _IOR(0xb7, 13, u64), Linux 6.18: for a network namespace, its cookie. Needs no privilege.
NS_GET_ID = (2 << 30) | (8 << 16) | (0xB7 << 8) | 13
# Where iproute2 and pyroute2 keep names; /var/run is a link to /run nearly everywhere.
RUN_DIR = "/var/run/netns"
# This file shows the settings of the network core and exists in the system's first namespace only.
_ONLY_IN_INIT = "/proc/sys/net/core/netdev_budget"
_ENTER_HINT = "run as root (entering a namespace needs CAP_SYS_ADMIN)"

_T = TypeVar("_T")
_libc = ctypes.CDLL(None, use_errno=True)


def cookie_of_socket(sock: socket.socket) -> NetnsId:
    """The namespace in which a socket was created; of an accepted UNIX socket: in which the client's was."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            raise NetnsError("this kernel does not tell namespaces apart", hint="use Linux 5.14 or newer") from None
        raise NetnsError(f"cannot ask a socket for its namespace: {error.strerror}") from error
    return NetnsId(struct.unpack("=Q", raw)[0])


def namespace_of_socket(sock: socket.socket) -> Namespace:
    """The same with a descriptor of the namespace; needs CAP_NET_ADMIN in it."""
    identity = cookie_of_socket(sock)
    try:
        fd = fcntl.ioctl(sock.fileno(), SIOCGSKNS)
    except OSError as error:
        hint = "run as root, or with CAP_NET_ADMIN in that namespace"
        raise NetnsError(f"cannot open the namespace {identity}: {error.strerror}", hint=hint) from error
    os.set_inheritable(fd, False)
    return Namespace(identity, fd, str(identity))


def own() -> NetnsId:
    """The namespace of the calling thread."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        return cookie_of_socket(sock)


def is_init_here() -> bool:
    """Whether the calling thread is in the system's first namespace. True wherever /proc is, also in a container."""
    return os.path.exists(_ONLY_IN_INIT)


@dataclass(frozen=True)
class Namespace:
    """An existing namespace, held by an open descriptor. `label` is how people called it."""

    id: NetnsId
    fd: int
    label: str

    def run(self, work: Callable[[], _T]) -> _T:
        """Do `work` within the namespace, in a thread of its own."""
        return in_namespace(self.fd, work, self.label)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Namespace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def in_thread(work: Callable[[], _T]) -> _T:
    """Do `work` in a thread that ends with it, and return its result or raise its exception."""
    result: list[_T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="netns")
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "no thread can be started") from error
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def in_namespace(fd: int, work: Callable[[], _T], label: str = "the namespace") -> _T:
    """Do `work` in the namespace that `fd` leads to."""

    def body() -> _T:
        enter(fd, label)
        return work()

    return in_thread(body)


def enter(fd: int, label: str = "the namespace") -> None:
    """Move the calling thread, and no other, to the namespace that `fd` leads to."""
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        hint = _ENTER_HINT if number == errno.EPERM else None
        raise NetnsError(f"cannot enter {label}: {os.strerror(number)}", hint=hint)


def leave_for_new() -> None:
    """Move the calling thread, and no other, to a namespace that is made for it."""
    if _libc.unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        hint = "run as root (this needs CAP_SYS_ADMIN)" if number == errno.EPERM else None
        raise NetnsError(f"cannot make a network namespace: {os.strerror(number)}", hint=hint)


def cookie_of_fd(fd: int, label: str = "the namespace") -> NetnsId:
    """The identity of the namespace that an nsfs descriptor leads to."""
    told = _told_by_nsfs(fd)
    return in_namespace(fd, own, label) if told is None else told


def _told_by_nsfs(fd: int) -> NetnsId | None:
    """What the kernel tells without entering, where it does, and where it means the same number as the cookie."""
    try:
        with _open_own() as mine:
            if _ns_id(mine.fd) != mine.id.cookie:
                return None
        return NetnsId(_ns_id(fd))
    except (OSError, ValueError):
        return None


def _ns_id(fd: int) -> int:
    answer = bytearray(8)
    fcntl.ioctl(fd, NS_GET_ID, answer)
    return int(struct.unpack("=Q", answer)[0])


def _open_own() -> Namespace:
    try:
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetnsError(f"cannot open this process's own namespace: {error.strerror}", hint="mount /proc") from error
    return Namespace(own(), fd, "this namespace")


def open_namespace(text: str | None = None) -> Namespace:
    """The namespace that people mean: a name in /run/netns, a pid, a path, or None for one's own.

    What has a slash in it is a path. A name wins over a pid with the same digits.
    """
    if text is None:
        return _open_own()
    if not text:
        raise NetnsError("a namespace with an empty name", hint="give a name in /run/netns, a pid, or a path")
    if "\0" in text:
        raise NetnsError(f"{text!r} cannot be a namespace", hint="give a name in /run/netns, a pid, or a path")
    if "/" in text:
        return _open(text, f"namespace {text}", "give the path of a namespace, such as /proc/PID/ns/net")
    path = os.path.join(RUN_DIR, text)
    if text.isascii() and text.isdecimal() and not os.path.lexists(path):
        return _open(f"/proc/{text}/ns/net", f"namespace of pid {text}", "see `ps` for the processes that run")
    if text in (".", ".."):
        raise NetnsError(f"there is no network namespace {text!r}", hint="leave it out to mean this one")
    return _open(path, f"namespace {text}", "see `vhostvsock netns list` for the names there are")


def _open(path: str, label: str, hint: str) -> Namespace:
    try:
        # Looked at before it is opened: opening a device or a FIFO could have effects, or wait.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise NetnsError(f"{path} is not a network namespace", hint=hint)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        raise NetnsError(f"there is no {label}", hint=hint) from None
    except PermissionError as error:
        hint = "run as root with every capability, or as the user of that process"
        raise NetnsError(f"cannot look at {label}: {error.strerror}", hint=hint) from error
    except (OSError, ValueError) as error:
        raise NetnsError(f"cannot open {label}: {error}", hint=hint) from error
    try:
        if not is_network_namespace(fd):
            raise NetnsError(f"{path} is not a network namespace", hint=hint)
        return Namespace(cookie_of_fd(fd, label), fd, label.removeprefix("namespace "))
    except BaseException:
        os.close(fd)
        raise


def is_network_namespace(fd: int) -> bool:
    """Whether a descriptor leads to a network namespace, and not to a file or a namespace of another kind."""
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def names(directory: str = RUN_DIR) -> list[str]:
    """The names in /run/netns, whether or not a namespace is behind each."""
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise NetnsError(f"cannot list {directory}: {error.strerror}") from error


def named() -> Iterator[Namespace]:
    """The namespaces that have a name, each open for as long as the caller is at it."""
    for name in names():
        try:
            found = open_namespace(os.path.join(RUN_DIR, name))
        except NetnsError:
            continue  # being made or removed, or a file that was left behind; asked for by name, it is an error
        with found:
            yield Namespace(found.id, found.fd, name)


def init_id() -> NetnsId | None:
    """The system's first namespace, where it can be told.

    Told by evidence from within, not by a number: the cookie of the first one differs between kernels (1 up to 6.17,
    others later), and pid 1 may be that of a container.
    """
    if is_init_here():
        return own()
    with contextlib.suppress(NetnsError), open_namespace("/proc/1/ns/net") as candidate:
        if candidate.run(is_init_here):
            return candidate.id
    return None
