"""What the user asked for, from flags or from a TOML file, checked and frozen.

Before: cli/run.py hands over parsed flags or a file name. After: daemon.py gets a `DaemonConfig`.
Rule:   nothing here touches a socket or the native library; a mistake is a `ConfigError` that names the file,
        the VM and the key.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vhostvsock.dropins import merge
from vhostvsock.errors import ConfigError
from vhostvsock.ids import Cid
from vhostvsock.paths import seqpacket_path

# sizeof(sockaddr_un.sun_path) is 108, with the closing NUL.
SUN_PATH_BYTES = 107
# Beside "<uds_path>" is "<uds_path>.seqpacket", which is shorter than what comes now.
# Guests that connect to (2, PORT) reach "<uds_path>_<PORT>": the longest such name must fit as well.
LONGEST_PORT_SUFFIX = len("_4294967295")

DEFAULT_MODE = 0o600
DEFAULT_HANDSHAKE_TIMEOUT = 5.0
# Looking for longer than a timer tick spares nobody anything.
MAX_POLL_US = 1000
# About what a wake-up costs. Measured: see docs/performance.md.
DEFAULT_POLL_US = 50
# What one VM's connections may take: docs/threat-model.md has the arithmetic. Each is a descriptor, too, of which a
# process has no more than about a million (/proc/sys/fs/nr_open).
MAX_CONNECTIONS = 1 << 20
DEFAULT_MAX_CONNECTIONS = 16384
# Below a page a guest would stall at each write; above, Linux guests use no more than their own window, 256 KiB.
MIN_BUF_ALLOC = 4096
MAX_BUF_ALLOC = 16 << 20
DEFAULT_BUF_ALLOC = 256 << 10


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect to a socket: file mode, and owner and group where they are to be changed."""

    mode: int = DEFAULT_MODE
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class VmConfig:
    """One VM: its name for people, its CID, and the two sockets that lead to it."""

    name: str
    cid: Cid | None  # None: the lowest that is free when a front-end attaches
    socket: str
    uds_path: str
    socket_access: Access = Access()
    uds_access: Access = Access()
    poll_us: int = DEFAULT_POLL_US  # how long to look for more at the most before sleeping, in microseconds
    max_connections: int = DEFAULT_MAX_CONNECTIONS  # that may be open, or being opened, at once
    buf_alloc: int = DEFAULT_BUF_ALLOC  # receive window of each connection, in bytes
    reconnect: bool = False  # whether a QEMU that reconnects by itself is served again; see docs/recovery.md


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """All that the daemon needs to know."""

    vms: tuple[VmConfig, ...]
    handshake_timeout: float = DEFAULT_HANDSHAKE_TIMEOUT
    runtime_dir: str | None = None  # None: the usual place for this user
    bridge_access: Access = Access()
    parent: bool = True  # whether CID 2 leads to the hypervisor above, where this host is a VM itself


_TOP_KEYS = ("bridge_mode", "bridge_owner", "handshake_timeout", "parent", "runtime_dir", "vm")
_VM_KEYS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "cid": (int, str),
    "socket": str,
    "uds_path": str,
    "socket_mode": str,
    "socket_owner": str,
    "uds_mode": str,
    "uds_owner": str,
    "poll_us": int,
    "max_connections": int,
    "buf_alloc": int,
    "reconnect": bool,
}
_TOP_TYPES: dict[str, type] = {"runtime_dir": str, "bridge_mode": str, "bridge_owner": str, "parent": bool}
# In place of a CID: the lowest that is free in the domain of the VM's namespace.
AUTO = "auto"
_FLAGS = {"cid": "--guest-cid"}
_REQUIRED = ("cid", "socket", "uds_path")
_TYPE_NAMES = {
    str: "text in quotes",
    int: "a number",
    float: "a number with a fraction",
    bool: "true or false",
    list: "a list of tables",
    dict: "a table",
}


def from_flags(
    *,
    name: str | None,
    cid: str,
    socket: str,
    uds_path: str,
    socket_mode: str | None = None,
    socket_owner: str | None = None,
    handshake_timeout: float = DEFAULT_HANDSHAKE_TIMEOUT,
    runtime_dir: str | None = None,
    parent: bool = True,
    poll_us: int | None = None,
    max_connections: int | None = None,
    buf_alloc: int | None = None,
    bridge_mode: str | None = None,
    reconnect: bool | None = None,
) -> DaemonConfig:
    """The configuration of a single VM, from the command line."""
    try:
        number: int | str = cid if cid == AUTO else Cid.parse(cid).value
    except ValueError as error:
        raise ConfigError(f"--guest-cid: {error}") from None
    table: dict[str, Any] = {"cid": number, "socket": socket, "uds_path": uds_path}
    optional = {
        "name": name,
        "socket_mode": socket_mode,
        "socket_owner": socket_owner,
        "poll_us": poll_us,
        "max_connections": max_connections,
        "buf_alloc": buf_alloc,
        "reconnect": reconnect,
    }
    table.update((key, value) for key, value in optional.items() if value is not None)
    vm = _vm_from_table(table, where=None, base="")
    _check_together([vm], "command line")
    return DaemonConfig(
        (vm,),
        checked_timeout(handshake_timeout, "--handshake-timeout"),
        None if runtime_dir is None else checked_directory(runtime_dir, "", "--runtime-dir"),
        # Not that of the VM's own sockets: the bridge leads to every VM of a domain.
        Access() if bridge_mode is None else Access(_mode(bridge_mode, "--bridge-mode")),
        parent,
    )


def from_file(path: str) -> DaemonConfig:
    """The configuration of several VMs, from a TOML file and its drop-ins, the files `*.toml` in `<path>.d/`.

    Relative paths, those in drop-ins too, start at the directory of the file.
    """
    files = [(path, _read(path, "check the path given to --config"))]
    files += ((dropin, _read(dropin, "make it readable, or remove it")) for dropin in _dropins(path + ".d"))
    return _from_files(files, base=os.path.dirname(path))


def _read(path: str, hint: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint=hint) from error


def _dropins(directory: str) -> list[str]:
    """The drop-ins in the order in which they apply: that of their names, byte by byte."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"cannot read {directory}: {error.strerror}", hint="it is a directory of drop-ins") from error
    chosen = (name for name in names if name.endswith(".toml") and not name.startswith("."))
    return [os.path.join(directory, name) for name in sorted(chosen, key=os.fsencode)]


def from_toml(text: bytes, *, source: str, base: str = "") -> DaemonConfig:
    """The configuration in `text`; `source` names it in errors, `base` is where relative paths start."""
    return _from_files([(source, text)], base=base)


def _from_files(files: Sequence[tuple[str, bytes]], *, base: str) -> DaemonConfig:
    """The configuration in the main file, which comes first, and its drop-ins."""
    source = files[0][0]
    merged = merge(files)
    for key in merged.top:
        _check_keys({key: None}, _TOP_KEYS, merged.origin[key])
    if not merged.vms:
        raise ConfigError(f"{source}: no VM in it", hint="add a [[vm]] table with cid, socket and uds_path")
    vms = [_vm_from_table(table.keys, where=table.where, base=base) for table in merged.vms]
    _check_together(vms, source)
    label = f"{merged.origin.get('handshake_timeout', source)}: handshake_timeout"
    timeout = checked_timeout(merged.top.get("handshake_timeout", DEFAULT_HANDSHAKE_TIMEOUT), label)
    for key, wanted in _TOP_TYPES.items():
        if key in merged.top and type(merged.top[key]) is not wanted:
            raise ConfigError(f"{merged.origin[key]}: {key} must be {_TYPE_NAMES[wanted]}")
    runtime_dir = merged.top.get("runtime_dir")
    return DaemonConfig(
        tuple(vms),
        timeout,
        None
        if runtime_dir is None
        else checked_directory(runtime_dir, base, f"{merged.origin['runtime_dir']}: runtime_dir"),
        _access(merged.top, "bridge", Access(), lambda key: f"{merged.origin.get(key, source)}: {key}"),
        merged.top.get("parent", True),
    )


def _check_keys(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}", hint=f"known keys: {', '.join(sorted(known))}")


def _vm_from_table(table: Mapping[str, Any], *, where: Callable[[str], str] | None, base: str) -> VmConfig:
    """A VM from its table. `where` says where a key is from; without it, keys are flags."""

    def label(key: str) -> str:
        return f"{where(key)}: {key}" if where else _FLAGS.get(key, f"--{key.replace('_', '-')}")

    for key, value in table.items():
        _check_keys({key: value}, _VM_KEYS, where(key) if where else "")
        wanted = _VM_KEYS[key]
        if type(value) not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            got = _TYPE_NAMES.get(type(value), type(value).__name__)
            need = f'a number or "{AUTO}"' if isinstance(wanted, tuple) else _TYPE_NAMES[wanted]
            raise ConfigError(f"{label(key)} must be {need}, not {got}")
    for key in _REQUIRED:
        if key not in table:
            raise ConfigError(f"{label(key)} is missing")
    try:
        if isinstance(table["cid"], str) and table["cid"] != AUTO:
            raise ConfigError(f'{label("cid")} must be a number or "{AUTO}", not {table["cid"]!r}')
        cid = None if table["cid"] == AUTO else Cid(table["cid"])
    except ValueError as error:
        raise ConfigError(f"{label('cid')}: {error}") from None
    socket_access = _access(table, "socket", Access(), label)

    def number(key: str, default: int, least: int, most: int) -> int:
        value: int = table.get(key, default)
        if not least <= value <= most:
            raise ConfigError(f"{label(key)}: {value} is out of range", hint=f"use {least} to {most}")
        return value

    return VmConfig(
        name=_name(table.get("name", _default_name(cid, table["socket"])), label("name")),
        cid=cid,
        socket=_path(table["socket"], base, SUN_PATH_BYTES, label("socket")),
        uds_path=_path(table["uds_path"], base, SUN_PATH_BYTES - LONGEST_PORT_SUFFIX, label("uds_path")),
        socket_access=socket_access,
        uds_access=_access(table, "uds", socket_access, label),
        poll_us=number("poll_us", DEFAULT_POLL_US, 0, MAX_POLL_US),
        max_connections=number("max_connections", DEFAULT_MAX_CONNECTIONS, 1, MAX_CONNECTIONS),
        buf_alloc=number("buf_alloc", DEFAULT_BUF_ALLOC, MIN_BUF_ALLOC, MAX_BUF_ALLOC),
        reconnect=table.get("reconnect", False),
    )


def _default_name(cid: Cid | None, socket: str) -> str:
    """cid42; where the CID is not known yet, the name of the socket without its ending."""
    return os.path.basename(socket).split(".")[0] or AUTO if cid is None else f"cid{cid}"


def _name(name: str, label: str) -> str:
    # Names go into log lines and, later, into file names and units.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}", name):
        raise ConfigError(
            f"{label}: {name!r} is not a usable name",
            hint="use 1 to 64 letters, digits, and . _ : @ -, a letter or digit first",
        )
    return name


def _path(path: str, base: str, limit: int, label: str) -> str:
    if not path:
        raise ConfigError(f"{label} is empty")
    if path.endswith("/"):
        raise ConfigError(f"{label}: {path!r} is not a path of a socket")
    full = os.path.join(base, path)
    size = _checked_bytes(full, path, label)
    if size > limit:
        why = "" if limit == SUN_PATH_BYTES else f", which leaves room for '_PORT' within {SUN_PATH_BYTES}"
        raise ConfigError(
            f"{label}: {full!r} is {size} bytes long; the limit is {limit}{why}",
            hint="use a shorter path, for instance under /run, or a relative path from a directory nearer to it",
        )
    return full


def _checked_bytes(full: str, path: str, label: str) -> int:
    """The length of a path that can be a file name, and that lines of text can hold."""
    if any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise ConfigError(f"{label}: {path!r} has a control character in it", hint="use printable characters")
    try:
        return len(os.fsencode(full))
    except UnicodeEncodeError:
        raise ConfigError(f"{label}: {path!r} cannot be a file name") from None


def checked_directory(path: str, base: str, label: str) -> str:
    """The runtime directory, or a ConfigError that starts with `label`."""
    if not path:
        raise ConfigError(f"{label} is empty", hint="leave it out for the usual directory")
    full = os.path.join(base, path)
    _checked_bytes(full, path, label)
    return full


def _access(table: Mapping[str, Any], prefix: str, default: Access, label: Any) -> Access:
    mode, uid, gid = default.mode, default.uid, default.gid
    if f"{prefix}_mode" in table:
        mode = _mode(table[f"{prefix}_mode"], label(f"{prefix}_mode"))
    if f"{prefix}_owner" in table:
        uid, gid = _owner(table[f"{prefix}_owner"], label(f"{prefix}_owner"))
    return Access(mode, uid, gid)


def _mode(text: str, label: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ConfigError(f"{label}: {text!r} is not a file mode", hint='use octal digits, such as "0660"')
    return int(text, 8)


def _owner(text: str, label: str) -> tuple[int | None, int | None]:
    """`user`, `user:group` or `:group`, each a name or a number."""
    user, colon, group = text.partition(":")
    if (not user and not group) or (colon and not group):
        raise ConfigError(f"{label}: {text!r} is not an owner", hint='use "user", "user:group" or ":group"')
    uid = gid = None
    try:
        if user:
            uid = int(user) if user.isdecimal() and user.isascii() else pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise ConfigError(f"{label}: there is no user {user!r}", hint="create it, or give a numeric id") from None
    try:
        if group:
            gid = int(group) if group.isdecimal() and group.isascii() else grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise ConfigError(f"{label}: there is no group {group!r}", hint="create it, or give a numeric id") from None
    if max(uid or 0, gid or 0) > 0xFFFF_FFFE:
        raise ConfigError(f"{label}: {text!r} has an id that does not fit in 32 bits")
    return uid, gid


def checked_timeout(value: object, label: str) -> float:
    """A handshake timeout in seconds, or a ConfigError that starts with `label`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{label} must be a number of seconds")
    if not 0.001 <= value <= 3600:
        raise ConfigError(f"{label}: {value} is out of range", hint="use 0.001 to 3600 seconds")
    return float(value)


def _check_together(vms: list[VmConfig], source: str) -> None:
    """No two VMs may share a name or a path, and no path may be one that another VM's guest can reach.

    CIDs may be the same: they belong to the namespaces in which the VMs' QEMUs will attach.
    """
    names: dict[str, VmConfig] = {}
    paths: dict[str, tuple[VmConfig, str]] = {}
    for vm in vms:
        if vm.name in names:
            raise ConfigError(f"{source}: two VMs have the name {vm.name!r}", hint="give each VM a name of its own")
        names[vm.name] = vm
        messages = seqpacket_path(vm.uds_path)
        for key, path in (("socket", vm.socket), ("uds_path", vm.uds_path), ("uds_path for messages", messages)):
            for real, what in ((_real(path), key), (_real(path) + ".lock", f"lock file of {key}")):
                if real in paths:
                    other, other_key = paths[real]
                    raise ConfigError(
                        f"{source}: vm {vm.name!r}: {what} {path!r} is already the {other_key} of vm {other.name!r}",
                        hint="give each socket a path of its own",
                    )
                paths[real] = (vm, what)
    for vm in vms:
        # A guest that connects to port P reaches "<uds_path>_P", which must not be a socket of the daemon itself.
        ports = re.compile(re.escape(_real(vm.uds_path)) + r"_[0-9]+")
        for path, (other, key) in paths.items():
            if ports.fullmatch(path):
                raise ConfigError(
                    f"{source}: vm {other.name!r}: {key} {path!r} could be reached by the guest of vm {vm.name!r}",
                    hint=f"names of the form {vm.uds_path}_NUMBER are the ports of that guest's host",
                )


def _real(path: str) -> str:
    return os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
