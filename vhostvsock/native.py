"""The native library, typed: the only file that imports `vhostvsock._native`.

Before: daemon.py. After: native/src/ffi.
Rules:  - Every call goes through `_call`, which turns a negative status into an exception of errors.py.
        - `Engine` and `Device` are context managers; letting one be collected while open only warns.
        - Nothing native survives a fork: its threads exist in the parent alone. A child's call is refused here, and a
          child's close does nothing.
        - The boundary carries file descriptors, small integers and log lines, never payload.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import itertools
import logging
import os
import socket
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from vhostvsock.errors import BusyError, NativeError, NativePanicError, StaleHandleError, VhostvsockError
from vhostvsock.ids import PORT_ANY, Cid

try:
    from vhostvsock._native import ffi as _ffi_untyped
    from vhostvsock._native import lib as _lib_untyped
except ImportError as error:
    raise VhostvsockError(
        f"the native library cannot be loaded: {error}",
        hint="build and install it: `pip install .` in the source tree, or `scripts/lib/setup.sh`",
    ) from error

# Status codes of every exported function.
OK = 0
ERR_ARGUMENT = -1
ERR_HANDLE = -2
ERR_OS = -3
ERR_BUSY = -4
ERR_PANIC = -5

# Log lines per turn of the event loop: enough to be cheap, few enough not to hold up the rest.
EVENT_BATCH = 128


class _Lib(Protocol):
    """The exported functions, with cffi's pointers as Any."""

    def vhv_engine_new(self, engine: Any, event_fd: Any, err: Any) -> int: ...
    def vhv_engine_free(self, engine: int, err: Any) -> int: ...
    def vhv_engine_set_log_level(self, engine: int, level: int, err: Any) -> int: ...
    def vhv_next_event(self, engine: int, event: Any, err: Any) -> int: ...
    def vhv_device_new(self, engine: int, config: Any, device: Any, err: Any) -> int: ...
    def vhv_device_attach(self, device: int, fd: int, admission: Any, err: Any) -> int: ...
    def vhv_device_connect(self, device: int, fd: int, answer: int, wish: Any, err: Any) -> int: ...
    def vhv_device_answer(self, device: int, token: int, fd: int, buffer: int, err: Any) -> int: ...
    def vhv_device_netns(self, device: int, netns: int, local: int, err: Any) -> int: ...
    def vhv_device_ping(self, device: int, err: Any) -> int: ...
    def vhv_device_stats(self, device: int, stats: Any, err: Any) -> int: ...
    def vhv_stat_name(self, index: int) -> Any: ...
    def vhv_device_free(self, device: int, err: Any) -> int: ...
    def vhv_trim(self, err: Any) -> int: ...


_lib: _Lib = _lib_untyped
_ffi: Any = _ffi_untyped


class EventKind(enum.IntEnum):
    """What a device tells."""

    LOG = 0
    ATTACHED = 1  # a front-end took over
    DETACHED = 2  # the front-end is gone; the text says why
    STARTED = 3  # both rings run
    STOPPED = 4  # the guest's driver is gone or paused
    FAULT = 5  # the device's thread died; the text says why
    ASK = 6  # the guest asks for a port that nobody of its own has; answer under `token`
    NETNS = 7  # the mode of a client's namespace is unknown
    ASK_SEQPACKET = 8  # as ASK, for a message socket


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in the data plane; `device` is the handle of the one it happened to, or 0.

    ASK, ASK_SEQPACKET: `value` has the port asked for in its lower 32 bits, and that of the guest's socket above them.
    NETNS: `value` is the namespace's cookie, and `sock` a socket made in it, which the receiver closes.
    """

    kind: EventKind
    level: int
    device: int
    text: str
    token: int = 0
    value: int = 0
    sock: socket.socket | None = None


class Scope(enum.IntEnum):
    """Whose clients may see a VM."""

    EVERYONE = 0
    GLOBAL = 1  # those of all global namespaces
    LOCAL = 2  # those of its own namespace


@dataclass(frozen=True, slots=True)
class Admission:
    """On which terms a front-end is attached. Without any: the configured CID, seen by everyone."""

    cid: Cid | None = None
    scope: Scope = Scope.EVERYONE
    netns: int = 0
    asks: bool = False


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """What a device is made of. Zero stands for the native default."""

    name: str
    cid: Cid
    hybrid_listener: int
    uds_path: str
    buf_alloc: int = 0
    max_connections: int = 0
    handshake_timeout_ms: int = 0
    connect_timeout_ms: int = 0
    poll_us: int = 0  # here zero means not at all
    seqpacket_listener: int = -1  # none
    reconnect: bool = False


def _call(what: str, function: Callable[..., int], *args: Any) -> int:
    """Call `function` with an error record as the last argument; a failure becomes an exception that says `what`."""
    err = _ffi.new("VhvError *")
    status: int = function(*args, err)
    if status >= 0:
        return status
    text = _ffi.string(err.message).decode("utf-8", "replace") or f"status {status}"
    kinds = {ERR_HANDLE: StaleHandleError, ERR_BUSY: BusyError, ERR_PANIC: NativePanicError}
    raise kinds.get(status, NativeError)(f"{what}: {text}", code=status, os_errno=int(err.os_errno))


def trim() -> None:
    """Give freed memory back to the system."""
    _call("cannot give memory back", _lib.vhv_trim)


@functools.cache
def _stat_names() -> tuple[str, ...]:
    """The names of the counters, in the order of their values."""
    names = itertools.takewhile(lambda name: name != _ffi.NULL, map(_lib.vhv_stat_name, itertools.count()))
    return tuple(_ffi.string(name).decode() for name in names)


class _Handle(ABC):
    """A native object: its number, and the process that made it."""

    _value: int = 0
    _pid: int = 0

    def _own(self, value: int) -> None:
        self._value = value
        self._pid = os.getpid()

    @property
    def handle(self) -> int:
        """The native number; raises when the object is closed or belongs to the parent process."""
        what = type(self).__name__
        if self._value == 0:
            raise StaleHandleError(f"{what} is closed", code=ERR_HANDLE)
        if self._pid != os.getpid():
            raise StaleHandleError(
                f"{what} belongs to process {self._pid}, which forked this one",
                code=ERR_HANDLE,
                hint="start processes with exec (subprocess), or make a new engine in the child",
            )
        return self._value

    @property
    def closed(self) -> bool:
        return self._value == 0

    def _disown(self) -> int:
        """The number to free, or 0 where there is nothing to free in this process."""
        value, self._value = self._value, 0
        return value if self._pid == os.getpid() else 0

    @abstractmethod
    def close(self) -> None:
        """Free what the number names; once is enough."""

    async def aclose(self) -> None:
        """`close`, which joins threads, beside the event loop; within it only if there is no thread to be had."""
        try:
            await asyncio.to_thread(self.close)
        except RuntimeError:
            self.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._value != 0 and self._pid == os.getpid():
            warnings.warn(f"{type(self).__name__} was never closed", ResourceWarning, source=self, stacklevel=2)


class Engine(_Handle):
    """All devices of this process, and the one queue of what they tell."""

    def __init__(self) -> None:
        engine = _ffi.new("uint64_t *")
        event_fd = _ffi.new("int32_t *")
        _call("cannot start the data plane", _lib.vhv_engine_new, engine, event_fd)
        self._own(int(engine[0]))
        self.event_fd = int(event_fd[0])
        self._record = _ffi.new("VhvEvent *")
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Engine:
        return self

    def close(self) -> None:
        """Stop and join all devices. Blocks until their threads have ended; may be called twice."""
        self.stop_events()
        value = self._disown()
        if value:
            _call("cannot stop the data plane", _lib.vhv_engine_free, value)

    def set_log_level(self, level: int) -> None:
        """Drop native log lines below `level` (Python's numbers) where they arise."""
        # Python counts in tens from 10; NOTSET means everything.
        _call("cannot set the log level", _lib.vhv_engine_set_log_level, self.handle, max(level, logging.DEBUG))

    def next_event(self) -> Event | None:
        """The oldest event that waits, or None."""
        record = self._record
        if _call("cannot read events", _lib.vhv_next_event, self.handle, record) == 0:
            return None
        text = _ffi.string(record.text).decode("utf-8", "replace")
        sock = socket.socket(fileno=record.fd) if record.fd >= 0 else None
        return Event(
            EventKind(record.kind),
            int(record.level),
            int(record.device),
            text,
            int(record.token),
            int(record.value),
            sock,
        )

    def drain(self, limit: int) -> Iterator[Event]:
        """Up to `limit` events that wait."""
        for _ in range(limit):
            event = self.next_event()
            if event is None:
                return
            yield event

    def start_events(self, loop: asyncio.AbstractEventLoop, handler: Callable[[Event], None]) -> None:
        """Call `handler` for every event from now on, in `loop`'s thread, in batches."""

        def readable() -> None:
            # What one turn leaves waits for the next: the eventfd stays readable, or is asked again below.
            count = 0
            for event in self.drain(EVENT_BATCH):
                count += 1
                handler(event)
                if self.closed:
                    return
            if count == EVENT_BATCH and self._loop is not None:
                loop.call_soon(readable_if_running)

        def readable_if_running() -> None:
            if self._loop is not None and not self.closed:
                readable()

        loop.add_reader(self.event_fd, readable)
        self._loop = loop

    def stop_events(self) -> None:
        """No further calls of the handler. May be called twice."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self.event_fd)

    def new_device(self, config: DeviceConfig) -> Device:
        """A device with a thread of its own, serving host applications from now on and a guest once one attaches."""
        record = _ffi.new("VhvDeviceConfig *")
        name = _ffi.new("char[]", config.name.encode())
        uds_path = _ffi.new("char[]", os.fsencode(config.uds_path))
        record.name = name
        record.guest_cid = config.cid.value
        record.hybrid_listener = config.hybrid_listener
        record.seqpacket_listener = config.seqpacket_listener
        record.uds_path = uds_path
        record.buf_alloc = config.buf_alloc
        record.max_connections = config.max_connections
        record.handshake_timeout_ms = config.handshake_timeout_ms
        record.connect_timeout_ms = config.connect_timeout_ms
        record.poll_us = config.poll_us
        record.reconnect = config.reconnect
        device = _ffi.new("uint64_t *")
        _call(f"vm {config.name}: cannot start the device", _lib.vhv_device_new, self.handle, record, device)
        return Device(int(device[0]), config.name)


class Device(_Handle):
    """The vsock device of one VM. Made by `Engine.new_device`."""

    def __init__(self, handle: int, name: str) -> None:
        self._own(handle)
        self.name = name
        self._pings = 0

    def __enter__(self) -> Device:
        return self

    def attach(self, front_end: socket.socket, admission: Admission | None = None) -> None:
        """Give a connected vhost-user socket to the device, which owns it from now on.

        Raises BusyError while another front-end is attached; the socket is closed then, too.
        """
        handle = self.handle
        terms = admission or Admission()
        record = _ffi.new("VhvAdmission *")
        record.guest_cid = 0 if terms.cid is None else terms.cid.value
        record.scope, record.netns, record.asks = int(terms.scope), terms.netns, int(terms.asks)
        what = f"vm {self.name}: cannot attach the front-end"
        _call(what, _lib.vhv_device_attach, handle, front_end.detach(), record)

    def connect(
        self,
        client: socket.socket,
        port: int,
        *,
        answer: socket.socket | None = None,
        source_port: int = PORT_ANY,
        buffer: int = 0,
        timeout_ms: int = 0,
    ) -> None:
        """Connect a client of the bridge to a port of the guest; the device owns the sockets.

        It answers on `answer`, or else on the connection itself. `source_port` is the client's own. The guest may send
        `buffer` bytes ahead (0: as many as the device gives, which is the upper bound), and has `timeout_ms` to answer
        (0: two seconds).
        """
        handle = self.handle
        what = f"vm {self.name}: cannot connect a client"
        record = _ffi.new("VhvWish *", (port, source_port, buffer, timeout_ms))
        told = -1 if answer is None else answer.detach()
        _call(what, _lib.vhv_device_connect, handle, client.detach(), told, record)

    def answer(self, token: int, sock: socket.socket | None, *, buffer: int = 0) -> None:
        """Answer an ASK or ASK_SEQPACKET: with a socket that leads to the application that listens, or with None.

        The guest may send `buffer` bytes ahead; 0: as many as the device gives, which is the upper bound.
        """
        handle = self.handle
        fd = -1 if sock is None else sock.detach()
        _call(f"vm {self.name}: cannot answer the guest", _lib.vhv_device_answer, handle, token, fd, buffer)

    def learn_netns(self, netns: int, local: bool) -> None:
        """Answer a NETNS: whether the namespace with this cookie is local."""
        what = f"vm {self.name}: cannot tell of a namespace"
        _call(what, _lib.vhv_device_netns, self.handle, netns, int(local))

    def ping(self) -> None:
        """Ask the device's thread for a sign of life; see `owes_pong`.

        A thread that owes one already is not asked again, but got out of what it waits in, should a front-end have seen
        to it that it waits.
        """
        self._pings += _call(f"vm {self.name}: cannot ask the device's thread", _lib.vhv_device_ping, self.handle)

    def owes_pong(self) -> bool:
        """Whether the thread has not come round to the last ping."""
        return self._pings != int(self._counters().values[_stat_names().index("pongs")])

    def stats(self) -> dict[str, int]:
        """Everything the device counts, by name."""
        record = self._counters()
        return {name: int(record.values[index]) for index, name in enumerate(_stat_names())}

    def _counters(self) -> Any:
        record = _ffi.new("VhvStats *")
        _call(f"vm {self.name}: cannot read the counters", _lib.vhv_device_stats, self.handle, record)
        return record

    def close(self) -> None:
        """Reset the device's connections, end and join its thread. May be called twice."""
        value = self._disown()
        if value:
            _call(f"vm {self.name}: cannot stop the device", _lib.vhv_device_free, value)
