"""`vhostvsock netns`: namespaces and their modes, shown and set.

Before: cli/__init__.py. After: registry/, which knows and decides; here is only what people see.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field

from vhostvsock.cli.output import say, table
from vhostvsock.errors import ConfigError
from vhostvsock.registry import making
from vhostvsock.registry.errors import NetnsError
from vhostvsock.registry.netns import init_id, named, open_namespace, own
from vhostvsock.registry.privilege import may_administer
from vhostvsock.registry.records import Claim
from vhostvsock.registry.rules import Mode, NetnsId, NetnsState
from vhostvsock.registry.store import Registry


def main(args: argparse.Namespace) -> int:
    action = {"list": _list, "add": _add, "del": _del, "mode": _mode, "child-mode": _child_mode}[args.action]
    return action(args)


def _add(args: argparse.Namespace) -> int:
    with Registry() as registry:
        making.create(registry, args.name, None if args.mode is None else Mode(args.mode))
    return 0


def _del(args: argparse.Namespace) -> int:
    making.delete(args.name)
    return 0


def _mode(args: argparse.Namespace) -> int:
    with open_namespace(args.netns) as netns, Registry() as registry:
        say(registry.modes.observe(netns).mode)
    return 0


def _child_mode(args: argparse.Namespace) -> int:
    where, value = args.netns, args.value
    if value is None and where in (*Mode, ""):
        where, value = None, where
    with open_namespace(where) as netns, Registry() as registry:
        if value is None:
            say(registry.modes.observe(netns).child_mode)
            return 0
        try:
            data = os.fsencode(value)
        except UnicodeEncodeError:
            raise ConfigError("VALUE is not text") from None
        registry.modes.write_child_mode(netns, data, allowed=may_administer(netns))
    return 0


@dataclass
class _Line:
    """One namespace, as it is listed."""

    id: NetnsId
    state: NetnsState
    name: str | None = None
    deleted: bool = False
    vms: list[Claim] = field(default_factory=list)


def _list(args: argparse.Namespace) -> int:
    here, init = own(), init_id()
    with Registry() as registry:
        lines = _lines(registry, {here} if init is None else {here, init})
        locks_known = not registry.modes.by_kernel()
    if args.json:
        say(json.dumps([_object(line, here, init, locks_known) for line in lines], indent=2))
        return 0
    rows = [("", "NAME", "COOKIE", "MODE", "CHILD-MODE", "VMS")]
    for line in lines:
        name = "-" if line.name is None else f"({line.name})" if line.deleted else line.name
        if line.name is None and line.id == init:
            name = "- (init)"
        child = line.state.child_mode + ("!" if line.state.child_locked and locks_known else "")
        mark = "*" if line.id == here else ""
        rows.append((mark, name, str(line.id.cookie), line.state.mode.value, child, str(len(line.vms))))
    say(table(rows))
    return 0


def _lines(registry: Registry, always: set[NetnsId]) -> list[_Line]:
    lines: list[_Line] = []
    for netns in named():
        try:
            state = registry.modes.observe(netns, netns.label)
        except NetnsError:
            state = registry.modes.state(netns.id)  # not for us to enter
        lines.append(_Line(netns.id, state, netns.label))
    by_id = {line.id: line for line in lines}
    vms = registry.vms()
    remembered = {known.id: known.name for known in registry.modes.all_known()}
    for netns_id in sorted(always | {vm.netns for vm in vms}):
        if netns_id not in by_id:
            name = remembered.get(netns_id)
            line = by_id[netns_id] = _Line(netns_id, registry.modes.state(netns_id), name, name is not None)
            lines.append(line)
    for vm in vms:
        by_id[vm.netns].vms.append(vm)
    if (here := by_id.get(own())) is not None and registry.modes.by_kernel():
        here.state = registry.modes.kernel.here()
    return sorted(lines, key=lambda line: (line.name is not None, line.name or "", line.id))


def _object(line: _Line, here: NetnsId, init: NetnsId | None, locks_known: bool) -> dict[str, object]:
    return {
        "name": line.name,
        "deleted": line.deleted,
        "cookie": line.id.cookie,
        "mode": line.state.mode.value,
        "child_mode": line.state.child_mode.value,
        "child_mode_locked": line.state.child_locked if locks_known else None,
        "own": line.id == here,
        "init": line.id == init,
        "vms": [{"name": vm.name, "cid": vm.cid.value, "pid": vm.daemon.pid} for vm in line.vms],
    }
