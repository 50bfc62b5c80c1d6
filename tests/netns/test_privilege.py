"""Who may change a namespace's settings: root, and whoever administers the user namespace that owns it."""

from __future__ import annotations

import subprocess
import sys

from conftest import lacking

from vhostvsock.registry.netns import open_namespace, own
from vhostvsock.registry.privilege import CAP_NET_ADMIN, has_capability, may_administer

from .conftest import nameless

# Everything is imported before the user is changed: another user may not be able to read this Python.
ASK = """
import ctypes, os, sys
from vhostvsock.registry.netns import open_namespace, Namespace, NetnsId
from vhostvsock.registry.privilege import may_administer
libc = ctypes.CDLL(None, use_errno=True)
passed_on, *steps = sys.argv[1:]
for step in steps:
    if step == "nobody":
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    elif step == "forget capabilities":
        # version 3 of capset, for this thread: effective, permitted and inheritable sets of nothing
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        assert libc.capset(header, (ctypes.c_uint32 * 6)()) == 0
    elif step == "userns":
        if libc.unshare(0x10000000 | 0x40000000) != 0:
            sys.exit("no user namespaces: " + os.strerror(ctypes.get_errno()))
if passed_on:
    print(may_administer(Namespace(NetnsId(1), int(passed_on), "passed on")))
else:
    with open_namespace() as found:
        print(may_administer(found))
"""


def ask(*steps: str, about: int | None = None) -> str:
    """What `may_administer` says after these steps, of its own namespace or of a descriptor that is passed on."""
    command = [sys.executable, "-c", ASK, "" if about is None else str(about), *steps]
    passed = () if about is None else (about,)
    done = subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=passed)
    if "no user namespaces" in done.stderr:
        lacking(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_root_may_everywhere() -> None:
    with open_namespace() as ours, nameless() as there:
        assert may_administer(ours)
        assert may_administer(there)
        assert has_capability(CAP_NET_ADMIN)


def test_a_user_may_not_in_roots_namespace() -> None:
    assert ask("nobody") == "False"


def test_root_may_without_any_capability() -> None:
    assert ask("forget capabilities") == "True"


def test_a_user_may_in_a_namespace_of_a_user_namespace_of_their_own() -> None:
    assert ask("nobody", "userns") == "True"


def test_a_user_may_no_more_once_the_capabilities_there_are_given_up() -> None:
    assert ask("nobody", "userns", "forget capabilities") == "False"


def test_who_is_root_in_a_user_namespace_has_nothing_to_say_outside() -> None:
    with open_namespace() as ours:
        assert ask("nobody", "userns", about=ours.fd) == "False"


def test_who_made_a_user_namespace_may_from_outside_it_too() -> None:
    maker = "import ctypes, os, sys; ctypes.CDLL(None).unshare(0x50000000); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", maker], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with open_namespace(str(process.pid)) as there:
            if there.id == own():
                lacking("user namespaces")
            # It was made by root, so it is root's; of another user's nobody but that user is.
            assert ask(about=there.fd) == "True"
            assert ask("nobody", about=there.fd) == "False"
        process.communicate()
