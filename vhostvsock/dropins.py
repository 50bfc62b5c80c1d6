"""One configuration out of a file and its drop-ins: tables laid over each other, with where each key came from.

Before: config.py has read `NAME.toml` and the files of `NAME.toml.d/`. After: config.py checks the merged tables.
Rules:  - Pure: no file is read here. Later files win, key by key; a VM is known by its name.
        - Every key remembers the file that said it last, so that a mistake is named where it was made.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vhostvsock.errors import ConfigError

_VM_HINT = "start each VM with a line [[vm]]"


@dataclass(slots=True)
class VmTable:
    """The keys of one VM, and for each of them the file that it is from."""

    keys: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    # How to call it where it has no name: "vm number 2" of a file.
    place: str = ""
    source: str = ""

    def where(self, key: str) -> str:
        """The beginning of an error about `key`."""
        return f"{self.origin.get(key, self.source)}: {self.place}"


@dataclass(slots=True)
class Merged:
    """Top-level keys with their files, and the VMs in the order in which they first appeared."""

    top: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    vms: list[VmTable] = field(default_factory=list)


def merge(files: Iterable[tuple[str, bytes]]) -> Merged:
    """Lay the files, each a name for errors and its text, over each other in their order."""
    merged = Merged()
    for source, text in files:
        parsed = _parse(source, text)
        tables = parsed.pop("vm", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise ConfigError(f"{source}: vm must be a list of tables", hint=_VM_HINT)
        for key, value in parsed.items():
            merged.top[key] = value
            merged.origin[key] = source
        _add_vms(merged, source, tables)
    return merged


def _parse(source: str, text: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8 text: {error}") from None
    except (ValueError, RecursionError) as error:  # also a number of too many digits, which is no TOMLDecodeError
        raise ConfigError(f"{source}: not valid TOML: {error}", hint="see https://toml.io for the format") from None


def _add_vms(merged: Merged, source: str, tables: list[dict[str, Any]]) -> None:
    # Only the VMs of earlier files can be meant: two tables of one file with one name are a mistake, found later.
    earlier = {name: vm for vm in merged.vms if (name := name_of(vm.keys)) is not None}
    for number, table in enumerate(tables, 1):
        name = name_of(table)
        vm = earlier.pop(name, None) if name is not None else None
        if vm is None:
            said = table.get("name")
            vm = VmTable(place=f"vm {said!r}" if isinstance(said, str) and said else f"vm number {number}")
            vm.source = source
            merged.vms.append(vm)
        vm.keys.update(table)
        vm.origin.update(dict.fromkeys(table, source))


def name_of(table: dict[str, Any]) -> str | None:
    """The name of a VM: as it says, or else made of its CID; None where it has neither in a usable form."""
    name, cid = table.get("name"), table.get("cid")
    if name is None and type(cid) is int:
        return f"cid{cid}"
    return name if isinstance(name, str) else None
