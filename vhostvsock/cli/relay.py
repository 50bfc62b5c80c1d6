"""Join two plain descriptors (stdin, stdout) to a connected socket until both directions have ended.

Before: cli/connect.py, after the handshake. After: nothing; the process ends.
Rules:  - Neither direction ever waits for the other: a write happens only when poll says so, and only as much as is
          sure not to block.
        - O_NONBLOCK is never set on stdin or stdout: the shell and other programs share them.
        - An end in one direction is passed on and leaves the other direction open.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat

from vhostvsock.errors import ConnectError

_CHUNK = 64 * 1024
# What is not taken of a message is lost, so as much as the device passes on.
_LONGEST_MESSAGE = 1 << 20
# What poll promises a pipe or terminal to take without blocking.
_SURE = select.PIPE_BUF
_GONE = select.POLLHUP | select.POLLERR


class OutputGoneError(Exception):
    """Nobody reads our output any more, as when piped into `head`."""


class Relay:
    """One conversation; `first` is what the guest sent right behind the handshake."""

    def __init__(self, sock: socket.socket, source: int, sink: int, first: bytes = b"") -> None:
        self._sock = sock
        self._messages = sock.type == socket.SOCK_SEQPACKET
        self._source = source
        self._sink = sink
        self._to_guest = b""
        self._from_guest = first
        self._source_open = True
        self._guest_reads = True  # until we have shut down our sending side, or the guest took no more
        self._guest_writes = True
        self._sink_open = True
        self._unsent = False
        self._sink_is_file = _is_regular(sink)

    def run(self) -> None:
        """Returns when both directions have ended; raises ConnectError where bytes may be lost."""
        self._sock.setblocking(False)
        # A descriptor with nothing to wait for is left out: POLLHUP cannot be masked and would make us spin. With no
        # output stuck, the socket stays in: its POLLHUP tells that the guest closed both directions.
        while not self._finished():
            poll = select.poll()
            wanted: dict[int, int] = {}
            if self._source_open and not self._to_guest:
                wanted[self._source] = select.POLLIN
            if self._from_guest:
                wanted[self._sink] = select.POLLOUT
            events = 0
            if self._guest_writes and not self._from_guest:
                events |= select.POLLIN
            if self._to_guest:
                events |= select.POLLOUT
            if events or not self._from_guest:
                wanted[self._sock.fileno()] = events
            for fd, mask in wanted.items():
                poll.register(fd, mask)
            ready = dict(poll.poll())
            if self._source in ready:
                self._read_source()
            self._serve_socket(ready.get(self._sock.fileno(), 0))
            if self._from_guest and (mask := ready.get(self._sink, 0)):
                self._write_sink(mask)

    def _finished(self) -> bool:
        if self._guest_writes or self._from_guest:
            return False
        if self._sink_open:
            self._close_sink()
        return not self._guest_reads

    def _serve_socket(self, mask: int) -> None:
        if self._to_guest and mask & (select.POLLOUT | _GONE):
            self._send()
        if self._guest_writes and not self._from_guest and mask & (select.POLLIN | _GONE):
            self._receive()
        if mask & _GONE and not self._guest_writes and self._guest_reads:
            # Closed in both directions: what stdin may still bring has nowhere to go.
            self._unsent = bool(self._to_guest) or self._source_has_bytes()
            self._stop_sending()
        if self._source_open or self._to_guest or not self._guest_reads:
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the guest was faster
        self._guest_reads = False

    def _read_source(self) -> None:
        try:
            data = os.read(self._source, _CHUNK)
        except OSError:
            data = b""  # a terminal that hung up, or a descriptor that was never open: the end of input
        if data:
            self._to_guest = data
        else:
            self._source_open = False

    def _source_has_bytes(self) -> bool:
        if not self._source_open:
            return False
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        try:
            return bool(poll.poll(0)) and bool(os.read(self._source, 1))
        except OSError:
            return False

    def _send(self) -> None:
        try:
            sent = self._sock.send(self._to_guest, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            # The guest reads no more. What it still says is written out, then the loss is told.
            self._unsent = True
            self._stop_sending()
            return
        self._to_guest = self._to_guest[sent:]

    def _stop_sending(self) -> None:
        self._to_guest = b""
        self._source_open = False
        self._guest_reads = False

    def _receive(self) -> None:
        try:
            data = self._sock.recv(_LONGEST_MESSAGE if self._messages else _CHUNK)
        except BlockingIOError:
            return
        except ConnectionResetError:
            # Closed by the other side while it had bytes of ours that it never read.
            self._guest_writes = False
            self._unsent = True
            self._stop_sending()
            return
        except OSError as error:
            raise ConnectError(f"the connection to the guest broke: {error.strerror}") from error
        if data:
            self._from_guest = data
        else:
            self._guest_writes = False

    def _write_sink(self, mask: int) -> None:
        if mask & _GONE and not mask & select.POLLOUT:
            raise OutputGoneError
        try:
            # A regular file takes all; a pipe or a terminal that is writable takes at least this much at once.
            size = os.write(self._sink, self._from_guest if self._sink_is_file else self._from_guest[:_SURE])
        except BlockingIOError:
            return  # someone else made it non-blocking
        except BrokenPipeError:
            raise OutputGoneError from None
        except OSError as error:
            raise ConnectError(f"cannot write the output: {error.strerror}") from error
        self._from_guest = self._from_guest[size:]

    def _close_sink(self) -> None:
        """Pass the guest's end of output on. The number stays in use, so that no later file gets it by accident."""
        self._sink_open = False
        if stat.S_ISSOCK(os.fstat(self._sink).st_mode):
            # stdin may be the same socket, so closing our number would not be seen at its other end.
            with socket.socket(fileno=os.dup(self._sink)) as twin, contextlib.suppress(OSError):
                twin.shutdown(socket.SHUT_WR)
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, self._sink)
        os.close(null)

    @property
    def unsent(self) -> bool:
        """Whether input was left that the guest did not take."""
        return self._unsent


def _is_regular(fd: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False
