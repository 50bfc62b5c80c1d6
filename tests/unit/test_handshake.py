"""The client's half of the handshake, as pure logic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostvsock.cli.handshake import ANSWER_LIMIT, Answer, HandshakeError, request
from vhostvsock.ids import Port


def test_the_request_is_one_line() -> None:
    assert request(Port(22)) == b"CONNECT 22\n"


@given(st.integers(0, 0xFFFF_FFFF), st.binary(max_size=50), st.data())
def test_the_answer_may_come_in_any_pieces_and_nothing_behind_it_is_lost(
    number: int, rest: bytes, data: st.DataObject
) -> None:
    stream = b"OK %d\n" % number + rest
    cut = data.draw(st.integers(0, len(stream)))
    answer = Answer()
    got = b""
    for piece in (stream[:cut], stream[cut:]):
        if answer.host_port is None:
            if answer.feed(piece):
                got += answer.rest
        else:
            got += piece
    assert answer.host_port == number
    assert got == rest


@pytest.mark.parametrize(
    "line", [b"NO 3\n", b"OK\n", b"OK x\n", b"OK -1\n", b"ok 3\n", b"OK 4294967296\n", b"\n", b"x" * ANSWER_LIMIT]
)
def test_anything_else_is_no_answer(line: bytes) -> None:
    with pytest.raises(HandshakeError):
        Answer().feed(line)
