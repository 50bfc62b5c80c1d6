"""A kernel that keeps the modes itself, played by a stand-in over real namespaces: it is asked and obeyed."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostvsock.registry import making, modes, rules
from vhostvsock.registry.errors import NetnsError, Refused
from vhostvsock.registry.kernel import KernelModes
from vhostvsock.registry.netns import NetnsId, open_namespace, own
from vhostvsock.registry.rules import Mode, NetnsState, born
from vhostvsock.registry.store import Registry

from .conftest import Names, cookie, nameless


class StandIn(KernelModes):
    """Modes as Linux 7.0 has them: of the namespace that the calling thread is in."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[NetnsId, NetnsState] = {}

    def present(self) -> bool:
        return True

    def here(self) -> NetnsState:
        return self.states.get(own(), NetnsState())

    def write_child_mode(self, data: bytes) -> None:
        self.states[own()] = rules.write_child_mode(self.here(), data, allowed=True)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    leave = making.leave_for_new

    def unshare() -> None:
        parent = stand_in.here()
        leave()
        stand_in.states[own()] = rules.inherit(parent)

    monkeypatch.setattr(making, "leave_for_new", unshare)
    return stand_in


@pytest.fixture
def registry(kernel: StandIn, short_dir: Path) -> Iterator[Registry]:
    with Registry(str(short_dir / "run"), kernel=kernel, own_cid=lambda: None) as opened:
        yield opened


@pytest.mark.parametrize("wanted", [None, *Mode])
def test_a_namespace_is_made_with_the_kernels_mode(registry: Registry, names: Names, wanted: Mode | None) -> None:
    name = names.new()
    state = making.create(registry, name, wanted)
    assert state.mode is (wanted or Mode.GLOBAL)
    assert registry.modes.state(cookie(name)).mode is state.mode
    assert registry.modes.kernel.here() == NetnsState()  # the helper in between took the write, and not ours


def test_what_the_kernel_has_no_way_to_is_refused(registry: Registry, kernel: StandIn, names: Names) -> None:
    kernel.write_child_mode(b"local")
    name = names.new()
    with pytest.raises(Refused, match="child mode is local"):
        making.create(registry, name, Mode.GLOBAL)
    assert not os.path.lexists(f"/run/netns/{name}")
    assert making.create(registry, name).mode is Mode.LOCAL


def test_a_kernel_that_does_otherwise_is_not_believed(
    registry: Registry, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = names.new()
    monkeypatch.setattr(making, "needs_helper", lambda *_: False)
    with pytest.raises(NetnsError, match=r"made .* global, and not local"):
        making.create(registry, name, Mode.LOCAL)
    assert not os.path.lexists(f"/run/netns/{name}")


def test_the_kernels_word_counts_and_not_what_was_declared(registry: Registry, kernel: StandIn, names: Names) -> None:
    name = names.add()
    with open_namespace(name) as there:
        kernel.states[there.id] = born(Mode.LOCAL)
        assert registry.modes.observe(there).mode is Mode.LOCAL
        assert registry.modes.state(there.id).mode is Mode.LOCAL
        registry.modes.write_child_mode(there, b"local", allowed=False)  # the kernel judges
        assert kernel.states[there.id].child_locked
        with pytest.raises(Refused) as caught:
            registry.modes.write_child_mode(there, b"global", allowed=True)
        assert caught.value.errno == errno.EPERM


def test_the_mode_of_whoever_connects_is_asked_for(registry: Registry, kernel: StandIn, short_dir: Path) -> None:
    with nameless() as there, socket.socket(socket.AF_UNIX) as server:
        kernel.states[there.id] = NetnsState(Mode.GLOBAL, Mode.LOCAL, True)
        server.bind(str(short_dir / "s"))
        server.listen()
        with there.run(lambda: socket.socket(socket.AF_UNIX)) as client:
            client.connect(str(short_dir / "s"))
            accepted, _ = server.accept()
        with accepted:
            # Before the kernel was asked, a namespace is kept apart.
            assert registry.modes.state(there.id).mode is Mode.LOCAL
            assert registry.modes.admit(accepted) == there.id
            assert registry.modes.state(there.id).mode is Mode.GLOBAL


def test_whoever_cannot_be_asked_is_kept_apart(
    registry: Registry, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: socket.socket) -> None:
        raise NetnsError("not for us")

    monkeypatch.setattr(modes, "namespace_of_socket", refuse)
    ours, theirs = socket.socketpair()
    with ours, theirs, nameless() as there:
        monkeypatch.setattr(modes, "cookie_of_socket", lambda _: there.id)
        assert registry.modes.admit(ours) == there.id
        registry.register_daemon("bridge")
        assert registry.claim(there.id, 42, "web").domain == rules.Domain(there.id)
        assert registry.find_vm(own(), 42) is None


def test_ones_own_mode_needs_no_privilege(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "namespace_of_socket", None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert registry.modes.admit(ours) == own()
    assert registry.modes.state(own()).mode is Mode.GLOBAL


def test_what_another_daemon_was_told_is_known_to_all(registry: Registry, kernel: StandIn) -> None:
    with nameless() as there:
        registry.modes.observe(there)
        with Registry(registry.directory, kernel=kernel, own_cid=lambda: None) as other:
            assert other.modes.state(there.id).mode is Mode.GLOBAL
            assert [known.id for known in other.modes.all_known()] == [there.id]
