"""What a VM does with the events of its device, without one."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vhostvsock.bridge.caller import Caller
from vhostvsock.bridge.protocol import Wish
from vhostvsock.config import VmConfig
from vhostvsock.ids import Cid
from vhostvsock.native import Device, Engine, Event, EventKind
from vhostvsock.registry.errors import Refused
from vhostvsock.registry.records import Claim, Daemon
from vhostvsock.registry.rules import Domain, Mode, NetnsId
from vhostvsock.registry.store import Registry
from vhostvsock.vm import ServedVm


class FakeRegistry:
    """Remembers what was released; the namespace of no socket can be found out."""

    def __init__(self) -> None:
        self.released: list[object] = []
        self.modes = SimpleNamespace(admit=self._admit)

    def _admit(self, _: object) -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def release(self, claim: object) -> None:
        self.released.append(claim)


CLAIM = cast("Claim", SimpleNamespace(cid=Cid(77), name="a"))


async def served(registry: FakeRegistry, cid: Cid | None = None) -> ServedVm:
    return ServedVm(VmConfig("a", cid, "a.vh", "a.v"), 5.0, cast("Registry", registry), lambda *_: None)


def event(kind: EventKind, **more: Any) -> Event:
    return Event(kind, logging.INFO, 1, more.pop("text", ""), **more)


def test_a_namespace_that_cannot_be_looked_up_is_not_answered_and_ends_nothing() -> None:
    async def main() -> None:
        vm = await served(FakeRegistry())
        learned: list[object] = []
        vm._device = cast("Device", SimpleNamespace(learn_netns=lambda *args: learned.append(args)))
        one, two = socket.socketpair()
        with one:
            vm.handle_event(event(EventKind.NETNS, value=9, sock=two))
            assert one.recv(1) == b""  # and its socket is closed
        assert learned == []

    asyncio.run(main())


@pytest.mark.parametrize("kind", [EventKind.DETACHED, EventKind.FAULT])
def test_the_status_tells_the_cid_that_a_vm_has_or_will_have(kind: EventKind) -> None:
    async def main() -> None:
        registry = FakeRegistry()
        vm = await served(registry)
        said: list[object] = []
        vm.on_state = lambda: said.append(vm.cid)
        vm.claim = CLAIM
        vm.handle_event(event(EventKind.ATTACHED))
        vm.handle_event(event(kind))
        assert said == [77, "auto"]
        assert registry.released == [CLAIM]
        assert (await served(registry, Cid(42))).cid == 42

    asyncio.run(main())


def test_a_vm_whose_device_failed_is_shown_with_the_reason_to_those_who_saw_it_before() -> None:
    async def main() -> None:
        vm = await served(FakeRegistry())
        here, elsewhere = NetnsId(5), NetnsId(6)
        daemon = Daemon("d", 1, "bridge")
        vm.claim = Claim("c", "a", Cid(77), here, Domain(here), True, daemon)
        vm.handle_event(event(EventKind.FAULT, text="a panic"))
        row = vm.row(here, Mode.LOCAL)
        assert row is not None
        assert (row["state"], row["reason"], row["cid"], row["connections"]) == ("failed", "a panic", 77, 0)
        assert "counters" not in row
        assert (vm.row(here, Mode.LOCAL, counters=True) or {})["counters"] == {}
        assert vm.row(elsewhere, Mode.GLOBAL) is None

    asyncio.run(main())


def test_what_was_claimed_after_a_fault_is_free_when_the_device_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        registry = FakeRegistry()
        vm = await served(registry)
        vm.handle_event(event(EventKind.FAULT))
        vm.claim = CLAIM
        monkeypatch.setattr(vm, "start", lambda _: setattr(vm, "_device", object()))
        task = asyncio.create_task(vm.revive(cast("Engine", None)))
        while vm._device is None:
            await asyncio.sleep(0.01)
        task.cancel()
        assert (vm.claim, registry.released) == (None, [CLAIM])

    asyncio.run(main())


def test_without_a_device_clients_and_answers_are_refused() -> None:
    async def main() -> None:
        vm = await served(FakeRegistry())
        one, two = socket.socketpair()
        with one, two:
            with pytest.raises(Refused, match="EHOSTUNREACH"):
                vm.connect(Caller(one), 5, Wish())
            with pytest.raises(Refused, match="EHOSTUNREACH"):
                vm.answer(1, two)
            assert two.fileno() >= 0

    asyncio.run(main())
