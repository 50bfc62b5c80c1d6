"""What is known of each namespace, one small file each: netns/COOKIE in the runtime directory.

Before: modes.py, within a writing transaction of the registry, so that nobody else writes meanwhile. After: files.
Why not a table: a mode is what keeps a namespace apart, and must survive the loss of registry.db; and every user's
        daemons must be able to read what root declared, which a database does not allow without letting each reader
        lock it.
Rules:  - a file is replaced as a whole (rename), so it is always either the old or the new one.
        - cookies belong to one boot: a file of another one does not count.
        - notes outlive the namespace: a VM in it may still be there, and cookies do not come again.
        - what cannot be read is an error, and never the same as nothing noted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import dataclass

from vhostvsock.registry import runtime
from vhostvsock.registry.errors import RegistryError
from vhostvsock.registry.rules import Mode, NetnsId, NetnsState


@dataclass(frozen=True, slots=True)
class KnownNetns:
    """A namespace that was declared, or whose mode the kernel told."""

    id: NetnsId
    name: str | None
    state: NetnsState
    by_kernel: bool


class Notes:
    """The files of one runtime directory; those of root's are read as well."""

    def __init__(self, directory: str, *, system: str = runtime.SYSTEM_DIR) -> None:
        self._own = os.path.join(directory, runtime.NOTES)
        self._others = os.path.join(system, runtime.NOTES)
        self._boot = runtime.boot_id()

    def load(self, netns: NetnsId) -> KnownNetns | None:
        """What is noted of a namespace, if anything. What root noted comes first."""
        found = self._read(self._others, netns) if self._others != self._own else None
        return found or self._read(self._own, netns)

    def load_all(self) -> list[KnownNetns]:
        """Everything that is noted in this runtime directory."""
        try:
            names = os.listdir(self._own)
        except FileNotFoundError:
            return []
        found = [self._read(self._own, NetnsId(int(name))) for name in names if name.isdecimal()]
        return sorted((known for known in found if known is not None), key=lambda known: known.id)

    def save(self, known: KnownNetns) -> None:
        """Note a namespace; a name that was known stays where none is given."""
        name = known.name
        if name is None and (before := self._read(self._own, known.id)) is not None:
            name = before.name
        content = {
            "boot": self._boot,
            "name": name,
            "mode": known.state.mode.value,
            "child_mode": known.state.child_mode.value,
            "child_locked": known.state.child_locked,
            "by_kernel": known.by_kernel,
        }
        path = self._path(self._own, known.id)
        draft = f"{path}.new"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                runtime.follow(self._own, fd, public=True)
                with open(fd, "w", encoding="utf-8", closefd=False) as file:
                    json.dump(content, file)
            finally:
                os.close(fd)
            os.rename(draft, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise

    def _read(self, directory: str, netns: NetnsId) -> KnownNetns | None:
        path = self._path(directory, netns)
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            if content["boot"] != self._boot:
                return None
            state = NetnsState(Mode(content["mode"]), Mode(content["child_mode"]), bool(content["child_locked"]))
            name = content["name"]
            if name is not None and not isinstance(name, str):
                raise ValueError(f"{name!r:.40} is no name")
            return KnownNetns(netns, name, state, bool(content["by_kernel"]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            # Not the same as nothing noted: a local namespace would be taken for a global one.
            raise RegistryError(
                f"cannot read {path}, which may say that the namespace is local: {error.strerror}",
                hint=f"let {directory} be readable (chmod o+rx, also above)"
                if error.errno == errno.EACCES
                else runtime.hint_for(error.errno),
            ) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RegistryError(
                f"{path} is damaged: {error}",
                hint="it says whether a namespace is local: write it anew or make that namespace anew, then remove it",
            ) from error

    @staticmethod
    def _path(directory: str, netns: NetnsId) -> str:
        return os.path.join(directory, str(netns.cookie))
