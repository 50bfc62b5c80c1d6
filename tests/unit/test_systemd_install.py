"""`vhostvsock systemd`: files put in place and removed again, nobody else's touched. No manager is needed."""

import re
from pathlib import Path

import pytest
from conftest import ROOT

from vhostvsock.cli import main
from vhostvsock.errors import VhostvsockError
from vhostvsock.systemd.install import quoted
from vhostvsock.systemd.socket_units import unit_name

UNITS = ROOT / "vhostvsock" / "systemd" / "units"
WEB = '[[vm]]\nname = "web"\ncid = 42\nsocket = "/run/vhostvsock/web.vhost"\nuds_path = "/run/vhostvsock/web"\n'
DB = '[[vm]]\nname = "db"\ncid = 43\nsocket = "db.vhost"\nuds_path = "db"\nsocket_mode = "0660"\nsocket_owner = "7:8"\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("usr/local/lib", "etc/systemd/system", "etc/vhostvsock"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def tree(root: Path) -> dict[str, str | None]:
    return {str(path.relative_to(root)): path.read_text() if path.is_file() else None for path in root.rglob("*")}


def systemd(action: str, root: Path, *args: str) -> int:
    return main(["systemd", action, "--root", str(root), *args])


def test_what_is_installed_is_removed_and_nothing_stays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "usr/local/lib/sysusers.d").mkdir()
    (root / "usr/local/lib/sysusers.d/other.conf").write_text("u other - -\n")
    before = tree(root)
    assert systemd("install", root, "--command", "/opt/vv/bin/vhostvsock") == 0
    assert capsys.readouterr().out.count("written: ") == 4
    after = tree(root)
    assert set(after) - set(before) >= {
        "usr/local/lib/systemd/system/vhostvsock@.service",
        "usr/local/lib/systemd/system/vhostvsock.service",
        "usr/local/lib/sysusers.d/vhostvsock.conf",
        "usr/local/lib/tmpfiles.d/vhostvsock.conf",
    }
    unit = after["usr/local/lib/systemd/system/vhostvsock@.service"]
    assert unit is not None
    assert "\nExecStart=/opt/vv/bin/vhostvsock run --verbose --config /etc/vhostvsock/%i.toml\n" in unit
    assert systemd("uninstall", root) == 0
    assert tree(root) == before
    assert systemd("uninstall", root) == 0


def test_a_package_has_its_files_below_usr_lib_and_takes_them_away_again(root: Path) -> None:
    before = tree(root)
    assert systemd("install", root, "--prefix", "/usr", "--command", "/usr/bin/vhostvsock") == 0
    assert {name for name, text in tree(root).items() if text is not None} == {
        "usr/lib/systemd/system/vhostvsock@.service",
        "usr/lib/systemd/system/vhostvsock.service",
        "usr/lib/sysusers.d/vhostvsock.conf",
        "usr/lib/tmpfiles.d/vhostvsock.conf",
    }
    assert systemd("uninstall", root) == 0
    assert (root / "usr/lib/systemd/system/vhostvsock.service").exists()
    assert systemd("uninstall", root, "--prefix", "/usr") == 0
    assert tree(root) == {**before, "usr/lib": None}
    assert systemd("install", root, "--prefix", "usr", "--command", "/usr/bin/vhostvsock") == 2


def test_installing_twice_changes_nothing_and_another_command_is_brought_in(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    systemd("install", root, "--command", "/opt/a")
    first = tree(root)
    capsys.readouterr()
    systemd("install", root, "--command", "/opt/a")
    assert tree(root) == first
    assert capsys.readouterr().out.count("unchanged: ") == 4
    systemd("install", root, "--command", "/opt/b")
    assert "ExecStart=/opt/b run" in (root / "usr/local/lib/systemd/system/vhostvsock.service").read_text()


def test_the_command_that_runs_is_the_command_of_the_units(root: Path) -> None:
    systemd("install", root)
    unit = (root / "usr/local/lib/systemd/system/vhostvsock.service").read_text()
    assert re.search(r"^ExecStart=/\S+/vhostvsock run ", unit, re.MULTILINE)


def test_a_file_of_somebody_else_is_neither_overwritten_nor_removed(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = root / "usr/local/lib/systemd/system/vhostvsock.service"
    path.parent.mkdir(parents=True)
    path.write_text("[Service]\nExecStart=/bin/true\n")
    assert systemd("install", root, "--command", "/opt/a") == 1
    assert "is not ours" in capfd.readouterr().err
    systemd("uninstall", root)
    assert path.read_text() == "[Service]\nExecStart=/bin/true\n"


def test_a_symlink_in_the_way_is_not_followed(root: Path) -> None:
    victim = root / "victim"
    victim.write_text("precious")
    path = root / "usr/local/lib/systemd/system/vhostvsock.service"
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    assert systemd("install", root, "--command", "/opt/a") == 1
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/opt/a", "/opt/a"),
        ("/opt/a b", '"/opt/a b"'),
        ("/opt/50%", "/opt/50%%"),
        ("/opt/$HOME", "/opt/$$HOME"),
        ('/opt/"', '"/opt/\\""'),
    ],
)
def test_a_path_is_written_as_systemd_reads_it(path: str, written: str) -> None:
    assert quoted(path) == written


@pytest.mark.parametrize("path", ["vhostvsock", "/opt/a\nb", ""])
def test_a_command_that_is_no_absolute_path_is_refused(path: str) -> None:
    with pytest.raises(VhostvsockError, match="no absolute path"):
        quoted(path)


def test_each_vm_gets_a_socket_unit_of_its_own(root: Path) -> None:
    (root / "etc/vhostvsock/blue.toml").write_text(WEB + DB)
    assert systemd("sockets", root, "blue") == 0
    web = (root / "etc/systemd/system/vhostvsock-web@blue.socket").read_text()
    for line in (
        "ListenStream=/run/vhostvsock/web.vhost",
        "SocketMode=0600",
        "SocketUser=vhostvsock",
        "FileDescriptorName=web",
        "Service=vhostvsock@blue.service",
    ):
        assert f"\n{line}\n" in web
    db = (root / "etc/systemd/system/vhostvsock-db@blue.socket").read_text()
    for line in ("ListenStream=/etc/vhostvsock/db.vhost", "SocketMode=0660", "SocketUser=7", "SocketGroup=8"):
        assert f"\n{line}\n" in db


def test_socket_units_follow_the_configuration_of_their_service_and_of_no_other(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("vhostvsock/blue.toml", "vhostvsock/red.toml", "vhostvsock.toml"):
        (root / "etc" / name).write_text(WEB + DB)
    for args in (["blue"], ["red"], []):
        systemd("sockets", root, *args)
    (root / "etc/vhostvsock/blue.toml").write_text(WEB)
    capsys.readouterr()
    systemd("sockets", root, "blue")
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["removed", "unchanged"]
    systemd("sockets", root, "--remove")
    assert sorted(path.name for path in (root / "etc/systemd/system").iterdir()) == [
        "vhostvsock-db@red.socket",
        "vhostvsock-web@blue.socket",
        "vhostvsock-web@red.socket",
    ]
    systemd("uninstall", root)
    assert list((root / "etc/systemd/system").iterdir()) == []


def test_the_name_of_a_socket_unit_says_vm_and_namespace() -> None:
    assert unit_name("web", None) == "vhostvsock-web.socket"
    assert unit_name("a@b", "blue") == "vhostvsock-a\\x40b@blue.socket"


@pytest.mark.parametrize("name", ["../x", "a b", "a%b", ""])
def test_a_namespace_that_no_unit_can_be_named_after_is_refused(
    root: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert systemd("sockets", root, name) == 1
    assert "cannot be a part" in capfd.readouterr().err


def test_a_missing_configuration_or_root_is_named(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert systemd("sockets", root, "blue") == 2
    assert "blue.toml" in capfd.readouterr().err
    assert systemd("uninstall", root / "none") == 2


def test_both_services_are_the_same_but_for_the_namespace() -> None:
    def lines(name: str) -> set[str]:
        text = (UNITS / name).read_text()
        return {line for line in text.splitlines() if line and not line.startswith("#")}

    only = lines("vhostvsock@.service") ^ lines("vhostvsock.service")
    assert {line.split("=")[0] for line in only} == {
        "Description",
        "AssertPathExists",
        "ExecStart",
        "NetworkNamespacePath",
    }
