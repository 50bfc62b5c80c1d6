"""The filter of `vhostvsock exec`, run by an interpreter of its own: which calls are told, refused and left alone."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from vhostvsock.exec import filtering
from vhostvsock.exec.bpf import Program
from vhostvsock.exec.filtering import ARCHITECTURES

ALLOW, NOTIFY, ERRNO = 0x7FFF_0000, 0x7FC0_0000, 0x0005_0000
SOL_SOCKET = socket.SOL_SOCKET


def run(instructions: bytes, audit: int, number: int, *arguments: int) -> int:
    """What the kernel would do with a call."""
    data = struct.pack("=IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    word, at = 0, 0
    while True:
        code, true, false, value = struct.unpack_from("=HBBI", instructions, at * 8)
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            (word,) = struct.unpack_from("=I", data, value)
        else:
            holds = {0x15: word == value, 0x35: word >= value, 0x45: word & value != 0}
            at += true if holds[code] else false


def native(name: str, call: str, *arguments: int, dev_vsock: bool = False) -> int:
    architecture = ARCHITECTURES[name]
    return run(
        filtering.build(architecture, dev_vsock=dev_vsock), architecture.audit, architecture.calls[call], *arguments
    )


on_all = pytest.mark.parametrize("name", ARCHITECTURES)


@on_all
def test_sockets_are_told_apart_by_their_family(name: str) -> None:
    assert native(name, "socket", socket.AF_VSOCK) == NOTIFY
    # The kernel takes an int: what is above its 32 bits does not count.
    assert native(name, "socket", 1 << 32 | socket.AF_VSOCK) == NOTIFY
    for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
        assert native(name, "socket", family) == ALLOW
    assert native(name, "socketpair", socket.AF_VSOCK) == ERRNO | errno.EOPNOTSUPP
    assert native(name, "socketpair", socket.AF_UNIX) == ALLOW


@on_all
@pytest.mark.parametrize("call", ["connect", "accept", "accept4", "bind", "listen", "getsockname", "getpeername"])
def test_calls_with_nothing_but_a_descriptor_are_all_told(name: str, call: str) -> None:
    assert native(name, call, 3) == NOTIFY


@on_all
def test_the_opening_of_files_is_told_only_where_that_was_asked_for(name: str) -> None:
    calls = sorted(filtering.OPENS & ARCHITECTURES[name].calls.keys())
    assert {"openat", "openat2"} <= set(calls)
    for call in calls:
        assert native(name, call, 1, 2) == ALLOW
        assert native(name, call, 1, 2, dev_vsock=True) == NOTIFY
    assert native(name, "socket", socket.AF_INET, dev_vsock=True) == ALLOW


@on_all
def test_options_are_told_apart_by_their_level_and_name(name: str) -> None:
    for call in ("getsockopt", "setsockopt"):
        assert native(name, call, 3, socket.AF_VSOCK, 0) == NOTIFY
        assert native(name, call, 3, socket.IPPROTO_TCP, 1) == ALLOW
        assert native(name, call, 3, SOL_SOCKET, socket.SO_RCVBUF) == ALLOW
    for option in (socket.SO_ERROR, 39, 30):
        assert native(name, "getsockopt", 3, SOL_SOCKET, option) == NOTIFY
        assert native(name, "setsockopt", 3, SOL_SOCKET, option) == ALLOW
    assert native(name, "ioctl", 3, 0x7B9) == NOTIFY
    assert native(name, "ioctl", 3, 0x5411) == ALLOW


@on_all
def test_calls_that_carry_data_are_none_of_its_business(name: str) -> None:
    architecture = ARCHITECTURES[name]
    instructions = filtering.build(architecture)
    told = set(architecture.calls.values()) - {architecture.calls["recvmsg"]}
    for number in set(range(500)) - told:
        assert run(instructions, architecture.audit, number, socket.AF_VSOCK, socket.AF_VSOCK) == ALLOW


@on_all
def test_who_asks_for_errors_is_told_of_and_who_receives_is_not(name: str) -> None:
    assert native(name, "recvmsg", 3, 1, socket.MSG_ERRQUEUE | socket.MSG_TRUNC) == NOTIFY
    assert native(name, "recvmsg", 3, 1, ~socket.MSG_ERRQUEUE & 0xFFFF_FFFF) == ALLOW


def test_programs_for_32_bits_get_no_af_vsock() -> None:
    refused = ERRNO | errno.EAFNOSUPPORT
    x86 = filtering.build(ARCHITECTURES["x86_64"])
    assert run(x86, 0x4000_0003, 359, socket.AF_VSOCK) == refused
    assert run(x86, 0x4000_0003, 359, socket.AF_UNIX) == ALLOW
    assert run(x86, 0x4000_0003, 102, 1) == NOTIFY
    assert run(x86, 0x4000_0003, 102, 3) == ALLOW
    # The other ABI of x86_64, in which numbers have a bit more.
    assert run(x86, 0xC000_003E, 0x4000_0000 | 41, socket.AF_VSOCK) == refused
    assert run(x86, 0xC000_003E, 0x4000_0000 | 42, socket.AF_VSOCK) == ALLOW
    arm = filtering.build(ARCHITECTURES["aarch64"])
    assert run(arm, 0x4000_0028, 281, socket.AF_VSOCK) == refused
    assert run(arm, 0x4000_0028, 281, socket.AF_INET) == ALLOW


def test_programs_that_the_kernel_would_refuse_are_not_made() -> None:
    with pytest.raises(ValueError, match="0 instructions"):
        Program().assemble()
    far = Program()
    far.jump_if_equal(1, "end")
    for _ in range(256):
        far.load(0)
    far.label("end")
    far.give(ALLOW)
    with pytest.raises(ValueError, match="over 256 instructions"):
        far.assemble()
    twice = Program()
    twice.label("x")
    with pytest.raises(ValueError, match="twice"):
        twice.label("x")
