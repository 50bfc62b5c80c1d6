"""A small assembler for seccomp's filters: classic BPF, with labels instead of offsets.

Before: filtering.py says what is to be done. After: the bytes that seccomp(2) takes (`struct sock_filter[]`).
Rule:   pure. Jumps go forwards only, as the kernel demands, over at most 255 instructions.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

# Codes of linux/bpf_common.h.
_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_JUMP_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

# Kernel's BPF_MAXINSNS.
_MAX_INSTRUCTIONS = 4096


@dataclass(frozen=True, slots=True)
class _Instruction:
    code: int
    value: int
    label: str | None = None  # where a jump goes when its condition holds; else to the next instruction


class Program:
    """Instructions in order; `assemble` makes the filter."""

    def __init__(self) -> None:
        self._instructions: list[_Instruction] = []
        self._labels: dict[str, int] = {}

    def load(self, offset: int) -> None:
        """Look at the word of `struct seccomp_data` at this offset."""
        self._instructions.append(_Instruction(_LOAD_WORD, offset))

    def jump_if_equal(self, value: int, label: str) -> None:
        self._instructions.append(_Instruction(_JUMP_EQUAL, value, label))

    def jump_if_at_least(self, value: int, label: str) -> None:
        self._instructions.append(_Instruction(_JUMP_AT_LEAST, value, label))

    def jump_if_any_bit(self, value: int, label: str) -> None:
        self._instructions.append(_Instruction(_JUMP_ANY_BIT, value, label))

    def give(self, action: int) -> None:
        """End with one of seccomp's actions."""
        self._instructions.append(_Instruction(_RETURN, action))

    def label(self, name: str) -> None:
        """The next instruction is where jumps to `name` go."""
        if name in self._labels:
            raise ValueError(f"label {name!r} is there twice")
        self._labels[name] = len(self._instructions)

    def assemble(self) -> bytes:
        """The filter. ValueError for a program that the kernel would not take."""
        if not 0 < len(self._instructions) <= _MAX_INSTRUCTIONS:
            raise ValueError(f"{len(self._instructions)} instructions")
        return b"".join(self._one(at, each) for at, each in enumerate(self._instructions))

    def _one(self, at: int, instruction: _Instruction) -> bytes:
        jump = 0
        if instruction.label is not None:
            jump = self._labels[instruction.label] - at - 1
            if not 0 <= jump <= 255:
                raise ValueError(f"the jump to {instruction.label!r} goes over {jump} instructions")
        return struct.pack("=HBBI", instruction.code, jump, 0, instruction.value)
