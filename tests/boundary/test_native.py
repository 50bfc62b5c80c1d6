"""The boundary to the native library: handles, lifetimes, errors, events, fork. No guest and no front-end of note."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostvsock import native
from vhostvsock.errors import BusyError, NativeError, StaleHandleError
from vhostvsock.ids import Cid
from vhostvsock.native import Device, DeviceConfig, Engine, Event, EventKind

LIMIT = 20.0
# A hang inside the native library cannot be interrupted: the thread method ends the process and shows where.
pytestmark = pytest.mark.timeout(60, method="thread")


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as made:
        yield made


@pytest.fixture
def listener(short_dir: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(short_dir / "v.sock"))
        sock.listen()
        sock.setblocking(False)
        yield sock


@pytest.fixture
def config(listener: socket.socket) -> DeviceConfig:
    return DeviceConfig("test", Cid(42), listener.fileno(), listener.getsockname())


def wait_event(engine: Engine, kind: EventKind) -> Event:
    """The next event of this kind; others are passed over."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        event = engine.next_event()
        if event is None:
            select.select([engine.event_fd], [], [], 0.1)
        elif event.kind is kind:
            return event
    raise AssertionError(f"{kind.name} never came")


def test_an_engine_is_closed_by_its_context_and_closing_again_is_fine() -> None:
    with Engine() as engine:
        assert engine.handle != 0
        assert engine.next_event() is None
    assert engine.closed
    engine.close()
    with pytest.raises(StaleHandleError, match="closed"):
        _ = engine.handle


def test_engines_that_come_and_go_leave_no_descriptor_and_no_thread() -> None:
    def used() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    Engine().close()
    before = used()
    for _ in range(20):
        Engine().close()
    assert used() == before


def test_devices_that_come_and_go_leave_no_descriptor_and_no_thread(engine: Engine, config: DeviceConfig) -> None:
    def used() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    before = used()
    for _ in range(20):
        with engine.new_device(config) as device:
            assert device.handle != 0
    assert used() == before


def test_closing_the_engine_ends_its_devices(config: DeviceConfig) -> None:
    with Engine() as engine:
        device = engine.new_device(config)
    with pytest.raises(StaleHandleError):
        device.stats()
    with pytest.raises(StaleHandleError):
        device.close()
    device.close()


def test_a_device_keeps_its_own_copy_of_the_listener(engine: Engine, short_dir: Path) -> None:
    path = str(short_dir / "own")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        sock.setblocking(False)
        device = engine.new_device(DeviceConfig("test", Cid(42), sock.fileno(), path))
    with device, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT)
        client.connect(path)
        client.sendall(b"CONNECT 5\n")
        try:
            assert client.recv(10) == b""
        except ConnectionResetError:
            pass


def test_a_freed_device_is_unknown_and_freeing_it_twice_is_an_error_not_a_crash(
    engine: Engine, config: DeviceConfig
) -> None:
    device = engine.new_device(config)
    handle = device.handle
    device.close()
    twin = Device(handle, "twin")
    with pytest.raises(StaleHandleError):
        twin.stats()
    with pytest.raises(StaleHandleError):
        twin.close()


def test_a_stale_handle_never_reaches_a_newer_device(engine: Engine, config: DeviceConfig) -> None:
    seen = set()
    for _ in range(10):
        with engine.new_device(config) as device:
            assert device.handle not in seen
            seen.add(device.handle)


def test_random_handles_are_refused(engine: Engine) -> None:
    dice = random.Random(1)
    for _ in range(500):
        for call in (Device.stats, Device.close):
            twin = Device(dice.randrange(1, 1 << 64) | 1 << 40, "twin")
            with pytest.raises(StaleHandleError):
                call(twin)
            twin._disown()


def test_an_engine_is_no_device_and_a_device_is_no_engine(engine: Engine, config: DeviceConfig) -> None:
    with engine.new_device(config) as device:
        twin = Device(engine.handle, "twin")
        if engine.handle != device.handle:
            with pytest.raises(StaleHandleError):
                twin.stats()
        twin._disown()


@pytest.mark.parametrize("null", ["engine", "event_fd", "config", "device", "wish", "stats", "event"])
def test_a_null_pointer_is_an_error_not_a_crash(engine: Engine, config: DeviceConfig, null: str) -> None:
    ffi, lib = native._ffi, native._lib
    nothing = ffi.NULL
    value = ffi.new("uint64_t *")
    number = ffi.new("int32_t *")
    with engine.new_device(config) as device:
        status = {
            "engine": lambda: lib.vhv_engine_new(nothing, number, nothing),
            "event_fd": lambda: lib.vhv_engine_new(value, nothing, nothing),
            "config": lambda: lib.vhv_device_new(engine.handle, nothing, value, nothing),
            "device": lambda: lib.vhv_device_new(engine.handle, ffi.new("VhvDeviceConfig *"), nothing, nothing),
            "wish": lambda: lib.vhv_device_connect(device.handle, os.dup(0), -1, nothing, nothing),
            "stats": lambda: lib.vhv_device_stats(device.handle, nothing, nothing),
            "event": lambda: lib.vhv_next_event(engine.handle, nothing, nothing),
        }[null]()
    assert status == native.ERR_ARGUMENT


def test_a_failure_carries_its_code_and_a_message(engine: Engine) -> None:
    with pytest.raises(NativeError) as caught:
        engine.new_device(DeviceConfig("web", Cid(42), 1 << 20, "/tmp/none"))
    assert caught.value.code in (native.ERR_ARGUMENT, native.ERR_OS)
    assert str(caught.value).startswith("vm web: cannot start the device: ")


def test_the_listener_for_messages_is_served_and_may_be_missing_or_wrong(
    engine: Engine, config: DeviceConfig, short_dir: Path
) -> None:
    with pytest.raises(NativeError):
        engine.new_device(dataclasses.replace(config, seqpacket_listener=1 << 20))
    path = str(short_dir / "v.sock.seqpacket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        changed = dataclasses.replace(config, seqpacket_listener=listener.fileno())
        with engine.new_device(changed) as device, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(LIMIT)
            client.connect(path)
            client.send(b"CONNECT 80\n")
            assert client.recv(1) == b""
            assert device.stats()["refused_no_seqpacket"] == 1


def test_a_listener_that_is_no_socket_does_no_harm(engine: Engine, short_dir: Path) -> None:
    with open(short_dir / "file", "wb") as file:
        try:
            engine.new_device(DeviceConfig("web", Cid(42), file.fileno(), "/tmp/none")).close()
        except NativeError as error:
            assert error.code in (native.ERR_ARGUMENT, native.ERR_OS)


def test_a_name_or_path_of_any_bytes_is_accepted_or_refused(engine: Engine, listener: socket.socket) -> None:
    for name, path in (("ä" * 500, "/tmp/x"), ("", ""), ("web", "/" + "x" * 5000), ("\t", "/tmp/\udcff")):
        try:
            engine.new_device(DeviceConfig(name, Cid(42), listener.fileno(), path)).close()
        except NativeError as error:
            assert error.code in (native.ERR_ARGUMENT, native.ERR_OS)


def test_a_front_end_is_announced_at_its_coming_and_going(engine: Engine, config: DeviceConfig) -> None:
    with engine.new_device(config) as device:
        for _ in range(5):
            ours, theirs = socket.socketpair()
            with ours:
                device.attach(theirs)
                assert theirs.fileno() == -1, "the native side owns it now"
                assert wait_event(engine, EventKind.ATTACHED).device == device.handle
            assert wait_event(engine, EventKind.DETACHED).device == device.handle


def test_a_second_front_end_is_busy_and_its_socket_is_closed(engine: Engine, config: DeviceConfig) -> None:
    with engine.new_device(config) as device:
        first, one = socket.socketpair()
        second, two = socket.socketpair()
        with first, second:
            device.attach(one)
            with pytest.raises(BusyError):
                device.attach(two)
            second.settimeout(LIMIT)
            assert second.recv(1) == b""
            first.setblocking(False)
            with pytest.raises(BlockingIOError):
                first.recv(1)


def test_closing_a_device_with_a_front_end_that_stopped_in_mid_message_does_not_hang(
    engine: Engine, config: DeviceConfig
) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with engine.new_device(config) as device:
            device.attach(theirs)
            ours.sendall(b"\x01\x00\x00")  # a quarter of a header
            wait_event(engine, EventKind.ATTACHED)
            started = time.monotonic()
        assert time.monotonic() - started < 5.0


def test_counters_are_numbers_with_names(engine: Engine, config: DeviceConfig) -> None:
    with engine.new_device(config) as device:
        stats = device.stats()
    assert stats
    assert all(isinstance(value, int) and value >= 0 for value in stats.values())


def test_events_arrive_in_the_loop(engine: Engine, config: DeviceConfig) -> None:
    async def watch() -> list[EventKind]:
        seen: list[EventKind] = []
        done = asyncio.Event()

        def handle(event: Event) -> None:
            if event.kind is not EventKind.LOG:
                seen.append(event.kind)
            if event.kind is EventKind.DETACHED:
                done.set()

        engine.start_events(asyncio.get_running_loop(), handle)
        with engine.new_device(config) as device:
            ours, theirs = socket.socketpair()
            device.attach(theirs)
            ours.close()
            async with asyncio.timeout(LIMIT):
                await done.wait()
        engine.stop_events()
        return seen

    assert asyncio.run(watch()) == [EventKind.ATTACHED, EventKind.DETACHED]


def test_the_event_descriptor_rests_when_nothing_waits(engine: Engine, config: DeviceConfig) -> None:
    with engine.new_device(config) as device:
        ours, theirs = socket.socketpair()
        device.attach(theirs)
        ours.close()
        wait_event(engine, EventKind.DETACHED)
    while engine.next_event() is not None:
        pass
    assert select.select([engine.event_fd], [], [], 0)[0] == []


def test_all_functions_can_be_called_from_many_threads(engine: Engine, short_dir: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(short_dir / f"t{number}"))
                sock.listen()
                sock.setblocking(False)
                for _ in range(10):
                    with engine.new_device(
                        DeviceConfig(f"t{number}", Cid(100 + number), sock.fileno(), sock.getsockname())
                    ) as device:
                        device.stats()
                        ours, theirs = socket.socketpair()
                        with ours:
                            device.attach(theirs)
                        engine.next_event()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_a_child_of_fork_is_refused_and_may_end_without_harm_to_the_parent(config: DeviceConfig) -> None:
    # In a process of its own: a fork of the process that runs the tests would bring its threads' locks along.
    code = f"""
import os, socket, sys
from vhostvsock.native import Engine, DeviceConfig
from vhostvsock.errors import StaleHandleError
from vhostvsock.ids import Cid
sock = socket.socket(socket.AF_UNIX); sock.bind({config.uds_path + "2"!r}); sock.listen(); sock.setblocking(False)
with Engine() as engine, engine.new_device(DeviceConfig("f", Cid(42), sock.fileno(), "x")) as device:
    child = os.fork()
    if child == 0:
        try:
            device.stats()
        except StaleHandleError as error:
            assert "forked" in str(error)
            device.close()
            engine.close()
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    device.stats()
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr


def test_an_object_that_is_dropped_while_open_warns() -> None:
    engine = Engine()
    handle = engine.handle
    with pytest.warns(ResourceWarning, match="Engine was never closed"):
        del engine
        gc.collect()
    native._call("free", native._lib.vhv_engine_free, handle)


def test_records_have_the_sizes_that_both_sides_agree_on() -> None:
    ffi = native._ffi
    assert ffi.sizeof("VhvError") == 256
    assert ffi.sizeof("VhvEvent") == 512
    assert ffi.sizeof("VhvWish") == 16
