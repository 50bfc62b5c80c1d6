"""One served VM against a data plane of our own making: faults, re-creation, and front-ends in their turn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from vhostvsock import vm as vm_module
from vhostvsock.config import VmConfig
from vhostvsock.errors import NativeError
from vhostvsock.ids import Cid
from vhostvsock.native import Event, EventKind
from vhostvsock.registry.store import Registry
from vhostvsock.vm import ServedVm

LIMIT = 20.0


class FakeDevice:
    """Keeps what it was given."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.closed = False
        self.front_ends: list[socket.socket] = []

    def attach(self, front_end: socket.socket, _terms: object) -> None:
        self.front_ends.append(socket.socket(fileno=front_end.detach()))

    def ping(self) -> None:
        pass

    async def aclose(self) -> None:
        self.closed = True
        for each in self.front_ends:
            each.close()


class FakeEngine:
    """Makes devices, and fails to where told."""

    def __init__(self) -> None:
        self.devices: list[FakeDevice] = []
        self.failures = 0

    def new_device(self, _config: object) -> FakeDevice:
        if self.failures:
            self.failures -= 1
            raise NativeError("no more threads", code=-3)
        self.devices.append(FakeDevice(len(self.devices) + 1))
        return self.devices[-1]


@asynccontextmanager
async def served(directory: Path, engine: Any) -> AsyncIterator[ServedVm]:
    registry = Registry()
    registry.register_daemon("none")
    config = VmConfig("web", Cid(42), str(directory / "vh"), str(directory / "v"))
    vm = ServedVm(config, 5.0, registry, lambda *_: None)
    vm.listen()
    vm.start(engine)
    tasks = [asyncio.create_task(vm.serve()), asyncio.create_task(vm.revive(engine))]
    try:
        async with asyncio.timeout(LIMIT):
            yield vm
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await vm.stop()
        registry.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def tell(vm: ServedVm, kind: EventKind, handle: int) -> None:
    vm.handle_event(Event(kind, 20, handle, "because"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_module, "REVIVE_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(vm_module, "HANDOVER_SECONDS", 0.2)


def test_a_device_that_failed_is_made_anew_and_serves_the_next_front_end(short_dir: Path) -> None:
    async def story() -> None:
        engine = FakeEngine()
        async with served(short_dir, engine) as vm:
            with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
                first.connect(str(short_dir / "vh"))
                await until(lambda: len(engine.devices[0].front_ends) == 1)
                tell(vm, EventKind.FAULT, 1)
                await until(lambda: len(engine.devices) == 2)
                assert engine.devices[0].closed
                second.connect(str(short_dir / "vh"))
                await until(lambda: len(engine.devices[1].front_ends) == 1)
                assert vm.handle == 2

    asyncio.run(story())


def test_a_device_that_cannot_be_made_anew_at_first_is_tried_again(short_dir: Path) -> None:
    async def story() -> None:
        engine = FakeEngine()
        async with served(short_dir, engine) as vm:
            engine.failures = 3
            tell(vm, EventKind.FAULT, 1)
            await until(lambda: len(engine.devices) == 2)
            assert engine.failures == 0

    asyncio.run(story())


def test_the_next_front_end_waits_for_the_end_of_the_last_but_not_for_ever(short_dir: Path) -> None:
    async def story() -> None:
        engine = FakeEngine()
        async with served(short_dir, engine) as vm:
            device = engine.devices[0]
            clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
            for each in clients:
                each.connect(str(short_dir / "vh"))
            await until(lambda: len(device.front_ends) == 1)
            clients[1].setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(clients[1], 1) == b""
            assert len(device.front_ends) == 1
            tell(vm, EventKind.DETACHED, 1)
            await until(lambda: len(device.front_ends) == 2)
            for each in clients:
                each.close()

    asyncio.run(story())


def test_the_sockets_stay_while_the_device_is_made_anew(short_dir: Path) -> None:
    async def story() -> None:
        engine = FakeEngine()
        async with served(short_dir, engine) as vm:
            before = (short_dir / "v").stat().st_ino
            tell(vm, EventKind.FAULT, 1)
            await until(lambda: len(engine.devices) == 2)
            assert (short_dir / "v").stat().st_ino == before
        assert list(short_dir.iterdir()) == []

    asyncio.run(story())
