"""What each intercepted call does, with Linux's checks in Linux's order (net/vmw_vsock/af_vsock.c, net/socket.c).

Before: supervisor.py has a call. After: arguments.py has what it points to, sockets.py, connecting.py and
        listening.py do it; the call is answered.
Rules:  - a call on a descriptor that is not one of our sockets goes on to the kernel.
        - an errno is raised as an OSError, and becomes the call's result.
        - a call that a signal interrupts is gone: what it began goes on, and what it took is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

from vhostvsock.bridge.lines import limit_messages
from vhostvsock.bridge.privilege import may_bind_low_ports
from vhostvsock.exec import arguments, listening
from vhostvsock.exec.address import Address
from vhostvsock.exec.call import Call
from vhostvsock.exec.connecting import Attempt, fill, is_writable
from vhostvsock.exec.dev_vsock import DevVsock
from vhostvsock.exec.filtering import OPENS, SO_ACCEPTCONN, SO_DOMAIN
from vhostvsock.exec.listening import BoundPort
from vhostvsock.exec.pairs import PairMaker
from vhostvsock.exec.sockets import Binding, SocketTable, State, Unheard, VsockSocket
from vhostvsock.ids import CID_HOST, CID_LOCAL
from vhostvsock.log import warn
from vhostvsock.registry.errors import NetnsError
from vhostvsock.registry.rules import LAST_PRIVILEGED_PORT

_TYPE_MASK = 0xF
_LAST_TYPE = 10  # SOCK_PACKET
_TYPE_FLAGS = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
_TYPES = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)

_log = logging.getLogger("vhostvsock.exec")

_Handler = Callable[[Call, VsockSocket], Awaitable[int | None]]


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class _ReplacedError(Exception):
    """The program has put another socket under the number of the call, which is about that one now."""


class Calls:
    """Answers calls, all in one thread."""

    def __init__(self) -> None:
        self.sockets = SocketTable(self._closed)
        self._pairs = PairMaker()
        self._dev_vsock = DevVsock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._releasing: set[asyncio.Task[None]] = set()
        # By the thread's id, calls on listening sockets.
        self._accepting: dict[int, asyncio.Task[None]] = {}
        self._warned = False
        self._handlers: dict[str, _Handler] = {
            "connect": self._connect,
            "accept": self._accept,
            "accept4": self._accept,
            "bind": self._bind,
            "listen": self._listen,
            "getsockname": self._getsockname,
            "getpeername": self._getpeername,
            "getsockopt": self._getsockopt,
            "setsockopt": self._setsockopt,
            "recvmsg": self._error_queue,
        }

    def handle(self, call: Call) -> None:
        """Answer a call, now or later."""
        if call.name == "socket":
            self._now(call, self._socket)
        elif call.name == "ioctl":
            self._now(call, self._dev_vsock.local_cid)
        elif call.name in OPENS:
            self._now(call, self._dev_vsock.open)
        elif call.name is None:
            self._now(call, self._foreign_socket)
        else:
            sock = self.sockets.find(call.thread.inode(call.integer(0)))
            if sock is None:
                call.go_on()
                return
            task = asyncio.create_task(self._later(call, sock, self._handlers[call.name]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            if sock.state is State.LISTENING:
                self._only_one(call.thread.tid, task)

    def _only_one(self, tid: int, task: asyncio.Task[None]) -> None:
        """A thread waits in one call. That it makes another one means that a signal interrupted the one before."""
        before, self._accepting[tid] = self._accepting.get(tid), task
        if before is not None:
            before.cancel()

        def forget(_: object) -> None:
            if self._accepting.get(tid) is task:
                del self._accepting[tid]

        task.add_done_callback(forget)

    def _now(self, call: Call, work: Callable[[Call], None]) -> None:
        try:
            work(call)
        except OSError as error:
            call.answer(-(error.errno or errno.EIO))

    async def _later(self, call: Call, sock: VsockSocket, work: _Handler) -> None:
        try:
            result = await work(call, sock)
        except _ReplacedError:
            self.handle(call)
            return
        except OSError as error:
            result = -(error.errno or errno.EIO)
        except Exception:
            # A fault of ours: the program must not wait for ever.
            _log.exception("%s of thread %d", call.name, call.thread.tid)
            result = -errno.EIO
        if result is not None and call.answer(result):
            sock.heard(call.name)

    @contextlib.contextmanager
    def _taken(self, call: Call, sock: VsockSocket) -> Iterator[socket.socket]:
        """The program's socket, for a moment. Without the right to it the call fails with EPERM.

        Before anything of the call is done: it is begun again where the socket is another one by now.
        """
        with call.thread.take(call.integer(0)) as taken:
            if not call.is_waiting():
                raise _error(errno.EBADF)
            if not self.sockets.is_same(taken, sock):
                raise _ReplacedError
            yield taken

    async def close(self) -> None:
        """All programs have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.sockets.close()
        self._dev_vsock.close()
        await asyncio.gather(*self._releasing)

    # socket, close ----------------------------------------------------------------------------------------------------

    def _socket(self, call: Call) -> None:
        kind, protocol = call.integer(1), call.integer(2)
        if kind & ~(_TYPE_MASK | _TYPE_FLAGS) or kind & _TYPE_MASK > _LAST_TYPE:
            raise _error(errno.EINVAL)
        if protocol not in (0, socket.AF_VSOCK):
            raise _error(errno.EPROTONOSUPPORT)
        if kind & _TYPE_MASK == socket.SOCK_DGRAM:
            raise _error(errno.ENODEV)
        if kind & _TYPE_MASK not in _TYPES:
            raise _error(errno.ESOCKTNOSUPPORT)
        try:
            program_end, held = self._pairs.make(call.thread, kind & _TYPE_MASK)
        except (NetnsError, PermissionError, FileNotFoundError) as error:
            if not self._warned:
                self._warned = True
                warn(f"a program that cannot be looked into gets no AF_VSOCK sockets: {error}")
            raise _error(errno.EAFNOSUPPORT) from None
        with program_end:
            program_end.setblocking(not kind & socket.SOCK_NONBLOCK)
            limit_messages(program_end)
            held.setblocking(False)
            try:
                given = call.give(program_end.fileno(), close_on_exec=bool(kind & socket.SOCK_CLOEXEC))
            except BaseException:
                held.close()
                raise
            if given:
                self.sockets.add(program_end, VsockSocket(kind & _TYPE_MASK, held))
            else:
                held.close()

    def _foreign_socket(self, call: Call) -> None:
        """socketcall(2) of a 32-bit program: its second argument points to words, of which the first is the family."""
        if struct.unpack("=I", call.thread.read(call.arguments[1], 4)) == (socket.AF_VSOCK,):
            raise _error(errno.EAFNOSUPPORT)
        call.go_on()

    def _closed(self, sock: VsockSocket) -> None:
        if sock.port is not None:
            task = asyncio.ensure_future(sock.port.close())
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)

    # connect ----------------------------------------------------------------------------------------------------------

    async def _connect(self, call: Call, sock: VsockSocket) -> int | None:
        with self._taken(call, sock) as taken:
            blocking = os.get_blocking(taken.fileno())
            address = arguments.address(call)
            known = sock.result_of("connect", address)
            if known is not None:
                return known
            match sock.state:
                case State.CONNECTED:
                    raise _error(errno.EISCONN)
                case State.LISTENING:
                    raise _error(errno.EINVAL)
                case State.CONNECTING if not blocking:
                    raise _error(errno.EALREADY)
                case State.CONNECTING:
                    attempt = sock.attempt
                    assert attempt is not None
                case State.UNCONNECTED:
                    if address is None:
                        raise _error(errno.EINVAL)
                    if not blocking:
                        fill(taken)
                    attempt = Attempt(self.sockets, sock, address)
        if not blocking:
            attempt.tell_later()
            sock.unheard = Unheard("connect", attempt.address, -errno.EINPROGRESS)
            return sock.unheard.result
        result = await asyncio.shield(attempt.result)
        if attempt.address != address:
            # A signal interrupted the one that began it.
            return await self._connect(call, sock)
        if attempt.up is not None:
            with attempt.up:
                call.replace(call.integer(0), attempt.up)
        return -result

    # bind, listen, accept ---------------------------------------------------------------------------------------------

    async def _bind(self, call: Call, sock: VsockSocket) -> int:
        with self._taken(call, sock):
            address = arguments.address(call)
        known = sock.result_of("bind", address)
        if known is not None:
            return known
        if sock.binding is not None and sock.binding.address != address:
            await asyncio.wait([sock.binding.task])  # a signal interrupted that one
        if address is None or sock.port is not None or sock.state is not State.UNCONNECTED:
            raise _error(errno.EINVAL)
        # The bridge judges us, who may be more than the program.
        low = address.port <= LAST_PRIVILEGED_PORT
        if low and not may_bind_low_ports(call.thread.tid, call.thread.uid()):
            raise _error(errno.EACCES)
        if sock.binding is None:
            sock.binding = Binding(address, asyncio.create_task(self._reserve(sock, address)))
        # A signal may interrupt the call, which is then made again: the port is asked for once.
        await asyncio.shield(sock.binding.task)
        return 0

    async def _reserve(self, sock: VsockSocket, address: Address) -> None:
        try:
            self.sockets.look()
            if self._releasing:
                await asyncio.wait(self._releasing)
            held = sock.held
            if held is None:
                raise _error(errno.EBADF)
            port, local = await listening.bind(held, address)
            if held.fileno() < 0:
                await port.close()  # the socket was closed meanwhile
                raise _error(errno.EBADF)
            sock.port, sock.local, sock.unheard = port, local, Unheard("bind", address, 0)
        finally:
            sock.binding = None

    async def _listen(self, call: Call, sock: VsockSocket) -> int:
        if sock.state not in (State.UNCONNECTED, State.LISTENING) or sock.port is None:
            raise _error(errno.EINVAL)
        backlog = call.arguments[1] & 0xFFFF_FFFF  # a negative one is very large to Linux, too
        sock.port.listen(backlog, sock.options.buffer)
        sock.state = State.LISTENING
        return 0

    async def _accept(self, call: Call, sock: VsockSocket) -> None:
        flags = call.integer(3) if call.name == "accept4" else 0
        if flags & ~_TYPE_FLAGS:
            raise _error(errno.EINVAL)
        port = sock.port
        if sock.state is not State.LISTENING or port is None:
            raise _error(errno.EINVAL)
        with self._taken(call, sock) as taken:
            timeout = _receive_timeout(taken) if os.get_blocking(taken.fileno()) else 0.0
        try:
            async with asyncio.timeout(timeout):
                while not port.closed:
                    if port.has_waiting():
                        self._accepted(call, sock, port, flags)
                        return
                    if timeout == 0.0:
                        break
                    await port.wait()
                    if not call.is_waiting():
                        port.pass_on()
                        return
        except TimeoutError:
            pass
        raise _error(errno.EINVAL if port.closed else errno.EAGAIN)

    def _accepted(self, call: Call, sock: VsockSocket, port: BoundPort, flags: int) -> None:
        """Give the program the next of the connections that wait."""
        try:
            with self._taken(call, sock) as taken:
                waiting = port.take(taken)
        except (OSError, _ReplacedError):
            port.pass_on()
            raise
        connection, peer = waiting
        try:
            if call.arguments[1] != 0:  # who asks for no address needs no room for one
                arguments.write_address(call, peer)
            connection.setblocking(not flags & socket.SOCK_NONBLOCK)
            given = call.give(connection.fileno(), close_on_exec=bool(flags & socket.SOCK_CLOEXEC))
        except OSError:
            port.give_back(waiting)
            raise
        if not given:
            port.give_back(waiting)
            return
        port.taken()
        local = Address(CID_LOCAL if peer.cid == CID_LOCAL else CID_HOST, sock.local.port)
        with connection:
            made = VsockSocket(sock.kind, None, State.CONNECTED, local, peer, replace(sock.options))
            self.sockets.add(connection, made)

    # Names ------------------------------------------------------------------------------------------------------------

    async def _getsockname(self, call: Call, sock: VsockSocket) -> int:
        arguments.write_address(call, sock.local)
        return 0

    async def _getpeername(self, call: Call, sock: VsockSocket) -> int:
        await self._decided(call, sock)
        if sock.state is not State.CONNECTED:
            raise _error(errno.ENOTCONN)
        arguments.write_address(call, sock.peer)
        return 0

    # Options ----------------------------------------------------------------------------------------------------------

    async def _decided(self, call: Call, sock: VsockSocket) -> None:
        """Of a connect(2) in progress that is decided, as the program's socket shows already, await the result."""
        if sock.attempt is not None:
            with self._taken(call, sock) as taken:
                decided = is_writable(taken)
            if decided:
                await asyncio.shield(sock.attempt.result)

    async def _getsockopt(self, call: Call, sock: VsockSocket) -> int | None:
        level, name = call.integer(1), call.integer(2)
        if level == socket.AF_VSOCK:
            arguments.write_option(call, sock.options.get(name), strict=True)
        elif name == SO_DOMAIN:
            arguments.write_option(call, struct.pack("=i", socket.AF_VSOCK))
        elif name == SO_ACCEPTCONN:
            arguments.write_option(call, struct.pack("=i", sock.state is State.LISTENING))
        else:  # SO_ERROR
            await self._decided(call, sock)
            if sock.error == 0:
                call.go_on()
                return None
            arguments.write_option(call, struct.pack("=i", sock.error))
            # It is told once. One that a signal kept from the program is told when that asks again.
            if call.answer(0):
                sock.error = 0
            return None
        return 0

    async def _setsockopt(self, call: Call, sock: VsockSocket) -> int:
        sock.options.set(call.integer(2), arguments.option(call))
        if sock.port is not None:
            sock.port.set_buffer(sock.options.buffer)
        return 0

    async def _error_queue(self, _call: Call, _sock: VsockSocket) -> int:
        raise _error(errno.EAGAIN)  # it is empty, always


def _receive_timeout(sock: socket.socket) -> float | None:
    """SO_RCVTIMEO in seconds, or None."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    seconds, microseconds = struct.unpack("=qq", raw)
    return seconds + microseconds / 1e6 or None
