"""Drop-ins: laid over the configuration in their order, and each mistake named by the file that made it."""

from pathlib import Path

import pytest

from vhostvsock import config
from vhostvsock.errors import ConfigError
from vhostvsock.ids import Cid

WEB = '[[vm]]\nname = "web"\ncid = 42\nsocket = "web.vhost"\nuds_path = "web.vsock"\n'
DB = '[[vm]]\nname = "db"\ncid = 43\nsocket = "db.vhost"\nuds_path = "db.vsock"\n'


def load(directory: Path, main: str, **dropins: str) -> config.DaemonConfig:
    file = directory / "a.toml"
    file.write_text(main)
    (directory / "a.toml.d").mkdir()
    for name, text in dropins.items():
        (directory / "a.toml.d" / f"{name}.toml").write_text(text)
    return config.from_file(str(file))


def refused(directory: Path, main: str, **dropins: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(directory, main, **dropins)
    return str(caught.value)


def test_a_vm_of_the_same_name_changes_only_the_keys_that_it_has(tmp_path: Path) -> None:
    (web,) = load(tmp_path, WEB, one='[[vm]]\nname = "web"\ncid = 50\nsocket_mode = "0660"\n').vms
    assert (web.cid, web.socket_access.mode) == (Cid(50), 0o660)
    assert web.socket == str(tmp_path / "web.vhost")


def test_a_new_name_adds_a_vm_behind_those_that_are_there(tmp_path: Path) -> None:
    assert [vm.name for vm in load(tmp_path, WEB, one=DB).vms] == ["web", "db"]


def test_all_vms_may_be_in_drop_ins(tmp_path: Path) -> None:
    assert [vm.name for vm in load(tmp_path, "handshake_timeout = 1\n", b=WEB, a=DB).vms] == ["db", "web"]


def test_later_names_win(tmp_path: Path) -> None:
    found = load(tmp_path, "handshake_timeout = 1\n" + WEB, b="handshake_timeout = 3", a="handshake_timeout = 2")
    assert found.handshake_timeout == 3.0


def test_a_vm_without_a_name_is_known_by_the_name_that_its_cid_gives(tmp_path: Path) -> None:
    unnamed = WEB.replace('name = "web"\n', "")
    (vm,) = load(tmp_path, unnamed, one='[[vm]]\ncid = 42\nsocket_mode = "0666"\n').vms
    assert (vm.name, vm.socket_access.mode) == ("cid42", 0o666)


def test_other_files_and_a_missing_directory_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(WEB)
    assert len(config.from_file(str(tmp_path / "a.toml")).vms) == 1
    (tmp_path / "a.toml.d").mkdir()
    for name in ("x.toml~", ".x.toml", "README"):
        (tmp_path / "a.toml.d" / name).write_text("nonsense")
    assert len(config.from_file(str(tmp_path / "a.toml")).vms) == 1


@pytest.mark.parametrize(
    ("dropin", "parts"),
    [
        ("[[vm]]\nname = 'web'\ncdi = 3\n", ["one.toml: vm 'web'", "unknown key 'cdi'"]),
        ("[[vm]]\nname = 'web'\ncid = 2\n", ["one.toml: vm 'web': cid", "reserved"]),
        ("[[vm]]\nname = 'wbe'\nsocket_mode = '0660'\n", ["one.toml: vm 'wbe': cid is missing"]),
        ("handshake_timeout = 0\n", ["one.toml: handshake_timeout"]),
        ("timeout = 0\n", ["one.toml: unknown key 'timeout'"]),
        ("vm = 3\n", ["one.toml: vm must be"]),
        ("[", ["one.toml: not valid TOML"]),
        (DB + DB, ["two VMs have the name 'db'"]),
    ],
)
def test_a_mistake_is_named_by_the_file_that_made_it(tmp_path: Path, dropin: str, parts: list[str]) -> None:
    message = refused(tmp_path, WEB, one=dropin)
    for part in parts:
        assert part in message


def test_a_mistake_of_the_main_file_is_still_its_own(tmp_path: Path) -> None:
    message = refused(tmp_path, WEB + 'socket_mode = "x"\n', one="[[vm]]\nname = 'web'\ncid = 44\n")
    assert f"{tmp_path}/a.toml: vm 'web': socket_mode" in message


def test_a_drop_in_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(WEB)
    (tmp_path / "a.toml.d").write_text("")
    with pytest.raises(ConfigError, match=r"cannot read .*a\.toml\.d"):
        config.from_file(str(tmp_path / "a.toml"))
