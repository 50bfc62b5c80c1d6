"""The lines of the bridge, as pure logic: bytes to requests, answers to bytes.

Before: server.py and client.py read a line. After: they get a closed set of requests, or a refusal to send.
Rule:   no socket and no clock here; a line is bounded; every number is checked once.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from vhostvsock.ids import PORT_ANY
from vhostvsock.registry.errors import Refused

# "CONNECT 4294967295 4294967295 4294967295 buffer=4294967295 from=4294967295\n" is 75 bytes.
LINE_LIMIT = 96
# "ERR ESOCKTNOSUPPORT " and a sentence.
ANSWER_LIMIT = 512
VERSION = 1
ANY = 0xFFFF_FFFF
DEFAULT_BACKLOG = 128
# The longest message of a vsock socket whose windows nobody changed.
LONGEST_MESSAGE = 256 * 1024

# What a listening application says for each connection that it took.
TAKEN = b"TAKEN\n"


@dataclass(frozen=True, slots=True)
class Version:
    """The client says which version it speaks."""

    number: int


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client may wish of a connection; 0 stands for what is usual.

    The other side has `timeout_ms` to answer, and may send `buffer` bytes ahead. `source_port` is the client's own.
    """

    timeout_ms: int = 0
    buffer: int = 0
    source_port: int = PORT_ANY

    def words(self) -> list[str]:
        """As they stand behind an address; those with names only where they say something."""
        source = [f"from={self.source_port}"] if self.source_port != PORT_ANY else []
        return [str(self.timeout_ms), *_buffer_words(self.buffer), *source]


@dataclass(frozen=True, slots=True)
class Connect:
    """The client wants a connection."""

    cid: int
    port: int
    wish: Wish = Wish()


@dataclass(frozen=True, slots=True)
class Listen:
    """The client wants the connections to a port. `cid` and `port` may be ANY. `buffer` is as in a `Wish`."""

    cid: int
    port: int
    backlog: int
    buffer: int = 0


@dataclass(frozen=True, slots=True)
class Bind:
    """The client wants a port, and says by BACKLOG when it listens. `cid` and `port` may be ANY."""

    cid: int
    port: int


@dataclass(frozen=True, slots=True)
class List:
    """The client wants to know which VMs this daemon serves, and perhaps what their devices have counted."""

    counters: bool = False


Request = Version | Connect | Listen | Bind | List


def parse(line: bytes) -> Request:
    """The request in `line`, which has no line end any more. Raises Refused(EPROTO) for anything else."""
    if not line.isascii():
        raise Refused(errno.EPROTO, "the request is not ASCII")
    words = line.decode("ascii").split()
    match [word.upper() for word in words[:1]] + words[1:]:
        case ["VERSION", number]:
            return Version(u32(number))
        case ["CONNECT", cid, port, *rest]:
            return Connect(u32(cid), u32(port), parse_wish(rest))
        case ["LISTEN", cid, port, *rest]:
            backlog, named = _rest(rest, "buffer")
            backlog = DEFAULT_BACKLOG if backlog is None else backlog
            return Listen(u32(cid, star=True), u32(port, star=True), backlog, named.get("buffer", 0))
        case ["BIND", cid, port]:
            return Bind(u32(cid, star=True), u32(port, star=True))
        case ["LIST"]:
            return List()
        case ["LIST", "counters"]:
            return List(counters=True)
    raise _no_request()


def _no_request() -> Refused:
    return Refused(
        errno.EPROTO,
        "not a request; those are CONNECT cid port [ms] [buffer=BYTES] [from=PORT], "
        "LISTEN cid port [backlog] [buffer=BYTES], BIND cid port, LIST [counters]",
    )


def parse_wish(words: list[str]) -> Wish:
    """The reverse of `Wish.words`, in any order. Raises Refused(EPROTO)."""
    timeout_ms, named = _rest(words, "buffer", "from")
    return Wish(timeout_ms or 0, named.get("buffer", 0), named.get("from", PORT_ANY))


def _rest(words: list[str], *names: str) -> tuple[int | None, dict[str, int]]:
    """What may stand behind an address: a number, then numbers with names, each once."""
    number: int | None = None
    if words and "=" not in words[0]:
        number, words = u32(words[0]), words[1:]
    named: dict[str, int] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in names or name in named:
            raise _no_request()
        named[name] = u32(value)
    return number, named


def _buffer_words(buffer: int) -> list[str]:
    return [f"buffer={buffer}"] if buffer else []


def u32(text: str, *, star: bool = False) -> int:
    """A number of 32 bits, or with `star` any of them. Raises Refused(EPROTO) for anything else."""
    if star and text == "*":
        return ANY
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > ANY:
        raise Refused(errno.EPROTO, f"{text[:16]!r} is not a number of 32 bits")
    return int(text)


def request_line(request: Request) -> bytes:
    """The line that says `request`."""
    match request:
        case Version(number):
            words = ["VERSION", str(number)]
        case Connect(cid, port, wish):
            words = ["CONNECT", str(cid), str(port), *(wish.words() if wish != Wish() else [])]
        case Listen(cid, port, backlog, buffer):
            words = ["LISTEN", _star(cid), _star(port), str(backlog), *_buffer_words(buffer)]
        case Bind(cid, port):
            words = ["BIND", _star(cid), _star(port)]
        case List(counters):
            words = ["LIST", *(["counters"] if counters else [])]
    return " ".join(words).encode() + b"\n"


def _star(number: int) -> str:
    return "*" if number == ANY else str(number)


def ok_line(number: int) -> bytes:
    """The answer to a request that succeeded; the number is mostly a port."""
    return b"OK %d\n" % number


def error_line(error: OSError) -> bytes:
    """The answer to a request that failed: the errno by name, and one sentence."""
    name = errno.errorcode.get(error.errno or errno.EIO, "EIO")
    sentence = " ".join((error.strerror or "it failed").split())
    room = ANSWER_LIMIT - len(name) - 8
    return f"ERR {name} {sentence}".encode("ascii", "backslashreplace")[:room] + b"\n"


def parse_answer(line: bytes) -> int:
    """The number in an OK line (without its end); raises the OSError that an ERR line names."""
    word, _, rest = line.decode("ascii", "replace").partition(" ")
    if word == "OK" and rest.isascii() and rest.isdigit():
        return int(rest)
    if word == "ERR":
        name, _, sentence = rest.partition(" ")
        number = getattr(errno, name, None) if name.isupper() else None
        # OSError(number, ...) becomes ConnectionResetError and its like by itself.
        raise OSError(number or errno.EPROTO, sentence or os.strerror(number or errno.EPROTO))
    raise OSError(errno.EPROTO, f"the bridge answered {line[:40]!r}")


def backlog_line(backlog: int, buffer: int = 0) -> bytes:
    """What a client that has a port says to listen on it, or to change how many connections may wait, or the buffer."""
    return " ".join(["BACKLOG", str(backlog), *_buffer_words(buffer)]).encode() + b"\n"


def parse_backlog(line: bytes) -> tuple[int, int | None]:
    """The backlog and the buffer, None where nothing is said of it. Raises Refused(EPROTO)."""
    match line.decode("ascii", "replace").split():
        case ["BACKLOG", *rest]:
            backlog, named = _rest(rest, "buffer")
            if backlog is not None:
                return backlog, named.get("buffer")
    raise Refused(errno.EPROTO, "who listens says TAKEN, or BACKLOG n [buffer=BYTES]")


def accept_line(cid: int, port: int) -> bytes:
    """What comes with the descriptor of a connection to a listening application: who is at the other end."""
    return b"ACCEPT %d %d\n" % (cid, port)


def parse_accept(line: bytes) -> tuple[int, int]:
    """(CID, port) of the other end."""
    match line.decode("ascii", "replace").split():
        case ["ACCEPT", cid, port] if cid.isdigit() and port.isdigit():
            return int(cid), int(port)
    raise OSError(errno.EPROTO, f"the bridge sent {line[:40]!r}")
