"""Network namespaces made, with the mode that they inherit, and removed.

Before: cli/netns.py. After: the kernel, pyroute2 for the name in /run/netns, and modes.py for the mode.
Rules:  - a namespace's mode is noted before the namespace has a name, so nobody can be in it while it counts as global.
        - the caller's own namespace is left by no one: the work is done in threads that end with it, and not in the
          forked child that pyroute2's own `create` uses, which is unsafe beside the threads of the data plane.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator

from vhostvsock.registry.errors import NetnsError
from vhostvsock.registry.mounts import run_where_seen
from vhostvsock.registry.netns import RUN_DIR, Namespace, enter, in_thread, leave_for_new, names, own
from vhostvsock.registry.rules import Mode, NetnsState, inherit, needs_helper
from vhostvsock.registry.store import Registry

_ROOT_HINT = "run as root (this needs CAP_SYS_ADMIN)"


def create(registry: Registry, name: str, wanted: Mode | None = None) -> NetnsState:
    """Make the namespace `name` from within the one we are in; returns its state."""
    check_name(name)
    if os.path.lexists(os.path.join(RUN_DIR, name)):
        raise _exists(name)
    modes = registry.modes
    if not modes.by_kernel():
        with _new() as made:
            state = modes.declare_child(own(), made.id, name=name, wanted=wanted)
            _give_name(made, name)
        return state
    parent = modes.kernel.here()
    expected = inherit(parent, wanted)
    between = modes.kernel.write_child_mode if needs_helper(parent, expected.mode) else None
    with _new(None if between is None else lambda: between(Mode.LOCAL.value.encode())) as made:
        state = modes.observe(made, name)
        if state.mode is not expected.mode:
            raise NetnsError(f"the kernel made {name} {state.mode}, and not {expected.mode}", hint="try again")
        _give_name(made, name)
    return state


def delete(name: str) -> None:
    """Remove the name. The namespace itself lives on for as long as processes, sockets or VMs are in it."""
    path = os.path.join(RUN_DIR, name)
    if not name or "/" in name or name in (".", "..") or not os.path.lexists(path):
        known = ", ".join(names()[:8]) or "none at all"
        raise NetnsError(f"there is no network namespace {name!r}", hint=f"there are: {known}")
    from pyroute2 import netns

    try:
        netns.remove(name)
    except FileNotFoundError:
        return  # somebody was faster
    except OSError as error:
        # The name is a mount point: where it could not be unmounted, it cannot be unlinked.
        hint = _ROOT_HINT if os.geteuid() != 0 else "is it mounted elsewhere (another mount namespace)?"
        raise NetnsError(f"cannot remove the network namespace {name}: {error.strerror}", hint=hint) from error


def check_name(name: str) -> None:
    """Refuse names that cannot be files, or that would be mistaken for something else."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._:@+-]{0,63}", name):
        raise NetnsError(
            f"{name!r} is not a usable name of a namespace",
            hint="use 1 to 64 letters, digits, and . _ : @ + -, a letter or digit first",
        )
    if name.isdecimal():
        raise NetnsError(f"the name {name} could be mistaken for a pid", hint="put a letter into it")


@contextlib.contextmanager
def _new(in_between: Callable[[], None] | None = None) -> Iterator[Namespace]:
    """A new namespace, which ends with the `with` unless something else holds it by then."""

    def make() -> Namespace:
        leave_for_new()
        if in_between is not None:
            in_between()
            leave_for_new()
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        return Namespace(own(), fd, "the new namespace")

    with in_thread(make) as made:
        yield made


def _give_name(netns: Namespace, name: str) -> None:
    from pyroute2 import netns as pyroute2_netns

    path = os.path.join(RUN_DIR, name)

    def mount() -> None:
        enter(netns.fd, name)
        pyroute2_netns.attach(name, "thread-self")

    try:
        with _directory_locked():
            if os.path.lexists(path):
                raise _exists(name)
            try:
                run_where_seen(RUN_DIR, mount)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(path)  # a file that nothing was mounted on
                raise
    except OSError as error:
        hint = _ROOT_HINT if isinstance(error, PermissionError) else None
        raise NetnsError(f"cannot name the network namespace {name}: {error.strerror or error}", hint=hint) from error


@contextlib.contextmanager
def _directory_locked() -> Iterator[None]:
    """As iproute2 does: two who make the first namespaces at once would both mount the directory on itself."""
    os.makedirs(RUN_DIR, mode=0o755, exist_ok=True)
    fd = os.open(RUN_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _exists(name: str) -> NetnsError:
    return NetnsError(
        f"the network namespace {name} exists already",
        hint=f"choose another name, or remove it: `vhostvsock netns del {name}`",
    )
