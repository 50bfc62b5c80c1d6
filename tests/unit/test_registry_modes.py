"""Where modes come from: the kernel's files, notes of this user, and notes of root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vhostvsock.registry.errors import NetnsError, Refused, RegistryError
from vhostvsock.registry.kernel import KernelModes, host_cid
from vhostvsock.registry.modes import Modes
from vhostvsock.registry.netns import own
from vhostvsock.registry.notes import KnownNetns, Notes
from vhostvsock.registry.rules import Mode, NetnsId, NetnsState, born
from vhostvsock.registry.store import Registry

RED = NetnsId(9)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "ns_mode").write_text("global\n")
    (tmp_path / "child_ns_mode").write_text("local\n")
    return tmp_path


def test_the_kernels_files_are_read_where_they_exist(files: Path, tmp_path: Path) -> None:
    assert KernelModes(str(files)).present()
    assert KernelModes(str(files)).here() == NetnsState(Mode.GLOBAL, Mode.LOCAL, True)
    assert not KernelModes(str(tmp_path / "none")).present()


def test_a_write_reaches_the_kernel_byte_for_byte(files: Path) -> None:
    KernelModes(str(files)).write_child_mode(b"global")
    assert (files / "child_ns_mode").read_bytes() == b"global"
    KernelModes(str(files)).write_child_mode(b"")
    assert (files / "child_ns_mode").read_bytes() == b"global"


def test_a_mode_that_nobody_knows_is_an_error(files: Path) -> None:
    (files / "ns_mode").write_text("strange\n")
    with pytest.raises(NetnsError, match="strange"):
        KernelModes(str(files)).here()


@pytest.mark.parametrize("number", [1, 13, 16, 22, 5])
def test_what_the_kernel_answers_is_passed_on(files: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(Refused) as caught:
        KernelModes(str(files)).write_child_mode(b"local")
    assert caught.value.errno == number


def test_without_a_device_or_with_something_else_in_its_place_the_host_has_no_cid(tmp_path: Path) -> None:
    assert host_cid(str(tmp_path / "none")) is None
    (tmp_path / "file").touch()
    assert host_cid(str(tmp_path / "file")) is None
    assert host_cid("/dev/null") is None


def noted(directory: Path, state: NetnsState, name: str | None = None) -> Notes:
    (directory / "netns").mkdir(parents=True, exist_ok=True)
    notes = Notes(str(directory), system=str(directory.parent / "system"))
    notes.save(KnownNetns(RED, name, state, False))
    return notes


def test_a_note_is_found_again_and_keeps_its_name(tmp_path: Path) -> None:
    notes = noted(tmp_path / "user", NetnsState(), "red")
    notes.save(KnownNetns(RED, None, NetnsState(Mode.GLOBAL, Mode.LOCAL, True), False))
    assert notes.load(RED) == KnownNetns(RED, "red", NetnsState(Mode.GLOBAL, Mode.LOCAL, True), False)
    assert notes.load_all() == [notes.load(RED)]
    assert notes.load(NetnsId(10)) is None


def test_what_root_declared_counts_for_every_users_daemons(tmp_path: Path) -> None:
    noted(tmp_path / "system", born(Mode.LOCAL), "red")
    notes = noted(tmp_path / "user", NetnsState())
    found = notes.load(RED)
    assert found is not None
    assert (found.state, found.name) == (born(Mode.LOCAL), "red")


@pytest.mark.parametrize("content", ["", "{}", "[]", "local", '{"boot": 1'])
def test_a_note_that_cannot_be_read_is_told_and_does_not_pass_for_none(tmp_path: Path, content: str) -> None:
    notes = noted(tmp_path / "user", born(Mode.LOCAL))
    (tmp_path / "user" / "netns" / "9").write_text(content)
    with pytest.raises(RegistryError, match="netns/9 is damaged"):
        notes.load(RED)


def test_a_draft_of_somebody_who_was_killed_is_no_note(tmp_path: Path) -> None:
    notes = noted(tmp_path / "user", born(Mode.LOCAL))
    (tmp_path / "user" / "netns" / "10.new").write_text("{")
    assert [known.id for known in notes.load_all()] == [RED]


def test_a_daemon_notes_its_own_namespace_and_the_first_one_is_global(files: Path, tmp_path: Path) -> None:
    kernel = KernelModes(str(files))
    with Registry(str(tmp_path / "run"), kernel=kernel) as registry:
        registry.register_daemon("bridge")
    notes = Notes(str(tmp_path / "run"))
    assert notes.load(own()) == KnownNetns(own(), None, NetnsState(Mode.GLOBAL, Mode.LOCAL, True), True)
    with Registry(str(tmp_path / "run"), kernel=kernel) as registry:
        modes = Modes(registry, notes, kernel, init=lambda: RED)
        assert [modes.mode(netns) for netns in (RED, NetnsId(10))] == [Mode.GLOBAL, Mode.LOCAL]


def test_a_mode_that_was_seen_is_not_read_again(tmp_path: Path) -> None:
    with Registry(str(tmp_path / "run"), kernel=KernelModes("/nonexistent")) as registry:
        registry.modes.declare_child(NetnsId(10), RED, wanted=Mode.LOCAL)
        (tmp_path / "run" / "netns" / "9").write_text("nonsense")
        assert registry.modes.mode(RED) is Mode.LOCAL
