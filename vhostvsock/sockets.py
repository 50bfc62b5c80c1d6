"""Listening UNIX sockets: made, taken over from the dead, never from the living, and removed at the end.

Before: daemon.py asks for a path and who may connect. After: asyncio and the native side accept on the socket.
Rules:  - `<path>.lock` is locked (flock) for as long as we serve `<path>`; the kernel drops the lock when we die, so a
          lock that can be had means that no daemon of ours is alive. It holds the owner's pid.
        - Owner and mode are set between bind and listen: before listen, nobody can connect.
        - What is not a socket is never removed; nor is a socket that some other program still has open.
        - A socket of the service manager is adopted as it is, with its owner and mode, and outlives us.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from types import TracebackType

from vhostvsock.config import Access
from vhostvsock.errors import SocketError, SocketInUseError

# More is cut to net.core.somaxconn by the kernel. A burst of clients waits here instead of being refused.
BACKLOG = 4096

_DIR_HINT = "create the directory, or choose another path"


class ListeningSocket:
    """A bound, listening, non-blocking UNIX socket together with the lock on its path; a stream unless said.

    Non-blocking is a property of the open socket, so duplicates of the descriptor share it.
    """

    def __init__(
        self,
        path: str,
        access: Access,
        passed: socket.socket | None = None,
        *,
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> None:
        self.path = path
        self.adopted = passed is not None
        self._lock: _PathLock | None = None
        if passed is not None:
            # No lock: the manager has the socket open, which keeps every other daemon away.
            self.sock = passed
            return
        self._lock = _PathLock(path)
        try:
            _clear_stale(path)
            self.sock, self._identity = _bind(path, access, kind)
        except BaseException:
            self._lock.release()
            raise

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        """Stop listening and remove the socket and its lock file, where they are still ours. May be called twice.

        An adopted socket stays: the manager goes on listening, and its next client starts the service again.
        """
        self.sock.close()
        if self._lock is not None and self._lock.held:
            try:
                found = os.lstat(self.path)
                if (found.st_dev, found.st_ino) == self._identity:
                    os.unlink(self.path)
            except OSError:
                pass  # gone, or the directory is: nothing of ours is left
            self._lock.release()

    def __enter__(self) -> ListeningSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _PathLock:
    """The lock file beside a socket."""

    def __init__(self, path: str) -> None:
        self._socket_path = path
        self.path = path + ".lock"
        self.held = False
        # A daemon that ends removes its lock file, so the name may lead elsewhere by now: try again.
        while not self.held:
            self._fd = self._open()
            try:
                self._take()
            finally:
                if not self.held:
                    os.close(self._fd)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _open(self) -> int:
        try:
            # 0644: whoever is refused can read who holds it.
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except FileNotFoundError as error:
            raise SocketError(f"cannot create {self.path}: no such directory", hint=_DIR_HINT) from error
        except PermissionError as error:
            hint = "run as a user who may write there, or choose another path"
            raise SocketError(f"cannot open {self.path}: {error.strerror}", hint=hint) from error
        except OSError as error:
            raise SocketError(f"cannot open {self.path}: {error.strerror}", hint=_DIR_HINT) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise SocketError(f"{self.path} is not a regular file", hint="remove it, or choose another socket path")
        return fd

    def _take(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = self._owner()
            raise SocketInUseError(
                f"{self._socket_path} is served by a running vhostvsock, {_name_process(pid)}",
                pid=pid,
                hint="stop that daemon, or choose another path",
            ) from None
        except OSError as error:
            raise SocketError(f"cannot lock {self.path}: {error.strerror}", hint="use a local file system") from error
        try:
            now = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return
        mine = os.fstat(self._fd)
        self.held = (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino)

    def _owner(self) -> int | None:
        text = os.pread(self._fd, 32, 0).strip()
        return int(text) if text.isdigit() else None

    def release(self) -> None:
        if not self.held:
            return
        self.held = False
        try:
            os.unlink(self.path)  # while the lock is still held: nobody else can have taken this file
        except OSError:
            pass
        os.close(self._fd)


def _clear_stale(path: str) -> None:
    """Remove the socket of a dead process; refuse anything else that stands in the way."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketError(f"cannot use {path}: {error.strerror}", hint=_DIR_HINT) from error
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketError(f"{path} exists and is not a socket", hint="remove it yourself, or choose another path")
    if is_alive(path):
        pid = _listener_pid(path)
        raise SocketInUseError(
            f"{path} is served by another program, {_name_process(pid)}",
            pid=pid,
            hint="stop that program, or choose another path",
        )
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SocketError(f"cannot remove the stale socket {path}: {error.strerror}") from error


def is_alive(path: str) -> bool:
    """Whether any process has the socket open.

    Asked with a datagram socket: the kernel answers ECONNREFUSED where nobody has it, and EPROTOTYPE where a stream
    socket is bound, listening or not yet. Thus nobody is woken by a connection that was never meant.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:
                return True
            raise SocketError(
                f"cannot find out whether {path} is in use: {error.strerror}",
                hint="remove it yourself if nothing serves it, or choose another path",
            ) from error
        return True


def _listener_pid(path: str) -> int | None:
    """The pid of the process that listens on `path`, where it can be told. Only asked when we are refused anyway."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
            return peer_credentials(probe)[0] or None
        except OSError:
            return None


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the other end of a connected UNIX socket, as the kernel noted them."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", raw)
    return pid, uid, gid


def _name_process(pid: int | None) -> str:
    if pid is None:
        return "pid unknown"
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"pid {pid} ({file.read().strip()})"
    except OSError:
        return f"pid {pid}"


def _bind(path: str, access: Access, kind: socket.SocketKind) -> tuple[socket.socket, tuple[int, int]]:
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        # The mode is given at birth, through the umask: a chmod by name afterwards could be led elsewhere.
        old = os.umask(0o777 & ~access.mode)
        try:
            sock.bind(path)
        finally:
            os.umask(old)
        made = os.lstat(path)
        try:
            if access.uid is not None or access.gid is not None:
                uid = -1 if access.uid is None else access.uid
                gid = -1 if access.gid is None else access.gid
                os.chown(path, uid, gid, follow_symlinks=False)
            sock.listen(BACKLOG)
        except BaseException:
            os.unlink(path)
            raise
    except OSError as error:
        sock.close()
        hint = "only root may give a socket to another user" if error.errno == errno.EPERM else None
        raise SocketError(f"cannot listen on {path}: {error.strerror or error}", hint=hint) from error
    return sock, (made.st_dev, made.st_ino)
