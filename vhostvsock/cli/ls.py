"""`vhostvsock ls`: the VMs that can be seen, or all.

Before: cli/__init__.py. After: the bridges of all daemons are asked (client.py), or the registry is read.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from vhostvsock import client
from vhostvsock.cli.output import say, table
from vhostvsock.errors import ConnectError
from vhostvsock.log import warn

_COLUMNS = ("name", "cid", "netns", "mode", "state", "connections")
_TITLES = ("NAME", "CID", "NETNS", "MODE", "STATE", "CONNS")
_COUNTER_TITLES = ("NAME", "CID", "NETNS", "COUNTER", "VALUE")


def main(args: argparse.Namespace) -> int:
    rows = _from_registry() if args.all else _from_bridges(counters=args.counters)
    rows.sort(key=lambda row: (row["mode"], row["netns"], row["cid"]))
    if args.json:
        say(json.dumps(rows, indent=2))
        return 0
    names = _namespace_names()
    for row in rows:
        row["netns"] = names.get(row["netns"], str(row["netns"]))
        if "reason" in row:
            row["state"] += f" ({row['reason']})"
    if args.counters:
        say(table([_COUNTER_TITLES, *(line for row in rows for line in _counted(row))]))
    else:
        say(table([_TITLES, *(tuple(str(row[column]) for column in _COLUMNS) for row in rows)]))
    return 0


def _counted(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line for each thing that was counted at all."""
    vm = tuple(str(row[column]) for column in ("name", "cid", "netns"))
    return [(*vm, name, str(value)) for name, value in row["counters"].items() if value]


def _from_bridges(*, counters: bool) -> list[dict[str, Any]]:
    silent: list[str] = []
    try:
        return client.list_vms(silent=silent, counters=counters)
    except OSError as error:
        raise ConnectError(str(error.strerror or error), hint="start one: vhostvsock run --help") from error
    finally:
        for path in silent:
            warn(f"the daemon with the bridge {path} does not answer; its VMs are missing here")


def _from_registry() -> list[dict[str, Any]]:
    from vhostvsock.registry.store import Registry

    with Registry() as registry:
        return [claim.row("-") for claim in registry.vms()]


def _namespace_names() -> dict[int, str]:
    """Names for people, where they can be found out: that takes root."""
    from vhostvsock.errors import VhostvsockError
    from vhostvsock.registry import netns

    found: dict[int, str] = {}
    try:
        for each in netns.named():
            found[each.id.cookie] = each.label
    except (VhostvsockError, OSError):
        pass
    return found
