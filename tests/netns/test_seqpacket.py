"""Messages (SOCK_SEQPACKET) by CID and port: between guests and host applications, and between those. Small guests."""

from __future__ import annotations

import subprocess
import sys

import pytest
from netns.serving import LIMIT, World

STREAMS = 1234
MESSAGES = 1235
GUEST = (str(STREAMS), f"messages:{MESSAGES}")

# What the code below has at hand.
PRELUDE = """
import errno, socket, vhostvsock
SEQ, STREAM = socket.SOCK_SEQPACKET, socket.SOCK_STREAM
def tried(call, *args, **options):
    try:
        with call(*args, **options):
            return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]
def connecting(cid, port, type=SEQ):
    return tried(vhostvsock.connect, cid, port, type=type)
"""


def run(world: World, code: str, namespace: str | None = None) -> str:
    """What the code prints."""
    done = world.python(PRELUDE + code, namespace)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_messages_keep_their_boundaries_between_a_host_application_and_a_guest(served: World) -> None:
    served.daemon({"a": 42})
    assert served.guest("a", None, *GUEST).next() == "attached 42"
    code = f"""
with vhostvsock.connect(42, {MESSAGES}, type=SEQ) as sock:
    assert sock.type == SEQ
    messages = [b"one", b"two" * 1000, b"x" * 262144, b"last"]
    for message in messages:
        sock.send(message)
    print([sock.recv(1 << 20) == message for message in messages])
    try:
        sock.send(b"x" * 262145)
    except OSError as error:
        print(errno.errorcode[error.errno])
    sock.shutdown(socket.SHUT_WR)
    print(sock.recv(1))
"""
    assert run(served, code).splitlines() == ["[True, True, True, True]", "EMSGSIZE", "b''"]


@pytest.mark.parametrize("daemons", [1, 2])
def test_guest_reaches_an_application_that_listens_for_messages(served: World, daemons: int) -> None:
    served.daemon({"a": 42})
    guest = served.guest("a", None, *GUEST)
    assert guest.next() == "attached 42"
    # The application asks any daemon, also one that does not serve the VM.
    for number in range(1, daemons):
        served.daemon({f"other{number}": 50 + number})
    code = """
import sys
with vhostvsock.create_server(5000, type=SEQ) as server:
    print("listening", flush=True)
    sock, (cid, port) = server.accept()
    with sock:
        while message := sock.recv(65536):
            sock.send(b"<" + message + b">")
        try:
            sock.send(b"x" * 262145)
        except OSError as error:
            print(cid, errno.errorcode[error.errno])
"""
    words = [sys.executable, "-c", PRELUDE + code]
    with subprocess.Popen(words, cwd=served.directory, env=served.env, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        try:
            assert listener.stdout.readline() == "listening\n"
            guest.tell("messages 5000 one two three")
            assert guest.next() == "reply <one> <two> <three>"
            assert listener.stdout.readline() == "42 EMSGSIZE\n"
        finally:
            listener.kill()


def test_types_have_to_match_everywhere(served: World) -> None:
    served.daemon({"a": 42})
    guest = served.guest("a", None, *GUEST)
    assert guest.next() == "attached 42"
    code = f"""
print(connecting(42, {STREAMS}), connecting(42, {MESSAGES}, STREAM), connecting(42, 9), connecting(42, {MESSAGES}))
with vhostvsock.create_server(5000, type=SEQ), vhostvsock.create_server(5001):
    print(connecting(1, 5000), connecting(1, 5000, STREAM), connecting(1, 5001), connecting(1, 5002))
    # One port space for both.
    print(tried(vhostvsock.create_server, 5000), tried(vhostvsock.create_server, 5001, type=SEQ))
"""
    assert run(served, code).splitlines() == [
        "ECONNRESET ECONNRESET ECONNRESET ok",
        "ok ECONNRESET ECONNRESET ECONNRESET",
        "EADDRINUSE EADDRINUSE",
    ]
    listener = served.listen(5000, None, "-v")
    listener.wait("listening")
    guest.tell("messages 5000 hello")
    assert guest.next() == "error Reset"


def test_guest_behind_another_daemon_and_loopback_over_two(served: World) -> None:
    served.daemon({"a": 42})
    served.daemon({"b": 43})
    for name, cid in (("a", 42), ("b", 43)):
        assert served.guest(name, None, *GUEST).next() == f"attached {cid}"
    code = f"""
import glob, os
for cid in (42, 43):
    with vhostvsock.connect(cid, {MESSAGES}, type=SEQ) as sock:
        sock.send(b"hello"); print(sock.recv(99))
# A client of each daemon reaches the listener of the first one asked.
with vhostvsock.create_server(5000, type=SEQ) as server:
    for path in sorted(glob.glob(os.environ["VHOSTVSOCK_RUNTIME_DIR"] + "/bridge/*.sock.seqpacket")):
        with socket.socket(socket.AF_UNIX, SEQ) as client:
            client.connect(path)
            client.send(b"CONNECT 1 5000\\n")
            assert client.recv(99).startswith(b"OK "), path
            sock, (cid, _) = server.accept()
            with sock:
                client.send(b"over"); sock.send(b"back"); print(cid, sock.recv(99), client.recv(99))
"""
    assert run(served, code).splitlines() == ["b'hello'", "b'hello'", *["1 b'over' b'back'"] * 2]


def test_errnos_are_those_of_linux(world_of: World, spaces: dict[str, str]) -> None:
    world_of.daemon({"a": 42, "b": 42})
    assert world_of.guest("a", spaces["global0"], *GUEST).next() == "attached 42"
    # No such VM, one of an isolated namespace, nobody on loopback.
    code = f"print(connecting(77, 1), connecting(42, {MESSAGES}), connecting(1, 1), connecting(1, 1, STREAM))"
    assert run(world_of, code, spaces["global1"]) == "ESOCKTNOSUPPORT ok ECONNRESET ECONNRESET"
    # Within a local namespace there is no loopback for messages, also where somebody listens, but for streams there is.
    inside = f"""
print(connecting(42, {MESSAGES}), connecting(42, {MESSAGES}, STREAM))
with vhostvsock.create_server(5000, type=SEQ), vhostvsock.create_server(5001):
    print(connecting(1, 5000), connecting(1, 5001, STREAM))
"""
    assert run(world_of, inside, spaces["local0"]).splitlines() == ["ESOCKTNOSUPPORT ENODEV", "ESOCKTNOSUPPORT ok"]
    # A guest of the same local namespace can be reached, and reaches who listens there.
    assert world_of.guest("b", spaces["local0"], *GUEST).next() == "attached 42"
    assert run(world_of, f"print(connecting(42, {MESSAGES}))", spaces["local0"]) == "ok"


def test_commands_for_messages(served: World) -> None:
    served.daemon({"a": 42})
    assert served.guest("a", None, *GUEST).next() == "attached 42"
    connect = [sys.executable, "-m", "vhostvsock", "connect", "--seqpacket"]
    for where in (["42"], ["--uds", "a.v"]):
        done = subprocess.run(
            [*connect, *where, str(MESSAGES)],
            input=b"hello",
            cwd=served.directory,
            env=served.env,
            stdout=subprocess.PIPE,
            timeout=LIMIT,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, b"hello")
    listener = served.listen(5000, None, "-v", "--seqpacket")
    listener.wait("listening")
    code = """
with vhostvsock.connect(1, 5000, type=SEQ) as sock:
    sock.send(b"hello"); sock.shutdown(socket.SHUT_WR); print(sock.recv(99), sock.recv(99), sock.recv(99))
"""
    assert run(served, code) == "b'1\\n' b'hello' b''"
