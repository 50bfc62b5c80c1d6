"""The registry's file: found or made, and each way in which it can be unusable told in plain words."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vhostvsock.registry import database, runtime
from vhostvsock.registry.errors import RegistryError
from vhostvsock.registry.kernel import KernelModes
from vhostvsock.registry.rules import Mode, NetnsId, born
from vhostvsock.registry.store import Registry

INIT, RED = NetnsId(1), NetnsId(9)


def opened(directory: Path) -> Registry:
    return Registry(str(directory), kernel=KernelModes("/nonexistent"), own_cid=lambda: None)


def failure(directory: Path) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        opened(directory).vms()
    assert caught.value.exit_code == 1
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


# Where it is --------------------------------------------------------------------------------------------------------


def test_the_directory_is_the_argument_or_the_environment_or_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHOSTVSOCK_RUNTIME_DIR", "/somewhere")
    assert runtime.runtime_dir("/here") == "/here"
    assert runtime.runtime_dir() == "/somewhere"
    monkeypatch.delenv("VHOSTVSOCK_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert runtime.runtime_dir() == "/run/user/1000/vhostvsock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime.runtime_dir() == "/tmp/vhostvsock-1000"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert runtime.runtime_dir() == "/run/vhostvsock"
    # root of a user namespace, which has nothing to say in /run
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert runtime.runtime_dir() == "/run/user/1000/vhostvsock"


def test_everything_is_for_the_owner_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as registry:
        registry.register_daemon("bridge")
        registry.modes.declare_child(INIT, RED)
        for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_directory_that_was_prepared_for_a_group_decides_who_shares(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o2775)
    with opened(tmp_path / "run") as registry:
        registry.register_daemon("bridge")
        registry.modes.declare_child(INIT, RED)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").rglob("*")}
    assert modes.pop("registry.db") == modes.pop("registry.turn") == 0o660
    assert modes.pop("daemons") & 0o777 == 0o770
    # Everybody may know the modes: the daemons of other users go by them.
    assert modes.pop("netns") & 0o777 == 0o775
    assert modes.pop("9") == 0o664
    assert list(modes.values()) == [0o660]


@pytest.mark.parametrize("kind", ["file", "link", "open to all", "no parent"])
def test_a_directory_that_cannot_be_trusted_or_made_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    if kind == "file":
        path.touch()
    elif kind == "link":
        (tmp_path / "other").mkdir()
        path.symlink_to(tmp_path / "other")
    elif kind == "open to all":
        path.mkdir()
        path.chmod(0o777)
    else:
        path = tmp_path / "none" / "run"
    assert str(path) in str(failure(path))


def test_below_tmp_a_directory_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(f"/tmp/vhostvsock-test-{os.getpid()}")
    path.mkdir(mode=0o700)
    try:
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
        assert "made by another user" in str(failure(path))
    finally:
        path.rmdir()


# What is wrong with it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_is_named_and_the_way_out_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "registry.db").write_bytes(content)
    tmp_path.chmod(0o700)
    error = failure(tmp_path)
    assert "is damaged" in str(error)
    assert error.hint is not None
    assert f"remove {tmp_path}/registry.db" in error.hint
    assert "running VMs go on" in error.hint


def test_damage_within_the_file_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    opened(tmp_path).close()
    file = tmp_path / "registry.db"
    file.write_bytes(file.read_bytes()[:4096] + b"\xff" * (file.stat().st_size - 4096))
    assert "is damaged" in str(failure(tmp_path))


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    connection = sqlite3.connect(tmp_path / "registry.db")
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()
    assert "somebody else" in str(failure(tmp_path))


def test_a_newer_schema_is_told_with_both_versions(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    opened(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "registry.db")
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    assert "newer vhostvsock (schema 7; this one knows 1)" in str(failure(tmp_path))


def test_a_process_that_stops_in_the_middle_delays_others_for_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with opened(tmp_path) as registry:
        registry.register_daemon("bridge")
        holder = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryError, match="locked by another process"):
            registry.claim(INIT, 42, "web")
        holder.execute("ROLLBACK")
        holder.close()
        assert registry.claim(INIT, 42, "web").cid.value == 42


def test_what_could_not_be_released_is_released_with_the_next_call_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with opened(tmp_path) as registry, opened(tmp_path) as other:
        registry.register_daemon("bridge")
        claim, kept = registry.claim(INIT, 42, "web"), registry.claim(INIT, 43, "db")
        listener = registry.listen(INIT, 2, 5000)
        holder = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        for call in (
            lambda: registry.release(claim),
            lambda: registry.unlisten(listener),
            lambda: registry.set_running(kept, True),
        ):
            with pytest.raises(RegistryError):
                call()
        holder.execute("ROLLBACK")
        holder.close()
        assert [vm.cid.value for vm in other.vms()] == [42, 43]
        registry.daemons()
        assert [(vm.cid.value, vm.running) for vm in other.vms()] == [(43, True)]
        assert other.listeners() == []


def test_a_process_that_is_killed_within_a_transaction_leaves_the_file_as_it_was_before(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    code = (
        "import os, sys\n"
        "from vhostvsock.registry.database import Database\n"
        "with Database(sys.argv[1]).write() as cursor:\n"
        # A cache of one page: the changes are in the file, and the journal beside it, before the process dies.
        "    cursor.execute('PRAGMA cache_size = 1')\n"
        "    for n in range(5000):\n"
        "        cursor.execute('INSERT INTO daemons VALUES (?, 1, ?)', (str(n), 'x' * 200))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert (tmp_path / "registry.db-journal").exists()
    with opened(tmp_path) as registry:
        registry.register_daemon("bridge")
        assert registry.claim(INIT, 42, "web").cid.value == 42
        assert len(registry.daemons()) == 1


# What is noted belongs to one boot, and to daemons that live --------------------------------------------------------


def test_in_another_boot_nothing_of_the_last_one_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "run") as registry:
        registry.modes.declare_child(INIT, RED, wanted=Mode.LOCAL)
        registry.register_daemon("bridge")
        registry.claim(INIT, 42, "web")
    with opened(tmp_path / "run") as registry:
        assert registry.modes.state(RED) == born(Mode.LOCAL)
    (tmp_path / "boot").write_text("another\n")
    monkeypatch.setattr(runtime, "_BOOT_ID", str(tmp_path / "boot"))
    with opened(tmp_path / "run") as registry:
        assert registry.modes.all_known() == []
        assert registry.vms() == []


@pytest.mark.parametrize("all_of_it", [False, True])
def test_after_the_file_was_removed_every_daemon_enters_itself_again(
    tmp_path: Path, all_of_it: bool, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "run"
    with opened(directory) as one, opened(directory) as two:
        one.register_daemon("bridge1")
        two.register_daemon("bridge2")
        one.modes.declare_child(INIT, RED, name="red", wanted=Mode.LOCAL)
        claims = [one.set_running(one.claim(RED, 42, "web"), True), two.claim(INIT, 42, "db")]
        listener = two.listen(INIT, 2, 5000)
        if all_of_it:
            import shutil

            shutil.rmtree(directory)
        else:
            os.unlink(directory / "registry.db")
        with caplog.at_level(logging.WARNING, "vhostvsock.registry"):
            assert two.vms() == [claims[1]]
            assert "was removed" in caplog.text
            assert one.vms() == [claims[1], claims[0]]
        assert two.find_vm(RED, 42) == claims[0]
        assert two.listeners() == [listener]
        assert len(two.daemons()) == 2
        two.close()
        assert one.vms() == [claims[0]]
