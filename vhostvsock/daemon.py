"""The daemon: start everything in order, run until told to stop, stop in reverse.

Before: cli/run.py with a checked configuration. After: vm.py for each VM, native.py for the data plane.
Order:  registry - all sockets (each can fail, nothing is served yet) - engine - devices - events - front-ends and
        bridge - ready.
Rules:  - Ready is said when every socket listens and every device answers, and not before.
        - The first SIGTERM or SIGINT ends cleanly; a second one ends at once, by the kernel's default action.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from vhostvsock import memory
from vhostvsock.bridge import peers, places
from vhostvsock.bridge.server import Bridge
from vhostvsock.config import Access, DaemonConfig
from vhostvsock.errors import SocketError
from vhostvsock.native import EVENT_BATCH, Engine, Event, EventKind
from vhostvsock.paths import seqpacket_path
from vhostvsock.registry.errors import NetnsError
from vhostvsock.registry.kernel import KernelModes, host_cid
from vhostvsock.registry.netns import cookie_of_socket, namespace_of_socket, own
from vhostvsock.registry.store import Registry
from vhostvsock.sockets import ListeningSocket
from vhostvsock.systemd import watchdog
from vhostvsock.systemd.activation import PassedSockets
from vhostvsock.systemd.notify import notify
from vhostvsock.vm import ServedVm

# As many VMs as a person reads in one line; the log has the rest.
_NAMED_IN_READY_LINE = 8
# After an unforeseen failure in a task of ours.
_RETRY_SECONDS = 1.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger("vhostvsock.daemon")


class Daemon:
    """Serves the VMs of one configuration."""

    def __init__(self, config: DaemonConfig, log_level: int, passed: PassedSockets | None = None) -> None:
        self._config = config
        self._passed = passed or PassedSockets()
        self._log_level = log_level
        self._vms: list[ServedVm] = []
        self._engine: Engine | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._asks: set[asyncio.Task[None]] = set()
        self._registry: Registry | None = None
        self._bridge: Bridge | None = None
        self._bridge_sockets: list[ListeningSocket] = []

    async def run(self, on_ready: Callable[[str], None]) -> None:
        """Serve until a signal; `on_ready` gets the line to announce."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._signalled, loop, stop, number)
        try:
            self._start(loop)
            on_ready(_ready_line(self._vms))
            notify("READY=1")
            self._tell_status()
            for vm in self._vms:
                vm.on_state = self._tell_status
            await stop.wait()
            notify("STOPPING=1")
        finally:
            await self._stop()

    def _signalled(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event, number: signal.Signals) -> None:
        _log.info("%s: stopping", number.name)
        for each in _STOP_SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        stop.set()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        own_cid = host_cid if self._config.parent else lambda: None
        self._registry = registry = Registry(self._config.runtime_dir, own_cid=own_cid)
        self._bridge = bridge = Bridge(registry, lambda: self._vms, own_cid, connect_parent)
        others, *clients = self._listen_for_bridge(registry.directory)
        registry.register_daemon(clients[0].path)
        for config in self._config.vms:
            vm = ServedVm(config, self._config.handshake_timeout, registry, self._on_ask)
            self._vms.append(vm)
            vm.listen(self._passed)
        for stray in self._passed.left():
            _log.warning("%s (%s): the service manager listens there, but no VM does", stray.path, stray.name)
        self._passed.close()
        self._engine = Engine()
        self._engine.set_log_level(self._log_level)
        for vm in self._vms:
            vm.start(self._engine)
        self._engine.start_events(loop, self._handle_event)
        for vm in self._vms:
            self._keep_going(vm.serve)
            self._keep_going(vm.revive, self._engine)
        for listening in clients:
            self._keep_going(bridge.serve, listening)
        self._keep_going(peers.serve, others, bridge.take_over)
        self._keep_going(memory.give_back)
        seconds = watchdog.period(os.environ)
        if seconds is not None:
            self._keep_going(watchdog.watch, seconds, lambda: self._vms)

    def _listen_for_bridge(self, directory: str) -> list[ListeningSocket]:
        """The sockets for other daemons, and for host applications: for streams, and for messages."""
        try:
            places.prepare(directory)
        except OSError as error:
            where = places.bridge_directory(directory)
            raise SocketError(f"cannot use {where}: {error.strerror}", hint="remove it, or mend its owner") from error
        path = places.new_bridge_path(directory)
        made = self._bridge_sockets
        made.append(ListeningSocket(places.peer_path(path), Access(), kind=socket.SOCK_SEQPACKET))
        made.append(ListeningSocket(path, self._config.bridge_access))
        beside = seqpacket_path(path)
        made.append(ListeningSocket(beside, self._config.bridge_access, kind=socket.SOCK_SEQPACKET))
        return made

    def _on_ask(self, vm: ServedVm, token: int, guest_port: int, port: int, kind: socket.SocketKind) -> None:
        assert self._bridge is not None
        task = asyncio.create_task(self._bridge.guest_asks(vm, token, guest_port, port, kind))
        self._asks.add(task)
        task.add_done_callback(self._asks.discard)

    def _keep_going(self, what: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        async def task() -> None:
            while True:
                try:
                    await what(*args)
                except Exception:
                    # A fault of ours in one VM's task must not end it, nor any other's.
                    _log.exception("a task failed and is started again")
                    await asyncio.sleep(_RETRY_SECONDS)

        self._tasks.append(asyncio.create_task(task()))

    def _handle_event(self, event: Event) -> None:
        for vm in self._vms:
            if vm.handle == event.device and event.device != 0:
                vm.handle_event(event)
                return
        if event.kind is EventKind.LOG:  # how a device ended that was told to is no news
            _log.log(event.level, "%s", event.text)

    def _tell_status(self) -> None:
        """Tell the service manager which VMs there are and how they are."""
        notify("STATUS=" + _few([f"{vm.name} (cid {vm.cid}) {vm.state}" for vm in self._vms]))

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._engine is not None:
            self._engine.stop_events()
        for task in self._asks:
            task.cancel()
        for vm in reversed(self._vms):
            await vm.stop()
        for listening in self._bridge_sockets:
            listening.close()
        if self._registry is not None:
            self._registry.close()
        if self._engine is not None:
            events: Sequence[Event] = list(self._engine.drain(EVENT_BATCH))
            for event in events:
                self._handle_event(event)
            await self._engine.aclose()
        _log.info("stopped")


async def connect_parent(client: socket.socket, cid: int, port: int) -> socket.socket:
    """A connection to the hypervisor above this host, or to a VM beside it. The kernel gives up after two seconds."""
    sock = _socket_like(client)
    try:
        sock.setblocking(False)
        # Not in a thread: those are few, and a CID that is silent would keep one from everybody else.
        await asyncio.get_running_loop().sock_connect(sock, (cid, port))
        # Whoever gets it expects a socket as socket(2) makes them.
        sock.setblocking(True)
    except BaseException:
        sock.close()
        raise
    return sock


def _socket_like(client: socket.socket) -> socket.socket:
    """A socket for the way up, made in the namespace of the client where the kernel has modes: it is that one's that
    counts. Where that may not be, it is made in ours, which is the same unless ours is local."""

    def make() -> socket.socket:
        return socket.socket(socket.AF_VSOCK, client.type)

    if KernelModes().present() and cookie_of_socket(client) != own():
        with contextlib.suppress(NetnsError), namespace_of_socket(client) as netns:
            return netns.run(make)
    return make()


def _ready_line(vms: list[ServedVm]) -> str:
    named = _few([vm.describe() for vm in vms])
    return f"vhostvsock: ready: serving {len(vms)} VM{'' if len(vms) == 1 else 's'} ({named})"


def _few(texts: list[str]) -> str:
    """As many as one reads in a line, and how many there are besides."""
    more = len(texts) - _NAMED_IN_READY_LINE
    return ", ".join(texts[:_NAMED_IN_READY_LINE]) + (f", and {more} more" if more > 0 else "")
