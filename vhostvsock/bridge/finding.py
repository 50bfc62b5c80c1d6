"""A bridge that answers, among those that there are: of the user's own daemons, then of the system's.

Before: client.py. After: the sockets in `bridge/` of the runtime directories.
Rules:  - a directory that another user could have prepared is passed over: whoever answers there would get all that is
          said. The system's own is root's.
        - a daemon that hangs is passed over as well, after a while, and does not keep anybody from the others.
        - what is asked takes one overall deadline.
        - an error of ours has its remedy as a note, since its errno is one that a daemon may answer, too.
"""

from __future__ import annotations

import errno
import glob
import math
import os
import socket
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vhostvsock.bridge import protocol
from vhostvsock.bridge.lines import DescriptorLostError, recv_with, whole_line
from vhostvsock.bridge.places import bridge_directory
from vhostvsock.bridge.protocol import ANSWER_LIMIT, VERSION, Request, Version
from vhostvsock.paths import seqpacket_path
from vhostvsock.registry.runtime import ENVIRONMENT, SYSTEM_DIR
from vhostvsock.registry.runtime import runtime_dir as default_directory

# How long a daemon may take to say that it is there.
HELLO_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Group:
    """The bridge sockets of one runtime directory, dead ones perhaps among them; `where` is for people."""

    where: str
    paths: list[str]


class Deadline:
    """The end of all waiting, or none."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    def apply(self, sock: socket.socket) -> None:
        """Let the next call on the socket take what is left. TimeoutError where that is nothing."""
        if self.over():
            raise self.passed()
        sock.settimeout(None if self._end == math.inf else max(0.001, self._end - time.monotonic()))

    def within(self, seconds: float) -> Deadline:
        """This one, or another so many seconds from now, whichever comes first."""
        other = Deadline(seconds)
        return other if other._end < self._end else self

    def over(self) -> bool:
        return time.monotonic() >= self._end

    def passed(self) -> TimeoutError:
        return TimeoutError(errno.ETIMEDOUT, f"no answer within {self._seconds:g} s")


def groups(runtime_dir: str | None) -> list[Group]:
    """Where daemons have their bridge sockets. The system's services are for everybody whom their mode lets in."""
    named = runtime_dir is not None or ENVIRONMENT in os.environ
    directories = [default_directory(runtime_dir)]
    if not named and SYSTEM_DIR not in directories:
        directories.append(SYSTEM_DIR)
    return [_group(each, named=named) for each in directories]


def _group(directory: str, *, named: bool) -> Group:
    bridges = bridge_directory(directory)
    why = None if directory == SYSTEM_DIR else _distrust(directory, named=named)
    if why is not None:
        return Group(f"{bridges} (passed over: {directory} {why})", [])
    return Group(bridges, sorted(glob.glob(os.path.join(glob.escape(bridges), "*.sock"))))


def _distrust(directory: str, *, named: bool) -> str | None:
    """Why nothing in a directory is to be believed. One that the user named may be of whomever they trust."""
    try:
        found = os.lstat(directory)
    except OSError:
        return None  # nothing there
    if not stat.S_ISDIR(found.st_mode):
        return "is a symbolic link" if stat.S_ISLNK(found.st_mode) else "is not a directory"
    if found.st_mode & stat.S_IWOTH:
        return "can be written to by everybody"
    if found.st_uid not in (os.geteuid(), 0) and not named:
        return f"was made by another user (uid {found.st_uid})"
    return None


def where(found: Iterable[Group]) -> str:
    """The directories, for people."""
    return " or ".join(group.where for group in found)


def open_one(
    found: list[Group], deadline: Deadline, kind: socket.SocketKind = socket.SOCK_STREAM
) -> tuple[socket.socket, str]:
    """A connection to the bridge of a daemon that lives and answers, and its path; for streams, or for messages."""
    denied = False
    silent: str | None = None
    for path in (path for group in found for path in group.paths):
        sock = socket.socket(socket.AF_UNIX, kind)
        try:
            hello = deadline.within(HELLO_SECONDS)
            hello.apply(sock)
            sock.connect(path if kind == socket.SOCK_STREAM else seqpacket_path(path))
            _, others = ask(sock, Version(VERSION), hello)
            for each in others:
                each.close()
        except TimeoutError:
            sock.close()
            if deadline.over():
                raise deadline.passed() from None
            silent = path
            continue
        except OSError as error:
            sock.close()
            if error.errno in (errno.EACCES, errno.EPERM):
                denied = True
            continue
        except BaseException:
            sock.close()
            raise
        return sock, path
    if silent is not None:
        text = f"the daemon with the bridge {silent} does not answer"
        raise _with_remedy(TimeoutError(errno.ETIMEDOUT, text), "is it stopped, or does it hang? Start it again")
    if denied:
        text = f"may not connect to the bridge sockets in {where(found)}"
        raise _with_remedy(PermissionError(errno.EACCES, text), "be its user, or start the daemon with --bridge-mode")
    raise nobody(found)


def _with_remedy(error: OSError, remedy: str) -> OSError:
    error.add_note(remedy)
    return error


def nobody(found: list[Group]) -> OSError:
    """No daemon is there at all."""
    text = f"no vhostvsock daemon runs (none has a bridge socket in {where(found)})"
    return _with_remedy(OSError(errno.ENODEV, text), "start one: vhostvsock run --help")


def ask(
    sock: socket.socket, request: Request, deadline: Deadline, with_sockets: Sequence[socket.socket] = ()
) -> tuple[int, list[socket.socket]]:
    """Send a request, perhaps with sockets; the number of the answer, and the sockets that came with that.

    Takes nothing behind the line.
    """
    sockets: list[socket.socket] = []
    try:
        deadline.apply(sock)
        # Nothing was sent before but a line that was answered: there is room for another.
        socket.send_fds(
            sock, [protocol.request_line(request)], [each.fileno() for each in with_sockets], socket.MSG_NOSIGNAL
        )
        line = read_answer(sock, sockets, lambda: deadline.apply(sock))
        return protocol.parse_answer(line), sockets
    except BaseException as error:
        for each in sockets:
            each.close()
        if isinstance(error, TimeoutError) and error.errno is None:
            raise deadline.passed() from None  # of the socket: without an errno
        raise


def read_answer(sock: socket.socket, sockets: list[socket.socket], before: Callable[[], None] = lambda: None) -> bytes:
    """A line without its end, and no byte that follows: that is payload. `sockets` gets those that come with it.

    `before` is called before each call that may wait. Raises OSError, ECONNRESET at the end of the stream, EMFILE where
    there was no room for what came with the line.
    """
    # Streams byte by byte. A message that is longer than an answer is none.
    size = ANSWER_LIMIT + 1 if sock.type == socket.SOCK_SEQPACKET else 1
    line = b""
    lost: DescriptorLostError | None = None
    while not line.endswith(b"\n"):
        before()
        try:
            data, came = recv_with(sock, size)
            sockets += came
        except DescriptorLostError as error:
            data, lost = error.data, error  # told behind the line, so that the next one is read from its beginning
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the daemon closed the connection")
        line += data
        if len(line) > ANSWER_LIMIT or size > 1:
            break
    if lost is not None:
        raise lost
    return whole_line(line, ANSWER_LIMIT)
