"""Requests that come with a descriptor: it becomes the connection, and the socket that asks gets the answer."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from vhostvsock.bridge.caller import Caller
from vhostvsock.bridge.lines import read_line
from vhostvsock.bridge.protocol import Bind, Connect, Listen, Request, Wish, parse, request_line
from vhostvsock.registry.errors import Refused


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (b"CONNECT 42 1234 500", Connect(42, 1234, Wish(500))),
        (b"CONNECT 42 1234 500 buffer=4096 from=0", Connect(42, 1234, Wish(500, 4096, 0))),
        (b"CONNECT 42 1234 0 from=5555", Connect(42, 1234, Wish(source_port=5555))),
        (b"LISTEN 2 1234 5 buffer=4096", Listen(2, 1234, 5, 4096)),
        (b"CONNECT 42 1234", Connect(42, 1234)),
        (b"BIND * 1234", Bind(0xFFFF_FFFF, 1234)),
        (b"BIND 2 *", Bind(2, 0xFFFF_FFFF)),
    ],
)
def test_requests_are_said_as_they_are_read(line: bytes, request_: Request) -> None:
    assert parse(line) == request_
    assert request_line(request_) == line + b"\n"


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (b"CONNECT 1 2 from=5 buffer=9", Connect(1, 2, Wish(0, 9, 5))),
        (b"CONNECT 1 2 buffer=0 from=4294967295", Connect(1, 2)),
        (b"LISTEN * * buffer=9", Listen(0xFFFF_FFFF, 0xFFFF_FFFF, 128, 9)),
    ],
)
def test_what_has_a_name_stands_anywhere_behind_the_address(line: bytes, request_: Request) -> None:
    assert parse(line) == request_


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT 1 2 x",
        b"CONNECT 1 2 *",
        b"CONNECT 1 2 3 4",
        b"CONNECT 1 2 from=5 3",
        b"CONNECT 1 2 from=5 from=5",
        b"CONNECT 1 2 from=",
        b"CONNECT 1 2 from=-1",
        b"CONNECT 1 2 from=*",
        b"CONNECT 1 2 FROM=5",
        b"CONNECT 1 2 buffer=4294967296",
        b"CONNECT 1 2 =5",
        b"CONNECT 1 2 colour=5",
        b"CONNECT buffer=5 2",
        b"LISTEN 1 2 from=5",
        b"LISTEN 1 2 buffer=5 128",
        b"BIND 1",
        b"BIND 1 2 3",
        b"BIND 1 2 buffer=5",
    ],
)
def test_other_lines_are_none(line: bytes) -> None:
    with pytest.raises(Refused, match="EPROTO"):
        parse(line)


def test_who_says_an_unknown_word_is_told_which_there_are() -> None:
    with pytest.raises(Refused, match=r"CONNECT cid port \[ms\] \[buffer=BYTES\] \[from=PORT\], LISTEN"):
        parse(b"CONNECT 1 2 colour=5")


def test_a_descriptor_comes_with_the_line_and_payload_behind_it_stays() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    one, two = socket.socketpair()
    with ours, theirs, one, two:
        theirs.send(b"CONNECT ")
        socket.send_fds(theirs, [b"42 5\nhello"], [two.fileno()])
        line, sockets = asyncio.run(asyncio.wait_for(read_line(ours, 64), 5))
        assert (line, len(sockets)) == (b"CONNECT 42 5", 1)
        with sockets[0]:
            one.send(b"x")
            assert sockets[0].recv(10) == b"x"
        assert ours.recv(100) == b"hello"


def test_the_connection_is_without_its_filler_once_ok_is_said() -> None:
    program, held = socket.socketpair()
    asks, asked = socket.socketpair()
    with program, held, asks, asked:
        filler = bytes(100_000)
        assert program.send(filler) == len(filler)
        Caller(held, asked).accept(1234)
        assert asks.recv(100) == b"OK 1234\n"
        program.send(b"payload")
        assert held.recv(100) == b"payload"


def test_the_socket_that_asks_is_the_connection_where_no_other_came() -> None:
    asks, asked = socket.socketpair()
    with asks, asked:
        asks.send(b"payload")
        Caller(asked).accept(1234)
        assert asks.recv(100) == b"OK 1234\n"
        assert asked.recv(100) == b"payload"


def test_what_another_daemon_hands_over_has_one_descriptor_or_two() -> None:
    one, two = socket.socketpair()
    with one, two:
        for caller in (Caller(one), Caller(one, two)):
            assert Caller.of(caller.sockets) == caller
        for wrong in ([], [one, two, one]):
            with pytest.raises(Refused) as refused:
                Caller.of(wrong)
            assert refused.value.errno == errno.EPROTO
