"""The rules of namespaces, CIDs and ports, each row of Linux's behaviour by itself."""

from __future__ import annotations

import contextlib
import errno
import itertools
import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostvsock.errors import VhostvsockError
from vhostvsock.ids import CID_ANY, PORT_ANY, Cid
from vhostvsock.registry import rules
from vhostvsock.registry.errors import Refused
from vhostvsock.registry.rules import Mode, NetnsId, NetnsState, born

GLOBAL, LOCAL = Mode.GLOBAL, Mode.LOCAL
FRESH = NetnsState()
LOCAL_NS = born(LOCAL)

modes = st.sampled_from(Mode)
# Few cookies, so that equal ones are common; each with a mode of its own.
spaces = st.tuples(st.integers(1, 6).map(NetnsId), modes)
worlds = st.dictionaries(st.integers(1, 6).map(NetnsId), modes, min_size=3)


@contextlib.contextmanager
def refused(number: int, what: str | None = None) -> Iterator[None]:
    with pytest.raises(Refused, match=what) as caught:
        yield
    assert caught.value.errno == number


# Identity and domains -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cookie", [0, -1, 1 << 64])
def test_what_is_no_cookie_is_no_namespace(cookie: int) -> None:
    with pytest.raises(ValueError, match="cookie"):
        NetnsId(cookie)


@pytest.mark.parametrize(
    ("a", "b", "same", "reached"),
    [
        (GLOBAL, GLOBAL, True, True),
        (LOCAL, LOCAL, True, True),
        (GLOBAL, GLOBAL, False, True),
        (GLOBAL, LOCAL, False, False),
        (LOCAL, GLOBAL, False, False),
        (LOCAL, LOCAL, False, False),
    ],
)
def test_one_reaches_the_same_namespace_and_global_ones_reach_each_other(
    a: Mode, b: Mode, same: bool, reached: bool
) -> None:
    assert rules.may_reach(NetnsId(1), a, NetnsId(1 if same else 2), b) is reached


@given(worlds)
def test_reachability_is_an_equivalence_and_its_classes_are_the_domains(world: dict[NetnsId, Mode]) -> None:
    def reach(a: NetnsId, b: NetnsId) -> bool:
        return rules.may_reach(a, world[a], b, world[b])

    for a, b, c in itertools.product(world, repeat=3):
        assert reach(a, a)
        assert reach(a, b) == reach(b, a)
        assert not (reach(a, b) and reach(b, c)) or reach(a, c)
        assert reach(a, b) == (rules.domain_of(a, world[a]) == rules.domain_of(b, world[b]))


# child_ns_mode ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (b"local", LOCAL),
        (b"local\n", LOCAL),
        (b"local\n\n", LOCAL),
        (b"local\0", LOCAL),
        (b"local\0x", LOCAL),
        (b"local\nx", LOCAL),
        (b"global", GLOBAL),
        (b"global\n", GLOBAL),
        (b"global\0", GLOBAL),
    ],
)
def test_a_mode_is_read_up_to_the_first_nul_or_line_end(data: bytes, mode: Mode) -> None:
    assert rules.parse_child_mode(data) is mode


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"\0",
        b"LOCAL",
        b"Global",
        b"local ",
        b" local",
        b"loca",
        b"localx",
        b"1",
        b"0",
        b"local\n\n\n",
        b"local\0xx",
        b"global\nx",
        b"\nlocal",
        b"\xff\xfe",
        b"x" * 5000,
    ],
)
@pytest.mark.parametrize("locked", [False, True])
def test_what_is_not_exactly_a_mode_is_einval_also_when_locked(data: bytes, locked: bool) -> None:
    with refused(errno.EINVAL):
        rules.write_child_mode(NetnsState(GLOBAL, GLOBAL, locked), data, allowed=True)


@given(st.binary(max_size=12))
def test_a_write_is_nothing_or_a_mode_or_einval(data: bytes) -> None:
    try:
        found = rules.parse_child_mode(data)
    except Refused as error:
        assert error.errno == errno.EINVAL
        assert data
    else:
        assert (found is None) == (data == b"")
        assert len(data) < 8


@pytest.mark.parametrize("state", [FRESH, LOCAL_NS, NetnsState(GLOBAL, LOCAL, True)])
def test_a_write_of_nothing_changes_nothing_and_locks_nothing(state: NetnsState) -> None:
    assert rules.write_child_mode(state, b"", allowed=True) == state


def test_a_failed_write_does_not_lock() -> None:
    with refused(errno.EINVAL):
        rules.write_child_mode(FRESH, b"x", allowed=True)
    assert rules.write_child_mode(FRESH, b"local", allowed=True).child_mode is LOCAL


@pytest.mark.parametrize("word", [b"global", b"local"])
def test_the_first_write_locks_also_with_the_value_it_has(word: bytes) -> None:
    mode = Mode(word.decode())
    after = rules.write_child_mode(FRESH, word, allowed=True)
    assert after == NetnsState(GLOBAL, mode, True)
    assert rules.write_child_mode(after, word, allowed=True) == after
    other = b"local" if mode is GLOBAL else b"global"
    with refused(errno.EBUSY, "before"):
        rules.write_child_mode(after, other, allowed=True)


def test_a_local_namespace_cannot_have_global_children_also_after_it_was_locked() -> None:
    with refused(errno.EPERM, "for ever"):
        rules.write_child_mode(LOCAL_NS, b"global", allowed=True)
    locked = rules.write_child_mode(LOCAL_NS, b"local", allowed=True)
    with refused(errno.EPERM):
        rules.write_child_mode(locked, b"global", allowed=True)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"global", b"local"])
def test_who_may_not_open_the_file_gets_eacces_before_anything_else(data: bytes) -> None:
    with refused(errno.EACCES):
        rules.write_child_mode(NetnsState(LOCAL, LOCAL, True), data, allowed=False)


@given(st.lists(st.sampled_from([b"", b"x", b"local", b"global", b"local\n"]), max_size=8), modes)
def test_a_child_mode_changes_at_most_once_and_a_mode_never(writes: list[bytes], mode: Mode) -> None:
    state = born(mode)
    seen = [state.child_mode]
    for data in writes:
        try:
            state = rules.write_child_mode(state, data, allowed=True)
        except Refused:
            pass
        assert state.mode is mode
        if state.child_mode is not seen[-1]:
            seen.append(state.child_mode)
    assert len(seen) <= 2
    assert mode is GLOBAL or seen == [LOCAL]


# Inheritance --------------------------------------------------------------------------------------------------------

PARENTS = [NetnsState(m, c, lock) for m, c in [(GLOBAL, GLOBAL), (GLOBAL, LOCAL), (LOCAL, LOCAL)] for lock in (0, 1)]


@pytest.mark.parametrize("parent", PARENTS)
def test_a_namespace_inherits_the_child_mode_and_starts_unlocked(parent: NetnsState) -> None:
    assert rules.inherit(parent) == NetnsState(parent.child_mode, parent.child_mode, False)


def makeable(parent: NetnsState, depth: int = 3) -> set[Mode]:
    """The modes of all namespaces that can be made from within `parent` by unshare and writes in what was made."""
    child = born(parent.child_mode)
    found = {child.mode}
    if depth:
        for word in (b"global", b"local"):
            try:
                found |= makeable(rules.write_child_mode(child, word, allowed=True), depth - 1)
            except Refused:
                pass
    return found


@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("wanted", list(Mode))
def test_a_mode_can_be_insisted_on_exactly_where_the_kernel_has_a_way_to_it(parent: NetnsState, wanted: Mode) -> None:
    if wanted in makeable(parent):
        assert rules.inherit(parent, wanted) == born(wanted)
        direct = rules.inherit(parent).mode is wanted
        assert rules.needs_helper(parent, wanted) is not direct
    else:
        with refused(errno.EPERM):
            rules.inherit(parent, wanted)


def test_all_descendants_of_a_local_namespace_are_local() -> None:
    assert makeable(LOCAL_NS) == {LOCAL}


# CIDs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, 2, 0xFFFF_FFFF, 1 << 32, (1 << 32) + 42, (1 << 64) - 1, -1])
def test_a_cid_that_no_guest_can_have_is_einval(value: int) -> None:
    with refused(errno.EINVAL, "CID"):
        rules.check_cid(value)


def test_a_free_cid_may_be_claimed() -> None:
    rules.check_claim(Cid(42), host_cid=7, holder=None)


def test_the_hosts_own_cid_is_taken_and_a_taken_one_is_told_with_its_holder() -> None:
    with refused(errno.EADDRINUSE, "this host's own"):
        rules.check_claim(Cid(42), host_cid=42, holder=None)
    with refused(errno.EADDRINUSE, "CID 42 is taken by VM 'web'"):
        rules.check_claim(Cid(42), host_cid=None, holder="VM 'web'")


@given(st.sets(st.integers(3, 40)), st.none() | st.integers(3, 40))
def test_an_automatic_cid_is_the_lowest_that_is_free(taken: set[int], host: int | None) -> None:
    found = rules.auto_cid(taken, host).value
    assert found not in taken | {host}
    assert all(cid in taken | {host} for cid in range(3, found))


# Ports --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cid", "host", "fine"),
    [
        (CID_ANY, None, True),
        (2, None, True),
        (1, None, True),
        (7, 7, True),
        (7, None, False),
        (0, None, False),
        (42, 7, False),
        (0, 7, False),
    ],
)
def test_one_binds_to_a_cid_of_the_host_only(cid: int, host: int | None, fine: bool) -> None:
    if fine:
        rules.check_bind_cid(cid, host_cid=host)
    else:
        with refused(errno.EADDRNOTAVAIL):
            rules.check_bind_cid(cid, host_cid=host)


@pytest.mark.parametrize(("cid", "loopback", "vms"), [(1, False, True), (2, True, False)])
def test_what_cannot_be_served_cannot_be_bound_to(cid: int, loopback: bool, vms: bool) -> None:
    with refused(errno.EADDRNOTAVAIL):
        rules.check_bind_cid(cid, host_cid=None, loopback=loopback, vms=vms)


@pytest.mark.parametrize("port", [0, 1, 22, 1023])
def test_a_low_port_needs_privilege_and_that_is_asked_before_it_is_looked_up(port: int) -> None:
    with refused(errno.EACCES, "privileged"):
        rules.check_bind_port(port, privileged=False, holder="somebody")
    with refused(errno.EADDRINUSE, "somebody"):
        rules.check_bind_port(port, privileged=True, holder="somebody")
    rules.check_bind_port(port, privileged=True, holder=None)


def test_other_ports_need_none() -> None:
    rules.check_bind_port(1024, privileged=False, holder=None)
    rules.check_bind_port(PORT_ANY - 1, privileged=False, holder=None)
    with refused(errno.EINVAL):
        rules.check_bind_port(1 << 32, privileged=True, holder=None)


def test_a_port_that_nobody_named_starts_at_random_and_goes_on_from_there() -> None:
    assert rules.autobind(None, 5000, lambda _: False) == (5000, 5001)
    assert rules.autobind(5001, 9, lambda _: False) == (5001, 5002)
    assert rules.autobind(5001, 9, {5001, 5002}.__contains__) == (5003, 5004)


@pytest.mark.parametrize("cursor", [PORT_ANY, 0, 1023])
def test_the_cursor_wraps_to_the_first_port_that_needs_no_privilege(cursor: int) -> None:
    assert rules.autobind(cursor, 5, lambda _: False) == (1024, 1025)


def test_the_last_port_is_given_out_and_the_any_port_never() -> None:
    assert rules.autobind(PORT_ANY - 1, 5, lambda _: False) == (PORT_ANY - 1, PORT_ANY)


def test_after_24_ports_that_are_taken_it_gives_up_and_has_moved_on() -> None:
    asked: list[int] = []
    with pytest.raises(rules.NoFreePort) as caught:
        rules.autobind(None, 2000, lambda port: not asked.append(port))
    assert asked == list(range(2000, 2024))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert rules.autobind(caught.value.cursor, 0, lambda _: False)[0] == 2024


# Errors -------------------------------------------------------------------------------------------------------------


def test_a_refusal_is_an_oserror_with_errno_one_sentence_and_a_hint() -> None:
    error = Refused(errno.EADDRINUSE, "CID 42 is taken by VM 'web'", hint="choose another")
    assert isinstance(error, OSError)
    assert isinstance(error, VhostvsockError)
    assert (error.errno, error.strerror, error.hint) == (
        errno.EADDRINUSE,
        "CID 42 is taken by VM 'web'",
        "choose another",
    )
    assert str(error) == "CID 42 is taken by VM 'web' (EADDRINUSE)"
    assert error.exit_code == 1
    again = pickle.loads(pickle.dumps(error))
    assert (again.errno, str(again), again.hint) == (error.errno, str(error), error.hint)
