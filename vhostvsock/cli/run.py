"""`vhostvsock run`: from parsed flags to a running daemon.

Before: cli/__init__.py. After: config.py checks what was asked for, daemon.py serves it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import sys

from vhostvsock import config, log
from vhostvsock.config import DaemonConfig
from vhostvsock.daemon import Daemon
from vhostvsock.descriptors import raise_descriptor_limit
from vhostvsock.errors import ConfigError, VhostvsockError
from vhostvsock.registry.runtime import hint_for
from vhostvsock.systemd import activation

_ONE_VM = (
    "guest_cid",
    "socket",
    "uds_path",
    "name",
    "socket_mode",
    "socket_owner",
    "bridge_mode",
    "poll_us",
    "max_connections",
    "buf_alloc",
    "reconnect",
)
_NEEDED = ("guest_cid", "socket", "uds_path")


def main(args: argparse.Namespace) -> int:
    wanted = configuration(args)
    level = log.setup(args.verbose, args.log_format)
    raise_descriptor_limit()
    daemon = Daemon(wanted, level, activation.take(os.environ))
    runner = asyncio.Runner()
    try:
        runner.get_loop()
    except OSError as error:
        sys.unraisablehook = lambda _: None  # asyncio's half of a loop complains when it goes
        raise VhostvsockError(f"cannot make an event loop: {error.strerror}", hint=hint_for(error.errno)) from error
    with runner:
        names = [vm.name for vm in wanted.vms]
        runner.run(daemon.run(lambda line: log.announce(line, args.log_format, vms=names)))
    return 0


def configuration(args: argparse.Namespace) -> DaemonConfig:
    """What flags or file ask for."""
    given = [_flag(name) for name in _ONE_VM if getattr(args, name) is not None]
    timeout = args.handshake_timeout
    if args.config is not None:
        if given:
            raise ConfigError(f"--config and {given[0]} exclude each other", hint=f"put {given[0]} into the file")
        found = config.from_file(args.config)
        if timeout is not None:
            timeout = config.checked_timeout(timeout, "--handshake-timeout")
            found = dataclasses.replace(found, handshake_timeout=timeout)
        if args.runtime_dir is not None:
            directory = config.checked_directory(args.runtime_dir, "", "--runtime-dir")
            found = dataclasses.replace(found, runtime_dir=directory)
        return dataclasses.replace(found, parent=False) if args.no_parent else found
    missing = [_flag(name) for name in _NEEDED if getattr(args, name) is None]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} must be given, or --config",
            hint="for example: vhostvsock run --guest-cid 42 --socket vh.sock --uds-path v.sock",
        )
    return config.from_flags(
        name=args.name,
        cid=args.guest_cid,
        socket=args.socket,
        uds_path=args.uds_path,
        socket_mode=args.socket_mode,
        socket_owner=args.socket_owner,
        handshake_timeout=config.DEFAULT_HANDSHAKE_TIMEOUT if timeout is None else timeout,
        runtime_dir=args.runtime_dir,
        parent=not args.no_parent,
        poll_us=args.poll_us,
        max_connections=args.max_connections,
        buf_alloc=args.buf_alloc,
        bridge_mode=args.bridge_mode,
        reconnect=args.reconnect,
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
