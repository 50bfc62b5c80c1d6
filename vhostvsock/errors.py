"""Every exception that this package raises on purpose.

VhostvsockError             exit code 1
├── ConfigError             exit code 2: the command line or the configuration file is wrong
├── SocketError             a listening socket cannot be made, or is someone else's
│   ├── SocketInUseError    it belongs to a live process
│   └── ActivationError     a socket that the service manager passed is of no use
├── ConnectError            `vhostvsock connect` could not reach the guest, or lost it
├── RegistryError           registry/errors.py: the registry cannot be used
├── NetnsError              registry/errors.py: a namespace cannot be found, entered, made or removed
├── Refused                 registry/errors.py: a rule of AF_VSOCK says no; also an OSError, with Linux's errno
└── NativeError             the native library refused a call
    ├── StaleHandleError    a device or engine was used after its end
    ├── BusyError           another front-end is attached
    └── NativePanicError    a fault inside the native library, caught at the boundary

Rule: `str(error)` names what is wrong and which object; `hint` says how to mend it. The command line prints both.
"""

from __future__ import annotations


class VhostvsockError(Exception):
    """The root: one line of text that names what is wrong, and a hint how to mend it where there is one."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(VhostvsockError):
    """The command line or the configuration file says something that cannot be."""

    exit_code = 2


class SocketError(VhostvsockError):
    """A listening socket could not be made."""


class SocketInUseError(SocketError):
    """The socket is served by a live process; `pid` says which, where that could be found out."""

    def __init__(self, message: str, *, pid: int | None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.pid = pid


class ActivationError(SocketError):
    """A socket that the service manager passed is none that we can serve."""


class ConnectError(VhostvsockError):
    """A connection to a guest could not be made, or broke."""


class NativeError(VhostvsockError):
    """A call into the native library failed; `code` is its VHV_ERR_*, `os_errno` the system's number or 0."""

    def __init__(self, message: str, *, code: int, os_errno: int = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.os_errno = os_errno


class StaleHandleError(NativeError):
    """The handle was freed, or never was one."""


class BusyError(NativeError):
    """Another front-end is attached to the device."""


class NativePanicError(NativeError):
    """The native library had a fault; it was caught at the boundary and the process lives on."""
