"""The life of a daemon: ready, served, stopped, taken over, refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.waiting import wait_for

from .conftest import ONE_VM, Process, Start, ask, connect, descriptors, read_to_end


def test_ready_is_said_once_and_then_both_sockets_listen(daemon: Process, short_dir: Path) -> None:
    for name in ("vh.sock", "v.sock"):
        connect(short_dir / name).close()
    assert daemon.stop() == 0
    ready = [line for line in daemon.lines if "vhostvsock: ready:" in line]
    assert ready == [f"vhostvsock: ready: serving 1 VM (cid42 cid 42 {short_dir}/vh.sock)"]


def test_a_daemon_without_stderr_writes_its_log_to_nobody(short_dir: Path) -> None:
    words = [sys.executable, "-m", "vhostvsock", "run", *ONE_VM, "--runtime-dir", "run", "-vv"]
    with subprocess.Popen(["sh", "-c", 'exec "$@" 2>&-', "sh", *words], cwd=short_dir) as process:
        try:
            wait_for(lambda: any((short_dir / "run" / "bridge").glob("*.sock.seqpacket")), "the bridge")
            (bridge,) = (short_dir / "run" / "bridge").glob("*.sock")
            wait_for(lambda: ask(bridge, b"LIST\n") == b"OK 0\n", "the daemon")
            # Or else a client would have the number before long.
            assert os.readlink(f"/proc/{process.pid}/fd/2") == os.devnull
        finally:
            process.terminate()
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_cleanly_and_removes_every_file(daemon: Process, short_dir: Path, number: int) -> None:
    sockets = ["v.sock", "v.sock.seqpacket", "vh.sock"]
    assert sorted(os.listdir(short_dir)) == sorted([*sockets, *(f"{name}.lock" for name in sockets)])
    assert daemon.stop(number) == 0
    assert os.listdir(short_dir) == []


def test_the_service_manager_is_told_ready_and_stopping(start: Start, short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(20)
        manager.bind(str(short_dir / "notify"))
        process = start(*ONE_VM, env={"NOTIFY_SOCKET": str(short_dir / "notify")})
        assert manager.recv(200) == b"READY=1"
        assert manager.recv(200) == b"STATUS=cid42 (cid 42) waiting for QEMU"
        with connect(short_dir / "vh.sock"):
            assert manager.recv(200) == b"STATUS=cid42 (cid 42) QEMU attached"
        assert manager.recv(200) == b"STATUS=cid42 (cid 42) waiting for QEMU"
        assert process.stop() == 0
        assert manager.recv(200) == b"STOPPING=1"


def test_a_daemon_killed_with_sigkill_is_followed_by_the_next_on_the_same_sockets_within_a_second(
    start: Start, short_dir: Path
) -> None:
    seconds = []
    for _ in range(5):
        begin = time.monotonic()
        process = start(*ONE_VM)
        process.wait_ready()
        # Without the time for which the machine had no processor for it.
        waited = int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]) / 1e9
        seconds.append(time.monotonic() - begin - waited)
        # Both sockets are its own: a front-end is attached, a client is answered.
        with connect(short_dir / "vh.sock"), connect(short_dir / "v.sock", b"CONNECT 80\n") as client:
            assert read_to_end(client) == b""
            assert process.stop(signal.SIGKILL) == -signal.SIGKILL
    # This process waits for a processor, too: the slowest says nothing about the daemon.
    assert min(seconds) < 1.0, seconds
    process = start(*ONE_VM)
    process.wait_ready()
    assert process.stop() == 0


@pytest.mark.parametrize(
    "flags",
    [
        ("--guest-cid", "43", "--socket", "vh.sock", "--uds-path", "other.sock"),
        ("--guest-cid", "43", "--socket", "other.sock", "--uds-path", "v.sock"),
    ],
)
def test_a_second_daemon_on_the_same_socket_is_refused_with_the_pid_of_the_first(
    daemon: Process, start: Start, short_dir: Path, flags: tuple[str, ...]
) -> None:
    second = start(*flags)
    assert second.ended() == 1
    assert second.lines[0].startswith("vhostvsock: error:")
    assert f"pid {daemon.pid}" in second.lines[0]
    assert second.lines[1].startswith("hint:")
    assert len(second.lines) == 2
    assert not any(name.startswith("other") for name in os.listdir(short_dir))
    connect(short_dir / "v.sock").close()
    assert daemon.stop() == 0


def test_a_file_in_the_way_is_neither_removed_nor_served(start: Start, short_dir: Path) -> None:
    (short_dir / "vh.sock").write_text("precious")
    process = start(*ONE_VM)
    assert process.ended() == 1
    assert "not a socket" in process.lines[0]
    assert os.listdir(short_dir) == ["vh.sock"]


def test_a_file_with_several_vms_serves_them_all_with_their_modes(start: Start, short_dir: Path) -> None:
    tables = "".join(
        f'[[vm]]\nname = "vm{i}"\ncid = {40 + i}\nsocket = "vh{i}"\nuds_path = "v{i}"\nsocket_mode = "06{i}0"\n'
        for i in (2, 4, 6)
    )
    (short_dir / "c.toml").write_text(tables)
    process = start("--config", "c.toml")
    line = process.wait_ready()
    assert line.startswith("vhostvsock: ready: serving 3 VMs (vm2 cid 42 ")
    for i in (2, 4, 6):
        for name in (f"vh{i}", f"v{i}"):
            assert stat.S_IMODE(os.lstat(short_dir / name).st_mode) == 0o600 + i * 8
        assert ask(short_dir / f"v{i}", b"CONNECT 5\n") == b""
    assert process.stop() == 0
    assert os.listdir(short_dir) == ["c.toml"]


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ((), "--guest-cid"),
        (("--guest-cid", "2", "--socket", "a", "--uds-path", "b"), "reserved"),
        (("--guest-cid", "4294967296", "--socket", "a", "--uds-path", "b"), "32 bits"),
        (("--config", "none.toml"), "none.toml"),
        (("--config", "c.toml", "--socket", "a"), "exclude"),
        (("--guest-cid", "42", "--socket", "a", "--uds-path", "b" * 100), "96"),
    ],
)
def test_wrong_usage_ends_with_code_2_and_names_what_is_wrong(start: Start, args: tuple[str, ...], part: str) -> None:
    process = start(*args)
    assert process.ended() == 2
    assert process.lines[0].startswith("vhostvsock: error:")
    assert part in process.lines[0]


def test_json_logs_are_one_object_per_line_the_ready_line_too(start: Start) -> None:
    process = start(*ONE_VM, "-vv", "--log-format", "json")
    process.wait_ready()
    assert process.stop() == 0
    entries = [json.loads(line) for line in process.lines]
    assert sum(entry["message"].startswith("vhostvsock: ready:") for entry in entries) == 1
    assert all({"time", "level", "message"} <= entry.keys() for entry in entries)


def test_a_front_end_that_comes_and_goes_a_hundred_times_leaves_nothing_behind(
    daemon: Process, short_dir: Path
) -> None:
    connect(short_dir / "vh.sock").close()
    daemon.wait_line("front-end gone")
    before = descriptors(daemon.pid)
    for _ in range(100):
        connect(short_dir / "vh.sock").close()
        daemon.wait_line("front-end gone")
    wait_for(lambda: descriptors(daemon.pid) <= before, f"back to {before} descriptors")
    assert daemon.stop() == 0


def test_a_second_front_end_is_refused_and_the_first_stays(daemon: Process, short_dir: Path) -> None:
    with connect(short_dir / "vh.sock") as first:
        daemon.wait_line("front-end attached")
        with connect(short_dir / "vh.sock") as second:
            assert read_to_end(second) == b""
        daemon.wait_line("refused: another one is attached")
        first.setblocking(False)
        with pytest.raises(BlockingIOError):
            first.recv(1)
    daemon.wait_line("front-end gone")


def test_a_front_end_that_stays_to_the_end_costs_no_line_of_the_log(daemon: Process, short_dir: Path) -> None:
    with connect(short_dir / "vh.sock"):
        daemon.wait_line("front-end attached")
        assert daemon.stop() == 0
    begin = next(number for number, line in enumerate(daemon.lines) if "SIGTERM: stopping" in line)
    (line,) = daemon.lines[begin + 1 :]
    assert line.endswith("stopped")


def test_a_second_front_end_that_comes_just_before_the_first_is_gone_is_served(
    daemon: Process, short_dir: Path
) -> None:
    first = connect(short_dir / "vh.sock")
    daemon.wait_line("front-end attached")
    with connect(short_dir / "vh.sock"):
        first.close()
        daemon.wait_line("front-end gone")
        daemon.wait_line("front-end attached")


def test_a_front_end_that_talks_nonsense_is_detached_and_the_next_is_served(daemon: Process, short_dir: Path) -> None:
    for _ in range(5):
        with connect(short_dir / "vh.sock", b"\xff" * 4096) as sock:
            read_to_end(sock)
        daemon.wait_line("front-end gone")
    assert daemon.stop() == 0


@pytest.mark.parametrize("how", ["gone", "stuck"])
def test_a_reader_of_stderr_that_is_gone_or_stuck_does_not_end_or_stop_the_daemon(short_dir: Path, how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "vhostvsock", "run", *ONE_VM, "-vv"], cwd=short_dir, stderr=subprocess.PIPE
    ) as popen:
        assert popen.stderr is not None
        assert b"ready:" in popen.stderr.readline()
        if how == "gone":
            popen.stderr.close()
        for _ in range(1000):
            connect(short_dir / "vh.sock").close()
        assert ask(short_dir / "v.sock", b"CONNECT 5\n") == b""
        popen.terminate()
        assert popen.wait(20) == 0


def test_the_descriptor_limit_is_raised_to_the_hard_limit(daemon: Process) -> None:
    with open(f"/proc/{daemon.pid}/limits", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    assert soft == hard
