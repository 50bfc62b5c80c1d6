"""`vhostvsock connect` against a server of our own that plays the daemon and the guest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import LIMIT, read_to_end

COMMAND = [sys.executable, "-m", "vhostvsock", "connect"]
Guest = Callable[[socket.socket], None]


class Server:
    """Accepts one client, reads its CONNECT line, and runs `guest` with the rest."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.request = b""
        self.error: BaseException | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        self._listener.settimeout(LIMIT)
        self._thread: threading.Thread | None = None

    def play(self, guest: Guest, answer: bytes = b"OK 1024\n") -> None:
        def run() -> None:
            try:
                sock, _ = self._listener.accept()
                with sock:
                    sock.settimeout(LIMIT)
                    while not self.request.endswith(b"\n"):
                        self.request += sock.recv(1)
                    sock.sendall(answer)
                    guest(sock)
            except BaseException as error:
                self.error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        if self._thread is not None:
            self._thread.join(LIMIT)
            assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def server(short_dir: Path) -> Iterator[Server]:
    made = Server(short_dir / "v.sock")
    yield made
    made.close()


def run(server: Server, port: str = "22", stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, "--uds", server.path, port], input=stdin, capture_output=True, timeout=LIMIT * 2, check=False
    )


def test_bytes_right_behind_the_answer_are_kept(server: Server) -> None:
    server.play(lambda sock: None, answer=b"OK 65535\nhello\n\0world")
    done = run(server)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n\0world", b"")
    assert server.request == b"CONNECT 22\n"


def test_the_end_of_input_is_passed_on_and_output_still_comes(server: Server) -> None:
    def guest(sock: socket.socket) -> None:
        got = read_to_end(sock)
        sock.sendall(hashlib.sha256(got).hexdigest().encode())

    server.play(guest)
    data = random.Random(1).randbytes(3_000_000)
    done = run(server, stdin=data)
    server.finish()
    assert (done.returncode, done.stdout) == (0, hashlib.sha256(data).hexdigest().encode())


def test_both_directions_flow_at_once_and_neither_stalls_the_other(server: Server) -> None:
    sent = random.Random(2).randbytes(5_000_000)
    got: list[bytes] = []

    def guest(sock: socket.socket) -> None:
        # Sends everything before it reads anything: a client that waited in a write would never end.
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        got.append(read_to_end(sock))

    server.play(guest)
    done = run(server, stdin=sent[::-1])
    server.finish()
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(sent).digest()
    assert got == [sent[::-1]]


def test_output_that_nobody_reads_does_not_stall_the_input(server: Server) -> None:
    taken = threading.Event()
    data = bytes(2_000_000)

    def guest(sock: socket.socket) -> None:
        writer = threading.Thread(target=sock.sendall, args=(data,), daemon=True)
        writer.start()
        assert read_to_end(sock) == b"y" * 1_000_000
        taken.set()
        writer.join(LIMIT)

    server.play(guest)
    with subprocess.Popen(
        [*COMMAND, "--uds", server.path, "22"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"y" * 1_000_000)
        process.stdin.close()
        assert taken.wait(LIMIT)
        assert process.stdout.read() == data
        assert process.wait(LIMIT) == 0


def test_regular_files_on_both_sides(server: Server, short_dir: Path) -> None:
    data = random.Random(3).randbytes(1_000_000)
    (short_dir / "in").write_bytes(data)

    def guest(sock: socket.socket) -> None:
        sock.sendall(read_to_end(sock))

    server.play(guest)
    with open(short_dir / "in", "rb") as source, open(short_dir / "out", "wb") as sink:
        done = subprocess.run(
            [*COMMAND, "--uds", server.path, "22"], stdin=source, stdout=sink, timeout=LIMIT, check=False
        )
    assert done.returncode == 0
    assert (short_dir / "out").read_bytes() == data


def test_stdout_is_closed_when_the_guest_ends_its_side_and_input_still_flows(server: Server) -> None:
    got: list[bytes] = []

    def guest(sock: socket.socket) -> None:
        sock.sendall(b"bye")
        sock.shutdown(socket.SHUT_WR)
        got.append(read_to_end(sock))

    server.play(guest)
    with subprocess.Popen(
        [*COMMAND, "--uds", server.path, "22"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read() == b"bye"
        process.stdin.write(b"still here")
        process.stdin.close()
        assert process.wait(LIMIT) == 0
    server.finish()
    assert got == [b"still here"]


def test_one_socket_as_stdin_and_stdout_sees_the_end_of_output(server: Server) -> None:
    server.play(lambda sock: sock.sendall(b"you said " + read_to_end(sock)))
    ours, theirs = socket.socketpair()
    command = [*COMMAND, "--uds", server.path, "22"]
    with ours, theirs, subprocess.Popen(command, stdin=theirs, stdout=theirs) as process:
        ours.settimeout(LIMIT)
        ours.sendall(b"hello")
        ours.shutdown(socket.SHUT_WR)
        # `theirs` is still open here: the end comes from the command, not from the last close.
        assert read_to_end(ours) == b"you said hello"
        assert process.wait(LIMIT) == 0


def test_an_idle_terminal_does_not_keep_the_command_once_the_guest_closed(server: Server) -> None:
    server.play(lambda sock: sock.sendall(b"bye\n"))
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            [*COMMAND, "--uds", server.path, "22"], stdin=follower, capture_output=True, timeout=LIMIT, check=False
        )
    finally:
        os.close(leader)
        os.close(follower)
    assert (done.returncode, done.stdout) == (0, b"bye\n")


def test_a_terminal_on_both_sides(server: Server) -> None:
    server.play(lambda sock: sock.sendall(b"you said " + sock.recv(100)))
    leader, follower = pty.openpty()
    with subprocess.Popen([*COMMAND, "--uds", server.path, "22"], stdin=follower, stdout=follower) as process:
        os.close(follower)
        os.write(leader, b"hello\n")
        seen = b""
        with contextlib.suppress(OSError):  # EIO: the last user of the terminal is gone
            while piece := os.read(leader, 1000):
                seen += piece
        assert process.wait(LIMIT) == 0
    os.close(leader)
    assert b"you said hello" in seen


def test_a_reader_that_leaves_ends_the_command_quietly(server: Server) -> None:
    def guest(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(bytes(65536))

    server.play(guest)
    with subprocess.Popen(
        [*COMMAND, "--uds", server.path, "22"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(LIMIT) == 1
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("closed", "code", "complaint"), [("<&-", 0, b""), (">&-", 1, b"cannot write the output"), ("<&- >&- 2>&-", 1, b"")]
)
def test_the_connection_is_not_taken_for_input_or_output_that_is_closed(
    server: Server, closed: str, code: int, complaint: bytes
) -> None:
    got: list[bytes] = []

    def guest(sock: socket.socket) -> None:
        got.append(read_to_end(sock))
        sock.sendall(b"hello")

    server.play(guest)
    command = f'exec "$@" {closed}'
    words = ["sh", "-c", command, "sh", *COMMAND, "--uds", server.path, "22"]
    done = subprocess.run(words, input=b"x", capture_output=True, timeout=LIMIT, check=False)
    server.finish()
    assert done.returncode == code
    assert complaint in done.stderr
    assert got == [b"x" if "<" not in closed else b""]
    assert done.stdout == (b"" if ">&- " in closed + " " else b"hello")


def test_input_that_the_guest_did_not_take_is_told(server: Server) -> None:
    server.play(lambda sock: sock.recv(1) and None)
    done = run(server, stdin=bytes(10_000_000))
    assert done.returncode == 1
    assert b"before it had read all input" in done.stderr


def test_an_interrupt_ends_the_command_without_a_traceback(server: Server) -> None:
    ready = threading.Event()

    def guest(sock: socket.socket) -> None:
        sock.sendall(b"x")
        ready.set()
        read_to_end(sock)

    server.play(guest)
    with subprocess.Popen(
        [*COMMAND, "--uds", server.path, "22"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == b"x"
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == -signal.SIGINT
        assert process.stderr.read() == b""


def test_an_interrupt_that_is_ignored_as_behind_an_ampersand_stays_ignored(server: Server) -> None:
    def guest(sock: socket.socket) -> None:
        sock.sendall(b"x")
        sock.sendall(read_to_end(sock))

    server.play(guest)
    with subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *COMMAND, "--uds", server.path, "22"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(b"still here", timeout=LIMIT)
        assert (process.returncode, out) == (0, b"still here")


@pytest.mark.parametrize(
    ("answer", "part"),
    [(b"", b"refused"), (b"NO\n", b"unexpected line"), (b"x" * 100, b"too long"), (b"OK 1", b"refused")],
)
def test_anything_but_an_answer_is_a_clear_error(server: Server, answer: bytes, part: bytes) -> None:
    server.play(lambda sock: None, answer=answer)
    done = run(server)
    assert done.returncode == 1
    assert done.stderr.startswith(b"vhostvsock: error: ")
    assert part in done.stderr
    assert b"hint: " in done.stderr


def test_no_answer_in_time_is_a_clear_error(server: Server) -> None:
    server.play(lambda sock: read_to_end(sock) and None, answer=b"")
    done = subprocess.run(
        [*COMMAND, "--uds", server.path, "--timeout", "0.3", "22"], capture_output=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 1
    assert b"within 0.3 s" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (["--uds", "/no/such/socket", "22"], 1, "cannot connect to /no/such/socket"),
        (["--uds", "/" + "x" * 200, "22"], 1, "cannot connect"),
        (["--uds", "s", "4294967296"], 2, "32 bits"),
        (["--uds", "s", "ssh"], 2, "not a number"),
        (["4294967296", "22"], 2, "32 bits"),
        (["--", "-1", "22"], 2, "32 bits"),
        (["22"], 2, "VHOSTVSOCK_UDS"),
        (["--uds", "s", "--timeout", "nan", "22"], 2, "--timeout"),
    ],
)
def test_a_mistake_is_one_clear_line(args: list[str], code: int, part: str) -> None:
    env = {key: value for key, value in os.environ.items() if key != "VHOSTVSOCK_UDS"}
    done = subprocess.run([*COMMAND, *args], env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == code
    assert done.stderr.startswith("vhostvsock: error: ")
    assert part in done.stderr


def test_the_socket_can_come_from_the_environment(server: Server) -> None:
    server.play(lambda sock: sock.sendall(b"hi"))
    env = {**os.environ, "VHOSTVSOCK_UDS": server.path}
    done = subprocess.run([*COMMAND, "22"], env=env, capture_output=True, timeout=LIMIT, check=False, input=b"")
    assert (done.returncode, done.stdout) == (0, b"hi")
