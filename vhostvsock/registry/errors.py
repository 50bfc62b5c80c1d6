"""What the registry raises: refusals that Linux would give too, and troubles of its own.

Refused           a rule of AF_VSOCK says no; `errno` is the number that Linux gives in that case
RegistryError     the registry cannot be used: missing, full, read-only, newer, damaged, busy
NetnsError        a network namespace cannot be found, entered, made or removed

Before: rules.py, routes.py, store.py, netns.py. After: the bridge answers with the errno, the command line with text.
Rule:   one sentence that names the object, and its holder where someone holds it; a hint says how to mend it.
"""

from __future__ import annotations

import errno as numbers

from vhostvsock.errors import VhostvsockError


class Refused(VhostvsockError, OSError):  # noqa: N818 - it is an answer, and mostly not a fault of anybody
    """An answer with Linux's errno. It is an OSError, so a caller may pass it on as it is."""

    def __init__(self, errno: int, message: str, *, hint: str | None = None) -> None:
        VhostvsockError.__init__(self, message, hint=hint)
        OSError.__init__(self, errno, message)

    @property
    def name(self) -> str:
        """The errno as people know it: EADDRINUSE."""
        return numbers.errorcode.get(self.errno or 0, str(self.errno))

    def __str__(self) -> str:
        return f"{self.strerror} ({self.name})"

    def __reduce__(self) -> tuple[object, ...]:
        return _restore_refused, (self.errno, self.strerror, self.hint)


def _restore_refused(errno: int, message: str, hint: str | None) -> Refused:
    return Refused(errno, message, hint=hint)


class RegistryError(VhostvsockError):
    """The registry cannot be read or written. VMs that run are not touched by it."""


class NetnsError(VhostvsockError):
    """A network namespace cannot be found, entered, made or removed."""
