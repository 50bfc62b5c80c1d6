"""Addresses and options of AF_VSOCK as bytes."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from vhostvsock.exec.address import NOTHING, Address
from vhostvsock.exec.options import Options

GOOD = struct.pack("=HHIIB3x", socket.AF_VSOCK, 0, 1234, 42, 0)


def test_addresses_go_in_and_out() -> None:
    assert Address.unpack(GOOD) == Address(42, 1234)
    assert Address(42, 1234).pack() == GOOD
    # More than is needed, and the flag of nested guests.
    assert Address.unpack(GOOD[:12] + b"\1\0\0\0more") == Address(42, 1234)
    assert Address.unpack(NOTHING.pack()) == NOTHING


@pytest.mark.parametrize(
    "data", [b"", GOOD[:15], struct.pack("=H", socket.AF_INET) + GOOD[2:], GOOD[:12] + b"\2\0\0\0"]
)
def test_what_is_no_address_is_einval(data: bytes) -> None:
    with pytest.raises(OSError, match="Invalid argument") as failed:
        Address.unpack(data)
    assert failed.value.errno == errno.EINVAL


def test_a_size_stays_within_its_bounds_also_when_they_move() -> None:
    options = Options()
    size = struct.Struct("=Q")
    options.set(0, size.pack(1))
    assert size.unpack(options.get(0)) == (128,)
    options.set(0, size.pack(1 << 40))
    assert size.unpack(options.get(0)) == (262144,)
    options.set(2, size.pack(4096))
    assert size.unpack(options.get(0)) == (4096,)
    options.set(1, size.pack(8192))
    assert size.unpack(options.get(0)) == (8192,)


@pytest.mark.parametrize(("data", "milliseconds"), [((0, 1), 1), ((0, 500_000), 500), ((3, 0), 3000), ((0, 0), 2000)])
def test_the_timeout_of_connecting(data: tuple[int, int], milliseconds: int) -> None:
    options = Options()
    options.set(6, struct.pack("=qq", *data))
    assert options.timeout_ms == milliseconds
    assert options.get(8) == struct.pack("=qq", *(data if any(data) else (2, 0)))


@pytest.mark.parametrize("data", [(-1, 0), (0, 1_000_000), (0, -1), (1 << 62, 0)])
def test_times_that_are_none_are_erange(data: tuple[int, int]) -> None:
    with pytest.raises(OSError, match="out of range") as failed:
        Options().set(8, struct.pack("=qq", *data))
    assert failed.value.errno == errno.ERANGE
