"""One VM as the daemon sees it: its sockets, its device, and whichever front-end is attached.

Before: daemon.py makes one per configured VM and passes on the device's events. After: native.py takes over each
        accepted vhost-user connection.
Rules:  - A VM has its CID, and belongs to the network namespace in which its front-end made its socket, from the moment
          that a front-end is attached until it is gone. A CID that is taken turns the front-end away.
        - One front-end at a time. The next one may come before the end of the last is noticed (QEMU started again by
          a script), so it waits a little before it is refused.
        - Whatever happens to this VM's device, the sockets stay and the device comes back; other VMs notice nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from vhostvsock.bridge.caller import Caller
from vhostvsock.bridge.protocol import Wish
from vhostvsock.config import VmConfig
from vhostvsock.errors import NativeError, VhostvsockError
from vhostvsock.ids import Cid
from vhostvsock.native import Admission, Device, DeviceConfig, Engine, Event, EventKind, Scope
from vhostvsock.paths import seqpacket_path
from vhostvsock.registry.errors import Refused, RegistryError
from vhostvsock.registry.records import Claim
from vhostvsock.registry.rules import Mode, NetnsId, may_reach
from vhostvsock.registry.store import Registry
from vhostvsock.sockets import ListeningSocket, peer_credentials
from vhostvsock.systemd.activation import PassedSockets

# How long a front-end waits for its predecessor to be gone.
HANDOVER_SECONDS = 1.0
# A device that dies as soon as it is made must not keep a core busy.
REVIVE_PAUSE_SECONDS = 0.5
# After an accept that failed (descriptors used up): long enough not to spin, short enough not to be noticed.
ACCEPT_PAUSE_SECONDS = 0.2

_STATES = {
    EventKind.ATTACHED: "QEMU attached",
    EventKind.DETACHED: "waiting for QEMU",
    EventKind.STARTED: "up",
    EventKind.STOPPED: "QEMU attached",
    EventKind.FAULT: "failed",
}

_ASKED = {EventKind.ASK: socket.SOCK_STREAM, EventKind.ASK_SEQPACKET: socket.SOCK_SEQPACKET}

_log = logging.getLogger("vhostvsock.vm")

# (VM, token, port of the guest's socket, port asked for, type of socket)
AskHandler = Callable[["ServedVm", int, int, int, socket.SocketKind], None]


class ServedVm:
    """A VM that is served: create, `start`, then run `serve` and `revive` as tasks; `stop` at the end."""

    def __init__(self, config: VmConfig, handshake_timeout: float, registry: Registry, on_ask: AskHandler) -> None:
        self.config = config
        self.claim: Claim | None = None
        self._failed: tuple[Claim, str] | None = None  # what the VM had when its device failed, and why that was
        self._registry = registry
        self._on_ask = on_ask
        self._handshake_timeout = handshake_timeout
        self._front_ends: ListeningSocket | None = None
        self._clients: ListeningSocket | None = None
        self._message_clients: ListeningSocket | None = None
        self._device: Device | None = None
        self._free = asyncio.Event()  # set while no front-end is attached
        self._faulted = asyncio.Event()
        self.state = _STATES[EventKind.DETACHED]  # for people
        self.on_state: Callable[[], None] = lambda: None  # called when it changed

    def listen(self, passed: PassedSockets | None = None) -> None:
        """Make the sockets, or take those that were passed. From here on connections queue up; nobody answers yet."""
        config, passed = self.config, passed or PassedSockets()
        self._front_ends = ListeningSocket(config.socket, config.socket_access, passed.take(config.socket))
        self._clients = ListeningSocket(config.uds_path, config.uds_access, passed.take(config.uds_path))
        path, kind = seqpacket_path(config.uds_path), socket.SOCK_SEQPACKET
        self._message_clients = ListeningSocket(path, config.uds_access, passed.take(path, kind), kind=kind)

    def start(self, engine: Engine) -> None:
        """Make the device; host applications are answered from here on."""
        assert self._clients is not None
        assert self._message_clients is not None
        self._device = engine.new_device(
            DeviceConfig(
                name=self.config.name,
                cid=self.config.cid or Cid(3),  # each front-end is told the one that was claimed for it
                hybrid_listener=self._clients.fileno(),
                seqpacket_listener=self._message_clients.fileno(),
                uds_path=self.config.uds_path,
                poll_us=self.config.poll_us,
                max_connections=self.config.max_connections,
                buf_alloc=self.config.buf_alloc,
                reconnect=self.config.reconnect,
                handshake_timeout_ms=max(1, round(self._handshake_timeout * 1000)),
            )
        )
        self._free.set()

    @property
    def handle(self) -> int:
        """The device's number in events, or 0."""
        return 0 if self._device is None or self._device.closed else self._device.handle

    def handle_event(self, event: Event) -> None:
        """Follow the device's state, and log what it tells."""
        if event.kind is EventKind.FAULT and self.claim is not None:
            self._failed = self.claim, event.text
        if event.kind in (EventKind.DETACHED, EventKind.FAULT):
            self._release()
        self._become(_STATES.get(event.kind, self.state))
        if event.kind is EventKind.DETACHED:
            self._free.set()
            self._say(logging.INFO, f"front-end gone: {event.text}" if event.text else "front-end gone")
        elif event.kind is EventKind.ATTACHED:
            self._say(logging.INFO, "front-end attached")
        elif event.kind is EventKind.STARTED:
            self._say(logging.INFO, "the guest's driver is up")
            self._note_running(True)
        elif event.kind is EventKind.STOPPED:
            self._say(logging.INFO, "the guest's driver is down")
            self._note_running(False)
        elif event.kind in _ASKED:
            self._on_ask(self, event.token, event.value >> 32, event.value & 0xFFFF_FFFF, _ASKED[event.kind])
        elif event.kind is EventKind.NETNS:
            self._look_up(event)
        elif event.kind is EventKind.FAULT:
            self._free.clear()
            self._faulted.set()
            self._say(logging.ERROR, f"the device failed and is made anew: {event.text}")
        else:
            self._say(event.level, event.text)

    async def serve(self) -> None:
        """Accept front-ends for ever."""
        assert self._front_ends is not None
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._front_ends.sock)
            except OSError as error:
                self._say(logging.ERROR, f"cannot accept a front-end on {self.config.socket}: {error.strerror}")
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            with sock:  # closed here unless the device took it
                try:
                    await self._admit(sock)
                except NativeError as error:
                    self._say(logging.WARNING, f"front-end refused: {error}")
                except OSError as error:
                    self._say(logging.INFO, f"front-end left before it was attached: {error}")

    async def _admit(self, sock: socket.socket) -> None:
        pid, uid, _ = peer_credentials(sock)
        try:
            async with asyncio.timeout(HANDOVER_SECONDS):
                if not self._free.is_set():
                    self.ask()
                await self._free.wait()
        except TimeoutError:
            self.ask()  # a front-end that holds up the thread is thrown out, and the next one that comes is served
            self._say(
                logging.WARNING,
                f"front-end of pid {pid} refused: another one is attached to {self.config.socket}",
            )
            return
        assert self._device is not None
        self._say(logging.DEBUG, f"front-end of pid {pid} (uid {uid}) connected")
        try:
            netns = self._registry.modes.admit(sock)
            self._release()
            cid = None if self.config.cid is None else self.config.cid.value
            self.claim = claim = self._registry.claim(netns, cid, self.config.name)
            self._failed = None
        except Refused as error:
            self._say(logging.ERROR, f"front-end of pid {pid} refused: {error}")
            return
        except VhostvsockError as error:
            hint = f" ({error.hint})" if error.hint else ""
            self._say(logging.ERROR, f"front-end of pid {pid} refused: {error}{hint}")
            return
        terms = Admission(claim.cid, Scope.LOCAL if claim.mode is Mode.LOCAL else Scope.GLOBAL, netns.cookie, asks=True)
        try:
            self._device.attach(sock, terms)
        except NativeError:
            self._release()
            raise
        self._free.clear()
        if self.config.cid is None:
            self._say(logging.INFO, f"the guest has CID {claim.cid}")

    # The registry ---------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        """The VM is gone: its CID is free."""
        claim, self.claim = self.claim, None
        if claim is not None:
            try:
                self._registry.release(claim)
            except RegistryError as error:
                self._say(logging.ERROR, f"CID {claim.cid} is not free yet: {error}")

    def _note_running(self, running: bool) -> None:
        if self.claim is not None:
            try:
                self.claim = self._registry.set_running(self.claim, running)
            except RegistryError as error:
                self._say(logging.ERROR, f"other daemons do not know that the guest's driver changed: {error}")

    def _look_up(self, event: Event) -> None:
        """A client of a namespace that the device does not know."""
        try:
            netns = NetnsId(event.value) if event.sock is None else self._registry.modes.admit(event.sock)
            mode = self._registry.modes.mode(netns)
            if self._device is not None:
                self._device.learn_netns(event.value, mode is Mode.LOCAL)
        except (VhostvsockError, OSError) as error:
            # Without an answer the device forgets the question, and its clients with it.
            self._say(logging.ERROR, f"a client's namespace cannot be looked up: {error}")
        finally:
            if event.sock is not None:
                event.sock.close()

    def _living(self) -> Device:
        if self._device is None:
            raise Refused(errno.EHOSTUNREACH, f"VM {self.config.name!r} is being made anew")
        return self._device

    def connect(self, caller: Caller, port: int, wish: Wish) -> None:
        """Connect a client of the bridge, which may see this VM, to a port of the guest. Refused without a device."""
        device = self._living()
        # Whoever calls keeps its own descriptors, and closes them.
        answer = None if caller.answer is None else caller.answer.dup()
        device.connect(
            caller.connection.dup(),
            port,
            answer=answer,
            source_port=wish.source_port,
            buffer=wish.buffer,
            timeout_ms=wish.timeout_ms,
        )

    def answer(self, token: int, sock: socket.socket | None, buffer: int = 0) -> None:
        """Answer what the guest asked for; the device owns the socket then. Refused without a device."""
        self._living().answer(token, sock, buffer=buffer)

    def row(self, viewer: NetnsId, mode: Mode, *, counters: bool = False) -> dict[str, Any] | None:
        """What `vhostvsock ls` shows a viewer; None where it may not see the VM.

        A VM whose device failed is shown as it was, with the reason, until its QEMU comes again. With `counters` also
        what its device has counted since it was made, by name: nothing while it has none.
        """
        claim, reason = self._failed or (self.claim, None)
        if claim is None or not may_reach(viewer, mode, claim.netns, claim.mode):
            return None
        stats = {} if self._device is None else self._device.stats()
        counted = {"counters": stats} if counters else {}
        if reason is not None:
            return claim.row(0) | {"state": "failed", "reason": reason} | counted
        return claim.row(stats.get("connections", 0)) | counted

    async def revive(self, engine: Engine) -> None:
        """Make the device again whenever it failed."""
        while True:
            await self._faulted.wait()
            self._faulted.clear()
            self._free.clear()
            await self._close_device()
            self._release()  # also what was claimed after the fault was told
            while self._device is None:
                await asyncio.sleep(REVIVE_PAUSE_SECONDS)
                try:
                    self.start(engine)
                except NativeError as error:
                    self._say(logging.ERROR, f"the device cannot be made anew: {error}")
            self._become(_STATES[EventKind.DETACHED])
            self._say(logging.WARNING, "the device is back; it serves the next front-end")

    @property
    def name(self) -> str:
        return self.config.name

    def ask(self) -> None:
        """Ask the device's thread for a sign of life; see `answered`."""
        if self._device is not None:
            self._device.ping()

    def answered(self) -> bool:
        """Whether the thread came round to the last question. A device that is being made anew owes nothing."""
        return self._device is None or not self._device.owes_pong()

    async def _close_device(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            try:
                await device.aclose()
            except NativeError as error:
                self._say(logging.ERROR, str(error))

    async def stop(self) -> None:
        """End the device and remove the sockets. May be called at any stage, and twice."""
        await self._close_device()
        self._release()
        for listening in (self._message_clients, self._clients, self._front_ends):
            if listening is not None:
                listening.close()

    def describe(self) -> str:
        """For the line that says ready."""
        return f"{self.config.name} cid {self.config.cid or 'auto'} {os.path.abspath(self.config.socket)}"

    @property
    def cid(self) -> int | str:
        """The CID that the VM has or will have, for people."""
        cid = self.config.cid if self.claim is None else self.claim.cid
        return "auto" if cid is None else cid.value

    def _become(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.on_state()

    def _say(self, level: int, text: str) -> None:
        _log.log(level, "%s", text, extra={"fields": {"vm": self.config.name, "cid": self.cid}})
