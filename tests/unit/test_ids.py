"""CIDs and ports are checked once, in their constructors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostvsock.ids import Cid, Port


@pytest.mark.parametrize("value", [3, 42, 0xFFFF_FFFE])
def test_a_guest_cid_is_accepted(value: int) -> None:
    assert Cid(value).value == value


@pytest.mark.parametrize("value", [0, 1, 2, 0xFFFF_FFFF, 1 << 32, (1 << 32) + 42, 1 << 64, -1])
def test_a_reserved_or_too_large_cid_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=r"reserved|32 bits"):
        Cid(value)


@pytest.mark.parametrize("value", [True, "42", 42.0, None])
def test_a_cid_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be a number"):
        Cid(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", " 42", "4_2", "42 ", "٤٢", "0x", "cid", "1e3", "42.0"])
def test_text_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a number"):
        Cid.parse(text)


def test_numbers_are_read_in_decimal_and_hexadecimal() -> None:
    assert Cid.parse("0x2a") == Cid.parse("42") == Cid(42)
    assert Port.parse("0xFFFFFFFE") == Port(0xFFFF_FFFE)


def test_the_any_port_cannot_be_connected_to() -> None:
    with pytest.raises(ValueError, match="any"):
        Port(0xFFFF_FFFF)


@given(st.integers(0, 0xFFFF_FFFE))
def test_every_other_port_is_accepted_and_written_as_it_is_read(value: int) -> None:
    assert Port.parse(str(Port(value))) == Port(value)


@given(st.integers())
def test_a_number_is_a_cid_exactly_when_a_guest_can_have_it(value: int) -> None:
    if 3 <= value <= 0xFFFF_FFFE:
        assert Cid(value).value == value
    else:
        with pytest.raises(ValueError, match="CID"):
            Cid(value)
