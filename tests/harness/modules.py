"""A guest kernel's modules: found, decompressed, and put in the order in which they can be loaded.

Before: image.py names the modules that a guest needs. After: the guest's /init inserts them in this order.
Rule:   the order comes from the modules themselves (their `depends` field): packages bring no modules.dep, which a
        script of theirs makes at installation, and what depends on what differs between kernels.
"""

from __future__ import annotations

import lzma
import re
import subprocess
import zlib
from pathlib import Path

from scripts.lib.fetch_apt import FetchError


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return zlib.decompress(data, wbits=31)
    if path.suffix == ".zst":
        try:
            return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
        except FileNotFoundError:
            raise FetchError("kernel modules are compressed with zstd, which is not here", "apt install zstd") from None
    return data


def _name(file_name: str) -> str:
    return file_name.partition(".ko")[0].replace("-", "_")


class Modules:
    """The module files below a directory."""

    def __init__(self, root: Path) -> None:
        self._paths = {_name(path.name): path for path in sorted(root.rglob("*.ko*"))}

    def in_order(self, *names: str) -> list[tuple[str, bytes]]:
        """(name, content) of the named modules and of all they need. A name without a file is built into the kernel."""
        found: dict[str, bytes] = {}

        def visit(name: str) -> None:
            path = self._paths.get(name)
            if path is None or name in found:
                return
            content = _decompressed(path)
            depends = re.search(rb"\0depends=([^\0]*)\0", content)
            for other in (depends[1].decode() if depends else "").split(","):
                visit(_name(other))
            found[name] = content

        for name in names:
            visit(name)
        return list(found.items())
