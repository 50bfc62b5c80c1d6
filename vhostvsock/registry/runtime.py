"""The runtime directory, and the lock that says that a daemon lives.

Before: database.py and store.py. After: the file system.
Rules:  - a directory that another user could have prepared for us is refused.
        - who may use the registry is what the directory's owner and mode say: files in it follow them, but what can be
          locked is never open to everybody. Even a reader could hold a lock that makes all others wait.
        - a daemon lives exactly as long as it holds the write lock on its file. Locks of the open file description
          (F_OFD_SETLK) are used: the kernel drops them with the last descriptor, kill -9 or not; closing some other
          descriptor of the file does not; and whether a lock is held can be asked without taking it, so that asking
          never makes a dead daemon look alive, as it would with flock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from vhostvsock.registry.errors import RegistryError

ENVIRONMENT = "VHOSTVSOCK_RUNTIME_DIR"
SYSTEM_DIR = "/run/vhostvsock"
NOTES = "netns"
_LOCKS = "daemons"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
# struct flock: type, whence, start, length, pid. The pid must be 0 for locks of this kind.
_FLOCK = "hhqqi4x"


def runtime_dir(given: str | None = None) -> str:
    """The directory to use: the argument, the environment, or the one for this user."""
    chosen = given or os.environ.get(ENVIRONMENT)
    if chosen:
        return os.path.abspath(chosen)
    # In a user namespace of one's own one is root as well, but not of /run.
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        return SYSTEM_DIR
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.path.isabs(base):
        return os.path.join(base, "vhostvsock")
    return f"/tmp/vhostvsock-{os.geteuid()}"


def prepare(path: str) -> None:
    """Make the directory and the one for locks, where they are missing, and refuse one that cannot be trusted."""
    try:
        try:
            make_directory(path, 0o755 if path == SYSTEM_DIR else 0o700)
        except FileExistsError:
            pass
        _check(path)
        _make(path, _LOCKS, public=False)
        _make(path, NOTES, public=True)
    except OSError as error:
        raise RegistryError(
            f"cannot use the runtime directory {path}: {error.strerror}", hint=hint_for(error.errno)
        ) from error


def make_directory(path: str, mode: int) -> None:
    """mkdir with this very mode, whatever the umask is, and from the beginning: others may be about to use it."""
    old = os.umask(0o777 & ~mode)
    try:
        os.mkdir(path, mode)
    finally:
        os.umask(old)


def hint_for(number: int | None) -> str:
    """How to mend what the system complains of."""
    if number in (errno.EACCES, errno.EPERM):
        return f"run as a user who may write there, or name another directory in {ENVIRONMENT}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "make room on that file system"
    if number == errno.EROFS:
        return f"make the file system writable, or name another directory in {ENVIRONMENT}"
    if number in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files"
    if number in (errno.ENOMEM, errno.ENOBUFS):
        return "free some memory, or raise its limit"
    if number in (errno.ENOENT, errno.ENOTDIR):
        return f"create the directory, or name another one in {ENVIRONMENT}"
    return f"check that file system, or name another directory in {ENVIRONMENT}"


def boot_id() -> str:
    """What tells this boot from all others."""
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def _make(parent: str, name: str, *, public: bool) -> None:
    path = os.path.join(parent, name)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        _check(path)
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        follow(parent, fd, public=public)
    finally:
        os.close(fd)


def _check(path: str) -> None:
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a directory"
        raise RegistryError(f"{path} is {what}", hint=f"remove it, or name another directory in {ENVIRONMENT}")
    # Below /tmp anybody could have been there first; elsewhere, whoever may write to the parent decided.
    if path.startswith("/tmp/vhostvsock-") and found.st_uid != os.geteuid():
        raise RegistryError(
            f"{path} was made by another user (uid {found.st_uid})",
            hint=f"name a directory of your own in {ENVIRONMENT}",
        )
    if found.st_mode & stat.S_IWOTH:
        raise RegistryError(f"everybody may write to {path}", hint=f"chmod o-w {path}")


def follow(parent: str, fd: int, *, public: bool = False) -> None:
    """Give what was just made the owner of the directory it is in, and its mode; for everybody only what is public."""
    above = os.stat(parent)
    made = os.fstat(fd)
    if (made.st_uid, made.st_gid) != (above.st_uid, above.st_gid) and os.geteuid() == 0:
        os.fchown(fd, above.st_uid, above.st_gid)
    allowed = (0o770 if stat.S_ISDIR(made.st_mode) else 0o660) | (0o005 if public else 0)
    os.fchmod(fd, above.st_mode & (allowed if stat.S_ISDIR(made.st_mode) else allowed & 0o666))


def lock_names(directory: str) -> list[str]:
    """The ids of all daemons that have a lock file, alive or not."""
    return [name.removesuffix(".lock") for name in os.listdir(os.path.join(directory, _LOCKS))]


def remove_lock(directory: str, daemon: str) -> None:
    """Remove the file of a daemon that is known to be gone."""
    try:
        os.unlink(_lock_path(directory, daemon))
    except OSError:
        pass  # gone already, or not for us to remove: it says nothing without its row


def take_lock(directory: str, daemon: str) -> int:
    """Make this process's own lock file and lock it. The lock lives as long as the descriptor that is returned."""
    path = _lock_path(directory, daemon)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        follow(os.path.dirname(path), fd)
        if not try_lock(fd):
            raise BlockingIOError(errno.EAGAIN, "somebody else locked it")
        os.write(fd, f"{os.getpid()}\n".encode())
    except BaseException:
        os.unlink(path)
        os.close(fd)
        raise
    return fd


def try_lock(fd: int) -> bool:
    """Take the write lock of an open file, if nobody has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def unlock(fd: int) -> None:
    """Give the lock back, if it is ours."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


def is_alive(directory: str, daemon: str) -> bool:
    """Whether the daemon holds its lock. Where that cannot be found out, it is taken to be alive."""
    try:
        fd = os.open(_lock_path(directory, daemon), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        # Would a read lock be in the way of someone's write lock? Only the daemon has one.
        asked = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
    except OSError:
        return True
    finally:
        os.close(fd)


def _lock_path(directory: str, daemon: str) -> str:
    return os.path.join(directory, _LOCKS, f"{daemon}.lock")
