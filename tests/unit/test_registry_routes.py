"""connect() on the host: every row of Linux's table, for stream and seqpacket."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostvsock.ids import CID_ANY
from vhostvsock.registry.errors import Refused
from vhostvsock.registry.routes import Kind, Parent, View, VisibleVm, Way, connect_route
from vhostvsock.registry.rules import Mode

LOCAL = Mode.LOCAL
UP = Parent(own_cid=7)
RUNNING = VisibleVm(seqpacket=True)
NODEV, NOTYPE, UNREACH = errno.ENODEV, errno.ESOCKTNOSUPPORT, errno.ENETUNREACH
DOWN, RESET = errno.EHOSTUNREACH, errno.ECONNRESET

# (what, cid, view, stream, seqpacket); an answer is a way or an errno.
ROWS = [
    ("no such VM", 42, View(), NODEV, NOTYPE),
    ("no such VM, from a local namespace", 42, View(LOCAL), NODEV, NOTYPE),
    ("no such VM, with a parent", 42, View(parent=UP), Way.PARENT, Way.PARENT),
    ("no such VM, with a parent without seqpacket", 42, View(parent=Parent(7, False)), Way.PARENT, NOTYPE),
    ("no such VM, with a parent, local", 42, View(LOCAL, parent=UP), UNREACH, NOTYPE),
    ("no such VM, with a parent, no fallback", 42, View(parent=UP, g2h_fallback=False), NODEV, NOTYPE),
    ("no such VM, a parent, no fallback, local", 42, View(LOCAL, parent=UP, g2h_fallback=False), NODEV, NOTYPE),
    ("neither VMs nor a parent", 42, View(vms=False), NODEV, NODEV),
    ("a parent and no VMs", 42, View(vms=False, parent=UP), Way.PARENT, Way.PARENT),
    ("a parent, no VMs, no fallback", 42, View(vms=False, parent=UP, g2h_fallback=False), NODEV, NODEV),
    ("a VM that runs", 42, View(vm=RUNNING), Way.VM, Way.VM),
    ("a VM that runs, local", 42, View(LOCAL, vm=RUNNING), Way.VM, Way.VM),
    ("a VM comes before the parent", 42, View(vm=RUNNING, parent=UP), Way.VM, Way.VM),
    ("a VM that runs, local, with a parent", 42, View(LOCAL, vm=RUNNING, parent=UP), Way.VM, Way.VM),
    ("a VM whose guest has no seqpacket", 42, View(vm=VisibleVm()), Way.VM, NOTYPE),
    ("a VM that does not run", 42, View(vm=VisibleVm(running=False)), DOWN, NOTYPE),
    ("a VM that ran with seqpacket", 42, View(vm=VisibleVm(running=False, seqpacket=True)), DOWN, DOWN),
    ("CID 0", 0, View(), NODEV, NODEV),
    ("CID 0, with a parent", 0, View(parent=UP), Way.PARENT, Way.PARENT),
    ("CID 0, with a parent, local", 0, View(LOCAL, parent=UP), UNREACH, NOTYPE),
    ("CID 1 without loopback", 1, View(loopback=False), NODEV, NODEV),
    ("CID 1 without loopback, with a parent", 1, View(loopback=False, parent=UP), Way.PARENT, Way.PARENT),
    ("CID 1", 1, View(), Way.LOOPBACK, Way.LOOPBACK),
    ("CID 1, local", 1, View(LOCAL), Way.LOOPBACK, NOTYPE),
    ("CID 1, nobody listens", 1, View(loopback_listener=False), RESET, RESET),
    ("CID 1, nobody listens, local", 1, View(LOCAL, loopback_listener=False), RESET, NOTYPE),
    ("CID 1, with a parent", 1, View(parent=UP), Way.LOOPBACK, Way.LOOPBACK),
    ("CID 2", 2, View(), Way.LOOPBACK, Way.LOOPBACK),
    ("CID 2, local", 2, View(LOCAL), Way.LOOPBACK, NOTYPE),
    ("CID 2, nobody listens", 2, View(loopback_listener=False), RESET, RESET),
    ("CID 2 without loopback", 2, View(loopback=False), NODEV, NODEV),
    ("CID 2, with a parent", 2, View(parent=UP), Way.PARENT, Way.PARENT),
    ("CID 2, with a parent, local", 2, View(LOCAL, parent=UP), UNREACH, NOTYPE),
    ("CID 2, with a parent, no fallback", 2, View(parent=UP, g2h_fallback=False), Way.PARENT, Way.PARENT),
    ("the host's own CID", 7, View(parent=UP), Way.LOOPBACK, Way.LOOPBACK),
    ("the host's own CID, local", 7, View(LOCAL, parent=UP), Way.LOOPBACK, NOTYPE),
    ("the host's own CID without loopback", 7, View(loopback=False, parent=UP), Way.PARENT, Way.PARENT),
    ("the any CID", CID_ANY, View(), NODEV, NOTYPE),
    ("the any CID, a parent without a device", CID_ANY, View(parent=Parent()), Way.LOOPBACK, Way.LOOPBACK),
]


@pytest.mark.parametrize(("what", "cid", "view", "stream", "seqpacket"), ROWS, ids=[row[0] for row in ROWS])
def test_a_connect_gets_what_linux_gives(
    what: str, cid: int, view: View, stream: Way | int, seqpacket: Way | int
) -> None:
    for kind, expected in ((Kind.STREAM, stream), (Kind.SEQPACKET, seqpacket)):
        route = connect_route(cid, view, kind)
        if isinstance(expected, Way):
            assert route.open
            assert route.check() is expected
        else:
            assert route.errno == expected
            with pytest.raises(Refused) as caught:
                route.check()
            assert caught.value.errno == expected


def test_an_address_that_says_so_goes_up_also_where_a_vm_has_the_cid() -> None:
    assert connect_route(42, View(vm=RUNNING, parent=UP), to_host=True).way is Way.PARENT
    assert connect_route(42, View(vm=RUNNING), to_host=True).errno == NODEV


views = st.builds(
    View,
    mode=st.sampled_from(Mode),
    loopback=st.booleans(),
    loopback_listener=st.booleans(),
    vms=st.booleans(),
    vm=st.none() | st.builds(VisibleVm, running=st.booleans(), seqpacket=st.booleans()),
    parent=st.none() | st.builds(Parent, own_cid=st.sampled_from([7, CID_ANY]), seqpacket=st.booleans()),
    g2h_fallback=st.booleans(),
)


@given(st.sampled_from([0, 1, 2, 3, 7, 42, CID_ANY]), views, st.sampled_from(Kind))
def test_every_route_is_either_a_way_or_a_refusal_that_says_why(cid: int, view: View, kind: Kind) -> None:
    route = connect_route(cid, view, kind)
    assert route.open == (route.why == "")
    assert not route.open or route.way is not None
    if view.mode is LOCAL:
        assert not (route.open and route.way is Way.PARENT)
