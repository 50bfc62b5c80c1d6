"""The bridge's lines under any bytes: each is a request or a refusal, and what is written is read back as it was."""

from __future__ import annotations

import errno

from hypothesis import example, given
from hypothesis import strategies as st

from vhostvsock.bridge import protocol
from vhostvsock.registry.errors import Refused

NUMBERS = st.integers(0, protocol.ANY)
WISHES = st.builds(protocol.Wish, NUMBERS, NUMBERS, NUMBERS)
REQUESTS = st.one_of(
    st.builds(protocol.Version, NUMBERS),
    st.builds(protocol.Connect, NUMBERS, NUMBERS, WISHES),
    st.builds(protocol.Listen, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    st.builds(protocol.Bind, NUMBERS, NUMBERS),
    st.builds(protocol.List, st.booleans()),
)
# Words of the protocol in any order, and numbers that are none.
VERBS = ["CONNECT", "listen", "LIST", "VERSION", "BACKLOG", "bind", "counters"]
UNNAMED = ["*", "0", "-1", "+1", "4294967295", "4294967296", "1_0", "9" * 30]
NAMED = ["buffer=0", "buffer=4096", "buffer=1=2", "from=5", "from=4294967295", "from=", "="]
WORDS = st.lists(
    st.sampled_from([*VERBS, *UNNAMED, *NAMED]),
    max_size=7,
).map(lambda words: " ".join(words).encode())


@given(st.one_of(st.binary(max_size=protocol.LINE_LIMIT), WORDS))
@example("CONNECT ٣ 4".encode())
@example(b"CONNECT 1\x0b2")
def test_any_line_is_a_request_within_bounds_or_refused(line: bytes) -> None:
    try:
        request = protocol.parse(line)
    except Refused as refused:
        assert refused.errno == errno.EPROTO
        answer = protocol.error_line(refused)
        assert answer.startswith(b"ERR EPROTO ")
        assert answer.count(b"\n") == 1
        assert len(answer) <= protocol.ANSWER_LIMIT
        return
    assert protocol.parse(protocol.request_line(request).rstrip(b"\n")) == request


@given(REQUESTS)
def test_a_request_that_is_written_is_read_back(request: protocol.Request) -> None:
    line = protocol.request_line(request)
    assert len(line) <= protocol.LINE_LIMIT
    assert line.endswith(b"\n")
    assert protocol.parse(line[:-1]) == request


@given(WISHES)
def test_a_wish_that_goes_to_another_daemon_is_read_back(wish: protocol.Wish) -> None:
    assert protocol.parse_wish(wish.words()) == wish


@given(NUMBERS, NUMBERS)
def test_a_backlog_that_is_written_is_read_back(backlog: int, buffer: int) -> None:
    line = protocol.backlog_line(backlog, buffer)
    assert len(line) <= protocol.LINE_LIMIT
    assert protocol.parse_backlog(line.rstrip(b"\n")) == (backlog, buffer or None)


@given(st.one_of(st.binary(max_size=protocol.LINE_LIMIT), WORDS))
@example(b"BACKLOG 5 buffer=9")
@example(b"BACKLOG buffer=9")
def test_any_backlog_is_numbers_within_bounds_or_refused(line: bytes) -> None:
    try:
        backlog, buffer = protocol.parse_backlog(line)
    except Refused as refused:
        assert refused.errno == errno.EPROTO
    else:
        assert 0 <= backlog <= protocol.ANY
        assert buffer is None or 0 <= buffer <= protocol.ANY


@given(NUMBERS)
def test_an_answer_that_is_written_is_read_back(number: int) -> None:
    assert protocol.parse_answer(protocol.ok_line(number).rstrip(b"\n")) == number


@given(st.sampled_from(sorted(errno.errorcode)), st.text(max_size=2000))
def test_an_error_that_is_written_is_read_back_with_its_number(number: int, text: str) -> None:
    line = protocol.error_line(OSError(number, text or "x"))
    assert len(line) <= protocol.ANSWER_LIMIT
    assert line.count(b"\n") == 1
    try:
        found = protocol.parse_answer(line.rstrip(b"\n"))
    except OSError as error:
        assert error.errno == number
    else:
        raise AssertionError(f"{line!r} was read as {found}")


@given(st.binary(max_size=protocol.ANSWER_LIMIT))
def test_any_answer_is_a_number_or_an_error(line: bytes) -> None:
    try:
        assert protocol.parse_answer(line) >= 0
    except OSError as error:
        assert error.errno


@given(st.binary(max_size=protocol.LINE_LIMIT))
def test_any_announcement_is_an_address_or_an_error(line: bytes) -> None:
    try:
        cid, port = protocol.parse_accept(line)
        assert cid >= 0
        assert port >= 0
    except OSError as error:
        assert error.errno == errno.EPROTO
