"""Any order of events, against a model that is plain dictionaries: several daemons, namespaces, and deaths."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vhostvsock.ids import CID_ANY
from vhostvsock.registry import rules
from vhostvsock.registry.errors import Refused
from vhostvsock.registry.kernel import KernelModes
from vhostvsock.registry.records import Claim, Listener
from vhostvsock.registry.rules import Mode, NetnsId, NetnsState
from vhostvsock.registry.store import Registry

NETNS = [NetnsId(cookie) for cookie in range(1, 6)]
HOST_CID = 5

netns = st.sampled_from(NETNS)
cids = st.integers(2, 8)
ports = st.integers(1022, 1026)
which = st.integers(0, 50)


@dataclass
class Model:
    """What one daemon holds."""

    claims: dict[str, Claim] = field(default_factory=dict)
    listeners: dict[str, Listener] = field(default_factory=dict)


class Daemons(RuleBasedStateMachine):
    """The real registry on one side, `self.held` and `self.states` on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="vv-")
        self.held: dict[Registry, Model] = {}
        self.states: dict[NetnsId, NetnsState] = {}
        self.start()

    def teardown(self) -> None:
        for registry in self.held:
            registry.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def pick(self, number: int) -> tuple[Registry, Model]:
        return list(self.held.items())[number % len(self.held)]

    def domain(self, one: NetnsId) -> rules.Domain:
        return rules.domain_of(one, self.states.get(one, rules.UNDECLARED).mode)

    def all_claims(self) -> list[Claim]:
        return [claim for model in self.held.values() for claim in model.claims.values()]

    def all_listeners(self) -> list[Listener]:
        return [one for model in self.held.values() for one in model.listeners.values()]

    @rule()
    @precondition(lambda self: len(self.held) < 4)
    def start(self) -> None:
        registry = Registry(self.directory, kernel=KernelModes("/nonexistent"), own_cid=lambda: HOST_CID)
        registry.register_daemon(f"bridge{len(self.held)}")
        self.held[registry] = Model()

    @rule(number=which, orderly=st.booleans())
    @precondition(lambda self: len(self.held) > 1)
    def end(self, number: int, orderly: bool) -> None:
        registry, _ = self.pick(number)
        del self.held[registry]
        if orderly:
            registry.close()
        else:
            # What the kernel does when the process is killed: the lock goes, the rows stay.
            os.close(registry._lock)
            registry._database.close()

    @rule(number=which, parent=netns, child=netns, wanted=st.none() | st.sampled_from(Mode))
    def declare(self, number: int, parent: NetnsId, child: NetnsId, wanted: Mode | None) -> None:
        if parent == child or any(c.netns == child for c in (*self.all_claims(), *self.all_listeners())):
            return  # a namespace is declared before anybody can be in it
        before = self.states.get(parent, rules.UNDECLARED)
        try:
            state = self.pick(number)[0].modes.declare_child(parent, child, wanted=wanted)
        except Refused as error:
            impossible = wanted is Mode.GLOBAL and before.child_mode is Mode.LOCAL
            assert error.name == ("EEXIST" if child in self.states else "EPERM")
            assert child in self.states or impossible
        else:
            assert child not in self.states
            assert state == rules.inherit(before, wanted)
            self.states[child] = state

    @rule(number=which, where=netns, cid=st.none() | cids)
    def claim(self, number: int, where: NetnsId, cid: int | None) -> None:
        registry, model = self.pick(number)
        taken = {claim.cid.value for claim in self.all_claims() if claim.domain == self.domain(where)} | {HOST_CID}
        try:
            claim = registry.claim(where, cid, "vm")
        except Refused as error:
            assert error.name == ("EINVAL" if cid == 2 else "EADDRINUSE")
            assert cid == 2 or cid in taken
        else:
            expected = next(n for n in range(3, 99) if n not in taken) if cid is None else cid
            assert claim.cid.value == expected
            assert claim.cid.value not in taken
            model.claims[claim.id] = claim

    @rule(number=which, other=which, running=st.booleans(), release=st.booleans())
    def change(self, number: int, other: int, running: bool, release: bool) -> None:
        registry, model = self.pick(number)
        if not model.claims:
            return
        claim = list(model.claims.values())[other % len(model.claims)]
        if release:
            registry.release(claim)
            del model.claims[claim.id]
            return
        model.claims[claim.id] = registry.set_running(claim, running)

    @rule(number=which, where=netns, cid=st.sampled_from([1, 2, 3, HOST_CID, CID_ANY]), port=ports, root=st.booleans())
    def listen(self, number: int, where: NetnsId, cid: int, port: int, root: bool) -> None:
        registry, model = self.pick(number)
        conflict = any(
            one.domain == self.domain(where) and one.port == port and (one.cid == cid or CID_ANY in (one.cid, cid))
            for one in self.all_listeners()
        )
        expected = None
        if cid == 3:
            expected = "EADDRNOTAVAIL"
        elif port < 1024 and not root:
            expected = "EACCES"
        elif conflict:
            expected = "EADDRINUSE"
        try:
            listener = registry.listen(where, cid, port, privileged=root)
        except Refused as error:
            assert error.name == expected
        else:
            assert expected is None
            model.listeners[listener.id] = listener

    @rule(number=which, other=which)
    def unlisten(self, number: int, other: int) -> None:
        registry, model = self.pick(number)
        if model.listeners:
            listener = list(model.listeners.values())[other % len(model.listeners)]
            registry.unlisten(listener)
            del model.listeners[listener.id]

    @rule()
    def lose_the_file(self) -> None:
        os.unlink(os.path.join(self.directory, "registry.db"))
        for registry in self.held:
            registry.vms()  # each daemon enters itself again
        for one in NETNS:
            assert registry.modes.state(one) == self.states.get(one, rules.UNDECLARED)

    @rule(number=which, viewer=netns, cid=cids, port=ports, to=st.sampled_from([1, 2]))
    def look(self, number: int, viewer: NetnsId, cid: int, port: int, to: int) -> None:
        registry, _ = self.pick(number)
        domain = self.domain(viewer)
        vms = [claim for claim in self.all_claims() if claim.domain == domain and claim.cid.value == cid]
        assert registry.find_vm(viewer, cid) == next(iter(vms), None)
        listeners = [
            one
            for one in self.all_listeners()
            if one.domain == domain and one.port == port and one.cid in (to, CID_ANY)
        ]
        assert len(listeners) <= 1
        assert registry.find_listener(viewer, to, port) == next(iter(listeners), None)

    @invariant()
    def every_daemon_sees_exactly_what_the_living_hold(self) -> None:
        registry = next(iter(self.held))
        assert {claim.id: claim for claim in registry.vms()} == {claim.id: claim for claim in self.all_claims()}
        assert {one.id: one for one in registry.listeners()} == {one.id: one for one in self.all_listeners()}


TestDaemons = Daemons.TestCase
TestDaemons.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
