"""An initramfs, written as a cpio archive of the kernel's "newc" form.

Before: image.py says what goes in. After: the kernel unpacks it.
Rule:   the same content gives the same bytes: no times, no users, no inode numbers of this machine.
"""

from __future__ import annotations

import stat


class Archive:
    """Files, directories and links, in the order in which they are added; missing parents are made."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._seen: set[str] = set()
        self._inode = 0

    def _entry(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        if name in self._seen:
            return
        parent = name.rpartition("/")[0]
        if parent:
            self._entry(parent, stat.S_IFDIR | 0o755)
        self._seen.add(name)
        self._write(name, mode, data, device)

    def _write(self, name: str, mode: int, data: bytes, device: tuple[int, int]) -> None:
        self._inode += 1
        raw = name.encode() + b"\0"
        numbers = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(raw), 0)
        head = b"070701" + b"".join(b"%08X" % number for number in numbers) + raw
        self._parts += [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]

    def directory(self, name: str, mode: int = 0o755) -> None:
        self._entry(name, stat.S_IFDIR | mode)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name: str, to: str) -> None:
        self._entry(name, stat.S_IFLNK | 0o777, to.encode())

    def character_device(self, name: str, major: int, minor: int) -> None:
        self._entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        self._write("TRAILER!!!", 0, b"", (0, 0))
        return b"".join(self._parts)
