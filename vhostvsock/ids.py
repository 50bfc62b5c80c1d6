"""Context ids and ports of vsock: checked once, in the constructor.

Before: numbers from the command line, a file or the wire. After: everything that takes a `Cid` or a `Port`.
Rule:   who holds one of these need not check it again.
"""

from __future__ import annotations

from dataclasses import dataclass

# Well-known context ids (linux/vm_sockets.h): none of them can be a guest's own.
CID_HYPERVISOR = 0
CID_LOCAL = 1
CID_HOST = 2
CID_ANY = 0xFFFF_FFFF

_RESERVED = {
    CID_HYPERVISOR: "the hypervisor",
    CID_LOCAL: "loopback",
    CID_HOST: "the host",
    CID_ANY: "`any` (VMADDR_CID_ANY)",
}

# The highest port that can be connected to: 2^32-1 is VMADDR_PORT_ANY.
PORT_ANY = 0xFFFF_FFFF


def _require_int(value: object, what: str) -> int:
    # A bool is an int to Python, never to the user.
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{what} must be a number, not {value!r}")
    return value


@dataclass(frozen=True, order=True, slots=True)
class Cid:
    """The context id of a guest: 3 to 4294967294."""

    value: int

    def __post_init__(self) -> None:
        value = _require_int(self.value, "a CID")
        if value < 0 or value > CID_ANY:
            raise ValueError(f"CID {value} does not fit in 32 bits; use 3 to 4294967294")
        if value in _RESERVED:
            raise ValueError(f"CID {value} is reserved for {_RESERVED[value]}; use 3 to 4294967294")

    @classmethod
    def parse(cls, text: str) -> Cid:
        """A CID as people write it: decimal, or hexadecimal with 0x."""
        return cls(parse_number(text, "CID"))

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True, order=True, slots=True)
class Port:
    """A vsock port that can be connected to: 0 to 4294967294."""

    value: int

    def __post_init__(self) -> None:
        value = _require_int(self.value, "a port")
        if value < 0 or value > PORT_ANY:
            raise ValueError(f"port {value} does not fit in 32 bits; use 0 to 4294967294")
        if value == PORT_ANY:
            raise ValueError(f"port {value} means `any` (VMADDR_PORT_ANY); use 0 to 4294967294")

    @classmethod
    def parse(cls, text: str) -> Port:
        """A port as people write it: decimal, or hexadecimal with 0x."""
        return cls(parse_number(text, "port"))

    def __str__(self) -> str:
        return str(self.value)


def parse_number(text: str, what: str) -> int:
    """A number of 32 bits as people write it: decimal, or hexadecimal with 0x. `what` names it in the error."""
    # int() alone would also take "1_000", " 5 " and digits of other scripts.
    if not text.isascii() or text != text.strip() or "_" in text:
        raise ValueError(f"{what} {text!r} is not a number")
    try:
        number = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        raise ValueError(f"{what} {text!r} is not a number") from None
    if not 0 <= number <= 0xFFFF_FFFF:
        raise ValueError(f"{what} {text} does not fit in 32 bits")
    return number
