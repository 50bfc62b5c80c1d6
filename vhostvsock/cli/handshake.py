"""The client's half of the CONNECT/OK handshake, as pure logic.

Before: cli/connect.py feeds in what it received. After: it gets the answer, and every byte that came behind it.
Rule:   no socket and no clock here.
"""

from __future__ import annotations

from vhostvsock.ids import Port

# "OK 4294967295\n" is 14 bytes; anything longer without a line end is no answer to CONNECT.
ANSWER_LIMIT = 32


class HandshakeError(Exception):
    """What came is not an answer to CONNECT."""


def request(port: Port) -> bytes:
    """The line that asks for `port`."""
    return b"CONNECT %d\n" % port.value


class Answer:
    """Collects the answer. `host_port` is set once it is complete; `rest` is what came behind it."""

    def __init__(self) -> None:
        self.host_port: int | None = None
        self.rest = b""
        self._line = b""

    def feed(self, data: bytes) -> bool:
        """Take received bytes; True once the answer is complete."""
        self._line += data
        line, end, rest = self._line.partition(b"\n")
        if len(line) >= ANSWER_LIMIT:
            raise HandshakeError(f"a line that is too long: {line[:ANSWER_LIMIT]!r}")
        if not end:
            return False
        word, _, number = line.partition(b" ")
        if word != b"OK" or not number.isdigit() or int(number) > 0xFFFF_FFFF:
            raise HandshakeError(f"an unexpected line: {line!r}")
        self.host_port, self.rest = int(number), rest
        return True
