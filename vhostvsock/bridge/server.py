"""The bridge of one daemon: what a host application asks for, and what becomes of it.

Before: daemon.py listens; protocol.py reads the line; the registry knows who may reach whom. After: the descriptor is
        with the native device, the listening application, or another daemon, and is forgotten here.
Rules:  - who a client is, the kernel says: the namespace of its socket, its user.
        - an answer is Linux's errno; what the client may not see looks as if it did not exist.
        - no client can hold up another: each has a task and a deadline until its request is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Iterable

from vhostvsock.bridge import peers
from vhostvsock.bridge.accepting import accept_each
from vhostvsock.bridge.caller import Caller
from vhostvsock.bridge.lines import read_line, send_with
from vhostvsock.bridge.listeners import BridgeListener
from vhostvsock.bridge.places import peer_path_here
from vhostvsock.bridge.privilege import may_bind_low_ports
from vhostvsock.bridge.protocol import (
    LINE_LIMIT,
    VERSION,
    Bind,
    Connect,
    List,
    Listen,
    Request,
    Version,
    error_line,
    ok_line,
    parse,
    parse_wish,
    u32,
)
from vhostvsock.errors import VhostvsockError
from vhostvsock.ids import CID_HOST, CID_LOCAL, PORT_ANY
from vhostvsock.registry.errors import Refused
from vhostvsock.registry.records import Claim, Daemon, Listener
from vhostvsock.registry.routes import Kind, Parent, Route, View, VisibleVm, Way, connect_route
from vhostvsock.registry.rules import LAST_PRIVILEGED_PORT, NetnsId
from vhostvsock.registry.store import Registry
from vhostvsock.sockets import ListeningSocket, peer_credentials
from vhostvsock.vm import ServedVm

REQUEST_SECONDS = 5.0
LIST_SECONDS = 5.0

_KINDS = {socket.SOCK_STREAM: Kind.STREAM, socket.SOCK_SEQPACKET: Kind.SEQPACKET}

_log = logging.getLogger("vhostvsock.bridge")


class Bridge:
    """Serves the host applications of one daemon, and takes what other daemons hand over."""

    def __init__(
        self,
        registry: Registry,
        vms: Callable[[], Iterable[ServedVm]],
        parent_cid: Callable[[], int | None],
        connect_parent: Callable[[socket.socket, int, int], Awaitable[socket.socket]],
    ) -> None:
        self._registry = registry
        self._vms = vms
        self._parent_cid = parent_cid
        self._connect_parent = connect_parent
        self._listeners: dict[str, BridgeListener] = {}

    # Host applications ----------------------------------------------------------------------------------------------

    async def serve(self, listening: ListeningSocket) -> None:
        """Accept applications for ever."""
        await accept_each(listening, self._client, "a client")

    async def _client(self, sock: socket.socket) -> None:
        with sock:
            sock.setblocking(False)
            try:
                netns = self._registry.modes.admit(sock)
                try:
                    async with asyncio.timeout(REQUEST_SECONDS):
                        request, sockets = await self._request(sock)
                except TimeoutError:
                    return  # it said nothing: no word is owed
                with contextlib.ExitStack() as stack:
                    for each in sockets:
                        stack.enter_context(each)
                    # Who asks in the name of a socket of another namespace got it from there.
                    if sockets:
                        netns = self._registry.modes.admit(sockets[0])
                    await self._serve(sock, sockets, netns, request)
            except OSError as error:
                _answer(sock, error)
            except VhostvsockError as error:
                _log.error("%s", error)
                _answer(sock, OSError(errno.EIO, str(error)))

    async def _request(self, sock: socket.socket) -> tuple[Request, list[socket.socket]]:
        line, sockets = await read_line(sock, LINE_LIMIT)
        try:
            request = parse(line)
            if isinstance(request, Version):
                if request.number != VERSION:
                    raise Refused(errno.EPROTONOSUPPORT, f"this is version {VERSION} of the bridge")
                sock.send(ok_line(VERSION), socket.MSG_NOSIGNAL)
                line, more = await read_line(sock, LINE_LIMIT)
                sockets += more
                request = parse(line)
            if len(sockets) > 1:
                raise Refused(errno.EPROTO, "a request comes with one descriptor at the most")
        except BaseException:
            for each in sockets:
                each.close()
            raise
        return request, sockets

    async def _serve(self, sock: socket.socket, sockets: list[socket.socket], netns: NetnsId, request: Request) -> None:
        match request:
            case Connect():
                caller = Caller(sockets[0], sock) if sockets else Caller(sock)
                await self._connect(caller, netns, request)
            case Listen(cid, port, backlog, buffer):
                await self._listen(sock, netns, cid, port, BridgeListener(sock, backlog, buffer))
            case Bind(cid, port):
                await self._listen(sock, netns, cid, port, BridgeListener(sock, None))
            case List(counters):
                await self._list(sock, netns, counters)
            case Version():
                raise Refused(errno.EPROTO, "VERSION is said once")

    # CONNECT --------------------------------------------------------------------------------------------------------

    async def _connect(self, caller: Caller, netns: NetnsId, request: Connect) -> None:
        cid, port, wish = request.cid, request.port, request.wish
        kind = _KINDS.get(caller.connection.type)
        if kind is None or caller.connection.family != socket.AF_UNIX:
            raise Refused(errno.EPROTO, "a connection takes a UNIX socket for streams or for messages")
        claim = self._registry.find_vm(netns, cid)
        way = self._route(netns, cid, claim, kind).check()
        # On the way up, ports are the kernel's.
        if wish.source_port != PORT_ANY and way is not Way.PARENT:
            self._check_source(caller, netns, wish.source_port)
        match way:
            case Way.LOOPBACK:
                await self._loop_back(caller, netns, request)
            case Way.VM:
                assert claim is not None
                own = self._served(claim.id)
                if own is not None:
                    own.connect(caller, port, wish)
                else:
                    words = ["CONNECT", claim.id, str(port), *wish.words()]
                    await peers.hand_over(self._peer(claim.daemon), words, caller)
            case Way.PARENT:
                await self._go_up(caller, cid, port)

    def _route(self, netns: NetnsId, cid: int, claim: Claim | None, kind: Kind) -> Route:
        parent = self._parent_cid()
        # Whether a guest has message sockets is known to its device, which answers for it, also where it does not run.
        asks_device = kind is Kind.SEQPACKET
        view = View(
            mode=self._registry.modes.mode(netns),
            vm=None if claim is None else VisibleVm(running=claim.running or asks_device, seqpacket=asks_device),
            parent=None if parent is None else Parent(own_cid=parent),
        )
        return connect_route(cid, view, kind)

    def _served(self, claim_id: str) -> ServedVm | None:
        """The VM with this claim, if it is one of ours."""
        return next((vm for vm in self._vms() if vm.claim is not None and vm.claim.id == claim_id), None)

    def _check_source(self, caller: Caller, netns: NetnsId, port: int) -> None:
        """A client's own port has to be held by its user. Whether that one may have it was decided when it got it."""
        _, uid, _ = peer_credentials(caller.answer or caller.connection)
        if not self._registry.has_port(netns, port, uid):
            raise Refused(errno.EADDRNOTAVAIL, f"uid {uid} has not bound port {port}", hint="BIND comes first")

    async def _loop_back(self, caller: Caller, netns: NetnsId, request: Connect) -> None:
        listener = self._registry.find_listener(netns, request.cid, request.port)
        if listener is None:
            raise Refused(errno.ECONNRESET, f"nobody listens on port {request.port}")
        source = request.wish.source_port
        if source == PORT_ANY:
            source = random.randrange(LAST_PRIVILEGED_PORT + 1, PORT_ANY)
        # The client's own connection becomes the conversation; whoever hands it to the listener says OK on it.
        await self._offer(listener, caller, CID_LOCAL, source)

    async def _go_up(self, caller: Caller, cid: int, port: int) -> None:
        up = await self._connect_parent(caller.connection, cid, port)
        with up:
            send_with(caller.answer or caller.connection, ok_line(up.getsockname()[1]), [up.fileno()])

    # LISTEN ---------------------------------------------------------------------------------------------------------

    async def _listen(self, sock: socket.socket, netns: NetnsId, cid: int, port: int, served: BridgeListener) -> None:
        pid, uid, _ = peer_credentials(sock)
        listener = self._registry.listen(netns, cid, port, privileged=may_bind_low_ports(pid, uid), uid=uid)
        self._listeners[listener.id] = served
        try:
            sock.send(ok_line(listener.port), socket.MSG_NOSIGNAL)
            await served.until_gone()
        finally:
            del self._listeners[listener.id]
            self._registry.unlisten(listener)

    async def _offer(self, listener: Listener, caller: Caller, cid: int, port: int) -> int:
        """Hand a connection to an application that listens, here or at another daemon; its buffer. Raises OSError."""
        served = self._listeners.get(listener.id)
        if served is None:
            words = ["ACCEPT", listener.id, str(cid), str(port)]
            return await peers.hand_over(self._peer(listener.daemon), words, caller)
        served.offer(caller, cid, port)
        return served.buffer

    async def guest_asks(self, vm: ServedVm, token: int, guest_port: int, port: int, kind: socket.SocketKind) -> None:
        """A guest wants a port where nobody listens at its VM's own path."""
        ours: socket.socket | None = None
        try:
            claim = vm.claim
            listener = None if claim is None else self._registry.find_listener(claim.netns, CID_HOST, port)
            if claim is not None and listener is not None:
                ours, theirs = socket.socketpair(type=kind)
                with theirs:
                    buffer = await self._offer(listener, Caller(theirs), claim.cid.value, guest_port)
                vm.answer(token, ours, buffer)
                return
        except (OSError, VhostvsockError) as error:
            _log.debug("vm %s: the guest's connection to port %d is refused: %s", vm.config.name, port, error)
            if ours is not None:
                ours.close()
        with contextlib.suppress(VhostvsockError):  # the device has failed meanwhile, and its guest's question with it
            vm.answer(token, None)

    # Other daemons --------------------------------------------------------------------------------------------------

    def _peer(self, daemon: Daemon) -> str:
        return peer_path_here(self._registry.directory, daemon.bridge)

    def take_over(self, words: list[str], caller: Caller) -> int:
        """Another daemon hands a connection over; what it is answered. Raises OSError where it cannot be taken."""
        match words:
            case ["CONNECT", claim_id, port, *wish]:
                vm = self._served(claim_id)
                if vm is None:
                    raise Refused(errno.ENODEV, "the VM is gone")
                vm.connect(caller, u32(port), parse_wish(wish))
                return 0
            case ["ACCEPT", listener_id, cid, port]:
                served = self._listeners.get(listener_id)
                if served is None:
                    raise Refused(errno.ECONNRESET, "nobody listens any more")
                served.offer(caller, u32(cid), u32(port))
                return served.buffer
        raise Refused(errno.EPROTO, "not a message between daemons")

    # LIST -----------------------------------------------------------------------------------------------------------

    async def _list(self, sock: socket.socket, netns: NetnsId, counters: bool) -> None:
        mode = self._registry.modes.mode(netns)
        rows = [row for vm in self._vms() if (row := vm.row(netns, mode, counters=counters)) is not None]
        data = ok_line(len(rows)) + b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        with contextlib.suppress(TimeoutError):  # a client that does not read
            async with asyncio.timeout(LIST_SECONDS):
                await asyncio.get_running_loop().sock_sendall(sock, data)


def _answer(sock: socket.socket, error: OSError) -> None:
    """The last word to a client. With bytes of its unread, the kernel would show it a reset behind that word."""
    with contextlib.suppress(OSError):
        sock.send(error_line(error), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        sock.shutdown(socket.SHUT_RDWR)
        while sock.recv(65536, socket.MSG_DONTWAIT):
            pass
